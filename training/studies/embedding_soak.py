"""Kill an embedding job with SIGKILL repeatedly, also while it writes, and compare its folder with an uninterrupted one.

    moon3 soak-embed --products 100000 --kills 5 --output runs/soak-embed --results results/embedding_job.json

The feed is drawn: products of the embedded catalogue with small pictures, each used by many products whose titles, attributes
and prices differ (drawing 100,000 pictures takes longer than embedding them). The model is a small Moon with random weights.
The same job runs uninterrupted and killed: every id must be there once, with equal vectors. Then 1 % of the products change,
1 % leave, 1 % come, and 1 % only change their price: exactly those must be worked on, and all other vectors stay equal, bit by
bit.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from evaluation.provenance import provenance
from product_data.atomic_files import PARTIAL, write_atomically
from product_data.catalogue.making import make_catalogue
from product_data.errors import OptionError
from product_data.outputs import require_writable_folder
from retrieval.stores.interface import StoredProduct
from retrieval.vectors.vector_files import VectorFolder
from training.model.small_base import make_base
from training.model.upcycle import upcycle
from training.places import PROJECT

WHOLE, KILLED = "uninterrupted", "killed"
TOLERANCE = 1e-6
_SENTENCE = re.compile(
    r"embedded ([\d,]+), kept ([\d,]+)(?: \(([\d,]+) with new facts\))?, removed ([\d,]+), failed ([\d,]+)"
)
_PICTURE_SIDE = 64
_PATIENCE_SECONDS = 3600.0


class EmbeddingSoakError(RuntimeError):
    """Raised if a job failed, or ended before it could be killed."""

    exit_status = 1


@dataclass(frozen=True)
class EmbeddingSoak:
    """Options of the study.

    Args:
        output: folder for feed, model and vectors, new or empty.
        products (`int`): of the feed, at least 300. Default 100,000.
        pictures (`int`): drawn pictures that the products share. Default 2,000.
        kills (`int`): number of kills, at least 3. Default 5.
        rows_per_shard (`int`): vectors per shard. Default 2,048.
        seed (`int`): of the feed and of the moments. Default 0.

    Raises:
        OptionError: a number out of range, or an output that is not empty.
    """

    output: Path
    products: int = 100_000
    pictures: int = 2_000
    kills: int = 5
    rows_per_shard: int = 2_048
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("products", 300), ("pictures", 18), ("kills", 3), ("rows_per_shard", 1)):
            if getattr(self, name) < low:
                raise OptionError(f"{name.replace('_', '-')}: found {getattr(self, name)}; expected at least {low}")
        if self.output.is_dir() and any(self.output.iterdir()):
            raise OptionError(f"output: found {self.output}, which is not empty; expected a new or empty folder")
        require_writable_folder("--output", self.output)


class Feed:
    """A drawn feed: rows of the project's products table, with pictures in files.

    Args:
        folder: for the pictures and products.jsonl.
        options: of the study.
    """

    def __init__(self, folder: Path, options: EmbeddingSoak) -> None:
        self.path = folder / "products.jsonl"
        (folder / "images").mkdir(parents=True)
        self._drawn, _ = make_catalogue(
            products=options.pictures, seed=options.seed, image_size=_PICTURE_SIDE, queries_per_product=0
        )
        for number, row in enumerate(self._drawn):
            (folder / "images" / f"{number}.jpg").write_bytes(row["images"][0])
        self.rows = [self.row(number) for number in range(options.products)]

    def row(self, number: int) -> dict[str, Any]:
        """Return product `number`: a drawn product, with few words, under a title and a price of its own."""
        drawn = self._drawn[number % len(self._drawn)]
        edition = number // len(self._drawn)
        return {
            "product_id": f"sku-{number:07}",
            "title": f"{drawn['title']} no. {number}",
            "category_path": drawn["category_path"],
            "attributes": [*drawn["attributes"][:1], {"key": "edition", "value": f"{edition}"}],
            "images": [self.picture(number)],
            "price": f"{5 + number % 400 / 4:.2f}",
            "currency": "EUR",
            "availability": "in_stock",
        }

    def picture(self, number: int) -> str:
        """Return the path of a drawn picture, relative to the feed."""
        return f"images/{number % len(self._drawn)}.jpg"

    def change(self, rng: random.Random) -> dict[str, set[str]]:
        """Change the feed: 1 % of the products each are changed, removed, added, and get another price alone.

        Returns: "changed", "removed", "added", "priced": their ids.
        """
        count = max(3, len(self.rows) // 100)
        chosen = rng.sample(range(len(self.rows)), 3 * count)
        changed, removed, priced = chosen[:count], set(chosen[count : 2 * count]), chosen[2 * count :]
        for place, number in enumerate(changed):
            row = self.rows[number]
            kind = place % 3
            if kind == 0:
                row["title"] = f"new {row['title']}"
            elif kind == 1:
                row["attributes"] = row["attributes"][:-1]
            else:
                row["images"] = [self.picture(number + 1)]
        for number in priced:
            self.rows[number]["price"] = "999.00"
        added = [self.row(len(self.rows) + more) for more in range(count)]
        ids = {name: {self.rows[n]["product_id"] for n in numbers} for name, numbers in
               (("changed", changed), ("removed", removed), ("priced", priced))}  # fmt: skip
        self.rows = [row for number, row in enumerate(self.rows) if number not in removed] + added
        return ids | {"added": {row["product_id"] for row in added}}

    def write(self) -> None:
        """Write the table."""
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))


@dataclass
class Job:
    """The command of an embedding job, its folder and its log."""

    command: Sequence[str]
    output: Path
    log: Path

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen]:
        """Run the command in a process, which is killed at the end of the block."""
        with self.log.open("a") as stream:
            process = subprocess.Popen(
                [*self.command, "--output", str(self.output)], stdout=stream, stderr=stream, cwd=PROJECT
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def finish(self) -> dict[str, int]:
        """Run the command to its end, and return the numbers of its last sentence.

        Raises:
            EmbeddingSoakError: it failed, or takes too long.
        """
        with self.running() as process:
            try:
                status = process.wait(timeout=_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise EmbeddingSoakError(
                    f"the job has not ended after {_PATIENCE_SECONDS:g} seconds:\n{self.log_tail()}"
                ) from error
        if status:
            raise EmbeddingSoakError(f"the job failed:\n{self.log_tail()}")
        found = _SENTENCE.findall(self.log.read_text(encoding="utf-8", errors="replace"))
        numbers = [int(number.replace(",", "") or 0) for number in found[-1]]
        return dict(zip(("embedded", "kept", "updated", "removed", "failed"), numbers, strict=True))

    def kill_at(self, moment: str, shards: int, seconds: float) -> dict[str, Any]:
        """Start the command, kill it at a moment, and return what the kill left.

        Args:
            moment: "time": some seconds after this run has written shards; "shard": while a shard is written; "finish": while
                the products' facts are written at the end.
            shards (`int`): for "time" and "shard", number of shards that this run writes before.
            seconds (`float`): for "time".

        Raises:
            EmbeddingSoakError: the job ended before, or takes too long.
        """
        folder, before = self.output / "shards", _count(self.output / "shards")
        deadline = time.monotonic() + _PATIENCE_SECONDS
        pattern = (self.output, f"products.parquet{PARTIAL}") if moment == "finish" else (folder, f"*.parquet{PARTIAL}")
        with self.running() as process:
            while True:
                self._require_running(process, deadline, moment)
                if moment == "finish" or _count(folder) >= before + shards:
                    if moment == "time":
                        time.sleep(seconds)
                        self._require_running(process, deadline, moment)
                        break
                    if any(pattern[0].glob(pattern[1])):
                        process.send_signal(signal.SIGSTOP)  # it may just have been renamed: look while nothing moves
                        if any(pattern[0].glob(pattern[1])):
                            break
                        process.send_signal(signal.SIGCONT)
                time.sleep(0.0002)
        partial = [path.name for path in [*self.output.glob(f"*{PARTIAL}"), *folder.glob(f"*{PARTIAL}")]]
        return {"moment": moment, "shards": _count(folder), "partial": partial}

    def _require_running(self, process: subprocess.Popen, deadline: float, moment: str) -> None:
        if process.poll() is not None:
            raise EmbeddingSoakError(f"the job ended before it could be killed ({moment}):\n{self.log_tail()}")
        if time.monotonic() > deadline:
            raise EmbeddingSoakError(
                f"the job has not reached the moment of its kill ({moment}) after {_PATIENCE_SECONDS:g} seconds:\n"
                f"{self.log_tail()}"
            )

    def log_tail(self) -> str:
        """Return the end of the log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:]


def _count(folder: Path) -> int:
    return sum(path.suffix == ".parquet" for path in folder.iterdir()) if folder.is_dir() else 0


def soak_embedding(options: EmbeddingSoak) -> dict[str, Any]:
    """Run the study, and return its figures and the differences.

    Raises:
        EmbeddingSoakError: a job failed, or ended before it could be killed.
    """
    rng = random.Random(options.seed)
    feed = Feed(options.output / "feed", options)
    feed.write()
    texts = [f"{row['title']} {' > '.join(row['category_path'])}" for row in feed.rows[:200]]
    base = make_base(options.output / "base", texts=texts, vocab_size=600)
    model = upcycle(base, options.output / "model", embedding_dim=32)
    command = [sys.executable, "-m", "moon3", "embed", str(feed.path), "--model", str(model), "--device", "cpu"]
    command += ["--batch-size", "64", "--rows-per-shard", str(options.rows_per_shard)]
    jobs = {name: Job(command, options.output / name, options.output / f"{name}.log") for name in (WHOLE, KILLED)}
    begin = time.monotonic()
    with tqdm(total=options.kills + 3, desc="soak", unit="run") as bar:
        first = jobs[WHOLE].finish()
        seconds = time.monotonic() - begin
        bar.update()
        kills = []
        for moment, shards in plan(options, rng):
            kills.append(jobs[KILLED].kill_at(moment, shards, rng.uniform(0, 1)))
            bar.update()
        last = jobs[KILLED].finish()
        bar.update()
        differences, compared = compare(options.output / WHOLE, options.output / KILLED, feed)
        if not any(kill["partial"] for kill in kills):
            differences.append("no kill interrupted a write")
        before, vectors = VectorFolder(options.output / KILLED), vectors_of(options.output / KILLED)
        facts = {product.product_id: product for product in before.products()}
        changes = feed.change(rng)
        feed.write()
        update = jobs[KILLED].finish()
        bar.update()
        differences += compare_update(options.output / KILLED, changes, update, vectors, facts)
    return {
        "products": options.products,
        "pictures": options.pictures,
        "uninterrupted": first | {"seconds": round(seconds, 1)},
        "kills": kills,
        "after_the_last_kill": last,
        "compared": compared,
        "update": update | {name: len(ids) for name, ids in changes.items()},
        "differences": differences,
        "passed": not differences,
        "provenance": provenance(
            options.seed, rows_per_shard=options.rows_per_shard, model="random weights, 32 dimensions"
        ),
    }


def plan(options: EmbeddingSoak, rng: random.Random) -> list[tuple[str, int]]:
    """Draw the moments of the kills: (moment, shards that the run writes before); the last one is at the finish."""
    shards = options.products // options.rows_per_shard
    kinds = ["shard", *(rng.choice(("time", "shard")) for _ in range(options.kills - 2))]
    rng.shuffle(kinds)
    return [*((kind, rng.randint(0, max(1, shards // (options.kills + 1)))) for kind in kinds), ("finish", 0)]


def vectors_of(folder: Path) -> dict[str, np.ndarray]:
    """Return product id → vector of a folder.

    Raises:
        EmbeddingSoakError: an id occurs twice.
    """
    vectors: dict[str, np.ndarray] = {}
    for ids, rows in VectorFolder(folder).vectors("mm"):
        if vectors.keys() & set(ids) or len(set(ids)) < len(ids):
            raise EmbeddingSoakError(f"{folder}: a product has two vectors")
        vectors.update(zip(ids, rows, strict=True))
    return vectors


def compare(whole: Path, killed: Path, feed: Feed) -> tuple[list[str], dict[str, Any]]:
    """Return the differences of two folders, and what was compared."""
    ids = {row["product_id"] for row in feed.rows}
    one, two = vectors_of(whole), vectors_of(killed)
    differences = [
        f"{folder.name}: {len(found.keys() ^ ids)} ids differ from the feed"
        for folder, found in ((whole, one), (killed, two))
        if found.keys() != ids
    ]
    largest = max((float(np.abs(one[id_] - two[id_]).max()) for id_ in one.keys() & two.keys()), default=0.0)
    equal = sum(bool((one[id_] == two[id_]).all()) for id_ in one.keys() & two.keys())
    if largest > TOLERANCE:
        differences.append(f"vectors differ by {largest:.2g}; expected at most {TOLERANCE:g}")
    if list(VectorFolder(whole).products()) != list(VectorFolder(killed).products()):
        differences.append("the products' facts differ")
    return differences, {"vectors": len(one), "equal_bit_by_bit": equal, "largest_difference": largest}


def compare_update(
    folder: Path,
    changes: dict[str, set[str]],
    update: dict[str, int],
    vectors: dict[str, np.ndarray],
    facts: dict[str, StoredProduct],
) -> list[str]:
    """Return what an update did otherwise than the feed's changes call for.

    Args:
        folder: the folder after the update.
        changes: result of `Feed.change`.
        update: numbers of the job's last sentence.
        vectors, facts: of the folder before.
    """
    changed, added, removed = (changes[name] for name in ("changed", "added", "removed"))
    after = vectors_of(folder)
    facts_after = {product.product_id: product for product in VectorFolder(folder).products()}
    other = {id_ for id_ in after.keys() & vectors.keys() if (after[id_] != vectors[id_]).any()}
    new_facts = {id_ for id_ in facts_after.keys() & facts.keys() if facts_after[id_] != facts[id_]}
    expected = {
        "embedded": len(changed) + len(added),
        "kept": len(vectors) - len(changed) - len(removed),
        "updated": len(changes["priced"]),
        "removed": len(removed),
        "failed": 0,
    }
    checks = {
        f"the job's numbers are {update}; expected {expected}": update == expected,
        f"vectors of {len(other ^ changed)} products changed or stayed unexpectedly": other == changed,
        "removed or added products are wrong": after.keys() == (vectors.keys() - removed) | added,
        "the facts of other products changed": new_facts == changed | changes["priced"],
    }
    return [what for what, is_right in checks.items() if not is_right]
