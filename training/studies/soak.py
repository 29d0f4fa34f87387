"""Kill a training run with SIGKILL repeatedly, also while it saves, and compare it with an uninterrupted run.

    moon3 soak training/recipes/smoke_moon1.yaml --kills 10 --processes 2 --output runs/soak

The recipe is run twice: one run is uninterrupted, the other is killed at random moments and started again with the same
command. All logged losses, the weights of the last complete checkpoint after each kill, and the final weights must be equal, bit
by bit. A recipe that does not stream is run on the embedded catalogue as parquet shards. `--key value` replaces any key of the
recipe. The exit status is 0 if nothing differs, 1 if something differs, 2 if the recipe is refused.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from safetensors.torch import load_file
from tqdm.auto import tqdm

from evaluation.provenance import provenance
from product_data.atomic_files import read_lines, write_atomically
from product_data.catalogue.making import make_catalogue
from product_data.errors import OptionError
from product_data.outputs import require_writable_file, require_writable_folder
from training.places import PROJECT
from training.recipe.arguments import parse_recipe
from training.runs.folder import MARKER, RunFolder

# The training, with a pause at every file that Python opens in a checkpoint or in a partial folder.
TRAIN = """
import sys, time
pause_seconds = float(sys.argv.pop(1))
def wait(event, arguments):
    if event == "open" and any(part in str(arguments[0]) for part in ("checkpoint-", ".partial")):
        time.sleep(pause_seconds)
sys.addaudithook(wait)
from training.train import main
sys.exit(main(sys.argv[1:]))
"""
WHOLE, KILLED = "uninterrupted", "killed"
_UNCOMPARED = ("items_per_second",)
_PATIENCE_SECONDS = 900.0


class SoakError(RuntimeError):
    """Raised if a training run failed, or ended before it could be killed."""

    exit_status = 1


@dataclass(frozen=True)
class Moment:
    """The moment of a kill.

    Args:
        kind: "start": some seconds after the start of the processes; "step": some seconds after a step was logged; "save": as
            soon as a file of a checkpoint exists, before its marker; "final": the same for the final model.
        step: the logged step, or the step of the checkpoint.
        file: name of a file of the checkpoint or the final model.
        seconds: the delay in seconds.
    """

    kind: str
    step: int = 0
    file: str = ""
    seconds: float = 0.0

    def is_reached(self, run: Path) -> bool:
        """Return whether the event of this moment has happened; the delay follows it."""
        if self.kind == "step":
            return logged_step(run) >= self.step
        if self.kind == "start":
            return True
        folder = RunFolder(run).checkpoint(self.step) if self.kind == "save" else RunFolder(run).final_partial
        return (folder / self.file).exists()


@dataclass(frozen=True)
class Pace:
    """The timing and the files of the uninterrupted run, from which the moments are drawn.

    Args:
        start_seconds: seconds until the first step was logged.
        step_seconds: seconds for one step, including its share of saving.
        checkpoint_files, final_files: names of the files of a save.
    """

    start_seconds: float
    step_seconds: float
    checkpoint_files: tuple[str, ...]
    final_files: tuple[str, ...]


def plan(kills: int, saves: int, save_steps: int, pace: Pace, rng: random.Random) -> list[Moment]:
    """Draw the moments of the kills, in ascending order.

    Args:
        kills: number of kills.
        saves: number of kills while a checkpoint or the final model is written.
        save_steps: steps between checkpoints.
        pace: pace of the uninterrupted run.
        rng: random generator.
    """
    with_ends = kills >= 4
    kinds = ["save"] * (saves - with_ends) + ["start"] * with_ends
    kinds += ["step"] * (kills - with_ends - len(kinds))
    rng.shuffle(kinds)
    moments, begun = [], 0
    for kind in kinds:
        if kind == "start":
            moments.append(Moment(kind, seconds=rng.uniform(0, pace.start_seconds)))
            continue
        if kind == "save":
            moments.append(Moment(kind, begun + save_steps, rng.choice(pace.checkpoint_files)))
        else:
            moments.append(Moment(kind, begun + rng.randint(1, save_steps), seconds=rng.uniform(0, pace.step_seconds)))
        begun += save_steps
    return moments + [Moment("final", file=rng.choice(pace.final_files))] * with_ends


class Processes:
    """The processes of one training run, in one process group.

    torchrun would start each process in a separate session, where one signal does not reach all of them.

    Args:
        command: command of each process.
        count: number of processes.
        log: log file of all processes.
    """

    def __init__(self, command: Sequence[str], count: int, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), "WORLD_SIZE": str(count)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if not torch.cuda.is_available():
            shared["ACCELERATE_USE_CPU"] = "true"
        self.log = log
        self.started: list[subprocess.Popen] = []
        for rank in range(count):
            environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            group = self.started[0].pid if self.started else 0
            with log.open("a") as stream:
                self.started.append(
                    subprocess.Popen(
                        command, env=environment, stdout=stream, stderr=subprocess.STDOUT, process_group=group
                    )
                )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: Any) -> None:
        if any(process.poll() is None for process in self.started):
            self.kill()

    def kill(self) -> None:
        """Send SIGKILL to the processes and their children, and wait until they end."""
        os.killpg(self.started[0].pid, signal.SIGKILL)
        for process in self.started:
            process.wait()

    def finish(self) -> list[int]:
        """Wait until the processes end, and return their exit statuses."""
        return [process.wait(timeout=_PATIENCE_SECONDS) for process in self.started]

    def wait_for(self, is_reached: Callable[[], bool]) -> None:
        """Wait until a condition is true.

        Raises:
            SoakError: a process ended before, or the time limit has passed.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not is_reached():
            if any(process.poll() is not None for process in self.started) and not is_reached():
                raise SoakError(f"the training ended before it could be killed:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise SoakError(
                    f"the training did not respond within {_PATIENCE_SECONDS:g} seconds:\n{self.log_tail()}"
                )
            time.sleep(0.001)

    def log_tail(self) -> str:
        """Return the end of the log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:]


def logged_step(run: Path) -> int:
    """Return the last step in a run's metrics, or 0."""
    lines = read_lines(RunFolder(run).metrics)
    return lines[-1]["step"] if lines else 0


def run_alone(command: Sequence[str], processes: int, run: Path, log: Path) -> Pace:
    """Train without interruption, and return the pace of the run.

    Raises:
        SoakError: the training failed.
    """
    begin = time.monotonic()
    with Processes(command, processes, log) as training:
        training.wait_for(lambda: logged_step(run) >= 1)
        start_seconds = time.monotonic() - begin
        if any(training.finish()):
            raise SoakError(f"the uninterrupted training failed:\n{training.log_tail()}")
    seconds, first = time.monotonic() - begin - start_seconds, RunFolder(run).checkpoints()[0]
    return Pace(start_seconds, seconds / logged_step(run), _names(first), _names(RunFolder(run).final))


def _names(folder: Path) -> tuple[str, ...]:
    """Return the files of a folder in the order of writing, except for the last one, which ends the save."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != MARKER]
    return tuple(str(path.relative_to(folder)) for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)[:-1])


def kill_once(moment: Moment, command: Sequence[str], processes: int, run: Path, log: Path) -> dict[str, Any]:
    """Start or resume a training run, kill it at the given moment, and return the state of its folder.

    Returns:
        The moment, the last logged step, the last complete checkpoint, whether this kill interrupted a save, and the
        incomplete folders, which may come from an earlier kill.
    """
    before = _half_written(run)
    with Processes(command, processes, log) as training:
        training.wait_for(lambda: moment.is_reached(run))
        time.sleep(moment.seconds)
        if all(process.poll() is not None for process in training.started):
            raise SoakError(f"the training ended before it could be killed:\n{training.log_tail()}")
        training.kill()
    good, half = RunFolder(run).last_good_checkpoint(), _half_written(run)
    return {
        "moment": {key: value for key, value in asdict(moment).items() if value},
        "logged_step": logged_step(run),
        "last_good_checkpoint": None if good is None else good.name,
        "in_a_save": any(before.get(name) != written for name, written in half.items()),
        "half_written": sorted(half),
    }


def _half_written(run: Path) -> dict[str, tuple[int, int]]:
    """Return the incomplete saves of a run, each with its inode and time, which distinguish attempts of the same name."""
    half = RunFolder(run).half_written()
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in half}


def differing_losses(whole: Path, run: Path) -> list[str]:
    """Return the differences of all logged values, except for the speed, from the uninterrupted run, step by step."""
    expected = {line["step"]: line for line in read_lines(RunFolder(whole).metrics)}
    differences = []
    for line in read_lines(RunFolder(run).metrics):
        other = expected.get(line["step"], {})
        keys = sorted((set(line) | set(other)) - set(_UNCOMPARED))
        changes = [f"{key} {line.get(key)} ≠ {other.get(key)}" for key in keys if line.get(key) != other.get(key)]
        differences += [f"step {line['step']}: {change}" for change in changes]
    return differences


def differing_weights(whole: Path, folder: Path) -> tuple[int, list[str]]:
    """Compare the weights of a checkpoint or final model with those of the uninterrupted run, bit by bit.

    Returns:
        The number of compared tensors, and the differences.
    """
    names = sorted({path.name for side in (whole, folder) for path in side.glob("*.safetensors")})
    compared, differences = 0, [] if names else [f"{folder.name}: no weights"]
    for name in names:
        if not ((whole / name).is_file() and (folder / name).is_file()):
            differences.append(f"{folder.name}/{name}: in only one of the runs")
            continue
        expected, found = load_file(whole / name), load_file(folder / name)
        compared += len(found)
        differences += [
            f"{folder.name}: {key}: in only one of the runs" for key in sorted(expected.keys() ^ found.keys())
        ]
        for key in sorted(expected.keys() & found.keys()):
            if expected[key].dtype != found[key].dtype or not torch.equal(expected[key], found[key]):
                differences.append(f"{folder.name}: {key}: different values")
    return compared, differences


def write_shards(folder: Path, products: int, seed: int) -> Path:
    """Write the embedded catalogue as two parquet shards of triplets: query, purchased product, hard negative."""
    product_rows, query_rows = make_catalogue(products=products, image_size=64, seed=seed, progress=False)
    known = {row["product_id"]: row for row in product_rows}
    rows = []
    for query in query_rows:
        right, wrong = known[query["positives"][0]], known[[*query["negatives"], *known][0]]
        rows.append(
            {
                "query": query["text"],
                "query_image": query["image"],
                "doc_id": right["product_id"],
                "doc_title": right["title"],
                "doc_image": right["images"][0],
                "neg_id": wrong["product_id"],
                "neg_title": wrong["title"],
                "neg_image": wrong["images"][0],
            }
        )
    folder.mkdir(parents=True)
    for shard in range(2):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[shard::2]), folder / f"{shard}.parquet")
    return folder


def streaming_recipe(recipe: str, overrides: Sequence[str], output: Path, seed: int) -> list[str]:
    """Return the command line of the recipe with streamed data, after checking the recipe as training does.

    Raises:
        RecipeError: the recipe cannot be run.
    """
    arguments = [recipe, *overrides]
    if not parse_recipe(arguments).data.streaming:
        shards = write_shards(output / "shards", products=60, seed=seed)
        arguments += ["--streaming", "true", "--data", str(shards)]
        arguments += ["--evaluate_before", "false", "--evaluate_after", "false"]
        parse_recipe(arguments)
    return arguments


@dataclass(frozen=True)
class SoakOptions:
    """Options of the kills, and the folder of the runs.

    Args:
        output: folder for the two runs, new or empty.
        kills: number of kills.
        saves: number of kills aimed at a save. Default: half of them.
        at_least_in_saves: number of kills that must interrupt a save.
        processes: number of training processes.
        save_steps: steps between checkpoints.
        seed: seed of the moments.
        pause_seconds: pause at each file of a save, so that a kill can hit the save of a small model.

    Raises:
        OptionError: the numbers are out of range, or the output is not empty.
        OutputError: the output cannot be written.
    """

    output: Path
    kills: int = 10
    saves: int | None = None
    at_least_in_saves: int = 3
    processes: int = 2
    save_steps: int = 2
    seed: int = 0
    pause_seconds: float = 0.02

    def __post_init__(self) -> None:
        if not 1 <= self.at_least_in_saves <= self.aimed_at_saves < self.kills:
            raise OptionError(
                f"found kills {self.kills}, saves {self.aimed_at_saves}, at-least-in-saves {self.at_least_in_saves}; "
                "expected 1 ≤ at-least-in-saves ≤ saves < kills"
            )
        for name, low in (("processes", 1), ("save_steps", 1), ("pause_seconds", 0)):
            if getattr(self, name) < low:
                raise OptionError(f"{name.replace('_', '-')}: found {getattr(self, name)}; expected at least {low}")
        if self.output.is_dir() and any(self.output.iterdir()):
            raise OptionError(
                f"output: found {self.output}, which is not empty; expected a folder that is new or empty"
            )
        require_writable_folder("--output", self.output)

    @property
    def aimed_at_saves(self) -> int:
        """The number of kills that are aimed at a save."""
        return (self.kills + 1) // 2 if self.saves is None else self.saves


def soak(arguments: Sequence[str], options: SoakOptions) -> dict[str, Any]:
    """Run the training without kills and with kills, and compare the runs.

    Args:
        arguments: the recipe and its overrides.
        options: options of the kills, and the folder.

    Returns:
        The kills, the numbers of compared values, and the differences.

    Raises:
        SoakError: a training run failed, or ended before it could be killed.
    """
    output, kills = options.output, options.kills
    steps = options.save_steps * (kills + 1)
    fixed = {"max_steps": steps, "save_steps": options.save_steps, "logging_steps": 1, "disable_tqdm": "true"}
    command = [sys.executable, "-c", TRAIN, str(options.pause_seconds), *arguments]
    command += [text for key, value in fixed.items() for text in (f"--{key}", str(value))]
    whole, run = output / WHOLE, output / KILLED
    found, differences, tensors = [], [], 0
    with tqdm(total=kills + 2, desc="soak", unit="run") as bar:
        all_kept = ["--output_dir", str(whole), "--save_total_limit", str(kills + 2)]
        pace = run_alone([*command, *all_kept], options.processes, whole, output / "uninterrupted.log")
        bar.update()
        command, log = [*command, "--output_dir", str(run)], output / "killed.log"
        for moment in plan(kills, options.aimed_at_saves, options.save_steps, pace, random.Random(options.seed)):
            found.append(kill_once(moment, command, options.processes, run, log))
            last = found[-1]["last_good_checkpoint"]
            differences += differing_losses(whole, run)
            if last is not None:
                compared, others = differing_weights(whole / last, run / last)
                tensors, differences = tensors + compared, differences + others
            bar.set_postfix_str(f"killed at step {found[-1]['logged_step']}, {len(differences)} differences")
            bar.update()
        with Processes(command, options.processes, log) as training:
            if any(training.finish()):
                raise SoakError(f"the last resumption failed:\n{training.log_tail()}")
        bar.update()
    compared, others = differing_weights(RunFolder(whole).final, RunFolder(run).final)
    differences += differing_losses(whole, run) + others
    lines = [{line["step"] for line in read_lines(RunFolder(folder).metrics)} for folder in (whole, run)]
    if lines[0] != lines[1]:
        differences.append(f"logged steps: {sorted(lines[0] ^ lines[1])} in only one of the runs")
    in_saves = sum(kill["in_a_save"] for kill in found)
    return {
        "steps": steps,
        "kills": found,
        "kills_in_a_save": in_saves,
        "kills_in_a_save_wanted": options.at_least_in_saves,
        "losses_compared": len(lines[1]),
        "checkpoint_tensors_compared": tensors,
        "final_tensors_compared": compared,
        "differences": differences,
        "passed": not differences and in_saves >= options.at_least_in_saves,
    }


def run_soak(
    recipe: str, overrides: Sequence[str], options: SoakOptions, results: Path | None = None
) -> dict[str, Any]:
    """Run the kill test on a recipe and write the results.

    Args:
        recipe: recipe to train; without streaming, it is run on the embedded catalogue as shards.
        overrides: `--key value` of the recipe.
        options: options of the kills, and the folder.
        results: JSON file to write. Default: soak.json in the output.

    Returns:
        The content of the file, and its path as "results".

    Raises:
        RecipeError: the recipe cannot be run.
        SoakError: a training run failed, or ended before it could be killed.
        OutputError: a file cannot be written.
    """
    require_writable_file("--results", results)
    options.output.mkdir(parents=True, exist_ok=True)
    found = soak(streaming_recipe(recipe, overrides, options.output, options.seed), options)
    facts = {"recipe": Path(recipe).name, "processes": options.processes} | found
    facts["provenance"] = provenance(options.seed, recipe=Path(recipe).name)
    path = results or options.output / "soak.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    return facts | {"results": path}
