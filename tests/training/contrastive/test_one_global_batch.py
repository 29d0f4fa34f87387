"""One global batch, whichever way it is computed: by one process or two, at once or in chunks.

Run as a script by torchrun, this file trains each of `VARIANTS` and writes losses, metrics and weights.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import VALUE, assert_same_gradients, assert_same_metrics
from gradient_steps import Gradients
from launched import IMPORT_PATH
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import TrainingArguments

from modeling_moon import MoonModel
from processing_moon import MoonProcessor
from product_data.atomic_files import read_lines
from training.batches.negatives import NO_ID, NegativeQueue, stable_id
from training.contrastive.trainer import ContrastiveTrainer
from training.losses.dual_alignment import DualAlignmentLoss
from training.losses.info_nce import InfoNCELoss
from training.losses.matryoshka import MatryoshkaLoss
from training.losses.sample_filter import SampleFilter
from training.recipe.loss import LossArguments

ROOT = Path(__file__).resolve().parents[3]
WORDS = ["red", "running", "shoes", "brown", "leather", "tote", "bag", "gold", "autumn", "striped", "mug", "white"]
GLOBAL_BATCH, STEPS = 4, 4
FILTER = SampleFilter(start=-0.03, end=-0.05, kappa=10.0)
# The kind of each query of a step: text only, image only, and both kinds on different processes, then all forms.
KINDS = ["tttt", "iiii", "ttii", "tbib"]


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, size=(32, 32, 3), dtype=np.uint8))


def words(seed, count=4):
    return " ".join(np.random.default_rng(seed).choice(WORDS, size=count))


class Pairs(torch.utils.data.Dataset):
    """Pairs of two products each; every third pair shares its positive with the pair before."""

    def __len__(self):
        return GLOBAL_BATCH * STEPS

    def __getitem__(self, position):
        kind = KINDS[position // GLOBAL_BATCH % len(KINDS)][position % GLOBAL_BATCH]
        query = {"text": words(1000 + position, 2)} if kind != "i" else {}
        if kind != "t":
            query["image"] = picture(1000 + position)
        positive = position - 1 if position % 3 == 2 else position
        text_only = kind == "t"
        return query, [product(positive, text_only), product(500 + position, text_only)], position


def product(number, text_only):
    record = {"id": f"p{number}", "title": words(number)}
    return record if text_only else record | {"images": [picture(number)]}


def forms_of(encode, records):
    """What a collator makes of items for dual alignment."""
    has_text = torch.tensor(["title" in record or "text" in record for record in records])
    has_image = torch.tensor(["images" in record or "image" in record for record in records])
    rows = (has_text & has_image).nonzero()[:, 0]
    both = [records[int(row)] for row in rows]
    forms = {}
    for form, left_out in (("t", ("image", "images")), ("i", ("title", "text"))):
        alone = [{key: value for key, value in record.items() if key not in left_out} for record in both]
        forms[form] = {"rows": rows, "inputs": dict(encode(alone)) if alone else None}
    return {"has_text": has_text, "has_image": has_image, **forms}


class Collate:
    def __init__(self, processor):
        self.processor = processor
        self.queries = lambda records: processor(queries=records, task="query", max_image_tokens=4)
        self.products = lambda records: processor(products=records, form="mm", max_image_tokens=4)

    def __call__(self, rows):
        queries = [query for query, _, _ in rows]
        products = [record for _, records, _ in rows for record in records]
        count = len(rows)
        ids = torch.tensor([stable_id(record["id"]) for record in products])
        known = torch.tensor([[stable_id(records[0]["id"])] for _, records, _ in rows])
        return {
            "queries": dict(self.queries(queries)),
            "products": dict(self.products(products)),
            "query_forms": forms_of(self.queries, queries),
            "product_forms": forms_of(self.products, products),
            "target": torch.arange(count) * 2,
            "product": ids,
            "group": torch.full((2 * count,), NO_ID),
            "query_group": torch.full((count,), NO_ID),
            "other": torch.zeros((count, 0), dtype=torch.int64),
            "negative": torch.zeros((count, 0), dtype=torch.int64),
            "positive": torch.arange(count)[:, None] * 2,
            "positive_weight": torch.tensor([[1.0 if position % 2 else 0.5] for *_, position in rows]),
            "known_positive": known,
            "known_weight": torch.tensor([[1.0 if position % 2 else 0.5] for *_, position in rows]),
            "items": [[f"q{position}", records[0]["id"]] for _, records, position in rows],
            "skipped": [],
            "shortened": [],
        }


def alignment(contrastive, **options):
    return DualAlignmentLoss(contrastive, **options)


def variants(chunk):
    """Name → (adapters, queue steps, loss, options); `chunk` is the chunk size of those that encode in chunks."""
    several = {"several_positives": True, "negative_margin": 0.1, "sample_filter": True}
    dual = {"sample_filter": True, "dual_alignment": True, "symmetric_intra": True}
    inner = MatryoshkaLoss(InfoNCELoss(0.3, block_size=3), [8, 16])
    return {
        "adapters": (True, 2, alignment(inner), LossArguments(**several, encode_chunk_size=chunk)),
        "dual": (False, 2, alignment(InfoNCELoss(0.3), symmetric=True, sparsity_weight=0.1), LossArguments(**dual)),
        "dual_in_chunks": (
            False,
            2,
            alignment(inner, symmetric=True, sparsity_weight=0.1),
            LossArguments(**dual, encode_chunk_size=chunk, queue_momentum=0.5, queue_warmup_steps=2),
        ),
        "dual_adapters": (True, 2, alignment(inner, symmetric=True), LossArguments(**dual, encode_chunk_size=chunk)),
    }


def make_trainer(folder, output, variant, batch, **arguments):
    adapters, queue_steps, loss, options = variant
    torch.manual_seed(0)
    model = MoonModel.from_pretrained(folder)
    if adapters:
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["projection", "router"])
        model = get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zeros at first, behind which nothing else would learn
                torch.nn.init.normal_(parameter, std=0.05)
    values = {"max_steps": STEPS, "per_device_train_batch_size": batch, "learning_rate": 1e-4, "logging_steps": 1}
    values |= {"optim": "sgd", "save_strategy": "no", "logging_nan_inf_filter": False, "disable_tqdm": True}
    values |= {"report_to": "none", "remove_unused_columns": False, "train_sampling_strategy": "sequential"}
    values |= {"ddp_find_unused_parameters": False, "ddp_broadcast_buffers": False, "max_grad_norm": 0.0}
    values |= {"lr_scheduler_type": "constant", "use_cpu": True}
    return ContrastiveTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(output), **{**values, **arguments}),
        train_dataset=Pairs(),
        data_collator=Collate(MoonProcessor.from_pretrained(folder)),
        loss=loss,
        queue=NegativeQueue(queue_steps),
        options=options,
        sample_filter=FILTER if options.sample_filter else None,
    )


def train_all(folder, output, batch, chunk):
    """Train every variant; returns metrics and gradients by variant."""
    results = {}
    for name, variant in variants(chunk).items():
        checkpointing = name == "dual_in_chunks"
        trainer = make_trainer(folder, output / name, variant, batch, gradient_checkpointing=checkpointing)
        gradients = Gradients()
        trainer.add_callback(gradients)
        trainer.train()
        results[name] = (read_lines(output / name / "metrics.jsonl"), gradients.steps)
    return results


def main():
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    batch = GLOBAL_BATCH // int(os.environ["WORLD_SIZE"])
    results = train_all(folder, output, batch, chunk=1)
    if os.environ["RANK"] == "0":
        torch.save({name: gradients for name, (_, gradients) in results.items()}, output / "gradients.pt")


@pytest.fixture(scope="module")
def moon2(tiny_moon):
    return tiny_moon("qwen3_vl", trained=True, preset="moon2")


@pytest.fixture(scope="module")
def by_one_process(moon2, tmp_path_factory):
    return train_all(moon2, tmp_path_factory.mktemp("one"), GLOBAL_BATCH, chunk=3)


def test_two_processes_train_as_one_does_on_the_same_global_batches(moon2, by_one_process, tmp_path):
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": IMPORT_PATH}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run(
        [*command, str(moon2), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    gradients = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for name, (metrics, steps) in by_one_process.items():
        assert_same_metrics(metrics, read_lines(tmp_path / name / "metrics.jsonl"))
        assert_same_gradients(steps, gradients[name], name)


def test_chunks_train_as_whole_batches_do(moon2, by_one_process, tmp_path):
    whole = train_all(moon2, tmp_path, GLOBAL_BATCH, chunk=None)
    for name in ("adapters", "dual_in_chunks", "dual_adapters"):
        assert_same_metrics(whole[name][0], by_one_process[name][0])
        assert_same_gradients(whole[name][1], by_one_process[name][1], name)


def test_the_queue_is_filled_before_it_is_compared_with(by_one_process):
    negatives = [line["negatives"] for line in by_one_process["dual_in_chunks"][0]]
    assert max(negatives[:2]) < 2 * GLOBAL_BATCH
    assert min(negatives[2:]) > 2 * 2 * GLOBAL_BATCH


def test_every_part_of_the_objective_is_logged(by_one_process):
    first, second, third, last = by_one_process["dual"][0]
    parts = {"loss_inter_t", "omega_t", "loss_inter_i", "omega_i", "loss_inter_mm", "omega_mm", "loss_intra"}
    assert parts & first.keys() == {"loss_inter_t", "omega_t"}
    assert parts & second.keys() == {"loss_inter_i", "omega_i", "loss_intra"}
    assert parts <= last.keys()
    assert "queue_drift" in third
    inter = sum(last[f"omega_{form}"] * last[f"loss_inter_{form}"] for form in ("t", "i", "mm"))
    assert last["loss"] == pytest.approx(inter + last["loss_intra"] + 0.1 * last["loss_sparsity"], rel=VALUE)


@pytest.mark.parametrize("chunk", [None, 3])
def test_each_picture_goes_through_the_tower_once_a_forward_pass(moon2, tmp_path, chunk):
    dual = LossArguments(dual_alignment=True, encode_chunk_size=chunk)
    variant = (False, 0, alignment(InfoNCELoss(0.3)), dual)
    trainer, seen = make_trainer(moon2, tmp_path, variant, GLOBAL_BATCH), []
    tower = trainer.model.vlm.visual
    tower.patch_embed.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    batch = trainer.data_collator([trainer.train_dataset[position] for position in range(12, 16)])
    assert batch["query_forms"]["i"]["inputs"] is not None
    assert batch["product_forms"]["i"]["inputs"] is not None
    trainer.optimizer, trainer.current_gradient_accumulation_steps = None, 1
    trainer.training_step(trainer.model, batch)
    patches = sum(len(batch[side]["pixel_values"]) for side in ("queries", "products"))
    last = len(
        trainer._parts(batch)[-1].inputs.get("pixel_values", ())
    )  # its graph is kept, the others are encoded twice
    assert sum(seen) == (patches if chunk is None else 2 * patches - last)


@pytest.mark.parametrize("name", ["adapters", "dual_in_chunks"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(moon2, tmp_path, name):
    saving = {"save_strategy": "steps", "save_steps": 3, "optim": "adamw_torch", "max_grad_norm": 1.0}
    whole = make_trainer(moon2, tmp_path / "whole", variants(3)[name], GLOBAL_BATCH, **saving)
    whole.train()
    resumed = make_trainer(moon2, tmp_path / "resumed", variants(3)[name], GLOBAL_BATCH, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    last = [read_lines(run / "metrics.jsonl")[-1] for run in (tmp_path / "whole", tmp_path / "resumed")]
    assert {**last[0], "items_per_second": 0} == {**last[1], "items_per_second": 0}
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)
    states = [trainer.own_state() for trainer in (whole, resumed)]
    for one, two in zip(*(state["queue"]["steps"] for state in states), strict=True):
        assert torch.equal(one["vector_CD"], two["vector_CD"])
    if whole.momentum is not None:
        averages = [trainer.momentum.state_dict() for trainer in (whole, resumed)]
        assert all(torch.equal(averages[0][key], averages[1][key]) for key in averages[0])


if __name__ == "__main__":
    main()
