import json
import math
from types import SimpleNamespace

import pytest
import torch
from closeness import DOUBLE, VALUE
from torch import nn
from torch.nn.functional import normalize
from transformers import TrainerCallback, TrainingArguments

from product_data.atomic_files import append_line, cut_lines_after, read_lines
from training.batches.negatives import NO_ID, NegativeQueue
from training.contrastive import trainer as contrastive_trainer
from training.contrastive.trainer import ContrastiveTrainer
from training.losses.dual_alignment import DualAlignmentLoss
from training.losses.info_nce import InfoNCELoss, info_nce
from training.losses.sample_filter import SampleFilter
from training.recipe.loss import LossArguments
from training.runs.exact_resumption import ResumeError
from training.runs.finite_steps import NonFiniteLossError
from training.runs.folder import RunFolder, is_complete, mark_complete

pytestmark = pytest.mark.lowest

WIDTH, DIM = 6, 4


class Encoder(nn.Module):
    """The least model that the trainer takes; in float64, so that equal computations are equal on any machine."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(WIDTH, DIM).double()

    def forward(self, x):
        return SimpleNamespace(embeddings=normalize(self.layer(x.double()), dim=1))


class Rows(torch.utils.data.Dataset):
    def __init__(self, length, products=50, broken_at=None):
        self.length, self.products, self.broken_at = length, products, broken_at

    def __len__(self):
        return self.length

    def __getitem__(self, position):
        generator = torch.Generator().manual_seed(position)
        query = torch.randn(WIDTH, generator=generator)
        if position == self.broken_at:
            query = query * math.nan
        return position, query, query + 0.1 * torch.randn(WIDTH, generator=generator)


CUT = {"kind": "product", "item": "p7", "field": "title", "tokens_before": 90, "tokens_after": 40}
RESIZED = CUT | {"field": "images"}


def collate(products):
    def to_batch(rows):
        positions, queries, items = zip(*rows, strict=True)
        count = len(rows)
        return {
            "queries": {"x": torch.stack(queries)},
            "products": {"x": torch.stack(items)},
            "target": torch.arange(count),
            "product": torch.tensor(positions) % products,
            "group": torch.full((count,), NO_ID),
            "query_group": torch.full((count,), NO_ID),
            "other": torch.zeros((count, 0), dtype=torch.int64),
            "negative": torch.zeros((count, 0), dtype=torch.int64),
            "items": [[f"q{position}", f"p{position % products}"] for position in positions],
            "skipped": [{"item": "p7", "field": "images[0]", "reason": "truncated"}] if 7 in positions else [],
            "shortened": [CUT | {"row": positions.index(7)}, RESIZED | {"row": positions.index(7)}]
            if 7 in positions
            else [],
        }

    return to_batch


def trainer(
    tmp_path, *, queue_steps=2, products=50, length=1000, broken_at=None, options=None, sample_filter=None, **arguments
):
    values = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 1}
    values |= {"save_strategy": "no", "logging_nan_inf_filter": False, "disable_tqdm": True, "report_to": "none"}
    values |= {"remove_unused_columns": False, "train_sampling_strategy": "sequential", "use_cpu": True}
    return ContrastiveTrainer(
        model=Encoder(),
        args=TrainingArguments(output_dir=str(tmp_path / "run"), **{**values, **arguments}),
        train_dataset=Rows(length, products, broken_at),
        data_collator=collate(products),
        loss=InfoNCELoss(0.2),
        queue=NegativeQueue(queue_steps),
        options=options,
        sample_filter=sample_filter,
    )


def metrics(tmp_path):
    return read_lines(tmp_path / "run" / "metrics.jsonl")


def test_the_loss_counts_batch_and_queue_and_leaves_false_negatives_out(tmp_path):
    ours = trainer(tmp_path, products=6)
    to_batch, model = collate(6), ours.model
    past = []
    for start in (0, 4, 8):
        batch = to_batch([Rows(100)[position] for position in range(start, start + 4)])
        loss, outputs = ours.compute_loss(model.train(), batch, return_outputs=True)
        candidates = torch.cat([outputs["products"], *(vectors for vectors, _ in past)])
        ids = torch.cat([batch["product"], *(numbers for _, numbers in past)])
        same = (batch["product"][:, None] == ids[None, :]) & (torch.arange(4)[:, None] != torch.arange(len(ids)))
        assert same.any() == (start > 0)
        assert torch.equal(loss, info_nce(outputs["queries"], candidates, torch.arange(4), 0.2, same))
        past = [*past[-1:], (outputs["products"].detach(), batch["product"])]
    assert len(ours.queue) == 8


def test_evaluation_does_not_fill_the_queue(tmp_path):
    ours = trainer(tmp_path)
    ours.compute_loss(ours.model.eval(), collate(50)([Rows(9)[0], Rows(9)[1]]))
    assert len(ours.queue) == 0


def test_accumulated_gradients_are_the_mean_of_the_micro_batches(tmp_path):
    plain = trainer(tmp_path / "a", queue_steps=0, max_steps=1, optim="sgd", max_grad_norm=1e9)
    halves = trainer(
        tmp_path / "b",
        queue_steps=0,
        max_steps=1,
        optim="sgd",
        max_grad_norm=1e9,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    start, to_batch = Encoder(), collate(50)
    rows = [Rows(9)[position] for position in range(4)]
    sum(plain.compute_loss(start, to_batch(part)) / 2 for part in (rows[:2], rows[2:])).backward()
    expected = start.layer.weight - 0.01 * start.layer.weight.grad
    halves.train()
    assert start.layer.weight.grad.abs().max() > 0.01
    assert torch.allclose(halves.model.layer.weight, expected, atol=DOUBLE)
    assert metrics(tmp_path / "b")[0]["negatives"] == 1


def test_accumulation_in_chunks_is_accumulation_without(tmp_path):
    weights = []
    for chunk in (None, 1, 2):
        ours = trainer(
            tmp_path / str(chunk),
            options=LossArguments(encode_chunk_size=chunk),
            optim="sgd",
            max_grad_norm=1e9,
            gradient_accumulation_steps=3,
        )
        ours.train()
        weights.append(ours.model.layer.weight.detach())
    assert (weights[0] - Encoder().layer.weight).abs().max() > 1e-3
    assert torch.allclose(weights[0], weights[1], atol=DOUBLE)
    assert torch.allclose(weights[0], weights[2], atol=DOUBLE)


class Weights(TrainerCallback):
    """Keeps the weights before the first step and after each."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, model=None, **_):
        self.seen.append({name: value.detach().clone() for name, value in model.state_dict().items()})

    on_step_end = on_train_begin


@pytest.mark.parametrize("chunk", [None, 2])
def test_a_momentum_encoder_that_follows_every_step_fills_the_queue(tmp_path, chunk):
    ours = trainer(tmp_path, options=LossArguments(queue_momentum=0.5, encode_chunk_size=chunk), learning_rate=0.1)
    weights = Weights()
    ours.add_callback(weights)
    ours.train()
    average, wanted, model = weights.seen[0], [], Encoder()
    for step, after in enumerate(weights.seen[1:]):
        model.load_state_dict(average)
        batch = collate(50)([Rows(100)[position] for position in range(4 * step, 4 * step + 4)])
        wanted.append(model(**batch["products"]).embeddings)
        average = {name: 0.5 * value + 0.5 * after[name] for name, value in average.items()}
    assert torch.allclose(ours.queue.items().vector_CD, torch.cat(wanted[-2:]), atol=DOUBLE)
    model.load_state_dict(weights.seen[-2])
    assert not torch.allclose(model(**batch["products"]).embeddings, wanted[-1], atol=1e-3)


def test_a_share_of_all_steps_is_waited_for_before_the_queue_counts(tmp_path):
    trainer(tmp_path, options=LossArguments(queue_warmup_steps=0.5)).train()
    assert [line["negatives"] for line in metrics(tmp_path)] == [3, 3, 3, 11, 11, 11]


def test_the_filter_is_told_how_much_of_the_training_is_done(tmp_path, monkeypatch):
    told = []

    def watched(vectors, inputs, queued, options, progress, sample_filter, earlier):
        told.append(progress)
        return make_terms(vectors, inputs, queued, options, progress, sample_filter, earlier)

    make_terms = contrastive_trainer.make_terms
    monkeypatch.setattr(contrastive_trainer, "make_terms", watched)
    sample_filter = SampleFilter(start=0.4, end=0.0, schedule="linear")
    trainer(tmp_path, max_steps=4, options=LossArguments(), sample_filter=sample_filter).train()
    assert told == [0.0, 0.25, 0.5, 0.75]
    assert [line["filter_margin"] for line in metrics(tmp_path)] == pytest.approx([0.3, 0.2, 0.1, 0.0])


@pytest.mark.parametrize("chunk", [None, 3])
def test_the_load_balancing_loss_is_the_mean_over_forward_passes_by_their_rows(tmp_path, chunk):
    ours = trainer(tmp_path, options=LossArguments(encode_chunk_size=chunk), max_steps=1, per_device_train_batch_size=4)
    ours.objective = DualAlignmentLoss(InfoNCELoss(0.2), router_weight=0.5)
    forward, passes = ours.model.forward, []

    def routed(x, output_router_stats=False):
        assert output_router_stats
        router_loss = ours.model.layer(x.double()).pow(2).mean()
        passes.append((len(x), router_loss.item()))
        return SimpleNamespace(embeddings=forward(x).embeddings, router_loss=router_loss)

    ours.model.forward = routed
    ours.train()
    passes = passes[: 2 if chunk is None else 4]  # what follows encodes once more for the gradient
    assert [rows for rows, _ in passes] == ([4, 4] if chunk is None else [3, 1, 3, 1])
    wanted = sum(rows * value for rows, value in passes) / 8
    line = metrics(tmp_path)[0]
    assert line["loss_aux"] == pytest.approx(wanted, rel=VALUE)
    assert line["loss"] == pytest.approx(ours_without_router(tmp_path) + 0.5 * wanted, rel=VALUE)


def ours_without_router(tmp_path):
    trainer(tmp_path / "plain", max_steps=1).train()
    return metrics(tmp_path / "plain")[0]["loss"]


def test_each_logged_step_is_one_line_with_what_tells_how_training_goes(tmp_path):
    trainer(tmp_path).train()
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    wanted = {"loss", "accuracy", "negatives", "masked_share", "temperature", "grad_norm", "items_per_second"}
    assert all(wanted <= line.keys() for line in lines)
    assert [line["negatives"] for line in lines] == [3, 7, 11, 11, 11, 11]
    assert lines[0]["temperature"] == 0.2
    assert 0 <= lines[0]["accuracy"] <= 1


def test_the_share_of_masked_candidates_is_measured(tmp_path):
    trainer(tmp_path, products=4, max_steps=2).train()
    first, second = metrics(tmp_path)
    assert first["masked_share"] == 0
    assert second["masked_share"] == pytest.approx(1 / 8)


def test_skipped_items_are_noted_once(tmp_path):
    trainer(tmp_path, length=24).train()
    lines = read_lines(tmp_path / "run" / "skipped.jsonl")
    assert lines == [{"item": "p7", "field": "images[0]", "reason": "truncated"}]


def test_items_that_were_shortened_are_noted_once_and_their_share_is_measured(tmp_path):
    trainer(tmp_path, length=24, max_steps=12).train()
    assert read_lines(tmp_path / "run" / "shortened.jsonl") == [CUT, RESIZED]
    assert [one["shortened_share"] for one in metrics(tmp_path)] == [
        1 / 8 if step % 6 == 1 else 0 for step in range(12)
    ]


def test_a_loss_that_is_not_finite_stops_training_and_names_the_items(tmp_path):
    broken = trainer(tmp_path, broken_at=10)
    with pytest.raises(NonFiniteLossError, match="nan at step 2; .*nonfinite_batch_0.json"):
        broken.train()
    found = json.loads((tmp_path / "run" / "nonfinite_batch_0.json").read_text())
    assert found["step"] == 2
    assert ["q10", "p10"] in found["items"]
    assert len(found["items"]) == 4


def test_the_mean_loss_that_is_reported_at_the_end_is_that_of_all_steps_also_after_a_resumption(tmp_path):
    whole = trainer(tmp_path, save_strategy="steps", save_steps=4)
    whole.train()
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    losses = [step["loss"] for step in whole.state.log_history if "loss" in step]
    for run in (whole, resumed):
        assert run.state.log_history[-1]["train_loss"] == pytest.approx(sum(losses) / 6, abs=1e-3)


def test_a_checkpoint_without_this_models_weights_is_refused(tmp_path):
    ours = trainer(tmp_path, save_strategy="steps", save_steps=3)
    ours.train()
    other = trainer(tmp_path / "other")
    other.model.extra = nn.Linear(2, 2)
    with pytest.raises(ResumeError, match="no weights for .*extra"):
        other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))


def test_a_checkpoint_of_another_number_of_processes_is_refused(tmp_path):
    ours = trainer(tmp_path, save_strategy="steps", save_steps=3)
    ours.train()
    file = tmp_path / "run" / "checkpoint-3" / "contrastive_state_0.pt"
    torch.save(torch.load(file, weights_only=True) | {"world_size": 2}, file)
    with pytest.raises(ResumeError, match="found a checkpoint of 2 processes; expected 1"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    file.unlink()
    with pytest.raises(ResumeError, match="found a checkpoint of fewer processes; expected 1"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))


def make_checkpoint(run, step, complete=True):
    folder = run / f"checkpoint-{step}"
    (folder / "part").mkdir(parents=True)
    (folder / "weights").write_text("w" * step)
    (folder / "part" / "more").write_text("m")
    if complete:
        mark_complete(folder)
    return folder


def test_only_a_checkpoint_with_its_marker_and_all_its_bytes_is_good(tmp_path):
    good, cut, lacking, unmarked = (make_checkpoint(tmp_path, step, step != 12) for step in (9, 10, 11, 12))
    (cut / "weights").write_text("w")
    (lacking / "part" / "more").unlink()
    assert [is_complete(path) for path in (good, cut, lacking, unmarked)] == [True, False, False, False]
    assert RunFolder(tmp_path).last_good_checkpoint() == good
    assert set(RunFolder(tmp_path).mend()) == {cut, lacking, unmarked}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-9"]
    assert RunFolder(tmp_path / "nowhere").last_good_checkpoint() is None


@pytest.mark.parametrize(("limit", "left"), [(None, 3), (0, 3), (1, 1), (2, 2), (5, 3)])
def test_pruning_leaves_the_newest_good_checkpoints(tmp_path, limit, left):
    steps = [9, 10, 100]
    for step in steps:
        make_checkpoint(tmp_path, step)
    make_checkpoint(tmp_path, 101, complete=False)
    RunFolder(tmp_path).prune(limit)
    kept = sorted(int(path.name.split("-")[1]) for path in tmp_path.iterdir())
    assert kept == [*steps[3 - left :], 101]


def test_lines_of_later_steps_and_torn_lines_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (2, 4, 6):
        append_line(path, {"step": step, "loss": 1.0})
    with path.open("a") as stream:
        stream.write('{"step": 8, "lo')
    cut_lines_after(path, 4)
    assert [line["step"] for line in read_lines(path)] == [2, 4]
    assert path.read_text().endswith("}\n")
