"""Save the trained model, evaluate it, and mark its run as finished."""

import json
from pathlib import Path
from typing import Any

from processing_moon import MoonProcessor
from product_data.atomic_files import read_lines, write_atomically, written_whole
from product_data.tables import ProductTables
from retrieval.shortened import shortened_sentence, shortened_summary
from training.assembly.evaluation import evaluate
from training.assembly.trained_model import save_trained, whole_trained
from training.runs.run import Run


def finish(run: Run, trainer: Any, processor: MoonProcessor, tables: list[ProductTables], start: Path) -> None:
    """Save the trained model, evaluate it if the recipe says so, and mark the run as finished.

    Args:
        run: the run.
        trainer: the trainer, after training.
        processor: the processor of the model.
        tables: the data sets to evaluate, with all their splits.
        start: the checkpoint from which training started.

    Raises:
        DiskFullError: a file could not be written; raised in every process.
    """
    model = whole_trained(run, trainer, start)
    with trainer.disk.keeping():
        if run.is_first:
            with written_whole(run.folder.final) as folder:
                save_trained(model, processor, folder, start)
                run.write_records(folder)
    trainer.disk.stop_together("the trained model, final,")
    if run.is_first:
        report_shortened(run, processor)
    if run.recipe.training.evaluate_after:
        evaluate(run, model, processor, tables, "after", steps=trainer.state.global_step)
    if run.is_first:
        write_atomically(run.folder.finished, json.dumps({"steps": trainer.state.global_step}) + "\n")
        print(f"the trained model is in {run.folder.final}")
    trainer.accelerator.wait_for_everyone()


def report_shortened(run: Run, processor: MoonProcessor) -> None:
    """Print how many queries and products of the training did not fit into the token budget, with the first one."""
    shortened = shortened_summary(read_lines(run.folder.shortened))
    if shortened["items"]:
        sentence = shortened_sentence(shortened, processor.max_tokens)
        print(f"{sentence}; {run.folder.shortened} lists all of them")
