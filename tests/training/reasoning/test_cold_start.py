"""The cold start: its objective from the formula, one global batch whichever way it is computed, and exact resumption.

Run as a script by torchrun, this file trains each of `VARIANTS` and writes losses, metrics and gradients.
"""

import dataclasses
import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from closeness import GRADIENT, VALUE, assert_same_trainings, relative_difference
from gradient_steps import PLAIN_STEPS, Gradients, with_adapters
from launched import run
from pictures import noise
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments
from words import words

from modeling_moon import MoonForConditionalGeneration, MoonModel
from processing_moon import MoonProcessor
from product_data.atomic_files import read_lines
from training.assembly.trained_model import save_trained
from training.batches.collate import PairCollator
from training.batches.negatives import NO_ID, NegativeQueue, stable_id
from training.batches.pairs import Pair, has_form
from training.contrastive.distiller import FrozenModels, Teacher
from training.contrastive.trainer import ContrastiveTrainer
from training.encoding.earlier_model import EarlierModel
from training.losses.dual_alignment import DualAlignmentLoss
from training.losses.info_nce import InfoNCELoss
from training.losses.matryoshka import MatryoshkaLoss
from training.model.checkpoint import save_moon
from training.reasoning.cold_start_trainer import ColdStartTrainer
from training.recipe.loss import LossArguments

GLOBAL_BATCH, STEPS, TEMPERATURE = 4, 4, 0.3
# Of each pair of a step, which of query, positive and hard negative have a reasoning: all on one process, none at all …
REASONED = [["qpn", "qp", "", ""], ["p", "q", "n", "qpn"], ["", "", "", ""], ["qpn", "qpn", "qpn", "qpn"]]


class Pairs(torch.utils.data.Dataset):
    """Pairs of two products each, of which some have a picture, and some of the records a reasoning."""

    def __len__(self):
        return GLOBAL_BATCH * STEPS

    def __getitem__(self, position):
        names = [f"q{position}", f"p{position}", f"n{position}"]
        records = [
            {"text": words(100 + position, 2)},
            {"title": words(position, 4)},
            {"title": words(200 + position, 4)},
        ]
        if position % 3 == 0:
            records[0]["image"] = noise(seed=position)
            records[1]["images"] = [noise(seed=50 + position)]
        reasoned = REASONED[position // GLOBAL_BATCH % STEPS][position % GLOBAL_BATCH]
        for name, record in zip(names, records, strict=True):
            record["id"] = name
            if name[0] in reasoned:
                record["reasoning"] = {
                    "colour": words(300 + position + len(reasoned), 1),
                    "material": words(position, 2),
                }
        ids = [stable_id(name) for name in names[1:]]
        forms = [{"t": {"brand": [words(700 + position, 1)]}, "i": {"colour": [words(position, 1)]}}, {}, {}]
        forms = [forms[(role + position) % 3] if all(has_form(record)) else {} for role, record in enumerate(records)]
        pair = Pair(records[0], records[1:], names[1:], ids, [NO_ID] * 2, NO_ID, [], [], position)
        return dataclasses.replace(pair, form_reasonings=forms)


def variants(chunk):
    """Name → (adapters, queue steps, contrastive loss, options, weights); `chunk` for those that encode in chunks."""
    inner = MatryoshkaLoss(InfoNCELoss(TEMPERATURE, block_size=3), [8, 16])
    several = {"several_positives": True, "negative_margin": 0.1}
    aligned = DualAlignmentLoss(inner, {"t": 0.5, "i": 2.0, "mm": 1.0}, intra_weight=0.7, router_weight=0.2)
    forms = LossArguments(encode_chunk_size=chunk, dual_alignment=True)
    chunks = LossArguments(encode_chunk_size=chunk, queue_momentum=0.5, queue_warmup_steps=2)
    return {
        "whole": (False, 2, InfoNCELoss(TEMPERATURE), LossArguments(), {}),
        "chunks": (False, 2, inner, chunks, {"ce_weight": 0.5, "contrastive_weight": 0.7}),
        "adapters": (True, 2, inner, LossArguments(**several, encode_chunk_size=chunk), {"ce_weight": 0.5}),
        "forms": (False, 1, aligned, forms, {"ce_weight": 0.4}),
        "no_cross_entropy": (False, 0, inner, LossArguments(encode_chunk_size=chunk), {"ce_weight": 0.0}),
    }


def load_learner(folder, adapters):
    model = MoonForConditionalGeneration.from_pretrained(folder)
    if adapters:
        model = with_adapters(model, modules_to_save=["projection", "router"])
    return model


def make_trainer(folder, output, variant, batch=GLOBAL_BATCH, **arguments):
    adapters, queue_steps, loss, options, weights = variant
    weights |= {"frozen": arguments.pop("frozen")} if "frozen" in arguments else {}
    values = PLAIN_STEPS | {"max_steps": STEPS, "per_device_train_batch_size": batch, "learning_rate": 3e-5}
    values |= {"remove_unused_columns": False, "train_sampling_strategy": "sequential"}
    processor = MoonProcessor.from_pretrained(folder)
    processor.max_image_tokens = 4
    return ColdStartTrainer(
        model=load_learner(folder, adapters),
        args=TrainingArguments(output_dir=str(output), **{**values, **arguments}),
        train_dataset=Pairs(),
        data_collator=PairCollator(processor, reasoning="mixed", forms=options.dual_alignment),
        loss=loss,
        queue=NegativeQueue(queue_steps),
        options=options,
        **weights,
    )


def train_all(folder, output, batch, chunk):
    """Train every variant; returns metrics and gradients by variant."""
    results = {}
    for name, variant in variants(chunk).items():
        trainer = make_trainer(folder, output / name, variant, batch, gradient_checkpointing=name == "chunks")
        gradients = Gradients()
        trainer.add_callback(gradients)
        trainer.train()
        results[name] = (read_lines(output / name / "metrics.jsonl"), gradients.steps)
    return results


def main():
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    results = train_all(folder, output, GLOBAL_BATCH // int(os.environ["WORLD_SIZE"]), chunk=1)
    if os.environ["RANK"] == "0":
        torch.save({name: gradients for name, (_, gradients) in results.items()}, output / "gradients.pt")


@pytest.fixture(scope="module")
def moon3(tiny_moon, tmp_path_factory):
    """Its embeddings are of length 1 and above: behind shorter ones, norms blow up gradients and with them rounding."""
    start = tiny_moon("qwen3_vl", preset="moon3", trained=True, tie_word_embeddings=False)
    folder = tmp_path_factory.mktemp("moon") / "moon3"
    model = MoonForConditionalGeneration.from_pretrained(start)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 25
    return save_moon(model, MoonProcessor.from_pretrained(start), folder)


@pytest.fixture(scope="module")
def by_one_process(moon3, tmp_path_factory):
    return train_all(moon3, tmp_path_factory.mktemp("one"), GLOBAL_BATCH, chunk=3)


# ---------------------------------------------------------------------------------------------------------------------
# The objective


def slow_objective(model, batch, ce_weight, contrastive_weight, router_weight=0.0):
    """L from the formula, token by token and pair by pair; with its mean cross-entropy and its InfoNCE."""
    vectors, surprises, router, rows = {}, [], 0.0, 0
    think, end = model.config.think_start_token_id, model.config.think_end_token_id
    for side in ("queries", "products"):
        inputs = {name: tensor for name, tensor in batch[side].items() if name != "labels"}
        vectors[side] = model.model(**inputs).embeddings
        states = model.model(**inputs, output_router_stats=True)
        router, rows = router + states.router_loss * len(vectors[side]), rows + len(vectors[side])
        log_BTV = torch.log_softmax(model.lm_head(states.last_hidden_state), dim=-1)
        for row, ids in enumerate(inputs["input_ids"].tolist()):
            if think in ids:
                places = range(ids.index(think) + 1, ids.index(end) + 1)
                surprises += [-log_BTV[row, place - 1, ids[place]] for place in places]
    losses = []
    for row, target in enumerate(batch["target"].tolist()):
        scores = [torch.dot(vectors["queries"][row], product) / TEMPERATURE for product in vectors["products"]]
        losses.append(-(scores[target] - torch.stack(scores).logsumexp(dim=0)))
    ce, info_nce = torch.stack(surprises).mean(), torch.stack(losses).mean()
    return ce_weight * ce + contrastive_weight * (info_nce + router_weight * router / rows), ce, info_nce


@pytest.mark.parametrize("tied", [True, False])
def test_value_and_gradient_are_those_of_the_formula(tiny_moon, tmp_path, tied):
    folder = tiny_moon("qwen3_vl", preset="moon3", trained=True, tie_word_embeddings=tied)
    weights = {"ce_weight": 0.3, "contrastive_weight": 0.8}
    loss = DualAlignmentLoss(InfoNCELoss(TEMPERATURE), router_weight=0.2)
    trainer = make_trainer(folder, tmp_path, (False, 0, loss, LossArguments(), weights))
    batch = trainer.data_collator([Pairs()[position] for position in range(4, 8)])
    assert not (batch["queries"]["labels"] >= 0).all()
    found = trainer.compute_loss(trainer.model, batch)
    found.backward()
    reference = MoonForConditionalGeneration.from_pretrained(folder)
    expected, ce, info_nce = slow_objective(reference, batch, router_weight=0.2, **weights)
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=VALUE, atol=VALUE)
    named = dict(reference.named_parameters())
    gradients = [
        {name: torch.zeros_like(named[name]) if one.grad is None else one.grad for name, one in model.items()}
        for model in (dict(trainer.model.named_parameters()), named)
    ]
    assert relative_difference(*gradients) < GRADIENT
    assert gradients[0]["model.vlm.language_model.embed_tokens.weight" if tied else "lm_head.weight"].any()
    logged = trainer._meters.averages(lambda values, _: values)
    assert logged["loss_ce"] == pytest.approx(ce.item(), rel=VALUE)
    assert logged["loss_aux"] > 0
    assert logged["reasoned_share"] == pytest.approx(6 / 12)


def surprises(model, inputs):
    """−log p of each token that a batch's rows write, token by token."""
    labels = inputs["labels"]
    inputs = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    log_BTV = torch.log_softmax(model(**inputs).logits.float(), dim=-1)
    places = (labels >= 0).nonzero().tolist()
    return [-log_BTV[row, place - 1, labels[row, place]] for row, place in places]


def test_with_dual_alignment_every_form_writes_and_the_rest_is_the_contrastive_objective(moon3, tmp_path):
    variant = (False, 0, variants(None)["forms"][2], LossArguments(dual_alignment=True), {"ce_weight": 0.4})
    trainer = make_trainer(moon3, tmp_path, variant)
    batch = trainer.data_collator([Pairs()[position] for position in range(4)])
    inputs = [batch["queries"], batch["products"]]
    inputs += [batch[f"{side}_forms"][form]["inputs"] for side in ("query", "product") for form in ("t", "i")]
    reference = MoonForConditionalGeneration.from_pretrained(moon3)
    each = [surprises(reference, part) for part in inputs]
    assert all(each[:2])
    assert sum(map(bool, each[2:])) >= 2
    found = trainer.compute_loss(trainer.model, batch)
    logged = trainer._meters.averages(lambda values, _: values)
    ce = torch.stack([value for part in each for value in part]).mean().item()
    assert logged["loss_ce"] == pytest.approx(ce, rel=VALUE)
    plain = ContrastiveTrainer(
        model=MoonModel.from_pretrained(moon3),
        args=TrainingArguments(output_dir=str(tmp_path), **PLAIN_STEPS),
        loss=variant[2],
        queue=NegativeQueue(0),
        options=variant[3],
    )
    for part in inputs:
        part.pop("labels")
    expected = plain.compute_loss(plain.model, batch)
    assert found.item() == pytest.approx(expected.item() + 0.4 * ce, rel=VALUE)
    assert {"loss_inter_t", "loss_inter_i", "loss_inter_mm", "loss_intra", "loss_aux"} <= logged.keys()


def test_an_earlier_model_and_teachers_take_part_in_the_cold_start(moon3, tmp_path):
    earlier = EarlierModel(MoonModel.from_pretrained(moon3), MoonProcessor.from_pretrained(moon3))
    teachers = [Teacher(KnownVectors(form), "direct", 0.5) for form in ("t", "i")]
    frozen = FrozenModels(earlier, teachers)
    trainer = make_trainer(moon3, tmp_path, (False, 0, InfoNCELoss(0.3), LossArguments(), {}), frozen=frozen)
    trainer.data_collator = PairCollator(MoonProcessor.from_pretrained(moon3), reasoning="mixed", **frozen.reading())
    batch = trainer.data_collator([Pairs()[position] for position in range(4)])
    assert "labels" not in batch["earlier_products"]
    found = trainer.compute_loss(trainer.model, batch)
    logged = trainer._meters.averages(lambda values, _: values)
    assert logged["loss_compatible"] > 0
    assert logged["loss_teachers"] > 0
    parts = logged["loss_inter_given"] if "loss_inter_given" in logged else logged["loss_contrastive"]
    assert found.item() == pytest.approx(logged["loss_contrastive"] + 0.1 * logged["loss_ce"], rel=VALUE)
    assert logged["loss_contrastive"] >= parts
    found.backward()


class KnownVectors:
    """A teacher that knows every product."""

    def __init__(self, form):
        self.form, self.width = form, 8

    def of(self, records):
        generator = torch.Generator().manual_seed(len(records))
        vectors = torch.randn(len(records), 8, generator=generator)
        return {"rows": torch.arange(len(records)), "vectors": torch.nn.functional.normalize(vectors, dim=1)}


def test_accuracy_is_the_share_of_tokens_that_are_likeliest(moon3, tmp_path):
    trainer = make_trainer(moon3, tmp_path, variants(None)["whole"])
    batch = trainer.data_collator([Pairs()[position] for position in range(4)])
    trainer.compute_loss(trainer.model, batch)
    right = total = 0
    for side in ("queries", "products"):
        labels = batch[side].pop("labels")
        with torch.no_grad():
            likeliest = trainer.model(**batch[side]).logits.argmax(dim=-1)[:, :-1]
        right += int((likeliest == labels[:, 1:]).sum())
        total += int((labels >= 0).sum())
    assert total > 20
    assert trainer._meters.averages(lambda values, _: values)["ce_accuracy"] == pytest.approx(right / total)


def test_without_cross_entropy_the_output_layer_is_never_called(moon3, tmp_path, monkeypatch):
    trainer = make_trainer(moon3, tmp_path, variants(None)["no_cross_entropy"])
    monkeypatch.setattr(trainer.model.lm_head, "forward", None)  # to call it would fail
    trainer.train()
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["reasoned_share"] for line in lines] == pytest.approx([5 / 12, 6 / 12, 0, 1])
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss_contrastive"])
        assert not {"loss_ce", "ce_accuracy"} & line.keys()


def test_logits_are_made_of_the_tokens_to_be_written_alone(moon3, tmp_path):
    trainer = make_trainer(moon3, tmp_path, variants(None)["whole"])
    seen = []
    trainer.model.lm_head.register_forward_hook(lambda layer, args, output: seen.append(len(output)))
    batch = trainer.data_collator([Pairs()[position] for position in range(4, 8)])
    trainer.compute_loss(trainer.model, batch)
    assert seen == [int((batch[side]["labels"] >= 0).sum()) for side in ("queries", "products")]


# ---------------------------------------------------------------------------------------------------------------------
# One global batch


def test_two_processes_train_as_one_does_on_the_same_global_batches(moon3, by_one_process, tmp_path):
    run(__file__, moon3, tmp_path, processes=2)
    gradients = torch.load(tmp_path / "gradients.pt", weights_only=True)
    by_two = {name: (read_lines(tmp_path / name / "metrics.jsonl"), steps) for name, steps in gradients.items()}
    assert_same_trainings(by_one_process, by_two)


def test_chunks_train_as_whole_batches_do(moon3, by_one_process, tmp_path):
    whole = train_all(moon3, tmp_path, GLOBAL_BATCH, chunk=None)
    assert_same_trainings(whole, by_one_process, ("chunks", "adapters", "no_cross_entropy"))


def test_a_step_without_any_reasoning_has_no_cross_entropy(by_one_process):
    for name in ("whole", "chunks", "adapters"):
        lines = by_one_process[name][0]
        for key in ("loss_ce", "ce_accuracy"):
            assert [key in line for line in lines] == [True, True, False, True]
        for line in lines:
            weights = {"ce_weight": 0.1, "contrastive_weight": 1.0} | variants(None)[name][-1]
            ce = weights["ce_weight"] * line.get("loss_ce", 0.0)
            assert line["loss"] == pytest.approx(
                ce + weights["contrastive_weight"] * line["loss_contrastive"], rel=VALUE
            )
            assert line["reasoned_share"] == pytest.approx({1: 5 / 12, 2: 6 / 12, 3: 0, 4: 1}[line["step"]])


def test_the_output_layer_learns_where_there_is_something_to_write(by_one_process):
    learned = [bool(step["lm_head.weight"].any()) for step in by_one_process["whole"][1]]
    assert learned == [True, True, False, True]


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("chunks", True),
        pytest.param("whole", False, marks=pytest.mark.slow),
        pytest.param("adapters", True, marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(tiny_moon, tmp_path, name, tied):
    folder = tiny_moon("qwen3_vl", preset="moon3", trained=True, tie_word_embeddings=tied)
    saving = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 1e-3}
    variant = variants(3)[name]
    make_trainer(folder, tmp_path / "straight", variant, **saving).train()
    stopped = make_trainer(folder, tmp_path / "stopped", variant, **saving)
    stopped.add_callback(StopAt(3))
    stopped.train()
    last = str(tmp_path / "stopped" / "checkpoint-2")
    make_trainer(folder, tmp_path / "stopped", variant, **saving).train(resume_from_checkpoint=last)
    lines = [
        [
            {key: value for key, value in line.items() if key != "items_per_second"}
            for line in read_lines(run / "metrics.jsonl")
        ]
        for run in (tmp_path / "straight", tmp_path / "stopped")
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == STEPS
    file = "adapter_model.safetensors" if name == "adapters" else "model.safetensors"
    ends = [load_file(tmp_path / run / f"checkpoint-{STEPS}" / file) for run in ("straight", "stopped")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    states = [
        torch.load(tmp_path / run / f"checkpoint-{STEPS}" / "contrastive_state_0.pt", weights_only=True)
        for run in ("straight", "stopped")
    ]
    for left, right in zip(*(state["queue"]["steps"] for state in states), strict=True):
        assert all(torch.equal(left[key], right[key]) for key in left)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == self.step
        control.should_save = control.should_save and not control.should_training_stop
        return control


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_the_trained_writer_is_saved_whole(tiny_moon, tmp_path, tied, adapters):
    folder = tiny_moon("qwen3_vl", preset="moon3", trained=True, tie_word_embeddings=tied)
    model = load_learner(folder, adapters)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for number, parameter in enumerate(learning):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter += 0.02 * noise
    processor = MoonProcessor.from_pretrained(folder)
    collator = PairCollator(processor, reasoning="mixed")
    batch = {name: one for name, one in collator([Pairs()[4]])["products"].items() if name != "labels"}
    model.eval()
    with torch.no_grad():
        before = model(**batch, output_embeddings=True)
    save_trained(model, processor, tmp_path / "final", folder)
    encoder = MoonModel.from_pretrained(tmp_path / "final").eval()
    writer, loading = MoonForConditionalGeneration.from_pretrained(tmp_path / "final", output_loading_info=True)
    writer.eval()
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    with torch.no_grad():
        after = writer(**batch)
        torch.testing.assert_close(encoder(**batch).embeddings, before.embeddings, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-4, atol=1e-4)
    assert (writer.lm_head.weight is writer.get_input_embeddings().weight) == tied
    start = MoonForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        assert not torch.allclose(start.eval()(**batch).logits, after.logits, atol=1e-2)
    settings = json.loads((tmp_path / "final" / "generation_config.json").read_text())
    assert settings == json.loads((folder / "generation_config.json").read_text())
    expected = {path.name for path in folder.iterdir()}
    assert expected <= {path.name for path in (tmp_path / "final").iterdir()}
    found = encoder.embed([{"title": "red shoes"}], reasoning="generate", processor=processor)
    assert found.embeddings.shape == (1, 32)


def test_save_moon_writes_the_writers_own_output_layer(tiny_moon, tmp_path):
    folder = tiny_moon("qwen3_vl", preset="moon3", trained=True, tie_word_embeddings=False)
    model = MoonForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight += 1.0
    save_moon(model, MoonProcessor.from_pretrained(folder), tmp_path, lm_head_from=folder)
    assert torch.equal(MoonForConditionalGeneration.from_pretrained(tmp_path).lm_head.weight, model.lm_head.weight)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["MoonForConditionalGeneration"]


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"ce_weight": -0.1}, "ce_weight: found -0.1; expected a finite number of at least 0"),
        ({"contrastive_weight": math.nan}, "contrastive_weight: found nan"),
        ({"ce_weight": math.inf}, "ce_weight: found inf"),
        ({"ce_weight": 0.0, "contrastive_weight": 0.0}, "found 0 for both"),
    ],
)
def test_weights_out_of_range_are_refused(moon3, tmp_path, weights, words):
    with pytest.raises(ValueError, match=words):
        make_trainer(moon3, tmp_path, (False, 0, InfoNCELoss(0.3), LossArguments(), weights))


def test_a_model_that_does_not_write_or_reason_is_refused(tiny_moon, moon3, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    given = {"args": args, "loss": InfoNCELoss(0.3), "queue": NegativeQueue(0)}
    with pytest.raises(ValueError, match="found MoonModel with max_reasoning_tokens=32; expected a MoonForCond"):
        ColdStartTrainer(model=MoonModel.from_pretrained(moon3), **given)
    plain = MoonForConditionalGeneration.from_pretrained(tiny_moon("qwen3_vl"))
    with pytest.raises(ValueError, match="found MoonForConditionalGeneration with max_reasoning_tokens=None"):
        ColdStartTrainer(model=plain, **given)


def test_batches_without_labels_are_refused(moon3, tmp_path):
    trainer = make_trainer(moon3, tmp_path, variants(None)["whole"])
    trainer.data_collator.reasoning = "none"
    with pytest.raises(
        ValueError, match="found no labels for queries and products; expected a collator with reasoning"
    ):
        trainer.train()


def test_meters_of_an_older_checkpoint_are_taken_over(moon3, tmp_path):
    trainer = make_trainer(moon3, tmp_path, variants(None)["whole"])
    values = [[3.0, 2.0], *[[0.0, 0.0]] * 4]
    trainer.load_own_state(trainer.own_state() | {"meters": values}, tmp_path)
    trainer._meters.add("loss_ce", torch.tensor(2.0))
    assert trainer._meters.averages(lambda sums, _: sums) == {"accuracy": 1.5, "loss_ce": 2.0}
    assert isinstance(trainer, ContrastiveTrainer)


if __name__ == "__main__":
    main()
