"""What float32 allows, measured: the tolerances lie well above a rounding and well below a mistake."""

import pytest
import test_one_global_batch as one
import torch
from closeness import EPSILON, GRADIENT, VALUE, assert_same_gradients, move_by_one_rounding, relative_difference
from gradient_steps import Gradients

from training.contrastive_terms import TermOptions
from training.contrastive_trainer import ContrastiveOptions
from training.losses.info_nce import InfoNCELoss
from training.resume import read_lines

STEPS = 3
OPTIONS = ContrastiveOptions(TermOptions(several_positives=True, negative_margin=0.1))


def train(folder, output, *, queue=2, seed=None, batch=one.GLOBAL_BATCH):
    variant = (False, queue, one.alignment(InfoNCELoss(0.3)), OPTIONS)
    trainer, gradients = one.make_trainer(folder, output, variant, batch, max_steps=STEPS), Gradients()
    if seed is not None:
        move_by_one_rounding(trainer.model, seed)
    trainer.add_callback(gradients)
    trainer.train()
    return gradients.steps, [line["loss"] for line in read_lines(output / "metrics.jsonl")]


@pytest.fixture(scope="module", params=["moon2", "moon3"])
def folder(request, tiny_moon):
    return tiny_moon("qwen3_vl", trained=True, preset=request.param)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    return train(folder, tmp_path_factory.mktemp("trained"))


def test_one_rounding_of_every_weight_moves_a_training_by_less_than_a_third_of_what_is_allowed(
    folder, trained, tmp_path
):
    for seed in range(2):
        gradients, losses = train(folder, tmp_path / str(seed), seed=seed)
        for step, (left, right) in enumerate(zip(trained[0], gradients, strict=True), start=1):
            assert EPSILON < relative_difference(left, right) < step * GRADIENT / 3
        assert any(left != right for left, right in zip(trained[1], losses, strict=True))
        for step, (left, right) in enumerate(zip(trained[1], losses, strict=True), start=1):
            assert abs(left - right) < step * VALUE / 3


@pytest.mark.parametrize("mistake", [{"queue": 0}, {"queue": 1}, {"batch": 2}], ids=["no queue", "short queue", "half"])
def test_a_mistake_moves_a_gradient_by_far_more_than_is_allowed(folder, trained, tmp_path, mistake):
    gradients, _ = train(folder, tmp_path, **mistake)
    assert max(map(relative_difference, trained[0], gradients)) > 100 * GRADIENT
    with pytest.raises(AssertionError, match="gradients differ by"):
        assert_same_gradients(trained[0], gradients)


def test_gradients_of_other_parameters_or_steps_are_never_the_same():
    weight = {"weight": torch.ones(2)}
    assert_same_gradients([weight, weight], [weight, weight])
    for other in ([], [weight], [weight, {"bias": torch.ones(2)}]):
        with pytest.raises((AssertionError, ValueError)):
            assert_same_gradients([weight, weight], other)
