"""One global batch, whichever way it is computed: by one process or two, at once or in chunks."""

import global_batch
import pytest
import torch
from closeness import VALUE, assert_same_trainings
from global_batch import GLOBAL_BATCH, TEACHERS, alignment, make_trainer, train_all, variants
from launched import run

from product_data.atomic_files import read_lines
from training.contrastive.distiller import FrozenModels
from training.losses.info_nce import InfoNCELoss
from training.recipe.loss import LossArguments


@pytest.fixture(scope="module")
def moon2(tiny_moon):
    return tiny_moon("qwen3_vl", trained=True, preset="moon2")


@pytest.fixture(scope="module")
def by_one_process(moon2, tmp_path_factory):
    return train_all(moon2, tmp_path_factory.mktemp("one"), GLOBAL_BATCH, chunk=3)


def test_two_processes_train_as_one_does_on_the_same_global_batches(moon2, by_one_process, tmp_path):
    run(global_batch.__file__, moon2, tmp_path, processes=2)
    gradients = torch.load(tmp_path / "gradients.pt", weights_only=True)
    by_two = {name: (read_lines(tmp_path / name / "metrics.jsonl"), steps) for name, steps in gradients.items()}
    assert_same_trainings(by_one_process, by_two)


def test_chunks_train_as_whole_batches_do(moon2, by_one_process, tmp_path):
    whole = train_all(moon2, tmp_path, GLOBAL_BATCH, chunk=None)
    assert_same_trainings(
        whole, by_one_process, ("adapters", "dual_in_chunks", "dual_adapters", "compatible", "teachers")
    )


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


def test_the_term_of_an_earlier_model_is_logged(by_one_process):
    for line in by_one_process["compatible"][0]:
        assert line["loss"] > 0.7 * line["loss_compatible"] > 0
    plain = by_one_process["adapters"][0]
    assert not any("loss_compatible" in line for line in plain)


def test_the_teachers_are_alone_in_the_first_steps_and_beside_the_loss_afterwards(by_one_process):
    first, *later = by_one_process["teachers"][0]
    assert first["loss"] == pytest.approx(first["loss_teachers"], rel=VALUE)
    for line in later:
        assert line["loss"] > line["loss_teachers"] > 0


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


@pytest.mark.parametrize("name", ["adapters", "dual_in_chunks", "compatible", "teachers"])
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
    if whole.distiller is not None:
        maps, start = (
            whole.distiller.state_dict(),
            FrozenModels(teachers=TEACHERS).distiller(whole.model).state_dict(),
        )
        assert all(torch.equal(value, states[1]["teachers"][name]) for name, value in maps.items())
        assert not any(torch.equal(value, start[name]) for name, value in maps.items())  # the maps have learned
    for one, two in zip(*(state["queue"]["steps"] for state in states), strict=True):
        assert torch.equal(one["vector_CD"], two["vector_CD"])
    if whole.momentum is not None:
        averages = [trainer.momentum.state_dict() for trainer in (whole, resumed)]
        assert all(torch.equal(averages[0][key], averages[1][key]) for key in averages[0])
