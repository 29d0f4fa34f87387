import json

import pytest
import torch
from closeness import DOUBLE
from launched import run

from training.parallel.distributed import first_row, gather_ids, gather_with_gradient

TWO_PROCESSES = """
import json, sys
import torch
import torch.distributed as dist
from torch.nn.functional import normalize
from training.parallel.distributed import first_row, gather_ids, gather_with_gradient
from training.losses.info_nce import info_nce

dist.init_process_group("gloo")
torch.set_default_dtype(torch.float64)
rank, sizes = dist.get_rank(), [3, 5]
generator = torch.Generator().manual_seed(0)
query, item = torch.randn(8, 4, generator=generator), torch.randn(8, 4, generator=generator)
weight = torch.randn(6, 4, generator=generator)


def loss_of(encoder, rows, gather):
    queries, items = normalize(encoder(query[rows]), dim=1), normalize(encoder(item[rows]), dim=1)
    start = first_row(len(rows), queries.device) if gather else 0
    candidates = gather_with_gradient(items) if gather else items
    losses = info_nce(queries, candidates, start + torch.arange(len(rows)), 0.2, reduction="sum")
    return losses / 8, candidates


def encoder():
    layer = torch.nn.Linear(4, 6, bias=False)
    layer.weight.data.copy_(weight)
    return layer


one, two = encoder(), encoder()
own = list(range(0, 3)) if rank == 0 else list(range(3, 8))
whole, candidates_one = loss_of(one, list(range(8)), gather=False)
part, candidates_two = loss_of(two, own, gather=True)
whole.backward()
part.backward()
for tensor in (part := part.detach(), two.weight.grad):
    dist.all_reduce(tensor)
ids = gather_ids(torch.tensor(own) * 10)
if rank == 0:
    json.dump({
        "loss": [whole.item(), part.item()],
        "candidates": (candidates_one - candidates_two).abs().max().item(),
        "gradient": (one.weight.grad - two.weight.grad).abs().max().item(),
        "size_of_gradient": one.weight.grad.abs().max().item(),
        "ids": ids.tolist(),
    }, open(sys.argv[1], "w"))
dist.destroy_process_group()
"""


A_LONG_EVALUATION = """
import datetime, sys, time
import torch.distributed as dist
from training.parallel.distributed import first_process_alone

dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=3))
with first_process_alone() as first:
    if first:
        time.sleep(8)
        open(sys.argv[1], "w").write("evaluated")
assert open(sys.argv[1]).read() == "evaluated"
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_with_uneven_batches_equal_one_process(tmp_path):
    script, result = tmp_path / "two_processes.py", tmp_path / "result.json"
    script.write_text(TWO_PROCESSES)
    run(script, result, processes=2)
    found = json.loads(result.read_text())
    assert found["loss"][0] == pytest.approx(found["loss"][1], abs=DOUBLE)
    assert found["candidates"] < DOUBLE
    assert found["size_of_gradient"] > 0.01
    assert found["gradient"] < DOUBLE
    assert found["ids"] == [0, 10, 20, 30, 40, 50, 60, 70]


@pytest.mark.slow
def test_others_wait_for_the_first_process_beyond_the_timeout_of_the_group(tmp_path):
    script, result = tmp_path / "long_evaluation.py", tmp_path / "result"
    script.write_text(A_LONG_EVALUATION)
    run(script, result, processes=2)
    assert result.read_text() == "evaluated"


def test_on_one_process_gathering_changes_nothing():
    tensor = torch.ones(2, 3, requires_grad=True)
    assert gather_with_gradient(tensor) is tensor
    assert gather_ids(torch.tensor([4, 2])).tolist() == [4, 2]
    assert first_row(2, torch.device("cpu")) == 0
