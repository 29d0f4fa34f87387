"""Every loss and the trainer of sentence-transformers on a tiny Moon: words, pictures, both, core crops and several pictures."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses

import processing_moon  # noqa: F401 - registers the processor
from modeling_moon import MoonModel

pytestmark = pytest.mark.filterwarnings(  # users of both can still train with them
    "ignore:The (Cached)?MultipleNegativesSymmetricRankingLoss is deprecated:DeprecationWarning"
)


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (32 + 32 * (number % 2), 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# A batch of four of each column. Pictures of a row: 0, 1, 0, 2 | 2, 0, 3, 1 | 0, 0, 1, 1
QUERIES = ["red shoes", {"image": picture(0)}, {"text": "blue mug"}, {"image": picture(1), "core_box": [4, 4, 30, 30]}]
PRODUCTS = [
    {"title": "running shoes", "images": [picture(2), picture(3)]},
    {"title": "a plain mug", "category": ["Home", "Mugs"]},
    {"title": "mug", "attributes": {"colour": "blue"}, "images": [picture(4), picture(5)], "core_box": [2, 2, 28, 28]},
    {"images": picture(6)},
]
NEGATIVES = [{"title": "a bag"}, {"title": "a hat"}, {"title": "cup", "images": picture(7)}, {"images": picture(8)}]
TWO = [QUERIES, PRODUCTS]
THREE = [*TWO, NEGATIVES]
TEXT = [["red shoes", "a mug", "brown bag", "a hat"], ["shoes", "cup", "tote", "cap"]]
BINARY, SCORES, CLASSES = [1, 0, 1, 0], [0.9, 0.1, 0.7, 0.2], [0, 0, 1, 1]
VECTORS = torch.randn(4, 32, generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture
def encoder(tiny_moon: Any) -> SentenceTransformer:
    return SentenceTransformer(str(tiny_moon("qwen3_vl", trained=True)))


def features_of(encoder: SentenceTransformer, columns: list[list[Any]]) -> list[dict[str, Any]]:
    tasks = ("query", "document", "document")
    return [encoder.preprocess(column, task=task) for column, task in zip(columns, tasks, strict=False)]


def gradients(encoder: SentenceTransformer, loss: Any, columns: list[list[Any]], labels: Any) -> dict[str, Any]:
    encoder.zero_grad()
    value = loss(features_of(encoder, columns), None if labels is None else torch.tensor(labels))
    value = sum(value.values()) if isinstance(value, dict) else value
    assert bool(torch.isfinite(value))
    value.backward()
    found = {
        name: parameter.grad.clone() for name, parameter in encoder.named_parameters() if parameter.grad is not None
    }
    assert any(bool(gradient.abs().max() > 0) for gradient in found.values())
    return {"loss": value.detach(), **found}


APPLICABLE: dict[str, tuple[Any, list[list[Any]], Any]] = {
    "CosineSimilarityLoss": (losses.CosineSimilarityLoss, TWO, SCORES),
    "CoSENTLoss": (losses.CoSENTLoss, TWO, SCORES),
    "AnglELoss": (losses.AnglELoss, TWO, SCORES),
    "ContrastiveLoss": (losses.ContrastiveLoss, TWO, BINARY),
    "OnlineContrastiveLoss": (losses.OnlineContrastiveLoss, TWO, BINARY),
    "SoftmaxLoss": (lambda model: losses.SoftmaxLoss(model, 32, 2), TWO, BINARY),
    "MultipleNegativesRankingLoss": (losses.MultipleNegativesRankingLoss, THREE, None),
    "MultipleNegativesSymmetricRankingLoss": (losses.MultipleNegativesSymmetricRankingLoss, TWO, None),
    "TripletLoss": (losses.TripletLoss, THREE, None),
    "MegaBatchMarginLoss": (lambda model: losses.MegaBatchMarginLoss(model, mini_batch_size=3), TWO, None),
    "GISTEmbedLoss": (lambda model: losses.GISTEmbedLoss(model, copy.deepcopy(model)), THREE, None),
    "GlobalOrthogonalRegularizationLoss": (losses.GlobalOrthogonalRegularizationLoss, TWO, None),
    "BatchAllTripletLoss": (losses.BatchAllTripletLoss, [PRODUCTS], CLASSES),
    "BatchHardTripletLoss": (losses.BatchHardTripletLoss, [PRODUCTS], CLASSES),
    "BatchHardSoftMarginTripletLoss": (losses.BatchHardSoftMarginTripletLoss, [PRODUCTS], CLASSES),
    "BatchSemiHardTripletLoss": (losses.BatchSemiHardTripletLoss, [PRODUCTS], CLASSES),
    "MSELoss": (losses.MSELoss, [PRODUCTS], VECTORS),
    "EmbedDistillLoss": (losses.EmbedDistillLoss, TWO, VECTORS),
    "MarginMSELoss": (losses.MarginMSELoss, THREE, SCORES),
    "DistillKLDivLoss": (losses.DistillKLDivLoss, THREE, [[0.9, 0.1]] * 4),
    "ContrastiveTensionLoss": (losses.ContrastiveTensionLoss, [PRODUCTS, PRODUCTS], BINARY),
    "ContrastiveTensionLossInBatchNegatives": (losses.ContrastiveTensionLossInBatchNegatives, [PRODUCTS], BINARY),
    "MatryoshkaLoss": (
        lambda model: losses.MatryoshkaLoss(model, losses.MultipleNegativesRankingLoss(model), [32, 16]),
        THREE,
        None,
    ),
}
# Loss, with its mini-batches, and the loss without them that it must equal.
CACHED: dict[str, tuple[Any, Any, list[list[Any]]]] = {
    "CachedMultipleNegativesRankingLoss": (
        losses.CachedMultipleNegativesRankingLoss,
        losses.MultipleNegativesRankingLoss,
        THREE,
    ),
    "CachedMultipleNegativesSymmetricRankingLoss": (
        losses.CachedMultipleNegativesSymmetricRankingLoss,
        losses.MultipleNegativesSymmetricRankingLoss,
        TWO,
    ),
    "CachedGISTEmbedLoss": (
        lambda model, **sizes: losses.CachedGISTEmbedLoss(model, copy.deepcopy(model), **sizes),
        lambda model: losses.GISTEmbedLoss(model, copy.deepcopy(model)),
        THREE,
    ),
    "MatryoshkaLoss": (
        lambda model, **sizes: losses.MatryoshkaLoss(
            model, losses.CachedMultipleNegativesRankingLoss(model, **sizes), [32, 16]
        ),
        lambda model: losses.MatryoshkaLoss(model, losses.MultipleNegativesRankingLoss(model), [32, 16]),
        THREE,
    ),
}
# Losses over the layers of the library's own module, and a decoder's over words.
INAPPLICABLE = {"AdaptiveLayerLoss", "Matryoshka2dLoss", "DenoisingAutoEncoderLoss"}


def test_every_loss_of_the_library_is_among_those_below():
    every = {name for name in losses.__all__ if name.endswith(("Loss", "LossInBatchNegatives"))}
    assert every == set(APPLICABLE) | set(CACHED) | INAPPLICABLE


@pytest.mark.parametrize("name", APPLICABLE)
def test_a_loss_takes_words_pictures_products_and_core_crops(encoder, name):
    make, columns, labels = APPLICABLE[name]
    gradients(encoder, make(encoder), columns, labels)


@pytest.mark.parametrize("columns", ["mixed", "text"])
@pytest.mark.parametrize("name", CACHED)
def test_a_cached_loss_equals_the_loss_on_the_whole_batch(encoder, name, columns):
    """Mini-batches of 3 cut between rows of 0, 1, 2 and 3 pictures; one of 1 holds words alone beside pictures elsewhere."""
    make, whole, mixed = CACHED[name]
    data = mixed if columns == "mixed" else TEXT
    expected = gradients(encoder, whole(encoder), data, None)
    for size in (1, 3) if columns == "mixed" else (3,):
        found = gradients(encoder, make(encoder, mini_batch_size=size), data, None)
        assert found["loss"] == pytest.approx(float(expected["loss"]), abs=1e-4)
        for parameter in ("0.model.projection.weight", "0.model.vlm.visual.patch_embed.proj.weight"):
            if columns == "mixed" or "visual" not in parameter:
                scale = float(expected[parameter].abs().max())
                torch.testing.assert_close(found[parameter], expected[parameter], rtol=1e-3, atol=1e-3 * scale)


def test_batches_split_by_tokens_too(encoder):
    whole = gradients(encoder, losses.MultipleNegativesRankingLoss(encoder), THREE, None)
    loss = losses.CachedMultipleNegativesRankingLoss(encoder, mini_batch_num_tokens=120)
    assert gradients(encoder, loss, THREE, None)["loss"] == pytest.approx(float(whole["loss"]), abs=1e-4)


@pytest.mark.parametrize(
    ("backbone", "preset"), [("qwen3_vl", "moon3"), ("qwen2_5_vl", "moon3"), ("qwen2_5_vl", "moon2")]
)
def test_a_cached_loss_splits_batches_of_every_backbone(tiny_moon, backbone, preset):
    encoder = SentenceTransformer(str(tiny_moon(backbone, preset=preset, trained=True)))
    whole = gradients(encoder, losses.MultipleNegativesRankingLoss(encoder), TWO, None)
    found = gradients(encoder, losses.CachedMultipleNegativesRankingLoss(encoder, mini_batch_size=3), TWO, None)
    assert found["loss"] == pytest.approx(float(whole["loss"]), abs=1e-4)


def test_pictures_of_each_input_are_counted(encoder):
    queries, products, negatives = features_of(encoder, THREE)
    assert queries["num_images_per_sample"].tolist() == [0, 1, 0, 2]
    assert products["num_images_per_sample"].tolist() == [2, 0, 3, 1]
    assert negatives["num_images_per_sample"].tolist() == [0, 0, 1, 1]
    assert "num_images_per_sample" not in encoder.preprocess(TEXT[0])
    assert len(products["image_grid_thw"]) == 6
    words = encoder.preprocess(["<|vision_start|><|image_pad|> is no picture", {"image": picture(0)}])
    assert words["num_images_per_sample"].tolist() == [0, 1]


@pytest.mark.parametrize("loss", ["AdaptiveLayerLoss", "Matryoshka2dLoss"])
def test_the_library_refuses_its_losses_over_layers_when_they_are_made(encoder, loss):
    inner = losses.MultipleNegativesRankingLoss(encoder)
    sizes = {"matryoshka_dims": [32, 16]} if loss == "Matryoshka2dLoss" else {}
    with pytest.raises(AssertionError):
        getattr(losses, loss)(encoder, inner, **sizes)


def trained(encoder: SentenceTransformer, data: Dataset, folder: Any, loss: Any, **settings: Any) -> Any:
    arguments = SentenceTransformerTrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        logging_steps=1,
        save_steps=1,
        **settings,
    )
    return SentenceTransformerTrainer(encoder, arguments, train_dataset=data, loss=loss(encoder))


def catalogue() -> Dataset:
    """Columns as a table holds them: fields that a row does not have are None."""
    queries = [
        {"text": None, "image": None, "core_box": None, **(q if isinstance(q, dict) else {"text": q})} for q in QUERIES
    ]
    none = {"title": None, "category": None, "attributes": None, "images": None, "core_box": None}
    products = [{**none, **product} for product in PRODUCTS]
    products[3]["images"] = [products[3]["images"]]
    return Dataset.from_dict({"query": queries, "product": products})


@pytest.mark.parametrize("loss", ["MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"])
def test_the_trainer_learns_from_a_table_of_mixed_queries_and_products(encoder, tmp_path, loss):
    sizes = {"mini_batch_size": 1} if loss.startswith("Cached") else {}
    before = copy.deepcopy(encoder.state_dict())
    trainer = trained(
        encoder,
        catalogue(),
        tmp_path,
        lambda model: getattr(losses, loss)(model, **sizes),
        max_steps=2,
        save_strategy="no",
    )
    trainer.train()
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    after = encoder.state_dict()
    for part in ("0.model.projection.weight", "0.model.vlm.visual.patch_embed.proj.weight"):
        assert not torch.equal(before[part], after[part])


@pytest.mark.parametrize("adapter", [None, "default", "shop"])
def test_the_trainer_goes_on_from_its_checkpoint(encoder, tmp_path, adapter):
    if adapter is not None:
        encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), adapter_name=adapter)
    start = copy.deepcopy(encoder.state_dict())
    loss = losses.MultipleNegativesRankingLoss
    data = Dataset.from_dict({"query": ["a", "b", "c", "d"], "product": ["e", "f", "g", "h"]})
    trained(encoder, data, tmp_path, loss, max_steps=3).train()
    straight = copy.deepcopy(encoder.state_dict())
    encoder.load_state_dict(start)
    trained(encoder, data, tmp_path, loss, max_steps=3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    moved = 0
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, straight[name], rtol=1e-5, atol=1e-6)
        moved += not torch.equal(value, start[name])
    assert moved > 0
    again = SentenceTransformer(str(tmp_path / "checkpoint-3"))
    assert isinstance(again[0].model, torch.nn.Module)
    assert type(again[0].model).__name__ == MoonModel.__name__
    np.testing.assert_allclose(again.encode(TEXT[0]), encoder.encode(TEXT[0]), rtol=1e-5, atol=1e-6)


def test_the_budget_of_the_training_arguments_is_kept(encoder):
    long = "blue " * 200
    whole = encoder.preprocess([long])["input_ids"].shape[1]
    assert encoder.preprocess([long], max_length=100)["input_ids"].shape[1] == 100 < whole
