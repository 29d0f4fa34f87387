"""Compare `ProductEncoder` with the plain way to embed products, and its vectors with those of full decoding.

    moon3 bench embed --output results/embedding_speed.json [--model DIR] [--photos DIR] [--tables DIR …]

The plain way is `SentenceTransformer.encode` over the same products in one process. All ways of a model alternate in the
same rounds: trust the ratios, not the rates. Beside the ways, the file has the rates of their parts in this process
(preparation alone, with full and reduced decoding and without pictures; the model alone on tensors made before), the
largest distance of a vector with reduced decoding from the one without, and the recall with both.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from tabulate import tabulate

from evaluation.benchmarks.retrieval import DIRECTIONS, Measures, direction_scores
from evaluation.provenance import PROJECT_ROOT, provenance
from evaluation.speed import Series, compare_series
from modeling_moon import MoonConfig, MoonModel
from processing_moon import MoonProcessor
from product_data.atomic_files import write_atomically
from product_data.catalogue.making import make_catalogue
from product_data.errors import OptionError
from product_data.tables import ProductTables, load_tables
from retrieval.encode import VectorCache, load_for_evaluation
from retrieval.patch_embedding import linear_patch_embedding
from retrieval.preparation import BatchMaker, BatchTask
from retrieval.product_encoder import ProductEncoder, batches_by_length, default_workers, embed_batch

SHIPPED = PROJECT_ROOT / "training" / "checkpoints" / "moon1-catalogue"
PHOTO_SIZE = (1000, 1300)
"""Width and height of a drawn picture, in pixels: those of a shop's photo."""
_SIDE, _TOKENS = 224, 49
_BATCH = 32
_LARGER = {
    "text_config": {
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "vision_config": {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "depth": 12,
        "num_heads": 6,
        "out_hidden_size": 512,
    },
}
_WAYS = {
    "full": "ProductEncoder, full decoding / SentenceTransformer.encode",
    "reduced": "ProductEncoder, reduced decoding / SentenceTransformer.encode",
    "preparation_full": "pictures and text to tensors in one process, full decoding / SentenceTransformer.encode",
    "preparation_reduced": "pictures and text to tensors in one process, reduced decoding / SentenceTransformer.encode",
    "preparation_text": "text to tensors in one process / SentenceTransformer.encode",
    "model": "the model alone, as it is / SentenceTransformer.encode",
    "model_linear": "the model alone, patch embedding as a matrix product / SentenceTransformer.encode",
}


@dataclass(frozen=True)
class EmbeddingSpeed:
    """Settings of the comparison.

    Args:
        model: a Moon checkpoint, the small model; its pictures are set to 224 × 224 pixels. Default: the shipped one.
        photos: folder of JPEG files. Default: pictures of the drawn catalogue, enlarged to 1,000 × 1,300 pixels.
        tables: folders of products and queries whose recall is compared. Default: the drawn catalogue.
        products (`int`): number of products of the small model; the larger one embeds a quarter. Default 192.
        repeats (`int`): number of rounds. Default 5.
        workers (`int` or `None`): worker processes. Default: `default_workers()`.

    Raises:
        OptionError: a folder without JPEG files, or fewer than 6 products.
    """

    model: Path = SHIPPED
    photos: Path | None = None
    tables: tuple[Path, ...] = ()
    products: int = 192
    repeats: int = 5
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.products < 6:
            raise OptionError(f"products={self.products}; expected 6 or more")
        if self.photos is not None and not _jpeg_files(self.photos):
            raise OptionError(f"{self.photos}: found no JPEG files; expected a folder of *.jpg or *.jpeg")


def measure_embedding_speed(output: Path, settings: EmbeddingSpeed) -> dict[str, Any]:
    """Compare both models, vectors and recall, and write the results file after each part.

    Args:
        output: the JSON file.
        settings: what to compare.

    Returns:
        The content of the file: "small" and "larger", each with "ways" (name → products a second, speed-up over the plain
        way, and the result of `evaluation.speed.compare_series`) and "limit"; "vectors"; "recall"; "pictures"; "settings".
    """
    files, described = product_photos(settings)
    workers = default_workers() if settings.workers is None else settings.workers
    results: dict[str, Any] = {"pictures": described, "settings": _plain(asdict(settings)) | {"workers": workers}}

    def write(name: str, found: Any) -> None:
        results[name] = found
        results["provenance"] = provenance(0)
        write_atomically(output, json.dumps(results, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        small, larger = Path(folder) / "small", Path(folder) / "larger"
        small_checkpoint(settings.model, small)
        larger_checkpoint(small, larger)
        records = catalogue_records(files)
        write("small", compare_ways(small, records, workers, settings.repeats))
        write("larger", compare_ways(larger, records[: max(4, len(records) // 4)], workers, settings.repeats))
        model, processor = load_for_evaluation(small)
        pictures = {"photos": files, "sharp": sharp_pictures(min(48, len(files)))}
        write("vectors", {name: vector_distances(model, processor, found) for name, found in pictures.items()})
        write("recall", {name: recalls(model, processor, tables) for name, tables in _recall_tables(settings).items()})
    return results


def small_checkpoint(source: Path, folder: Path) -> None:
    """Copy a Moon checkpoint, with pictures of 224 × 224 pixels."""
    shutil.copytree(source, folder)
    processor = MoonProcessor.from_pretrained(folder)
    before = processor.max_image_tokens or 0
    processor.image_processor.size = {"shortest_edge": _SIDE**2, "longest_edge": _SIDE**2}
    processor.max_image_tokens, processor.max_tokens = _TOKENS, processor.max_tokens + max(0, _TOKENS - before)
    processor.save_pretrained(folder)


def larger_checkpoint(source: Path, folder: Path) -> None:
    """Write a larger model with random weights beside the processor of another one: twelve layers of vision, eight of text."""
    shutil.copytree(source, folder)
    config = MoonConfig.from_pretrained(folder)
    for part, sizes in _LARGER.items():
        for name, size in sizes.items():
            setattr(getattr(config.vlm_config, part), name, size)
    torch.manual_seed(0)
    MoonModel(config).save_pretrained(folder)


def compare_ways(checkpoint: Path, records: Sequence[dict[str, Any]], workers: int, repeats: int) -> dict[str, Any]:
    """Time all ways of one model alternately, and say which part limits ours.

    Args:
        checkpoint: folder of a Moon model that sentence-transformers can load.
        records: products with pictures as bytes.
        workers: worker processes of ours.
        repeats: number of rounds.
    """
    from sentence_transformers import SentenceTransformer

    model, processor = load_for_evaluation(checkpoint)
    plain = SentenceTransformer(str(checkpoint))
    groups = batches_by_length(records, _BATCH)
    chosen = [[records[index] for index in group] for group in groups]
    made = [processor(products=group, reduced_decoding=True) for group in chosen]
    ways: dict[str, Callable[[], Any]] = {}
    with ExitStack() as stack:
        for name, reduced in (("full", False), ("reduced", True)):
            encoder = ProductEncoder(
                model, processor, workers=workers, batch_size=_BATCH, reduced_decoding=reduced, progress=False
            )
            ways[name] = _encoding(stack.enter_context(encoder), records)
            ways[f"preparation_{name}"] = _preparation(processor, chosen, {"reduced_decoding": reduced})
        ways["preparation_text"] = _preparation(processor, chosen, {"form": "t"})
        ways["model"], ways["model_linear"] = _forward(model, made, False), _forward(model, made, True)
        series = Series(
            ways, lambda: plain.encode(list(records), batch_size=_BATCH, show_progress_bar=False), _WAYS, len(records)
        )
        timed = compare_series(series, repeats=repeats, warm_up=1)
    rates = {name: way["ours_items_per_second"] for name, way in timed.items()}
    return {
        "checkpoint": checkpoint.name,
        "products": len(records),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "plain_products_per_second": timed["reduced"]["other_items_per_second"],
        "ways": {
            name: {"products_per_second": rates[name], "speed_up": 1 / way["ratio"]} | way
            for name, way in timed.items()
        },
        "limit": limit(rates, workers),
    }


def limit(rates: Mapping[str, float], workers: int) -> str:
    """Return a sentence that names the part which limits the rate with reduced decoding.

    Args:
        rates: name of a way → products a second.
        workers: worker processes.
    """
    parts = {
        "the model": rates["model_linear"],
        "the preparation": rates["preparation_reduced"] * max(1, workers),
    }
    slowest = min(parts, key=lambda name: parts[name])
    picture = 1 / rates["preparation_reduced"] - 1 / rates["preparation_text"]
    share = picture * rates["preparation_reduced"]
    return (
        f"{slowest}: the model alone reaches {parts['the model']:.0f} products a second, preparation alone "
        f"{rates['preparation_reduced']:.0f} in one process, of whose time pictures take {share:.0%} and text the rest; "
        f"together they reach {rates['reduced']:.0f} with {workers} workers"
    )


def vector_distances(model: Any, processor: Any, files: Sequence[bytes]) -> dict[str, float]:
    """Return the largest and the mean 1 − cosine of vectors with reduced decoding and those of full decoding.

    Args:
        model, processor: from `load_for_evaluation`.
        files: JPEG files; each is a product without text, so that nothing but the picture makes its vector.
    """
    records = [{"images": file} for file in files]
    found = []
    for reduced in (False, True):
        with ProductEncoder(model, processor, workers=0, reduced_decoding=reduced, progress=False) as encoder:
            found.append(encoder.encode(records, form="i").vectors.astype(np.float64))
    distance_N = 1 - (found[0] * found[1]).sum(axis=1) / np.prod([np.linalg.norm(v, axis=1) for v in found], axis=0)
    return {"largest": float(distance_N.max()), "mean": float(distance_N.mean()), "pictures": len(files)}


def recalls(model: Any, processor: Any, tables: ProductTables) -> dict[str, Any]:
    """Return R@1 and R@10 with full and with reduced decoding, and the largest distance of a vector from itself.

    The direction is i→mm, or mm→mm for data whose queries have a picture and a text.

    Args:
        model, processor: from `load_for_evaluation`; the processor's own setting is restored.
        tables: products, and queries with pictures.

    Raises:
        OptionError: no queries with pictures.
    """
    types = {query.type for query in tables.queries}
    direction = next((name for name in ("i2mm", "mm2mm") if DIRECTIONS[name][0] in types), None)
    if direction is None:
        raise OptionError(f"tables: found queries of the types {sorted(types)}; expected some with a picture")
    before, vectors = processor.reduced_decoding, []
    found: dict[str, Any] = {"direction": direction}
    try:
        for name, reduced in (("full", False), ("reduced", True)):
            processor.reduced_decoding = reduced
            cache = VectorCache(model, processor, tables.products, tables.queries)
            scores = direction_scores(cache, direction, *DIRECTIONS[direction], {}, Measures(resamples=100)) or {}
            found[name] = {key: scores[key] for key in ("R@1", "R@10", "queries", "gallery")}
            vectors.append({"products": cache.gallery("mm").vectors, "queries": cache.all_queries().vectors})
    finally:
        processor.reduced_decoding = before
    full, reduced_ND = vectors
    found["largest_1_minus_cosine"] = {
        name: float((1 - (full[name].astype(np.float64) * reduced_ND[name]).sum(axis=1)).max()) for name in full
    }
    return found | {f"{key}_change": found["reduced"][key] - found["full"][key] for key in ("R@1", "R@10")}


def product_photos(settings: EmbeddingSpeed) -> tuple[list[bytes], str]:
    """Return JPEG files, one for each product, and a sentence on what they are."""
    if settings.photos is not None:
        files = [path.read_bytes() for path in _jpeg_files(settings.photos)[: settings.products]]
        return files, f"{len(files)} JPEG files of the folder {settings.photos.name}"
    rows, _ = _drawn(settings.products, image_size=256)
    files = [enlarged(row["images"][0]) for row in rows]
    size = "{:,} × {:,}".format(*PHOTO_SIZE)
    return files, f"{len(files)} drawn pictures, enlarged to {size} pixels and stored as JPEG (quality 90); not photos"


def enlarged(picture: Any) -> bytes:
    """Return the JPEG file of a picture at the size of a shop's photo."""
    source = picture["bytes"] if isinstance(picture, dict) else picture
    image = source if isinstance(source, Image.Image) else Image.open(io.BytesIO(source))
    return _jpeg(image.convert("RGB").resize(PHOTO_SIZE, Image.Resampling.BICUBIC))


def sharp_pictures(count: int) -> list[bytes]:
    """Return JPEG files with the hardest content for reduced decoding: stripes of 1 to 8 pixels, and rows of text."""
    files = []
    for number in range(count):
        image = Image.new("RGB", PHOTO_SIZE, (255 - 3 * number % 64, 250, 240))
        draw = ImageDraw.Draw(image)
        width = 1 + number % 8
        for start in range(0, PHOTO_SIZE[number % 2], 2 * width):
            line = (start, 0, start, 650) if number % 2 == 0 else (0, start, 1000, start)
            draw.line(line, fill=(20 * (number % 12), 40, 200 - 15 * (number % 12)), width=width)
        for row in range(700, 1300, 12 + number % 9):
            draw.text((20, row), f"Product {number} · 100 % cotton · row {row} " * 3, fill=(10, 10, 10))
        files.append(_jpeg(image))
    return files


def catalogue_records(files: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return a product of the drawn catalogue for each picture, with that picture in place of its own."""
    rows, _ = _drawn(len(files), image_size=64)
    return [
        {"title": row["title"], "category": row["category_path"], "images": file}
        for row, file in zip(rows, files, strict=True)
    ]


def embedding_speed_table(results: Mapping[str, Any]) -> str:
    """Return the products a second and the speed-ups of both models as a Markdown table, and what limits them."""
    rows, notes = [], []
    for name in ("small", "larger"):
        found = results[name]
        rows.append([name, "plain", f"{found['plain_products_per_second']:.1f}", "1.00"])
        for way, values in found["ways"].items():
            rows.append([name, way, f"{values['products_per_second']:.1f}", f"{values['speed_up']:.2f}"])
        notes.append(f"{name}: limited by {found['limit']}")
    for name, found in results["vectors"].items():
        notes.append(f"1 − cosine, {name}: at most {found['largest']:.1e}, mean {found['mean']:.1e}")
    for name, found in results["recall"].items():
        scores = ", ".join(f"{key} {found['full'][key]:.4f} → {found['reduced'][key]:.4f}" for key in ("R@1", "R@10"))
        notes.append(f"recall {found['direction']}, {name}: {scores}")
    table = tabulate(rows, ["model", "way", "products/s", "times plain"], tablefmt="github", disable_numparse=True)
    return "\n".join([table, "", *notes])


def _encoding(encoder: ProductEncoder, records: Sequence[dict[str, Any]]) -> Callable[[], Any]:
    return lambda: encoder.encode(records)


def _preparation(
    processor: Any, groups: Sequence[Sequence[dict[str, Any]]], options: dict[str, Any]
) -> Callable[[], Any]:
    maker, calls = BatchMaker(processor, 0), iter(range(1, 1_000_000))

    def prepare() -> None:
        call = next(calls)
        for group in groups:
            maker.make(BatchTask(call, group, {"side": "products", **options}))

    return prepare


def _forward(model: Any, batches: Sequence[Any], linear: bool) -> Callable[[], Any]:
    @torch.inference_mode()
    def forward() -> None:
        with ExitStack() as stack:
            if linear:
                stack.enter_context(linear_patch_embedding(model))
            for batch in batches:
                embed_batch(model, batch)

    return forward


def _recall_tables(settings: EmbeddingSpeed) -> dict[str, ProductTables]:
    if settings.tables:
        return {folder.name: load_tables(folder) for folder in settings.tables}
    products, queries = _drawn(min(96, settings.products), image_size=128, queries_per_product=3)
    for row in products:
        row["images"] = [enlarged(picture) for picture in row["images"]]
    queries = [row for row in queries if row["type"] == "image"]
    for row in queries:
        row["image"] = enlarged(row["image"])
    return {"drawn catalogue, enlarged": load_tables({"products": products, "queries": queries})}


def _drawn(
    products: int, *, image_size: int, queries_per_product: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return products and queries of the drawn catalogue, all in one split."""
    return make_catalogue(
        products=products,
        image_size=image_size,
        queries_per_product=queries_per_product,
        splits=(("test", 1.0),),
        progress=False,
    )


def _jpeg_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings as JSON holds them; of paths the names alone, which say nothing about the machine."""
    names = {"model": values["model"].name, "photos": values["photos"] and values["photos"].name}
    return values | names | {"tables": [folder.name for folder in values["tables"]]}
