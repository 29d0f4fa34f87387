"""Encode product and query records into unit vectors, with any model whose output has `.embeddings`.

A model that reasons can first write attributes of each record; these are returned with the vectors. `VectorCache`
encodes each record only once for several benchmarks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

import modeling_moon
import processing_moon
from modeling_moon.gate_moon import MarginGate
from processing_moon import Reasoning
from product_data.duplicates import EqualProducts
from product_data.errors import OptionError
from product_data.rows import QUERY_TYPES
from product_data.tables import ProductRow, QueryRow, TableError
from retrieval.encoded import Encoded, SkippedRecord, describe_skipped
from retrieval.encoded import vectors_of as vectors_of
from retrieval.model_kinds import KINDS as MODEL_KINDS
from retrieval.model_kinds import (
    CheckpointError,
    named_kind,
    require_checkpoint,
    require_loadable,
    unread_records,
    unrelated_forms,
)
from retrieval.product_encoder import EncodingSettings, ProductEncoder
from retrieval.reasoning_options import (
    QUERY_REASONING,
    ROW_REASONING,
    VARIANTS,
    check_reasoning,
    check_threshold,
    check_variants,
)
from retrieval.shortened import shortened_items

MODEL_TYPES = {modeling_moon.MoonConfig.model_type}
"""Model types whose output has `.embeddings`; a baseline adds its type when its file is imported."""


def load_for_evaluation(path: str | Path, *, device: str | None = None, dtype: Any = "auto") -> tuple[Any, Any]:
    """Load model and processor of a checkpoint (Moon, dual tower or a peer), in evaluation mode.

    Args:
        path: folder or hub id; for a peer "clip=PLACE" and so on, see `retrieval.model_kinds`.
        device (`str` or `None`): device of the model. Default `None`: the first GPU, or else the CPU.
        dtype: type of the weights. Default "auto": the checkpoint's.

    Raises:
        CheckpointError: no such folder or hub id, a folder without config.json, a model whose output has no vectors, or
            a model that `require_loadable` refuses.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if (named := named_kind(path)) is not None:
        require_loadable(path)
        try:
            model, processor = MODEL_KINDS[named[0]].load(named[1], dtype=dtype)
        except OSError as error:
            raise CheckpointError(str(error)) from error
        return model.to(device).eval(), processor
    require_checkpoint(path)
    try:
        model = AutoModel.from_pretrained(path, dtype=dtype)
    except OSError as error:
        raise CheckpointError(str(error)) from error
    if model.config.model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{path}: found model type {model.config.model_type!r}; expected a Moon model (see moon3 upcycle) or a dual tower"
            + (f", or a peer by its kind: {', '.join(MODEL_KINDS)}" if MODEL_KINDS else "")
        )
    return model.to(device).eval(), processing_moon.MoonProcessor.from_pretrained(path)


def encode(
    model: Any,
    processor: Any,
    records: Sequence[dict[str, Any]],
    *,
    kind: str = "product",
    form: str = "mm",
    task: str | None = None,
    reasoning: str = "none",
    **settings: Any,
) -> Encoded:
    """Encode product or query records.

    Records of similar length share a batch, and the next batch is prepared while the current one is computed. The
    vectors are in the order of the records. Pictures are decoded at the scale of the processor's own setting.

    Args:
        model: takes the processor's tensors and returns `.embeddings`; it runs on its device, in its dtype and in
            evaluation mode; its previous mode is restored.
        processor: a MoonProcessor.
        records: product or query records.
        kind (`str`): "product" or "query". Default "product".
        form (`str`): form of products: "mm", "t" or "i". Default "mm".
        task (`str` or `None`): task of queries: "query", "category" or "attribute". Default `None`: "query".
        reasoning (`str`): "none"; "generate": the model writes attributes of each record before the vector is read;
            "given": the vector is read after the record's "reasoning". Default "none".
        **settings: batch_size, progress, thinking: see `EncodingSettings`.

    Raises:
        ValueError: an unknown kind or reasoning, reasoning with a model that does not reason, `thinking` without
            reasoning="generate", settings that `EncodingSettings` refuses, or vectors that are not finite.

    Relations: use `VectorCache` if several benchmarks need the same vectors, `ProductEncoder` for large catalogues.
    """
    encoding = EncodingSettings(**settings)
    size, progress, thinking = encoding.batch_size, encoding.progress, encoding.thinking
    with ProductEncoder(
        model, processor, workers=0, batch_size=size, reduced_decoding=None, progress=progress
    ) as encoder:
        return encoder.encode(records, kind=kind, form=form, task=task, reasoning=reasoning, thinking=thinking)


@dataclass(frozen=True)
class WrittenReasoning:
    """The reasoning that a model wrote about one product or query.

    Args:
        side (`str`): "product" or "query".
        input (`str`): the model's input: the name of the gallery, such as "mm" or "mm, no category", or "query".
        record_id (`str`): product_id or query_id.
        reasoning: the parsed reasoning.
    """

    side: str
    input: str
    record_id: str
    reasoning: Reasoning


@dataclass(frozen=True)
class Scoring:
    """Rules for right answers, and the source of labels.

    Args:
        variants (`str`): how a search treats variants of a right answer (see `product_data.duplicates`): "left_out" of
            the ranking, "right", or "wrong". Default "left_out".
        label_products, label_queries (`Sequence` or `None`): products and queries whose categories and attribute values
            are the labels, such as those of the whole data set. Default: the evaluated ones.

    Raises:
        ValueError: an unknown value of `variants`.
    """

    variants: str = VARIANTS[0]
    label_products: Sequence[ProductRow] | None = None
    label_queries: Sequence[QueryRow] | None = None

    def __post_init__(self) -> None:
        check_variants(self.variants)


class VectorCache:
    """Encode each form of the gallery, each query and each label text at most once for one model.

    Queries and products can use different modes of reasoning, since vectors with and without reasoning share one space.
    Label texts never reason, because each is a single value.

    Args:
        model, processor: as for `encode`.
        products, queries: the products and queries to evaluate.
        query_reasoning, product_reasoning (`str`): "none" or "generate", as for `encode`. Default "none". All galleries
            use `product_reasoning`, even if parts of products replace queries. `query_reasoning` can also be "auto":
            in each search, the queries that are unsure of their nearest product without reasoning then reason
            (`MarginGate`).
        gate_threshold (`float` or `None`): for "auto", the margin below which a query is unsure. Default 0.05.
        scoring (`Scoring` or `None`): rules for right answers, and the source of labels. Default: `Scoring()`.
        **settings: batch_size, progress, thinking (for the sides that generate): see `EncodingSettings`.

    Raises:
        ValueError: an unknown mode, reasoning with a model that does not reason, `thinking` without a side that generates,
            or a threshold without "auto" or outside [0, 2].

    Relations: all benchmarks of a run share one cache.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        products: Sequence[ProductRow],
        queries: Sequence[QueryRow],
        *,
        query_reasoning: str = "none",
        product_reasoning: str = "none",
        gate_threshold: float | None = None,
        scoring: Scoring | None = None,
        **settings: Any,
    ) -> None:
        self.model, self.processor = model, processor
        self.products, self.queries = products, queries
        scoring = scoring or Scoring()
        self.equal, self.variants = EqualProducts(products), scoring.variants
        self.label_products = products if scoring.label_products is None else scoring.label_products
        self.label_queries = queries if scoring.label_queries is None else scoring.label_queries
        self.query_reasoning, self.product_reasoning = query_reasoning, product_reasoning
        self.settings = EncodingSettings(**settings)
        check_reasoning(model, processor, query_reasoning, QUERY_REASONING)
        check_reasoning(model, processor, product_reasoning, ROW_REASONING)
        self.gate_threshold = check_threshold(query_reasoning, gate_threshold)
        if self.settings.thinking is not None and query_reasoning == product_reasoning == "none":
            raise OptionError(f"thinking={self.settings.thinking}, but neither queries nor products generate reasoning")
        self._galleries: dict[str, Encoded] = {}
        self._refused: dict[str, str] = {}
        self._queries: Encoded | None = None
        self._reasoned: dict[int, tuple[np.ndarray, Reasoning]] = {}
        self._labels: dict[tuple[str, str], np.ndarray] = {}
        self._shortened: list[dict[str, Any]] = []

    def gallery(self, form: str) -> Encoded:
        """Return the encoded products that have the form: "mm" any content, "t" text, "i" an image."""
        return self.varied_gallery(form, form, lambda row: row.record(form))

    def varied_gallery(self, name: str, form: str, record: Callable[[ProductRow], dict[str, Any]]) -> Encoded:
        """Return the encoded records that `record` makes from products; cached under `name`, without empty records."""
        if name not in self._galleries:
            made = [record(row) for row in self.products]
            rows = [index for index, fields in enumerate(made) if fields.keys() - {"id", "core_box"}]
            chosen = [made[index] for index in rows]
            if why := unread_records(self.processor, chosen, f"products of the form {form!r}"):
                return self.refuse_gallery(name, why)
            encoded = self._encode(chosen, self.product_reasoning, form=form)
            self._note_shortened("product", encoded, [str(fields["id"]) for fields in chosen])
            self._galleries[name] = _renumbered(encoded, rows)
        return self._galleries[name]

    def refuse_gallery(self, name: str, why: str) -> Encoded:
        """Cache a gallery without vectors under `name`, with the reason: the model does not read its records."""
        self._refused[name] = why
        self._galleries[name] = Encoded(np.zeros((0, self.model.config.vector_size), np.float32), [], [])
        return self._galleries[name]

    def refusal(self, name: str) -> str:
        """Return why a gallery was refused, or "" if it was not, by the name of `varied_gallery` or by form."""
        return self._refused.get(name, "")

    def unread_queries(self, kind: str) -> str:
        """Return why the model cannot embed queries of a type ("text", "image", "both"), or "" if it can."""
        records = [row.record() for row in self.queries if row.type == kind]
        return unread_records(self.processor, records, f"queries of type {kind!r}")

    def unrelated(self, asked: str, form: str) -> str:
        """Return why the model cannot compare queries or labels with products of a form, or "" if it can.

        Args:
            asked: type of the queries ("text", "image", "both") or form of what replaces them; "t" for labels.
            form: form of the products.
        """
        return unrelated_forms(self.processor, {"text": "t", "image": "i", "both": "mm"}.get(asked, asked), form)

    def all_queries(self) -> Encoded:
        """Return the encoded queries, by index in `queries`; with "auto" without reasoning, as the gate needs them.

        Queries of a type that the model does not read are left out, see `unread_queries`.
        """
        if self._queries is None:
            unread = {kind for kind in QUERY_TYPES if self.unread_queries(kind)}
            rows = [index for index, row in enumerate(self.queries) if row.type not in unread]
            records = [self.queries[index].record() for index in rows]
            reasoning = "none" if self.query_reasoning == "auto" else self.query_reasoning
            self._queries = _renumbered(self._encode(records, reasoning, kind="query"), rows)
            self._note_shortened("query", self._queries, [row.query_id for row in self.queries])
        return self._queries

    def search_vectors(
        self, rows: Sequence[int], gallery_GD: np.ndarray, exclude: Sequence[Sequence[int]]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the vectors of queries for a search of a gallery, and with "auto" which queries reasoned for it.

        A query reasons at most once for all searches. In a gallery of one product no query is unsure.

        Args:
            rows: rows of `all_queries`.
            gallery_GD: the vectors to search.
            exclude: for each of the rows the indices in the gallery to leave out, independent of the right answers.

        Shapes: returns (Q, D) float32, and (Q,) bool or None.

        Raises:
            ValueError: a query that can be embedded but cannot reason.
        """
        encoded = self.all_queries()
        vector_QD = encoded.vectors[list(rows)]
        if self.query_reasoning != "auto":
            return vector_QD, None
        unsure_Q = np.zeros(len(vector_QD), dtype=bool)
        if len(gallery_GD) > 1:
            gate = MarginGate(gallery_GD, self.gate_threshold)
            unsure_Q = gate.unsure(gate.margins(torch.from_numpy(vector_QD), exclude)).numpy()
        chosen = [encoded.kept[row] for row, unsure in zip(rows, unsure_Q, strict=True) if unsure]
        self._reason_about([index for index in chosen if index not in self._reasoned])
        if chosen:
            vector_QD[unsure_Q] = np.stack([self._reasoned[index][0] for index in chosen])
        return vector_QD, unsure_Q

    def _reason_about(self, indices: Sequence[int]) -> None:
        records = [self.queries[index].record() for index in indices]
        encoded = self._encode(records, "generate", kind="query")
        if encoded.skipped:
            raise TableError(f"query {encoded.skipped[0].item!r} cannot reason: {encoded.skipped[0].reason}")
        self._note_shortened("query", encoded, [self.queries[index].query_id for index in indices])
        texts = encoded.reasoning or []
        self._reasoned.update(zip(indices, zip(encoded.vectors, texts, strict=True), strict=True))

    def labels(self, texts: Sequence[str], task: str) -> np.ndarray:
        """Return the vectors (L, D) of label texts with the instruction of `task` ("category" or "attribute").

        Raises:
            TableError: a label that cannot be encoded.
        """
        missing = [text for text in dict.fromkeys(texts) if (task, text) not in self._labels]
        records = [{"text": text, "id": text} for text in missing]
        encoded = self._encode(records, "none", kind="query", task=task)
        if encoded.skipped:
            raise TableError(f"label {encoded.skipped[0].item!r} cannot be encoded: {encoded.skipped[0].reason}")
        self._note_shortened("label", encoded, missing)
        self._labels.update({(task, text): vector for text, vector in zip(missing, encoded.vectors, strict=True)})
        return np.stack([self._labels[task, text] for text in texts])

    def empty_gallery_reason(self) -> str:
        """Return why every product of a gallery was skipped or refused, or "" if that did not happen."""
        return next(iter(self._refused.values()), "") or next(
            (
                describe_skipped("products", gallery)
                for gallery in self._galleries.values()
                if not gallery.kept and gallery.skipped
            ),
            "",
        )

    def skipped(self) -> list[dict[str, Any]]:
        """Return the products and queries that could not be encoded so far, each once."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for record in (record for gallery in self._galleries.values() for record in gallery.skipped):
            row = self.products[record.index]
            found.setdefault(("product", row.product_id), {"kind": "product", "id": row.product_id} | record.as_dict())
        for record in self._queries.skipped if self._queries else []:
            query = self.queries[record.index]
            found.setdefault(("query", query.query_id), {"kind": "query", "id": query.query_id} | record.as_dict())
        return list(found.values())

    def shortened(self) -> list[dict[str, Any]]:
        """Return everything that was cut or resized so far, as entries of `retrieval.shortened.shortened_items`.

        A part that several forms of a product share has one entry for each form.
        """
        return list(self._shortened)

    def size(self) -> int:
        """Return the number of products, queries and label texts that were encoded so far, each counted once."""
        products = {row for gallery in self._galleries.values() for row in gallery.kept}
        return len(products) + (len(self._queries.kept) if self._queries else 0) + len(self._labels)

    def _note_shortened(self, kind: str, encoded: Encoded, names: Sequence[str]) -> None:
        self._shortened += shortened_items(kind, encoded.shortened, names)

    def reasonings(self) -> list[WrittenReasoning]:
        """Return all reasoning written so far: each gallery's in the order of products, then that of queries."""
        found = []
        for name, gallery in self._galleries.items():
            for index, text in _written(gallery):
                found.append(WrittenReasoning("product", name, self.products[index].product_id, text))
        reasoned = [(index, text) for index, (_, text) in sorted(self._reasoned.items())]
        for index, text in [*(_written(self._queries) if self._queries else ()), *reasoned]:
            found.append(WrittenReasoning("query", "query", self.queries[index].query_id, text))
        return found

    def _encode(self, records: Sequence[dict[str, Any]], reasoning: str, **options: Any) -> Encoded:
        settings = {name: getattr(self.settings, name) for name in ("batch_size", "progress")}
        if reasoning == "generate":
            settings["thinking"] = self.settings.thinking
        return encode(self.model, self.processor, records, reasoning=reasoning, **options, **settings)


def _written(encoded: Encoded) -> Iterator[tuple[int, Reasoning]]:
    return iter(()) if encoded.reasoning is None else zip(encoded.kept, encoded.reasoning, strict=True)


def _renumbered(encoded: Encoded, rows: Sequence[int]) -> Encoded:
    skipped = [SkippedRecord(rows[s.index], s.item, s.field, s.reason) for s in encoded.skipped]
    kept = [rows[index] for index in encoded.kept]
    shortened = [replace(entry, index=rows[entry.index]) for entry in encoded.shortened]
    return Encoded(encoded.vectors, kept, skipped, encoded.reasoning, encoded.tokens, shortened)


def config_digest(model: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of a model's configuration, without the path it was loaded from."""
    settings = json.loads(model.config.to_json_string(use_diff=False))
    text = json.dumps({name: settings[name] for name in settings if name != "_name_or_path"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
