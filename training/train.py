"""Train a model with a recipe: `accelerate launch training/train.py RECIPE.yaml --key value`.

The same command resumes an interrupted run from the last complete checkpoint in output_dir, and does nothing for a
finished run.
"""

import sys
from pathlib import Path

if __package__ in (
    None,
    "",
):  # run as a script: import packages from the parent folder, and hide the modules of this folder
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import set_seed

from training.assembly.cold_start import cold_start_of, train_cold_start
from training.assembly.data import open_data
from training.assembly.evaluation import evaluate, finish_evaluation
from training.assembly.finishing import finish
from training.assembly.objective import check_objective
from training.assembly.stages import trainer_factory
from training.assembly.starting_model import load_start, make_trainable, prepare_base
from training.assembly.step_rate import set_max_steps
from training.recipe.arguments import parse_recipe, usage
from training.runs.full_disk import report_full_disk
from training.runs.progress_bars import progress_bars
from training.runs.run import Run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status.

    0: trained or already finished. 2: the recipe cannot be run. 3: stopped by data or a full disk.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(usage())
        return 0
    try:
        train(Run(parse_recipe(arguments)))
    except Exception as error:
        status = getattr(error, "exit_status", None)
        if status is None:
            raise
        print(f"train: {error}", file=sys.stderr)
        return status
    return 0


def train(run: Run) -> None:
    """Train the model of a run, resume an interrupted run, or report that the run is finished.

    Args:
        run: a run with a checked recipe. Its folder may contain an earlier part of the same run.

    Raises:
        RecipeError: the recipe does not match the data, the model or the content of output_dir, or another run uses
            output_dir.
        TableError: a data set cannot be used.
        ResumeError: the run cannot resume from its checkpoint.
        DiskFullError: a file cannot be written.
    """
    args = run.recipe.training
    with report_full_disk(run.folder.path), progress_bars(not args.disable_tqdm), run.alone():
        cold_start = cold_start_of(run)
        with args.main_process_first(local=False, desc="opening the run's folder"):
            finished = run.open()
        if finished:
            finish_evaluation(run)
            run.say_finished()
            return
        data = open_data(run)
        if cold_start is not None:
            train_cold_start(run, cold_start, train)
        with args.main_process_first(local=False, desc="preparing the base"):
            start = prepare_base(run, data.sample)
        set_seed(args.seed)
        model, processor = load_start(run, start, on_gpu=args.device.type == "cuda", tables=data.sample)
        if args.evaluate_before:
            evaluate(run, model, processor, data.evaluated, "before", steps=0)
        learner = make_trainable(model, run.recipe.model)
        check_objective(run.recipe.loss, run.recipe.model, learner)
        make_trainer = trainer_factory(run, learner, processor, data.training)
        set_max_steps(run, make_trainer, learner)
        trainer = make_trainer(run.arguments(), run.max_steps)
        checkpoint = run.checkpoint_to_resume()
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finish(run, trainer, processor, data.evaluated, start)


if __name__ == "__main__":
    sys.exit(main())
