"""Collate pairs into tensors: the processor's output for queries and products, and ids for masking.

Shape suffixes: B pairs, C candidates (positives and hard negatives), Q encoded positives of a query, K known positives,
P other products that are not negatives, N known negatives; T tokens and the picture tensors are the processor's.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from processing_moon import ImageLimits, MoonProcessor, ProductError, open_image
from processing_moon.reasoning_moon import EMB_TOKEN, THINK_END, THINK_START
from processing_moon.rows_moon import REASONINGS
from retrieval.shortened import shortened_items
from training.batches.called_teacher import CalledTeacher
from training.batches.negatives import NO_ID
from training.batches.pairs import Pair, has_form, in_form
from training.batches.reasoning_labels import reasoning_labels
from training.batches.teacher_vectors import TeacherVectors

SUBSTITUTES = 8  # pairs that are tried instead of an unreadable one


class UnreadableBatchError(ValueError):
    """No pair of a batch and no substitute could be read."""

    exit_status = 3


class PairCollator:
    """Collate pairs into a batch, in the workers of the data loader. The tensors of a pair depend on that pair alone.

    A pair with an unreadable query, positive or hard negative is listed in the batch and replaced by its first readable
    substitute. If there is none, the whole pair is left out.

    Args:
        processor: the processor, whose settings limit tokens and pictures.
        substitute: called as substitute(position, attempt) with attempts from 1 to SUBSTITUTES, such as
            `PairDataset.draw`. If it returns None, the pair is left out. None: leave out unreadable pairs.
        allow_urls: whether to download pictures from public URLs.
        forms: whether to return the modality forms of queries and products, too, for dual alignment. Each picture is
            downloaded and decoded once, whatever the number of forms. With reasoning, a form has the reasoning that the
            pair has for it (`Pair.form_reasonings`).
        reasoning: how queries and products are written; see the processor's option. Default: "none".
        earlier: the processor of an earlier model, which also prepares the products. None: no earlier model.
        teachers: the vectors of teachers, or what embeds each batch.

    Raises:
        ValueError: `reasoning` is unknown.
        UnreadableBatchError: no pair of the batch can be read; the message names the records and the reasons.

    Shapes:
        The batch: "queries" and "products", each the processor's tensors ((B, T) and (C, T) input_ids, …); "target"
        (B,) row of the first positive; "product" and "group" (C,); "query_group" (B,); "other" (B, P) and "negative"
        (B, N), padded with NO_ID; all int64. Several and graded positives: "positive" (B, Q) int64 rows of the
        encoded positives among this batch's products, the first being "target", padded with NO_ID, and
        "positive_weight" (B, Q) float32 their relevance, padded with 0; "known_positive" (B, K) int64 ids of all
        known positives, encoded or not, padded with NO_ID, and "known_weight" (B, K) float32. "items": a list of B
        [name of the query, name of the first positive]; "skipped": a list of {"item", "field", "reason"}; "shortened":
        the parts that were cut or reduced to fit into the token budget, as in `retrieval.shortened.shortened_items`,
        and their "row" among the queries or the products. Shortened forms are not listed, because a form has at least
        as much room. With forms: "query_forms" and "product_forms": "has_text" and "has_image" (B,) or (C,) bool; "t"
        and "i", each {"rows" (R,) int64, the queries or products with text and picture, ascending, and "inputs", the
        processor's tensors of these rows with only their text, or only their pictures; None if R is 0}. "queries" and
        "products" contain the form "mm" of these rows, and the only form of the others.
        With reasoning "given" or "mixed", "queries", "products" and the inputs of forms also contain "labels" (B, T) and
        (C, T) int64: the tokens that the model learns to write, see `training.batches.reasoning_labels.reasoning_labels`.
        With an earlier model: "earlier_products", the tensors of its processor of the same products. With teachers:
        "teachers", a list of {"rows" (R,) int64, the products that the teacher knows, and "vectors" (R, E)}, one for each,
        and for a `CalledTeacher` also "query_rows" and "query_vectors".
    """

    def __init__(
        self,
        processor: MoonProcessor,
        substitute: Callable[[int, int], Pair | None] | None = None,
        allow_urls: bool = False,
        forms: bool = False,
        reasoning: str = "none",
        earlier: Any = None,
        teachers: Sequence[TeacherVectors | CalledTeacher] = (),
    ) -> None:
        if reasoning not in REASONINGS:
            raise ValueError(f"reasoning: found {reasoning!r}; expected one of {', '.join(REASONINGS)}")
        self.processor = processor
        self.substitute = substitute
        self.forms, self.reasoning, self.earlier = forms, reasoning, earlier
        self.teachers = list(teachers)
        self.options: dict[str, Any] = {"on_error": "skip", "allow_urls": allow_urls}
        if reasoning != "none":
            self.options["reasoning"] = reasoning

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        skipped: list[dict[str, str]] = []
        left = [self._opened(pair) for pair in pairs]
        attempts = [0] * len(left)
        while left:
            queries = self.processor(queries=[pair.query for pair in left], task="query", **self.options)
            owners = [index for index, pair in enumerate(left) for _ in pair.products]
            records = [product for pair in left for product in pair.products]
            products = self.processor(products=records, form="mm", **self.options)
            earlier = self._by_earlier(records)
            unread = {skip.index: skip for skip in [*([] if earlier is None else earlier.skipped), *products.skipped]}
            bad = {skip.index for skip in queries.skipped} | {owners[index] for index in unread}
            if not bad:
                batch = self._batch(left, self._side(queries), self._side(products), skipped) | self._forms(left)
                batch |= {} if earlier is None else {"earlier_products": dict(earlier)}
                query_records = [pair.query for pair in left]
                if self.teachers:
                    batch |= {"teachers": [_taught(teacher, records, query_records) for teacher in self.teachers]}
                shortened = [*_shortened("query", queries, query_records), *_shortened("product", products, records)]
                return batch | {"shortened": shortened}
            skipped += [_named(skip, left[skip.index].query) for skip in queries.skipped]
            skipped += [_named(skip, records[index]) for index, skip in unread.items()]
            tried = [
                (self._next(pair, attempt), attempt + 1) if index in bad else (pair, attempt)
                for index, (pair, attempt) in enumerate(zip(left, attempts, strict=True))
            ]
            left = [self._opened(pair) for pair, _ in tried if pair is not None]
            attempts = [attempt for pair, attempt in tried if pair is not None]
        reasons = "; ".join(f"{skip['item']}: {skip['field']}: {skip['reason']}" for skip in skipped[:5])
        raise UnreadableBatchError(f"batch: found no readable pair; expected at least one: {reasons}")

    def _by_earlier(self, records: list[dict[str, Any]]) -> Any:
        """Return the earlier model's tensors of products; None without one."""
        options = {name: value for name, value in self.options.items() if name != "reasoning"}
        return None if self.earlier is None else self.earlier(products=records, form="mm", **options)

    def _side(self, tensors: Any) -> dict[str, Any]:
        """Return the processor's tensors, with labels if reasoning is given."""
        if self.reasoning not in ("given", "mixed"):
            return dict(tensors)
        ids = [self.processor.tokenizer.convert_tokens_to_ids(token) for token in (THINK_START, THINK_END, EMB_TOKEN)]
        return {**tensors, "labels": reasoning_labels(tensors["input_ids"], *ids)}

    def _next(self, pair: Pair, attempt: int) -> Pair | None:
        """Return the next substitute of an unreadable pair, or None."""
        if self.substitute is None or attempt == SUBSTITUTES:
            return None
        return self.substitute(pair.position, attempt + 1)

    def _opened(self, pair: Pair) -> Pair:
        """Return the pair, with decoded pictures if several inputs show them. The processor reports unreadable ones."""
        read_twice = any(isinstance(teacher, CalledTeacher) and teacher.form != "t" for teacher in self.teachers)
        if not self.forms and self.earlier is None and not read_twice:
            return pair
        urls = self.options["allow_urls"]
        query = pair.query
        if "image" in query:
            query = query | {"image": _decoded(query["image"], urls)}
        products = [
            record | {"images": [_decoded(image, urls) for image in record["images"]]} if "images" in record else record
            for record in pair.products
        ]
        return dataclasses.replace(pair, query=query, products=products)

    def _forms(self, pairs: list[Pair]) -> dict[str, Any]:
        if not self.forms:
            return {}
        reasonings = [pair.form_reasonings or [{}] * (1 + len(pair.products)) for pair in pairs]
        queries = [(pair.query, own[0]) for pair, own in zip(pairs, reasonings, strict=True)]
        products = [
            one for pair, own in zip(pairs, reasonings, strict=True) for one in zip(pair.products, own[1:], strict=True)
        ]
        return {
            "query_forms": self._side_forms(queries, "query"),
            "product_forms": self._side_forms(products, "product"),
        }

    def _side_forms(self, side: Sequence[tuple[dict[str, Any], Any]], kind: str) -> dict[str, Any]:
        """Return the forms of records, given with their reasoning in each form; `kind` is "query" or "product"."""
        records = [record for record, _ in side]
        has_text, has_image = (list(flags) for flags in zip(*map(has_form, records), strict=True))
        rows = [row for row in range(len(records)) if has_text[row] and has_image[row]]
        forms: dict[str, Any] = {"has_text": torch.tensor(has_text), "has_image": torch.tensor(has_image)}
        for form in ("t", "i"):
            chosen = [in_form(records[row], form) for row in rows]
            for record, row in zip(chosen, rows, strict=True):
                record |= {"reasoning": side[row][1][form]} if form in side[row][1] else {}
            of_kind = {"products": chosen, "form": form} if kind == "product" else {"queries": chosen, "task": "query"}
            options = self.options | {"on_error": "raise"}
            inputs = self._side(self.processor(**of_kind, **options)) if rows else None
            forms[form] = {"rows": torch.tensor(rows, dtype=torch.int64), "inputs": inputs}
        return forms

    def _batch(
        self, pairs: list[Pair], queries: dict[str, Any], products: dict[str, Any], skipped: list[dict[str, str]]
    ) -> dict[str, Any]:
        pairs = _sharing_answers(pairs)
        first_rows = [0]
        for pair in pairs[:-1]:
            first_rows.append(first_rows[-1] + len(pair.products))
        return {
            "queries": queries,
            "products": products,
            "target": torch.tensor(first_rows),
            "product": torch.tensor([number for pair in pairs for number in pair.product_ids]),
            "group": torch.tensor([number for pair in pairs for number in pair.group_ids]),
            "query_group": torch.tensor([pair.query_group for pair in pairs]),
            "other": _padded([pair.other_ids for pair in pairs]),
            "negative": _padded([pair.negative_ids for pair in pairs]),
            "positive": _padded(
                [list(range(row, row + pair.positive_count)) for row, pair in zip(first_rows, pairs, strict=True)]
            ),
            "positive_weight": _weights([list(pair.answers.values())[: pair.positive_count] for pair in pairs]),
            "known_positive": _padded([list(pair.answers) for pair in pairs]),
            "known_weight": _weights([list(pair.answers.values()) for pair in pairs]),
            "items": [[str(pair.query.get("id", "")), pair.names[0]] for pair in pairs],
            "skipped": skipped,
        }


def _sharing_answers(pairs: list[Pair]) -> list[Pair]:
    """Return the pairs; each also gets the answers of other pairs with the same query, which are then not negatives."""
    answers: dict[str, dict[int, float]] = {}
    for pair in pairs:
        known = answers.setdefault(pair.query_key, {})
        for number, weight in pair.answers.items():
            known[number] = max(weight, known.get(number, 0.0))
    shared = []
    for pair in pairs:
        more = {number: weight for number, weight in answers[pair.query_key].items() if number not in pair.answers}
        if pair.query_key and more:
            pair = dataclasses.replace(pair, answers=pair.answers | more, other_ids=[*pair.other_ids, *more])
        shared.append(pair)
    return shared


def _taught(
    teacher: TeacherVectors | CalledTeacher, products: list[dict[str, Any]], queries: list[dict[str, Any]]
) -> dict[str, Tensor]:
    """Return a teacher's vectors of the products, and of the queries if it reads them."""
    taught = teacher.of(products)
    if isinstance(teacher, CalledTeacher):
        taught |= {f"query_{name}": value for name, value in teacher.of(queries).items()}
    return taught


def _decoded(image: Any, allow_urls: bool) -> Any:
    """Return the opened picture, or the image itself if it cannot be opened."""
    try:
        return open_image(image, limits=ImageLimits(allow_urls=allow_urls))
    except ProductError:
        return image


def _named(skip: Any, record: dict[str, Any]) -> dict[str, str]:
    return {"item": str(record.get("id", skip.item)), "field": str(skip.field), "reason": str(skip.reason)}


def _shortened(kind: str, tensors: Any, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts of queries or products that the processor shortened, by name and row."""
    parts = shortened_items(kind, tensors.shortened, [str(record.get("id", "")) for record in records])
    return [part | {"row": source.index} for part, source in zip(parts, tensors.shortened, strict=True)]


def _padded(rows: list[list[int]]) -> Tensor:
    """Return the rows as one int64 tensor, padded with NO_ID."""
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([row + [NO_ID] * (width - len(row)) for row in rows], dtype=torch.int64).reshape(
        len(rows), width
    )


def _weights(rows: list[list[float]]) -> Tensor:
    """Return the rows as one float32 tensor, padded with 0."""
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows], dtype=torch.float32)
