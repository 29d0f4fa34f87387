"""Train a model as a recipe says: `accelerate launch training/train.py RECIPE.yaml --key value`.

The same command again resumes from the last good checkpoint in output_dir, and does nothing once the run is finished.
"""

import sys
from pathlib import Path

if __package__ in (
    None,
    "",
):  # run as a script: our packages lie beside this folder, and none of ours may hide a library
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import contextlib
import dataclasses
import functools
import gc
import importlib.metadata
import json
import shutil
import time
from collections.abc import Iterator
from typing import Any

import torch
import yaml
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, set_seed

from evaluation.provenance import provenance
from evaluation.report import results_table
from evaluation.run import EvaluationOptions, evaluate_model
from processing_moon import MoonProcessor
from product_data.tables import ProductTables, TableError
from retrieval.encode import load_for_evaluation
from retrieval.shortened import shortened_sentence, shortened_summary
from training.assembly.objective import check_fits
from training.assembly.sources import digest_of, read_data, unanswered_queries
from training.assembly.stages import MakeTrainer, trainer_factory
from training.assembly.starting_model import (
    BASE_FOLDERS,
    choose_what_learns,
    encoder_of,
    load_start,
    prepare_base,
    save_trained,
    whole_trained,
)
from training.assembly.stream_sources import open_streams, sample_tables
from training.batches.collate import UnreadableBatchError
from training.batches.streams import StreamError
from training.model.card_facts import update_results
from training.model.upcycle import UpcycleError
from training.parallel.distributed import first_process_alone
from training.recipe.arguments import AUTO, Recipe, RecipeError, make_recipe, parse_recipe, usage
from training.recipe.reasoning import COLD_START, cold_start_values
from training.recipe.same_recipe import differences, differing_keys
from training.runs.exact_resumption import METRICS_FILE, SHORTENED_FILE, SKIPPED_FILE, ResumeError
from training.runs.finite_steps import NonFiniteLossError
from training.runs.full_disk import DiskFullError, stops_on_a_full_disk
from training.runs.lock import alone_in
from training.runs.progress_bars import bars_shown
from training.runs.resume import (
    PARTIAL,
    checkpoints,
    last_good_checkpoint,
    mend_lines,
    read_lines,
    remove_incomplete,
    write_atomically,
    written_whole,
)

RECIPE_FILE = "resolved_recipe.yaml"
PROVENANCE_FILE = "provenance.json"
COLD_START_FILE = "cold_start_recipe.yaml"
COMPLETIONS = "completions"
FINISHED_FILE = "finished.json"
_OWN_FILES = (
    *(RECIPE_FILE, COLD_START_FILE, PROVENANCE_FILE, FINISHED_FILE, METRICS_FILE, SKIPPED_FILE, SHORTENED_FILE),
    "completions.html",
)
_OWN_FOLDERS = (*BASE_FOLDERS, COLD_START, COMPLETIONS, "final", "adapter", f"final{PARTIAL}", f"adapter{PARTIAL}")
REFUSED = (RecipeError, TableError, UpcycleError, ResumeError)
"""What the user can put right before a training starts."""
STOPPED = (NonFiniteLossError, UnreadableBatchError, StreamError, DiskFullError)
"""What ends a training that has started."""
_WARM_UP_STEPS, _LEAST_MEASURED_STEPS = 3, 5


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status: 0 trained or already finished, 2 refused, 3 stopped by data or a full disk."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(usage())
        return 0
    try:
        run(parse_recipe(arguments))
    except REFUSED as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except STOPPED as error:
        print(f"train: {error}", file=sys.stderr)
        return 3
    return 0


@stops_on_a_full_disk
def run(recipe: Recipe) -> None:
    """Train as the recipe says, or continue, or say that it is done.

    Raises:
        RecipeError: the recipe does not fit the data, the model or what output_dir already holds; or another run is at work
            in output_dir.
        TableError: a data set that cannot be used.
        DiskFullError: a file that cannot be written.
    """
    args = recipe.training
    with bars_shown(not args.disable_tqdm), alone_in(Path(args.output_dir), args), forgotten_if_refused(recipe):
        _run(recipe)


def _run(recipe: Recipe) -> None:
    args, output_dir = recipe.training, Path(recipe.training.output_dir)
    cold_start = None if recipe.reasoning.cold_start is None else cold_start_of(recipe)
    with args.main_process_first(local=False, desc="opening the run's folder"):
        finished = open_run(recipe)
    if finished:
        finish_evaluation(recipe)
        of_another = recipe.path.name == COLD_START_FILE
        print(
            f"{output_dir}: this run is finished, its model is in {output_dir / 'final'}"
            + ("" if of_another else "; --overwrite starts again")
        )
        return
    streams = open_streams(recipe) if recipe.data.streaming else []
    tables = [] if streams else read_data(recipe)
    training_tables = [tables_of.select(recipe.data.split) for tables_of in tables]
    recipe.facts["data_digests"] = {table.name: digest_of(table) for table in training_tables}
    unanswered = unanswered_queries(training_tables)
    if unanswered:
        recipe.facts["queries_without_an_answer_in_the_split"] = unanswered
        if args.process_index == 0:
            print(f"queries of the split without an answer in it, which are not drawn, by type: {unanswered}")
    if cold_start is not None:
        run_cold_start(recipe, cold_start)
    with args.main_process_first(local=False, desc="preparing the base"):
        sampled = recipe.model.small_base is not None or recipe.data.max_tokens == AUTO
        texts = training_tables or (sample_tables(streams) if sampled else [])
        start = prepare_base(recipe, texts)
    set_seed(args.seed)
    model, processor = load_start(recipe, start, on_gpu=args.device.type == "cuda", tables=texts)
    if args.evaluate_before:
        evaluate(recipe, model, processor, tables, "before", steps=0)
    learner = choose_what_learns(model, recipe.model)
    check_fits(recipe.loss, recipe.model, learner)
    make_trainer = trainer_factory(
        recipe, learner, processor, streams or training_tables, functools.partial(write_records, recipe)
    )
    settle_max_steps(recipe, make_trainer, learner)
    trainer = make_trainer(args, args.max_steps)
    checkpoint = last_good_checkpoint(output_dir)
    if checkpoint is not None:
        check_same_data(recipe, checkpoint)
    if checkpoint is not None and args.process_index == 0:
        print(f"resuming from {checkpoint}")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finish(recipe, trainer, processor, tables, start)


def check_same_data(recipe: Recipe, checkpoint: Path) -> None:
    """Refuse to go on with tables of which other pairs would be drawn; streams look at their own shards.

    Raises:
        ResumeError: names the data sets that have changed.
    """
    facts = json.loads((checkpoint / PROVENANCE_FILE).read_text(encoding="utf-8"))
    before, now = facts.get("data_digests", {}), recipe.facts["data_digests"]
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed:
        raise ResumeError(
            f"data: found other products, queries or answers in {', '.join(changed)} than {checkpoint} was trained on; "
            "expected the same data to go on, another output_dir, or --overwrite"
        )


def run_cold_start(recipe: Recipe, cold_start: Recipe) -> None:
    """Train the cold start, or find it finished, and let the joint stage begin with its model."""
    if recipe.training.process_index == 0:
        values = yaml.safe_dump(cold_start.resolved, sort_keys=False, allow_unicode=True)
        write_atomically(cold_start.path, values)
    run(cold_start)
    gc.collect()  # its trainer and its callbacks hold each other, and with them its model and the optimizer's state
    folder = Path(recipe.training.output_dir) / COLD_START / "final"
    recipe.model.base, recipe.model.moon = str(folder), None


def cold_start_of(recipe: Recipe) -> Recipe:
    """Return the recipe of the cold start that comes before a joint stage, checked before anything is written.

    Raises:
        RecipeError: what the joint recipe's `cold_start` names cannot be run.
    """
    output_dir = Path(recipe.training.output_dir)
    try:
        values = cold_start_values(recipe.resolved, str(output_dir / COLD_START))
        return make_recipe(output_dir / COLD_START_FILE, values, [])
    except ValueError as error:
        raise RecipeError(f"cold_start: {error}") from error


def open_run(recipe: Recipe) -> bool:
    """Look at what output_dir holds, clear away the remains of interrupted saves, and return whether the run is finished.

    The recipe is written here, before anything else is: whatever lies in output_dir was made by the recipe beside it.

    Raises:
        RecipeError: another recipe was run there (names the keys that differ), or one that is not known.
    """
    args, output_dir = recipe.training, Path(recipe.training.output_dir)
    main_process = args.process_index == 0
    if args.overwrite and main_process:
        _clear(output_dir)
    stored_file = output_dir / RECIPE_FILE
    if stored_file.is_file():
        stored = yaml.safe_load(stored_file.read_text(encoding="utf-8"))
        if differing_keys(stored, recipe.resolved):
            raise RecipeError(
                f"{output_dir} holds a run of another recipe ({differences(stored, recipe.resolved)}); "
                "expected the same recipe to resume, another output_dir, or --overwrite"
            )
        if args.max_steps < 1:
            args.max_steps = recipe.resolved["max_steps"] = stored["max_steps"]
    else:
        left = [name for name in (*_OWN_FOLDERS, *_OWN_FILES) if (output_dir / name).exists()]
        if left:
            raise RecipeError(
                f"{output_dir} holds {', '.join(left)} of a run whose recipe is not there; "
                "expected another output_dir, or --overwrite"
            )
        if main_process:
            try:
                output_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RecipeError(f"output_dir: {error}; expected a folder that can be made") from error
            write_records(recipe, output_dir)
    if main_process:
        for path in remove_incomplete(output_dir):
            print(f"{path}: removed, its save was interrupted")
        mend_lines(output_dir / SKIPPED_FILE)
        mend_lines(output_dir / SHORTENED_FILE)
    return (output_dir / FINISHED_FILE).is_file()


@contextlib.contextmanager
def forgotten_if_refused(recipe: Recipe) -> Iterator[None]:
    """Clear away what a call began and refused before anything was trained, so that the corrected command may follow.

    Only where nothing of a run was there before the call, and in one process: others may still be reading.
    """
    output_dir = Path(recipe.training.output_dir)
    there = any((output_dir / name).exists() for name in (*_OWN_FOLDERS, *_OWN_FILES)) or _has_trained(output_dir)
    try:
        yield
    except REFUSED:
        if output_dir.is_dir() and not there and recipe.training.world_size == 1 and not _has_trained(output_dir):
            _clear(output_dir)
        raise


def _has_trained(output_dir: Path) -> bool:
    """Whether a folder holds more of a run than its records and its starting model."""
    done = (METRICS_FILE, SKIPPED_FILE, SHORTENED_FILE, FINISHED_FILE, COMPLETIONS, "final", "adapter")
    if checkpoints(output_dir) or any(output_dir.glob("results_*.json")):
        return True
    cold_start = output_dir / COLD_START
    return any((output_dir / name).exists() for name in done) or (cold_start.is_dir() and _has_trained(cold_start))


def _clear(output_dir: Path) -> None:
    """Delete what a run leaves, and nothing else, the recipe last so that an interrupted deletion can be repeated."""
    for path in [*checkpoints(output_dir), *(output_dir / name for name in _OWN_FOLDERS)]:
        shutil.rmtree(path, ignore_errors=True)
    for path in [*output_dir.glob("results_*.json"), *(output_dir / name for name in reversed(_OWN_FILES))]:
        path.unlink(missing_ok=True)


def settle_max_steps(recipe: Recipe, make_trainer: MakeTrainer, model: nn.Module) -> None:
    """Set max_steps from the time budget where it is not yet known, and write the recipe with it."""
    args = recipe.training
    if args.max_steps < 1 and args.train_minutes is not None:
        seconds = seconds_per_step(args, make_trainer, model, budget_seconds=0.02 * args.train_minutes * 60)
        steps = torch.tensor(max(1, round(args.train_minutes * 60 / seconds)), device=args.device)
        if args.world_size > 1:
            torch.distributed.broadcast(steps, src=0)
        args.max_steps = recipe.resolved["max_steps"] = int(steps)
        if args.process_index == 0:
            shutil.rmtree(Path(args.output_dir) / COMPLETIONS, ignore_errors=True)  # of the throwaway steps
            print(f"{seconds:.3f} seconds a step: {args.max_steps} steps in {args.train_minutes:g} minutes", flush=True)
    if args.process_index == 0 and last_good_checkpoint(Path(args.output_dir)) is None:
        write_records(recipe, Path(args.output_dir))


def seconds_per_step(args: Any, make_trainer: MakeTrainer, model: nn.Module, budget_seconds: float = 0.0) -> float:
    """Time optimizer steps on the run's own first pairs, and put every weight back as it was.

    The measurement takes `budget_seconds`, and at least eight steps, of which the first three do not count.
    """
    learning = [tensor for tensor in [*model.parameters(), *model.buffers()] if _may_change(tensor)]
    before = [tensor.detach().to("cpu", copy=True) for tensor in learning]
    clock = _StepClock(budget_seconds)
    steps = 10_000
    throwaway = dataclasses.replace(args, max_steps=steps, save_strategy="no", logging_strategy="no", report_to="none")
    throwaway.disable_tqdm = True
    trainer = make_trainer(throwaway, steps)
    trainer.remove_callback(PrinterCallback)  # its summary would look like the result of the run
    trainer.add_callback(clock)
    if args.process_index == 0:
        print("measuring the step rate …")
    trainer.train()
    with torch.no_grad():
        for tensor, value in zip(learning, before, strict=True):
            tensor.copy_(value)
    model.zero_grad()
    return clock.seconds_per_step()


def _may_change(tensor: torch.Tensor) -> bool:
    return tensor.requires_grad or not isinstance(tensor, nn.Parameter)


class _StepClock(TrainerCallback):
    """Stops a training when enough steps are timed."""

    def __init__(self, budget_seconds: float) -> None:
        self.budget_seconds = budget_seconds
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self.ends.append(time.perf_counter())
        measured = len(self.ends) - _WARM_UP_STEPS
        timed = self.ends[-1] - self.ends[min(_WARM_UP_STEPS, len(self.ends)) - 1]
        enough = torch.tensor(measured >= _LEAST_MEASURED_STEPS and timed >= self.budget_seconds, device=args.device)
        if args.world_size > 1:  # the clocks differ, and all processes have to stop at the same step
            torch.distributed.broadcast(enough, src=0)
        control.should_training_stop = bool(enough)
        return control

    def seconds_per_step(self) -> float:
        """Return the mean over the steps that count."""
        counted = self.ends[_WARM_UP_STEPS - 1 :]
        return (counted[-1] - counted[0]) / (len(counted) - 1)


def write_records(recipe: Recipe, folder: Path) -> None:
    """Write the recipe as it is run, and where the run comes from, into a folder."""
    facts = provenance(
        recipe.training.seed,
        recipe=recipe.path.name,
        bf16=bool(recipe.training.bf16),
        processes=recipe.training.world_size,
        **recipe.facts,
    )
    facts["versions"] |= {package: importlib.metadata.version(package) for package in ("accelerate", "peft", "trl")}
    write_atomically(folder / PROVENANCE_FILE, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / RECIPE_FILE, yaml.safe_dump(recipe.resolved, sort_keys=False, allow_unicode=True))


def finish(recipe: Recipe, trainer: Any, processor: MoonProcessor, tables: list[ProductTables], start: Path) -> None:
    """Save the trained model, evaluate it where the recipe says so, and mark the run as finished."""
    output_dir = Path(recipe.training.output_dir)
    model = whole_trained(recipe, trainer, start)
    with trainer.disk.keeping():
        if recipe.training.process_index == 0:
            with written_whole(output_dir / "final") as folder:
                save_trained(model, processor, folder, start)
                write_records(recipe, folder)
    trainer.disk.stop_together("the trained model, final,")
    if recipe.training.process_index == 0:
        tell_shortened(output_dir, processor)
    if recipe.training.evaluate_after:
        evaluate(recipe, model, processor, tables, "after", steps=trainer.state.global_step)
    if recipe.training.process_index == 0:
        write_atomically(output_dir / FINISHED_FILE, json.dumps({"steps": trainer.state.global_step}) + "\n")
        print(f"the trained model is in {output_dir / 'final'}")
    trainer.accelerator.wait_for_everyone()


def tell_shortened(output_dir: Path, processor: MoonProcessor) -> None:
    """Print how many of the items that were trained on did not fit into the token budget, and the first."""
    shortened = shortened_summary(read_lines(output_dir / SHORTENED_FILE))
    if shortened["items"]:
        sentence = shortened_sentence(shortened, processor.max_tokens)
        print(f"{sentence}; {output_dir / SHORTENED_FILE} lists all of them")


def evaluate(
    recipe: Recipe,
    model: PreTrainedModel,
    processor: MoonProcessor,
    tables: list[ProductTables],
    when: str,
    steps: int,
) -> None:
    """Evaluate on every data set's evaluation split, in the main process; results of it that are there already are kept.

    One data set: results_before.json or results_after.json; several: one file each, results_before-NAME.json; with
    reasoning results_before_generate…. Before and after are computed in the same precision, that of the training.

    Args:
        recipe: which split, how many products.
        model, processor: what is evaluated.
        tables: the data sets, whole.
        when: "before" or "after".
        steps: how many steps the model was trained for.
    """
    args = recipe.training
    with first_process_alone() as first:
        if not first:
            return
        options = EvaluationOptions(
            split=args.evaluate_split,
            limit=args.evaluate_products,
            batch_size=args.per_device_eval_batch_size,
            progress=not args.disable_tqdm,
            dimensions=tuple(recipe.loss.matryoshka_dims) or None,
        )
        encoder = encoder_of(model).to(args.device)
        for table, mode, path in evaluation_files(recipe, when, tables):
            if _is_asked_for(path, args):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            model_name = f"{args.output_dir} {when} training"
            own = dataclasses.replace(options, query_reasoning=mode, product_reasoning=mode)
            with _precision_of(args):
                found = evaluate_model(encoder, processor, table, model_name=model_name, options=own)
            found["provenance"] |= {"training_seed": args.seed, "steps": steps, "autocast": _autocast_name(args)}
            found["warnings"] = [*recipe.facts.get("warnings", []), *found["warnings"]]
            write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
            print(results_table([found]))
        if when == "after":
            update_results(Path(args.output_dir) / "final")


def evaluation_files(
    recipe: Recipe, when: str, tables: list[ProductTables]
) -> Iterator[tuple[ProductTables, str, Path]]:
    """Yield each evaluation of a run: the data set, how both sides are embedded, and its results file.

    Args:
        recipe: the run's; a stage that reasons is evaluated in several ways.
        when: "before" or "after".
        tables: the data sets.
    """
    modes = ["none"] if recipe.reasoning.stage == "contrastive" else recipe.reasoning.evaluate_reasoning
    for mode in modes:
        for table in tables:
            names = [when] + [mode] * (mode != "none")
            name = "_".join(["results", *names]) + (f"-{table.name}" if len(tables) > 1 else "")
            yield table, mode, Path(recipe.training.output_dir) / f"{name}.json"


def finish_evaluation(recipe: Recipe) -> None:
    """Evaluate the model of a finished run where a results file is asked for and not there."""
    output_dir = Path(recipe.training.output_dir)
    tables = read_data(recipe) if recipe.training.evaluate_after else []
    files = [path for _, _, path in evaluation_files(recipe, "after", tables)]
    if not all(_is_asked_for(path, recipe.training) for path in files):
        steps = json.loads((output_dir / FINISHED_FILE).read_text(encoding="utf-8"))["steps"]
        model, processor = load_for_evaluation(output_dir / "final", device=str(recipe.training.device))
        evaluate(recipe, model, processor, tables, "after", steps=steps)


def _is_asked_for(path: Path, args: Any) -> bool:
    """Whether a results file is there and is of the split and the number of products that the recipe names."""
    if not path.is_file():
        return False
    facts = json.loads(path.read_text(encoding="utf-8"))["provenance"]
    return (facts["split"], facts["limit"]) == (args.evaluate_split, args.evaluate_products)


def _autocast_name(args: Any) -> str | None:
    return "bfloat16" if args.bf16 else "float16" if args.fp16 else None


def _precision_of(args: Any) -> torch.autocast:
    name = _autocast_name(args)
    return torch.autocast(args.device.type, getattr(torch, name or "bfloat16"), enabled=name is not None)


if __name__ == "__main__":
    sys.exit(main())
