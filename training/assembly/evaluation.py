"""Evaluate the model of a run before and after training, and write the run's results files."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from evaluation.report import results_table
from evaluation.run import EvaluationOptions, evaluate_model
from processing_moon import MoonProcessor
from product_data.atomic_files import write_atomically
from product_data.tables import ProductTables
from retrieval.encode import load_for_evaluation
from training.assembly.sources import read_data, read_evaluated
from training.assembly.trained_model import encoder_of
from training.parallel.distributed import first_process_alone
from training.runs.cards import update_results
from training.runs.run import Run


def evaluate(
    run: Run, model: PreTrainedModel, processor: MoonProcessor, tables: list[ProductTables], when: str, steps: int
) -> None:
    """Evaluate a model on the evaluation split of every data set, in the main process; existing results are kept.

    The file is results_before.json or results_after.json, for several data sets results_before-NAME.json, and with
    reasoning results_before_generate…, which also has the control with exchanged attributes. Both evaluations have the
    precision of the training.

    Args:
        run: the run, whose recipe sets the split and the number of products.
        model, processor: the model and its processor.
        tables: the data sets, with all their splits.
        when: "before" or "after".
        steps: the number of steps for which the model was trained.
    """
    args = run.recipe.training
    with first_process_alone() as first:
        if not first:
            return
        options = EvaluationOptions(
            split=args.evaluate_split,
            limit=args.evaluate_products,
            batch_size=args.per_device_eval_batch_size,
            progress=not args.disable_tqdm,
            dimensions=tuple(run.recipe.loss.matryoshka_dims) or None,
        )
        encoder = encoder_of(model).to(args.device)
        for table, mode, path in evaluation_files(run, when, tables):
            if _is_current(path, args):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            modes = {"query_reasoning": mode, "product_reasoning": mode, "reasoning_control": mode == "generate"}
            own = dataclasses.replace(options, **modes)
            with _precision_of(args):
                result = evaluate_model(
                    encoder, processor, table, model_name=f"{args.output_dir} {when} training", options=own
                )
            result["provenance"] |= {"training_seed": args.seed, "steps": steps, "autocast": _autocast_name(args)}
            result["warnings"] = [*run.facts.get("warnings", []), *result["warnings"]]
            write_atomically(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
            print(results_table([result]))
        if when == "after":
            update_results(run.folder.final)


def evaluation_files(run: Run, when: str, tables: list[ProductTables]) -> Iterator[tuple[ProductTables, str, Path]]:
    """Yield each evaluation of a run: the data set, how queries and products are embedded, and the results file.

    Args:
        run: the run. A reasoning stage is evaluated in the ways of `evaluate_reasoning`.
        when: "before" or "after".
        tables: the data sets.
    """
    reasoning = run.recipe.reasoning
    modes = ["none"] if reasoning.stage == "contrastive" else reasoning.evaluate_reasoning
    for mode in modes:
        for table in tables:
            yield table, mode, run.folder.results(when, mode, table.name if len(tables) > 1 else None)


def finish_evaluation(run: Run) -> None:
    """Evaluate the model of a finished run if the recipe requires results that do not exist."""
    args = run.recipe.training
    read = read_data if run.recipe.data.evaluate_data is None else read_evaluated
    tables = read(run) if args.evaluate_after else []
    if not all(_is_current(path, args) for _, _, path in evaluation_files(run, "after", tables)):
        model, processor = load_for_evaluation(run.folder.final, device=str(args.device))
        evaluate(run, model, processor, tables, "after", steps=run.folder.steps())


def _is_current(path: Path, args: Any) -> bool:
    """Return whether a results file exists and has the recipe's split and number of products."""
    if not path.is_file():
        return False
    facts = json.loads(path.read_text(encoding="utf-8"))["provenance"]
    return (facts["split"], facts["limit"]) == (args.evaluate_split, args.evaluate_products)


def _autocast_name(args: Any) -> str | None:
    return "bfloat16" if args.bf16 else "float16" if args.fp16 else None


def _precision_of(args: Any) -> torch.autocast:
    name = _autocast_name(args)
    return torch.autocast(args.device.type, getattr(torch, name or "bfloat16"), enabled=name is not None)
