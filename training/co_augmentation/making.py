"""Make enriched titles, clean pictures and scenes of products: the co-augmentation of MOON2.0 (arXiv 2511.12449).

    moon3 co-augment SHOP --output SHOP/co_augmentation --model CHECKPOINT

Products are taken in batches. The pictures of a batch are written, then its lines of the journal `variants.jsonl`; an interrupted
job continues after the last complete batch. A later job makes only the variants of new and changed products. The journal begins
with all settings that change a variant; a job with other settings is refused.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from evaluation.provenance import provenance
from processing_moon import ImageLimits, ProductError, open_image
from product_data.atomic_files import append_line, file_written_whole, write_atomically
from product_data.co_augmentation.cutting import CutOutError
from product_data.co_augmentation.titles import TitleCheck, rewritten_titles
from product_data.co_augmentation.variant_files import (
    CLEAN,
    JOURNAL,
    LOCK,
    PICTURES,
    RECORD,
    SCENE,
    TITLE,
    TITLES,
    Variant,
    counts_of,
    write_variants,
)
from product_data.errors import OptionError
from product_data.folder_lock import locked
from product_data.table_files import TableError
from product_data.tables import ProductRow
from training.co_augmentation.consistency import Consistency, Vectors
from training.co_augmentation.editors import Editor
from training.labels.chat_writer import Answer, read_title
from training.labels.journal import (
    JOURNAL_SUFFIX,
    Asking,
    Journal,
    Writer,
    ask,
    journal_lines,
    picture_digest,
    tasks_of,
)

_QUALITY = 92  # of JPEG
_NAMED = 5  # pictures that are named if they cannot be opened


@dataclass(frozen=True)
class MakingOptions:
    """How variants are made.

    Args:
        output: the folder to write.
        views (`int`): scenes of each product, n_c of MOON2.0. Default 3; 0 for titles alone.
        titles (`int`): enriched titles of each product; with a writer, the first is the writer's. Default 2; 0 for
            pictures alone.
        batch_size (`int`): products of a batch. Default 16.
        seed (`int`): decides all random choices. Default 0.
        allow_urls (`bool`): download pictures from public URLs. Default False.
        overwrite (`bool`): delete the variants of a job with other settings. Default False.
        progress (`bool`): show a progress bar for what takes over three seconds. Default True.

    Raises:
        OptionError: a number is out of range, or neither titles nor pictures are wanted.
    """

    output: Path
    views: int = 3
    titles: int = 2
    batch_size: int = 16
    seed: int = 0
    allow_urls: bool = False
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in (("views", 0), ("titles", 0), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                option = f"--{name.replace('_', '-')}"
                raise OptionError(f"{option}: found {getattr(self, name)}; expected a number of at least {least}")
        if not self.views and not self.titles:
            raise OptionError("--views and --titles: found 0 for both; expected at least one variant")


@dataclass
class MadeVariants:
    """What a job has made.

    Args:
        counts: kind of variant → "made", "accepted", and reason → number.
        products: the number of products.
        new: the number of products whose variants were made by this job; the others were known.
        unreadable: the first pictures that cannot be opened, with the reason.
        unreadable_count: the number of all of them.
    """

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    products: int = 0
    new: int = 0
    unreadable: list[str] = field(default_factory=list)
    unreadable_count: int = 0

    def __str__(self) -> str:
        lines = [f"{self.products} products, {self.new} of them new or changed"]
        for kind, counts in self.counts.items():
            others = "".join(
                f"; {count} {name}" for name, count in counts.items() if name not in ("made", "accepted") and count
            )
            lines.append(f"{kind}: {counts['accepted']} of {counts['made']} accepted{others}")
        if self.unreadable_count:
            lines.append(f"{self.unreadable_count} pictures cannot be opened: {'; '.join(self.unreadable)}")
        return "\n".join(lines)


@dataclass
class _Made:
    """The variants of a product that are not scored yet, with the pictures of those that have one."""

    row: ProductRow
    original: Image.Image | None
    variants: list[Variant]
    pictures: list[Image.Image | None]


def make_variants(
    data_set: str,
    products: Sequence[ProductRow],
    options: MakingOptions,
    *,
    editor: Editor | None = None,
    consistency: Consistency | None = None,
    writer: Writer | None = None,
    writer_name: str = "",
) -> MadeVariants:
    """Make the variants of products and write their folder.

    Args:
        data_set: the name of the data set, by which recipes assign the folder to their data.
        products: products with distinct ids, of the training split alone: pictures of other products become grounds.
        options: how variants are made.
        editor: makes pictures. Default: the embedded editor.
        consistency: scores variants. Default: none, so variants are kept without a score.
        writer: writes titles. Default: none, only templates.
        writer_name: the name of the writer, for the table and the settings.

    Raises:
        TableError: no products, or an id twice.
        WritingError: the folder has variants with other settings.
        FolderInUseError: another process writes into the folder.
        EditorError: an editor of the user fails.
    """
    ids = [row.product_id for row in products]
    if not ids or len(set(ids)) < len(ids):
        twice = next((name for name in ids if ids.count(name) > 1), None)
        found = "no products" if twice is None else f"product_id {twice!r} twice"
        raise TableError(f"{data_set}: found {found}; expected at least one product, each with a distinct product_id")
    editor = editor or Editor()
    with locked(options.output, LOCK):
        maker = _Maker(products, options, editor, consistency, (writer, writer_name))
        made = maker.run(data_set)
    return made


class _Maker:
    """Make the variants of one data set."""

    def __init__(
        self,
        products: Sequence[ProductRow],
        options: MakingOptions,
        editor: Editor,
        consistency: Consistency | None,
        writer: tuple[Writer | None, str],
    ) -> None:
        self.products, self.options, self.editor, self.consistency = products, options, editor, consistency
        self.writer, self.writer_name = writer
        self.check = TitleCheck(products)
        self.pictured = [row for row in products if row.images]
        self.report = MadeVariants(products=len(products))
        self.known: dict[str, list[Variant]] = {}
        self.limits = ImageLimits(allow_urls=options.allow_urls)

    def settings(self) -> dict[str, Any]:
        """Return everything that a variant depends on, besides its product."""
        of_scores = self.consistency.settings if self.consistency else {"model": None, "tolerance": None}
        of_writer = {"writer": self.writer_name or None, **getattr(self.writer, "settings", {})}
        own = {name: getattr(self.options, name) for name in ("views", "titles", "seed")}
        return {**own, **self.editor.settings, **of_scores, **of_writer}

    def run(self, data_set: str) -> MadeVariants:
        """Make what is missing, and write the table."""
        folder, settings = self.options.output, self.settings()
        lines = journal_lines(folder / JOURNAL, settings, self.options.overwrite)
        if not lines:
            shutil.rmtree(folder / PICTURES, ignore_errors=True)
        _write_record(folder, {"complete": False, "data_set": data_set, "settings": settings})
        self.known = {line["shown"]: [Variant.of(variant) for variant in line["variants"]] for line in lines}
        digests = {row.product_id: self._digest(row) for row in self.products}
        left = [row for row in self.products if digests[row.product_id] not in self.known]
        written = self._written_titles(settings)
        bar = tqdm(
            total=len(self.products),
            initial=len(self.products) - len(left),
            desc="co-augmentation",
            unit="product",
            disable=not self.options.progress,
            delay=3.0,
        )
        unkept: dict[str, list[Variant]] = {}
        with bar:
            for start in range(0, len(left), self.options.batch_size):
                batch = left[start : start + self.options.batch_size]
                for made in self._scored([self._make(row, written) for row in batch]):
                    digest = digests[made.row.product_id]
                    if made.row.images and made.original is None:
                        unkept[digest] = made.variants  # the next job tries to open the picture again
                    else:
                        rows = [variant.as_row() for variant in made.variants]
                        line = {"shown": digest, "product_id": made.row.product_id, "variants": rows}
                        append_line(folder / JOURNAL, line)
                        self.known[digest] = made.variants
                bar.update(len(batch))
        self.report.new = len(left)
        every = {**self.known, **unkept}
        variants = [variant for row in self.products for variant in every[digests[row.product_id]]]
        write_variants(folder, variants)
        self.report.counts = counts_of(variants)
        facts = {"products": len(self.products), "counts": self.report.counts}
        facts |= {"scored": self.consistency is not None, "model_name": self.consistency and self.consistency.name}
        record = {"complete": True, "data_set": data_set, "settings": settings, **facts}
        _write_record(folder, record | {"provenance": provenance(self.options.seed)})
        return self.report

    def _digest(self, row: ProductRow) -> str:
        """Return a digest of everything of a product that its variants depend on."""
        digest = hashlib.sha256(repr((row.product_id, row.record("t"), row.core_box)).encode())
        for image in row.images[:1]:
            try:
                digest.update(picture_digest(image))
            except OSError as error:
                digest.update(str(error).encode())
        return digest.hexdigest()[:32]

    # --- Titles ---
    def _written_titles(self, settings: dict[str, Any]) -> dict[str, Variant]:
        """Return product id → the writer's title, accepted or not; empty without a writer."""
        if self.writer is None or not self.options.titles:
            return {}

        def read(row: ProductRow, answer: Answer) -> tuple[str | None, str]:
            title, problem = read_title(answer)
            problem = problem or self.check.problem(row, title or "")
            return (None if problem else title), problem

        path = self.options.output / f"{TITLES}{JOURNAL_SUFFIX}"
        journal: Journal[str] = Journal(path, "title", read, str)
        journal.open(settings, self.options.overwrite)
        options = self.options
        asking = Asking(("title",), options.batch_size, seed=options.seed, allow_urls=options.allow_urls)
        asking = replace(asking, progress=options.progress)
        tasks = list(tasks_of(self.products, asking, journal))
        ask(tasks, self.writer, asking, journal)
        found: dict[str, Variant] = {}
        for task in tasks:
            answer = journal.answers.get(task.digest)
            if answer is not None:
                title = answer.value or " ".join(answer.text.split())
                found[task.row.product_id] = Variant(
                    task.row.product_id,
                    TITLE,
                    0,
                    title=title,
                    accepted=not answer.problem,
                    reason=answer.problem,
                    made_by=f"{self.writer_name}, attempt {answer.attempts}",
                )
        return found

    def _titles(self, row: ProductRow, written: dict[str, Variant]) -> list[Variant]:
        first = [written[row.product_id]] if row.product_id in written else []
        left = self.options.titles - (1 if self.writer is not None else 0)
        if left < 1 or not row.title:
            return first
        rng = np.random.default_rng((*self._seeds(row), 1))
        titles = rewritten_titles(row, left, rng, self.check)
        return first + [
            Variant(row.product_id, TITLE, number, title=title, made_by="templates")
            for number, title in enumerate(titles, start=1 if self.writer is not None else 0)
        ]

    # --- Pictures ---
    def _make(self, row: ProductRow, written: dict[str, Variant]) -> _Made:
        """Make the variants of a product, without scores."""
        titles = self._titles(row, written)
        made = _Made(row, None, titles, [None] * len(titles))
        if not row.images:
            return made
        try:
            made.original = open_image(row.images[0], item=row.product_id, limits=self.limits)
        except ProductError as error:
            self.report.unreadable_count += 1
            if len(self.report.unreadable) < _NAMED:
                self.report.unreadable.append(f"{row.product_id}: {error.reason}")
            return made
        if not self.options.views:
            return made
        try:
            seeds = (*self._seeds(row), 0)
            edited = self.editor.edit(made.original, row, self.options.views, seeds, self._other(row, seeds))
        except CutOutError as error:
            made.variants.append(
                Variant(row.product_id, CLEAN, 0, accepted=False, reason=str(error), made_by=self.editor.name)
            )
            made.pictures.append(None)
            return made
        for place, picture in enumerate(edited):
            kind, number = (SCENE, place - 1) if place else (CLEAN, 0)
            image = self._save(row, place, picture.picture)
            variant = Variant(row.product_id, kind, number, image=image, made_by=picture.made_by)
            made.variants.append(replace(variant, core_box=picture.box))
            made.pictures.append(picture.picture)
        return made

    def _save(self, row: ProductRow, place: int, picture: Image.Image) -> str:
        name = hashlib.sha256(row.product_id.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        path = Path(PICTURES) / name[:2] / f"{name}-{place}.jpg"
        target = self.options.output / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_written_whole(target) as partial:
            picture.save(partial, "JPEG", quality=_QUALITY, subsampling=0)
        return path.as_posix()

    def _seeds(self, row: ProductRow) -> tuple[int, ...]:
        digest = hashlib.sha256(row.product_id.encode("utf-8", "surrogatepass")).digest()
        return self.options.seed, int.from_bytes(digest[:6], "big")

    def _other(self, row: ProductRow, seeds: tuple[int, ...]) -> Image.Image | None:
        """Return the picture of another product, None if there is none that can be opened."""
        others = len(self.pictured) - 1
        if others < 1:
            return None
        other = self.pictured[int(np.random.default_rng((*seeds, 2)).integers(others))]
        other = self.pictured[-1] if other.product_id == row.product_id else other
        try:
            return open_image(other.images[0], limits=self.limits)
        except ProductError:
            return None

    # --- Scores ---
    def _scored(self, batch: list[_Made]) -> Iterator[_Made]:
        """Yield the products of a batch with scored variants. Without a model they are kept as they are."""
        if self.consistency is None:
            yield from batch
            return
        pictures: list[Image.Image] = []
        titles: list[str] = []
        places = []
        for made in batch:
            own_picture = _append(pictures, made.original)
            own_title = _append(titles, made.row.title)
            of_variants = [
                (_append(pictures, picture), _append(titles, variant.title) if variant.kind == TITLE else None)
                for variant, picture in zip(made.variants, made.pictures, strict=True)
            ]
            places.append((own_picture, own_title, of_variants))
        vectors = self.consistency.of_pictures(pictures), self.consistency.of_titles(titles)
        for made, (own_picture, own_title, of_variants) in zip(batch, places, strict=True):
            original = _cosine(vectors, own_picture, own_title)
            for place, (picture, title) in enumerate(of_variants):
                variant = made.variants[place]
                is_title = variant.kind == TITLE
                if not variant.accepted or (is_title and made.original is None):
                    continue  # rejected already, or a title without a picture to compare with
                pair = (own_picture, title) if is_title else (picture, own_title)
                score = _cosine(vectors, *pair)
                reason = self.consistency.problem(score, original)
                made.variants[place] = replace(
                    variant, score=score, original_score=original, accepted=not reason, reason=reason
                )
            yield made


def _append(values: list[Any], value: Any) -> int | None:
    """Append a value and return its place, None for no value."""
    if value is None:
        return None
    values.append(value)
    return len(values) - 1


def _cosine(vectors: tuple[Vectors, Vectors], picture: int | None, title: int | None) -> float | None:
    if picture is None or title is None:
        return None
    return vectors[0].cosine(picture, vectors[1], title)


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    write_atomically(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
