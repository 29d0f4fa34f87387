"""One global batch by one process, or by two that hold the model in parts (FSDP2).

Run as a script by torchrun with a launch configuration's environment, this file trains each of `variants` and writes losses,
metrics and gradients.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from closeness import assert_same_gradients, assert_same_metrics
from global_batch import GLOBAL_BATCH, alignment, make_trainer
from gradient_steps import Gradients
from launched import run
from sharded import NEEDS_FSDP, sharding_environment

from modeling_moon import MoonModel
from product_data.atomic_files import read_lines
from training.encoding.batch_encoding import encoded_rows
from training.libraries.fsdp import whole_parameters
from training.losses.info_nce import InfoNCELoss
from training.losses.matryoshka import MatryoshkaLoss
from training.parallel.sharding import (
    IDLE,
    EvenEncoder,
    EvenPart,
    decoder_layers,
    is_sharded,
    reach_all,
)
from training.recipe.loss import LossArguments


def variants(chunk):
    """Name → (adapters, queue steps, loss, options, arguments of the trainer)."""
    several = {"several_positives": True, "negative_margin": 0.1, "sample_filter": True}
    dual = {"sample_filter": True, "dual_alignment": True, "symmetric_intra": True}
    inner = MatryoshkaLoss(InfoNCELoss(0.3, block_size=3), [8, 16])
    return {
        "plain": (False, 2, alignment(InfoNCELoss(0.3)), LossArguments(), {"max_grad_norm": 0.01}),
        "adapters": (True, 2, alignment(inner), LossArguments(**several, encode_chunk_size=chunk), {}),
        "dual": (False, 2, alignment(InfoNCELoss(0.3), symmetric=True, sparsity_weight=0.1), LossArguments(**dual), {}),
        "dual_in_chunks": (
            False,
            2,
            alignment(inner, symmetric=True, sparsity_weight=0.1),
            LossArguments(**dual, encode_chunk_size=chunk, queue_warmup_steps=2),
            {"gradient_checkpointing": True},
        ),
        "dual_adapters": (
            True,
            2,
            alignment(inner, symmetric=True),
            LossArguments(**dual, encode_chunk_size=chunk),
            {},
        ),
    }


def train_all(folder, output, batch, chunk, names=None):
    """Train every variant; returns metrics and gradients by variant."""
    results = {}
    for name, (*variant, arguments) in variants(chunk).items():
        if names and name not in names:
            continue
        trainer = make_trainer(folder, output / name, variant, batch, **arguments)
        gradients = Gradients()
        trainer.add_callback(gradients)
        trainer.train()
        assert is_sharded(trainer.model) == ("ACCELERATE_USE_FSDP" in os.environ)
        results[name] = (read_lines(output / name / "metrics.jsonl"), gradients.steps)
    return results


def main():
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    batch = GLOBAL_BATCH // int(os.environ["WORLD_SIZE"])
    results = train_all(folder, output, batch, chunk=1, names=sys.argv[3:])
    if os.environ["RANK"] == "0":
        torch.save({name: gradients for name, (_, gradients) in results.items()}, output / "gradients.pt")


@pytest.fixture(scope="module")
def moon2(tiny_moon):
    return tiny_moon("qwen3_vl", trained=True, preset="moon2")


@NEEDS_FSDP
@pytest.mark.parametrize(
    ("preset", "names"),
    [
        pytest.param("moon2", ["plain", "adapters", "dual", "dual_in_chunks"], marks=pytest.mark.slow),
        ("moon3", ["dual_adapters"]),
    ],
)
def test_two_processes_with_parts_of_a_model_train_as_one_process_does(tiny_moon, tmp_path, preset, names):
    folder = tiny_moon("qwen3_vl", trained=True, preset=preset)
    whole = train_all(folder, tmp_path / "one", GLOBAL_BATCH, chunk=3, names=names)
    run(__file__, folder, tmp_path / "two", *names, processes=2, environment=sharding_environment())
    gradients = torch.load(tmp_path / "two" / "gradients.pt", weights_only=True)
    for name, (metrics, steps) in whole.items():
        in_parts = read_lines(tmp_path / "two" / name / "metrics.jsonl")
        assert_same_metrics(metrics, in_parts, None if preset == "moon2" else ("loss", "grad_norm"))
        assert_same_gradients(steps, gradients[name], name)


def test_idle_forward_passes_leave_nothing_but_a_graph():
    weight = torch.ones(3, requires_grad=True)

    def model(**inputs):
        return SimpleNamespace(embeddings=inputs["input_ids"].float() * weight)

    row = {"input_ids": torch.ones(1, 3)}
    part = EvenPart("queries", {"input_ids": torch.ones(2, 3)}, idle=2, row=row)
    found = EvenEncoder(model, None)(part)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {"queries": (2, 3), IDLE: (0, 3)}
    assert encoded_rows(found) == 2
    empty = EvenEncoder(model, None)(EvenPart(IDLE, {}, empty=True, idle=1, row=row))
    assert list(empty) == [IDLE]
    reach_all(empty).backward()
    assert torch.equal(weight.grad, torch.zeros(3))


def test_units_are_the_decoder_layers_and_the_vision_tower_stays_whole(moon2):
    model = MoonModel.from_pretrained(moon2)
    assert decoder_layers(model) == ["MoonQwen3VLDecoderLayer"]
    with pytest.raises(ValueError, match="found no decoder layers in Linear"):
        decoder_layers(torch.nn.Linear(1, 1))


def test_parameters_of_a_whole_model_are_shown_as_they_are(moon2):
    model = MoonModel.from_pretrained(moon2)
    before = model.preference_entropy()
    with whole_parameters(model, "preference"):
        assert torch.equal(model.preference_entropy(), before)


if __name__ == "__main__":
    main()
