"""The service as a process: it is measured, its answers are right while products are written, and a kill loses no write."""

from __future__ import annotations

import base64
import json
import shutil
import threading

import numpy as np
import pytest
from pictures import file_of, plain
from small_feeds import feed

from evaluation.service_load import ServiceLoad
from evaluation.service_process import Client, ServiceError, ServiceProcess
from evaluation.service_report import service_lines, service_problems, service_table
from evaluation.service_truth import ServiceTruth
from moon3.__main__ import main
from product_data.errors import OptionError
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.job import embed_feed


@pytest.fixture(scope="module")
def vectors(tmp_path_factory, tiny_moon):
    folder = tmp_path_factory.mktemp("shop")
    embed_feed(feed(folder, range(14)), folder / "vectors", EmbeddingOptions(str(tiny_moon(trained=True))))
    return folder / "vectors"


def put(client, product_id, title="lamp"):
    picture = base64.b64encode(file_of(plain("red"))).decode()
    product = {"product_id": product_id, "title": title, "pictures": [picture]}
    return client.call("PUT", "/products", {"products": [product]})[0]


@pytest.fixture(scope="module")
def measured(vectors, tmp_path_factory):
    """The short measurement: its exit status and its results."""
    output = tmp_path_factory.mktemp("measured") / "service.json"
    short = ["--seconds", "8", "--level-seconds", "0.5", "--clients", "4", "--repeats", "3"]
    short += ["--overload-clients", "16", "--max-requests", "8"]
    before = {path.name for path in vectors.iterdir()}
    status = main(["bench", "serve", str(vectors), "--output", str(output), *short])
    assert {path.name for path in vectors.iterdir()} == before
    return status, json.loads(output.read_text(encoding="utf-8"))


def test_the_service_is_right_under_load_with_writes_and_a_kill(measured):
    status, results = measured
    check = results["check"]
    print(service_lines(results))
    assert (status, service_problems(results)) == (0, [])
    assert (check["wrong_answers"], check["lost_writes"]) == (0, 0)
    assert check["writes"] > 2
    assert check["answers_a_second"] > 0
    assert check["megabytes_first_quarter"] > 10
    assert check["megabytes_later"] > 10
    assert len(results["levels"]) == 9
    assert all(level["answers_a_second"] > 0 for level in results["levels"])
    assert results["levels"][-1]["share_429"] > 0
    assert results["parts"]["both"]["encode"]["p50"] > 0
    assert results["provenance"]["sizes"]["clients"] == 4
    table = service_table(results).splitlines()
    assert [cell.strip() for cell in table[0].split("|")[1:-1]] == ["query", "1 client", "4 clients"]
    assert len(table) == 2 + 4


def changed(results, place, **values):
    """The results with other values in the last level or the check."""
    copied = json.loads(json.dumps(results))
    (copied["levels"][-1] if place == "overload" else copied["check"]).update(values)
    return copied


@pytest.mark.parametrize(
    ("place", "values", "problem"),
    [
        ("check", {"lost_writes": 1}, "1 acknowledged writes were lost"),
        ("check", {"wrong_answers": 2}, "2 answers were wrong"),
        ("check", {"other_statuses": {"0": 3, "500": 1}}, "found the statuses ['500']"),
        ("check", {"megabytes_first_quarter": 500, "megabytes_later": 551}, "found 551 MB; expected at most 10% more"),
        ("check", {"refused_without_retry_after": 1}, "1 refusals without Retry-After"),
        ("overload", {"share_429": 0.0}, "found no 429"),
        ("overload", {"answers_a_second": 0.1}, "found 0.1 answers a second; expected at least"),
        ("overload", {"other_statuses": {"0": 1}}, "found the statuses {'0': 1}"),
        ("overload", {"megabytes": 9000}, "the overload level: found 9000 MB"),
    ],
)
def test_each_thing_that_a_service_does_wrong_is_said(measured, place, values, problem):
    (found,) = service_problems(changed(measured[1], place, **values))
    assert problem in found


def test_memory_that_the_system_does_not_say_is_not_judged(measured):
    results = changed(measured[1], "check", megabytes_first_quarter=None, megabytes_later=None)
    for level in results["levels"]:
        level["megabytes"] = None
    assert service_problems(results) == []
    assert "memory not measured" in " ".join(service_lines(results))


def test_a_level_that_is_not_refused_must_not_have_as_many_clients_as_may_be_in_work():
    for sizes in ({"clients": 64}, {"overload_clients": 64}, {"max_requests": 100}):
        with pytest.raises(OptionError, match="--max-requests: found"):
            ServiceLoad(**sizes)


def test_the_client_reads_when_it_may_come_again(place, tmp_path):
    service = ServiceProcess(place, tmp_path / "log", ["--device", "cpu", "--max-requests", "1"])
    waits: list[tuple[int, int | None]] = []

    def search(number: int) -> None:
        client = Client(service.port)
        for again in range(20):
            status, _ = client.call("POST", "/search", {"text": f"lamp {number} {again}"})
            waits.append((status, client.retry_after))
        client.close()

    try:
        service.start()
        threads = [threading.Thread(target=search, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(waits) == {(200, None), (429, 1)}
    finally:
        service.kill()


@pytest.fixture
def place(vectors, tmp_path):
    """A folder of vectors with a store of its own."""
    copied = tmp_path / "vectors"
    shutil.copytree(vectors, copied)
    assert main(["index", str(copied)]) == 0
    return copied


def test_a_write_survives_a_kill_right_after_its_answer_and_the_next_index(place, tmp_path, capsys):
    service = ServiceProcess(place, tmp_path / "log", ["--device", "cpu"])
    try:
        service.start()
        client = Client(service.port)
        assert put(client, "of-client") == 200
        assert client.call("DELETE", "/products", {"product_ids": ["p0003"]})[0] == 200
        service.kill()
        assert main(["index", str(place)]) == 0
        assert "1 of clients kept" in capsys.readouterr().out
        service.start()
        client = Client(service.port)
        status, shown = client.call("GET", "/products/of-client")
        assert (status, shown["title"], shown["images"]) == (200, "lamp", ["pictures/0/of-client"])
        assert client.call("GET", "/products/p0003")[0] == 200  # the feed has it: it is back
        assert service.resident_bytes() > 10_000_000
    finally:
        service.kill()


def test_several_processes_share_a_store_and_write_in_turn(place, tmp_path):
    service = ServiceProcess(place, tmp_path / "log", ["--device", "cpu", "--workers", "2"])
    statuses: list[int] = []

    def write(number: int) -> None:
        client = Client(service.port)  # a connection of its own: one of the processes takes it
        statuses.append(put(client, f"of-client-{number}"))
        client.close()

    try:
        service.start()
        threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [200] * 12
        for _ in range(12):  # each process sees the writes of the other
            client = Client(service.port)
            assert client.call("GET", "/health")[1]["products"] == 14 + 12
            client.close()
    finally:
        service.kill()


def test_a_service_that_does_not_start_says_why(tmp_path):
    with pytest.raises(ServiceError, match=r"found no moon_store.json"):
        ServiceProcess(tmp_path / "nowhere", tmp_path / "log").start()


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong
# ---------------------------------------------------------------------------------------------------------------------
def hit(product_id, cosine):
    return {"product_id": product_id, "cosine": cosine}


def test_wrong_answers_are_found():
    vector_ND = np.array([[1, 0], [0, 1], [0.8, 0.6]], np.float32)
    truth = ServiceTruth(["a", "b", "c"], vector_ND, np.array([[0.6, 0.8]], np.float32), vector_ND[:1])
    right = [hit("a", 1.0), hit("c", 0.8)]
    assert truth.wrong(0, right, 2, {}) == ""
    assert "found no c, of cosine 0.8" in truth.wrong(0, [hit("a", 1.0), hit("b", 0.0)], 2, {})
    assert "expected 0.8" in truth.wrong(0, [hit("a", 1.0), hit("c", 0.7)], 2, {})
    assert "found x, which is not in the store" in truth.wrong(0, [hit("x", 1.0), *right], 2, {})
    assert "found 1 products; expected 2" in truth.wrong(0, right[:1], 2, {})

    truth.begin("w")
    with_w = [hit("a", 1.0), hit("c", 0.8), hit("w", 0.6)]
    for hits in (with_w, [*right, hit("b", 0.0)]):  # while it is written, both are right
        assert truth.wrong(0, hits, 3, {}) == ""
    truth.acknowledge("w", 0)
    assert truth.wrong(0, with_w, 3, truth.written()) == ""
    assert "found no w" in truth.wrong(0, [*right, hit("b", 0.0)], 3, truth.written())
    assert truth.wrong(0, [*right, hit("b", 0.0)], 3, {}) == ""  # it was asked before the write
    truth.begin("w")
    truth.acknowledge("w", None)
    assert "found w, which is not in the store" in truth.wrong(0, with_w, 3, truth.written())
