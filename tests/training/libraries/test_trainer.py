"""Trainer has the steps and the state that we give public names, and these names are not taken."""

import inspect

import pytest
from library_names import Relied, difference
from private_names import uses_of
from transformers import Trainer, TrainingArguments
from trl import GRPOTrainer

from training.libraries.trainer import TrainerSteps, use_plain_cpu_device

pytestmark = pytest.mark.lowest

FILE = "training/libraries/trainer.py"
CONTRASTIVE = "training/contrastive/trainer.py"
TRAINER = "transformers.Trainer"
OVERRIDDEN = [
    Relied(TRAINER, "_save_checkpoint", FILE, "(self, model, trial)", called=True),
    Relied(TRAINER, "_save", FILE, "(self, output_dir=None, state_dict=None)", called=True),
    Relied(TRAINER, "_save_optimizer_and_scheduler", FILE, "(self, output_dir)", called=True),
    Relied(TRAINER, "_save_rng_state", FILE, "(self, output_dir)", called=True),
    Relied(TRAINER, "_load_optimizer_and_scheduler", FILE, "(self, checkpoint)", called=True),
    Relied(TRAINER, "_issue_warnings_after_load", FILE, "(self, load_result)", called=True),
    Relied(
        TRAINER,
        "_prepare_for_training",
        FILE,
        "(self, max_steps, train_dataloader, resume_from_checkpoint)",
        called=True,
    ),
    Relied(TRAINER, "_get_grad_norm", FILE, "(self, model, grad_norm=None)", called=True),
]
PUBLIC = [
    Relied(TRAINER, "training_step", CONTRASTIVE, "(self, model, inputs, num_items_in_batch=None)", called=True),
    Relied(
        TRAINER,
        "compute_loss",
        CONTRASTIVE,
        "(self, model, inputs, return_outputs=False, num_items_in_batch=None)",
        called=True,
    ),
    Relied(TRAINER, "create_optimizer", CONTRASTIVE, "(self, model=None)", called=True),
    Relied(TRAINER, "create_accelerator_and_postprocess", CONTRASTIVE, "(self)", called=True),
    Relied(TRAINER, "floating_point_ops", CONTRASTIVE, "(self, inputs)", called=True),
    Relied(TRAINER, "log", CONTRASTIVE, "(self, logs, start_time=None)", called=True),
    Relied(TRAINER, "get_train_dataloader", "training/contrastive/streamed_trainer.py", "(self)", called=True),
    Relied(TRAINER, "model_accepts_loss_kwargs", CONTRASTIVE),
    Relied(TRAINER, "current_gradient_accumulation_steps", CONTRASTIVE),
    Relied(TRAINER, "is_fsdp_enabled", CONTRASTIVE),
    Relied(
        "transformers.TrainerState", "compute_steps", "training/runs/exact_resumption.py", "(self, args, max_steps)"
    ),
]
"""Not private, but overridden or read where the documentation does not describe what we rely on."""
RELIED = [
    *OVERRIDDEN,
    Relied(TRAINER, "_prepare_inputs", FILE, "(self, inputs)"),
    Relied(TRAINER, "_tr_loss", FILE),
    Relied(TRAINER, "_total_loss_scalar", FILE),
    Relied(TRAINER, "_globalstep_last_logged", FILE),
    Relied("transformers.TrainingArguments", "_setup_devices", FILE, kind="cached_property"),
    *PUBLIC,
]


@pytest.mark.parametrize("relied", RELIED, ids=str)
def test_the_installed_version_has_what_we_rely_on(relied):
    if sentence := difference(relied):
        pytest.fail(sentence, pytrace=False)


def test_every_private_name_of_the_file_is_compared():
    assert set(uses_of(FILE)) == {relied.name for relied in RELIED if relied.file == FILE}


def test_a_changed_signature_is_named_with_our_file(monkeypatch):
    monkeypatch.setattr(Trainer, "_save_checkpoint", lambda self, model: None)
    assert difference(OVERRIDDEN[0]) == (
        "transformers.Trainer._save_checkpoint(self, model, trial): found (self, model); "
        "training/libraries/trainer.py depends on it"
    )


def test_a_removed_method_is_named_with_our_file(monkeypatch):
    monkeypatch.delattr(Trainer, "_save_rng_state")
    assert difference(OVERRIDDEN[3]) == (
        "transformers.Trainer._save_rng_state(self, output_dir): found no such name; "
        "training/libraries/trainer.py depends on it"
    )


def test_our_methods_have_the_librarys_signatures():
    for relied in OVERRIDDEN:
        ours = inspect.signature(vars(TrainerSteps)[relied.name]).parameters
        assert list(ours) == list(inspect.signature(getattr(Trainer, relied.name)).parameters)


@pytest.mark.parametrize("library", [Trainer, GRPOTrainer])
def test_no_step_of_ours_bears_a_name_of_the_library(library):
    steps = {name for name in vars(TrainerSteps) if not name.startswith("_")}
    assert len(steps) == 7
    assert not steps & set(dir(library))


class Plain(TrainerSteps):
    """Steps before a class that does what Trainer does."""


def test_the_steps_do_what_trainer_does_where_nothing_is_overridden():
    taken = []
    steps = Plain()
    for step in (steps.save_checkpoint, steps.save_part):
        step(lambda: taken.append("step"))
    steps.save_weights(lambda: taken.append("weights"), None)
    steps.compare_weights(lambda: taken.append("warned"), ["a"], [])
    assert taken == ["step", "step", "weights", "warned"]


def test_the_device_of_arguments_on_a_cpu_bears_no_number(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    use_plain_cpu_device(arguments)
    assert str(arguments.device) == "cpu"
