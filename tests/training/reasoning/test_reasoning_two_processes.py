"""The gradient of one joint step, whichever way it is computed: all vectors at once, in chunks, by one process or by two.

Run as a script by torchrun, this file trains each of `VARIANTS` and writes losses and gradients.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import GRADIENT, VALUE, assert_same_gradients, assert_same_metrics, relative_difference
from gradient_steps import PLAIN_STEPS, Gradients, with_adapters
from launched import run
from pictures import noise
from words import words

from modeling_moon import MoonForConditionalGeneration
from processing_moon import MoonProcessor
from product_data.atomic_files import read_lines
from training.batches.collate import PairCollator
from training.batches.negatives import NO_ID, NegativeQueue, stable_id
from training.batches.pairs import Pair, has_form, in_form
from training.losses.dual_alignment import DualAlignmentLoss
from training.losses.info_nce import InfoNCELoss
from training.losses.matryoshka import MatryoshkaLoss
from training.losses.sample_filter import SampleFilter
from training.reasoning.grpo_trainer import MoonGRPOTrainer, grpo_arguments
from training.reasoning.rollout_terms import RolloutVectors, aligned_loss, rollout_loss
from training.recipe.loss import LossArguments
from training.recipe.reasoning import ReasoningArguments
from training.recipe.training import MoonTrainingArguments

ROLLOUTS, GLOBAL_BATCH, STEPS, MAX_TOKENS = 3, 2, 3, 5
SHARE, MARGIN, WIDTHS = 0.3, 0.1, [8]
COMPARED = ("loss", "infonce", "infonce_reasoned", "grpo", "rank", "rank_without_reasoning", "reward")
# The kinds of the pairs of a step: texts and pictures on different processes, then texts alone, then all kinds.
KINDS = "tb" + "tt" + "it"


def pair(number):
    """Every third pair has the product of the pair before: those rollouts are no negatives of each other."""
    kind = KINDS[number % len(KINDS)]
    query = {"id": f"q{number}"} | ({"text": words(number)} if kind != "i" else {})
    query |= {"image": noise(seed=number)} if kind != "t" else {}
    positive = number - 1 if number % 3 == 2 else number
    products = []
    for name, seed in ((f"p{positive}", 100 + positive), (f"h{number}", 600 + number)):
        product = {"id": name, "title": words(seed), "category": "Home > Mugs", "attributes": {"colour": "red"}}
        products.append(product | ({"images": [noise(seed=seed)]} if kind != "t" else {}))
    names = [product["id"] for product in products]
    ids = [stable_id(name) for name in names]
    rolled = (in_form(query, "i"), in_form(products[0], "t")) if kind == "b" else None
    return Pair(query, products, names, ids, [NO_ID] * 2, NO_ID, [], [ids[1]], position=number, rollout_records=rolled)


class Pairs:
    def __len__(self):
        return GLOBAL_BATCH * STEPS

    def __getitem__(self, number):
        return pair(number)


def written(number, side, turn, close):
    """What a rollout is made to write: one that ends at once, early, late, or never."""
    generator = np.random.default_rng([number, side == "product", turn])
    length = int(generator.integers(0, MAX_TOKENS + 1))
    tokens = generator.integers(20, 300, size=length).tolist()
    return tokens if length == MAX_TOKENS else [*tokens, close]


class FixedRollouts(MoonGRPOTrainer):
    """The joint trainer with rollouts that depend on their pair, side and turn alone."""

    def _generate_single_turn(self, prompt_ids, *rest):
        found, close = self._prompts, self.eos_token_ids[0]
        rows = [
            (one.position, side, turn)
            for one in found.pairs
            for side in ("query", "product")
            for turn in range(ROLLOUTS)
        ]
        return [written(*row, close) for row in rows], None


def even_reward(prompts, completions, completion_ids, positive_similarities, negative_similarities, **columns):
    """A reward of the text and of the vectors."""
    near = [one.mean().item() for one in positive_similarities]
    far = [one.mean().item() for one in negative_similarities]
    even = [sum(token % 2 == 0 for token in row) / len(row) for row in completion_ids]
    return [sum(one) for one in zip(near, far, even, strict=True)]


def use_reward():
    import training.reasoning.grpo_trainer as module

    module.reward_function = lambda name: even_reward


@pytest.fixture(autouse=True)
def own_reward(monkeypatch):
    monkeypatch.setattr("training.reasoning.grpo_trainer.reward_function", lambda name: even_reward)


VARIANTS = {
    "grpo and infonce": {"options": {"contrastive_weight": 1.0, "grpo_weight": 1.0, "kl_weight": 0.1}},
    "infonce in chunks": {"options": {"contrastive_weight": 1.0, "grpo_weight": 0.0}, "chunk": 3, "lora": True},
    "dual alignment": {
        "options": {"contrastive_weight": 1.0, "grpo_weight": 1.0},
        "chunk": 3,
        "of_loss": {"dual_alignment": True, "symmetric_intra": True},
        "sample_filter": True,
    },
}


def processor_of(folder):
    processor = MoonProcessor.from_pretrained(folder)
    processor.max_image_tokens = 4
    processor.instructions = {**processor.instructions, "product": "product", "query": "query"}
    return processor


def model_of(folder, lora=False):
    model = MoonForConditionalGeneration.from_pretrained(folder)
    return with_adapters(model) if lora else model


def contrastive():
    return MatryoshkaLoss(InfoNCELoss(0.2), WIDTHS)


def objective():
    return DualAlignmentLoss(contrastive(), {"t": 0.5, "i": 2.0, "mm": 1.0}, intra_weight=0.7, symmetric=True)


def make_trainer(
    folder, output, batch, options, chunk=None, lora=False, of_loss=None, sample_filter=False, **arguments
):
    # gradients here are about 1000 long: with longer steps the rounding of one step would grow in the next
    values = PLAIN_STEPS | {"max_steps": STEPS, "per_device_train_batch_size": batch, "learning_rate": 1e-6}
    values |= {"seed": 1, "warmup_steps": 0}
    model, processor = model_of(folder, lora), processor_of(folder)
    given = {"kl_weight": 0.0, "completions_steps": 0, "unreasoned_share": SHARE, **options}
    reasoning = ReasoningArguments(stage="grpo", rollouts=ROLLOUTS, rollout_chunk_size=chunk, **given)
    training = MoonTrainingArguments(output_dir=str(output), **{**values, **arguments})
    return FixedRollouts(
        model=model,
        args=grpo_arguments(
            training, reasoning, MoonForConditionalGeneration.config_class.from_pretrained(folder), processor.tokenizer
        ),
        pairs=Pairs(),
        processor=processor,
        loss=objective(),
        queue=NegativeQueue(2),
        rewards={"even": 1.0},
        reasoning=reasoning,
        options=LossArguments(negative_margin=MARGIN, **(of_loss or {})),
        sample_filter=SampleFilter(1.0) if sample_filter else None,
    )


def train(folder, output, batch, **variant):
    trainer, gradients = make_trainer(folder, output, batch, **variant), Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    return read_lines(output / "metrics.jsonl"), gradients.steps


def main():
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    use_reward()
    batch = GLOBAL_BATCH // int(os.environ["WORLD_SIZE"])
    found = {name: train(folder, output / name, batch, **variant)[1] for name, variant in VARIANTS.items()}
    if os.environ["RANK"] == "0":
        torch.save(found, output / "gradients.pt")


@pytest.fixture(scope="module", params=["qwen3_vl"])
def moon3(request, tiny_moon):
    return tiny_moon(request.param, preset="moon3", trained=True, max_reasoning_tokens=MAX_TOKENS)


def alone(processor, encoder, text, asked):
    """The vector of one text, encoded by itself."""
    batch = processor(**asked, return_tensors="pt")
    pictures = {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}
    ids = batch["input_ids"][0].tolist() if text is None else [*batch["input_ids"][0].tolist(), *text]
    return encoder(input_ids=torch.tensor([ids]), **pictures).embeddings[0]


def gradient_at_once(folder, numbers, lora=False, forms=False):
    """The gradient of the InfoNCE over all vectors of the first step, each text encoded by itself with its graph."""
    model, processor = model_of(folder, lora), processor_of(folder)
    writer = model.get_base_model() if lora else model
    close, read = writer.config.think_end_token_id, writer.config.emb_token_id
    pairs = [pair(number) for number in numbers]
    vectors = {"query": [], "product": []}
    for one in pairs:
        for side in vectors:
            asked = {"queries": [one.rolled[0]], "task": "query"}
            if side == "product":
                asked = {"products": [one.rolled[1]], "form": "mm"}
            for turn in range(ROLLOUTS):
                text = written(one.position, side, turn, close)
                text = [*text, *([] if text[-1] == close else [close]), read]
                vectors[side].append(alone(processor, writer.model, text, {**asked, "reasoning": "generate"}))
    queries = [alone(processor, writer.model, None, {"queries": [one.query], "task": "query"}) for one in pairs]
    items = [item for one in pairs for item in one.products]
    products = [alone(processor, writer.model, None, {"products": [item], "form": "mm"}) for item in items]
    found = RolloutVectors(*(torch.stack(rows) for rows in (vectors["query"], vectors["product"], queries, products)))
    batch = PairCollator(processor, forms=forms)(pairs)
    loss = rollout_loss(found, batch, None, contrastive(), SHARE, MARGIN)["loss"]
    if forms:
        for side, records in (("queries", [one.query for one in pairs]), ("products", items)):
            for form in ("t", "i"):
                parts = [in_form(record, form) for record in records if all(has_form(record))]
                asked = [
                    {"queries": [part], "task": "query"} if side == "queries" else {"products": [part], "form": form}
                    for part in parts
                ]
                rows = [alone(processor, writer.model, None, one) for one in asked]
                found.forms |= {f"{side}/{form}": torch.stack(rows)} if rows else {}
        options = LossArguments(negative_margin=MARGIN, dual_alignment=True, symmetric_intra=True)
        aligned = aligned_loss(found, batch, None, objective(), options)
        assert {"loss_inter_t", "loss_inter_i", "loss_inter_mm", "loss_intra"} <= aligned.keys()
        loss = loss + aligned["loss"]
    loss.backward()
    learning = {name: one for name, one in model.named_parameters() if one.requires_grad}
    return loss.item(), {
        name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in learning.items()
    }


@pytest.mark.parametrize(
    ("settings", "closeness"),
    [
        ({}, (VALUE, GRADIENT)),
        ({"chunk": 1}, (VALUE, GRADIENT)),
        ({"chunk": 6, "gradient_checkpointing": True}, (VALUE, GRADIENT)),
        ({"chunk": 4, "lora": True}, (VALUE, GRADIENT)),
        ({"chunk": 6, "bf16": True}, (0.1, 0.1)),
        ({"chunk": 4, "of_loss": {"dual_alignment": True, "symmetric_intra": True}}, (VALUE, GRADIENT)),
    ],
    ids=["at once", "one by one", "checkpointing", "adapters", "bf16", "dual alignment"],
)
def test_the_kept_gradient_is_that_of_all_vectors_at_once(moon3, tmp_path, settings, closeness):
    options = {"contrastive_weight": 1.0, "grpo_weight": 0.0}
    expected_loss, expected = gradient_at_once(moon3, [0, 1], settings.get("lora", False), "of_loss" in settings)
    lines, steps = train(moon3, tmp_path, GLOBAL_BATCH, options=options, max_steps=1, **settings)
    assert lines[0]["loss"] == pytest.approx(expected_loss, rel=closeness[0])
    assert expected_loss > 0.1
    assert relative_difference(expected, steps[0]) < closeness[1]


def test_another_backbone_keeps_the_gradient_too(tiny_moon, tmp_path):
    folder = tiny_moon("qwen2_5_vl", preset="moon3", trained=True, max_reasoning_tokens=MAX_TOKENS)
    options = {"contrastive_weight": 1.0, "grpo_weight": 0.0}
    expected = gradient_at_once(folder, [0, 1])[1]
    steps = train(folder, tmp_path, 2, options=options, chunk=4, max_steps=1)[1]
    assert relative_difference(expected, steps[0]) < GRADIENT


@pytest.fixture(scope="module")
def by_one_process(moon3, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr("training.reasoning.grpo_trainer.reward_function", lambda name: even_reward)
    output = tmp_path_factory.mktemp("one")
    found = {name: train(moon3, output / name, GLOBAL_BATCH, **variant) for name, variant in VARIANTS.items()}
    patch.undo()
    return found


def test_two_processes_train_as_one_does_on_the_same_global_batches(moon3, by_one_process, tmp_path):
    run(__file__, moon3, tmp_path, processes=2)
    gradients = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for name, (metrics, steps) in by_one_process.items():
        again = read_lines(tmp_path / name / "metrics.jsonl")
        assert [line["candidates"] for line in metrics] == [line["candidates"] for line in again]
        assert_same_metrics(metrics, again, COMPARED)
        assert_same_gradients(steps, gradients[name], name)
    assert by_one_process["grpo and infonce"][0][-1]["candidates"] > GLOBAL_BATCH * 2  # the queue, too


def test_chunks_train_as_whole_batches_do(moon3, by_one_process, tmp_path):
    name = "grpo and infonce"
    metrics, steps = train(moon3, tmp_path, GLOBAL_BATCH, chunk=4, **VARIANTS[name])
    assert_same_metrics(by_one_process[name][0], metrics, COMPARED)
    assert_same_gradients(by_one_process[name][1], steps, name)


if __name__ == "__main__":
    main()
