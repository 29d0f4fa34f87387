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

from transformers import set_seed

from training.assembly.cold_start import cold_start_of, cold_started
from training.assembly.data import open_data
from training.assembly.evaluation import evaluate, finish_evaluation
from training.assembly.finishing import finish
from training.assembly.objective import check_fits
from training.assembly.stages import trainer_factory
from training.assembly.starting_model import choose_what_learns, load_start, prepare_base
from training.assembly.step_rate import settle_max_steps
from training.recipe.arguments import parse_recipe, usage
from training.runs.full_disk import full_disk_named
from training.runs.progress_bars import bars_shown
from training.runs.run import Run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status: 0 trained or already finished, 2 refused, 3 stopped by data or a full disk."""
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
    """Train as the recipe says, or continue, or say that it is done.

    Args:
        run: with a recipe that was checked; its folder may hold an earlier part of the same run.

    Raises:
        RecipeError: the recipe does not fit the data, the model or what output_dir already holds; or another run is at work
            in output_dir.
        TableError: a data set that cannot be used.
        ResumeError: a checkpoint that this run cannot continue from.
        DiskFullError: a file that cannot be written.
    """
    args = run.recipe.training
    with full_disk_named(run.folder.path), bars_shown(not args.disable_tqdm), run.alone():
        cold_start = cold_start_of(run)
        with args.main_process_first(local=False, desc="opening the run's folder"):
            finished = run.open()
        if finished:
            finish_evaluation(run)
            run.say_finished()
            return
        data = open_data(run)
        if cold_start is not None:
            cold_started(run, cold_start, train)
        with args.main_process_first(local=False, desc="preparing the base"):
            start = prepare_base(run, data.sample)
        set_seed(args.seed)
        model, processor = load_start(run, start, on_gpu=args.device.type == "cuda", tables=data.sample)
        if args.evaluate_before:
            evaluate(run, model, processor, data.tables, "before", steps=0)
        learner = choose_what_learns(model, run.recipe.model)
        check_fits(run.recipe.loss, run.recipe.model, learner)
        make_trainer = trainer_factory(run, learner, processor, data.training)
        settle_max_steps(run, make_trainer, learner)
        trainer = make_trainer(run.arguments(), run.max_steps)
        checkpoint = run.checkpoint_to_resume()
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finish(run, trainer, processor, data.tables, start)


if __name__ == "__main__":
    sys.exit(main())
