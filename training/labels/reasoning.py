"""Choose the attributes that a model learns to write about a product or a query, by the form of its input.

MOON3.0 (arXiv 2604.00513) has three attribute sets for each item: the set of the image, the set of the text, and their
union. The reasoning for an image contains the first set, the reasoning for a text the second, and the reasoning for
both the union. If tables have these sets (the columns attributes_image and attributes_text), they are used. Otherwise
they are derived from `attributes` by our own rule.
"""

import copy
import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from processing_moon.reasoning_moon import REASONING_KEYS, reasoning_text
from processing_moon.text_moon import control_token_pattern, plain_text
from product_data.attribute_keys import (
    VISUAL_KEYS,
    Fact,
    as_attributes,
    facts_of,
    mbe_key,
    same_value,
)
from product_data.synonyms import states
from product_data.tables import PRODUCT_FORMS, ProductRow, ProductTables
from training.batches.negatives import stable_id
from training.batches.pairs import Pair, has_form, in_form
from training.batches.streams import BadRow, RowPairs, StreamRow, StreamSource
from training.batches.variants import VariantDraws
from training.recipe.pairs import PairArguments

Attributes = Mapping[str, tuple[str, ...]]
_SALT = 0x7468696E  # these draws differ from those of the pairs
_DRAWS: dict[str, tuple[int, ...]] = {"mm": (), "t": (1,), "i": (2,)}
"""Form → what distinguishes its draws of a record from those of the other forms."""
_EXAMPLES = 8


class ReasoningTargets:
    """The attributes that the inputs of products and queries support, limited to the token budget of the reasoning.

    Our design (precedent: MOON3.0's three attribute sets, arXiv 2604.00513, of which only the names are published):

    - Keys are the ten keys of MBE; see `product_data.attribute_keys.facts_of`. Other keys are left out and counted.
    - A product's image supports attributes_image, or without that column the stated attributes of the visual keys
      (colour, category, category modifier, material, style elements, fashion style). Its text supports attributes_text,
      or without that column all stated attributes and the category, which are part of the text in our prompts. Both
      support the union.
    - A query's image supports the attributes that the images of all its known answers share. Its text supports the
      attributes of the answer whose value it states, including the category; see `product_data.synonyms`. Synonyms do
      not count, so that the model learns to write what it has read. Both support the union.
    - If the attributes do not fit into `max_tokens`, whole attributes are dropped from the end.

    Args:
        tables: the training split of each data set.
        processor: the model's `MoonProcessor`, which counts tokens.
        max_tokens: the token budget between the tags of the reasoning. Default: the processor's `max_reasoning_tokens`.

    Raises:
        ValueError: the processor does not reason and `max_tokens` is None, or the budget is below 1.

    Relations:
        `ReasonedPairs` adds the targets to training pairs. `report` describes what was left out.
    """

    def __init__(self, tables: Sequence[ProductTables], processor: Any, max_tokens: int | None = None) -> None:
        most = processor.max_reasoning_tokens if max_tokens is None else max_tokens
        if most is None or most < 1:
            raise ValueError(
                f"max_tokens: found {max_tokens!r} and a processor with max_reasoning_tokens="
                f"{processor.max_reasoning_tokens!r}; expected a number of at least 1 in one of them"
            )
        self.max_tokens = int(most)
        self._tokenizer = processor.tokenizer
        self._controls = control_tokens_of(processor.tokenizer)
        self._read(tables)
        self.report = _report(tables)

    def _read(self, tables: Sequence[ProductTables]) -> None:
        self._rows = {f"{table.name}/{row.product_id}": row for table in tables for row in table.products}
        self._names = {stable_id(name): name for name in self._rows}

    def of_tables(self, tables: Sequence[ProductTables]) -> "ReasoningTargets":
        """Return a copy for the products of other tables; the budget and the report stay the same."""
        other = copy.copy(self)
        other._read(tables)
        return other

    def of_product(self, name: str, form: str) -> Attributes | None:
        """Return the attributes to write about a product: its labels, limited to the budget; None for no attributes.

        Args:
            name: the product's full name, "fashion/fa-10000".
            form: "mm", "t" or "i", see `ProductRow.record`.

        Raises:
            ValueError: the product is not in the tables, or the form is unknown.
        """
        return self.fitting(self.labels_of_product(name, form))

    def labels_of_product(self, name: str, form: str) -> Attributes | None:
        """Return all attributes that a product supports in a form; None for no attributes.

        Raises:
            ValueError: see `of_product`.
        """
        return as_attributes(_supported(self._row(name), form)) or None

    def of_query(self, record: Mapping[str, Any], answers: Sequence[str]) -> Attributes | None:
        """Return the attributes to write about a query: its labels, limited to the budget; None for no attributes.

        Args:
            record: the query's record, with "image", "text" or both.
            answers: full names of its known answers, beginning with the positive of the pair.

        Raises:
            ValueError: the query does not have answers, or an answer is not in the tables.
        """
        return self.fitting(self.labels_of_query(record, answers))

    def labels_of_query(self, record: Mapping[str, Any], answers: Sequence[str]) -> Attributes | None:
        """Return all attributes that a query supports; None for no attributes.

        Raises:
            ValueError: see `of_query`.
        """
        if not answers:
            raise ValueError(f"answers: found none for the query {record.get('id')!r}; expected at least one")
        first, *others = [self._row(name) for name in answers]
        facts: list[Fact] = []
        if record.get("image") is not None:
            facts = _supported(first, "i")
            for row in others:
                row_facts = _supported(row, "i")
                facts = [fact for fact in facts if any(same_value(fact, other) for other in row_facts)]
        if record.get("text"):
            text = record["text"]
            facts += [fact for fact in _supported(first, "mm") if states(text, fact.key, fact.value, synonyms=False)]
        return as_attributes(facts) or None

    def fitting(self, attributes: Attributes | None) -> Attributes | None:
        """Return the first attributes that fit into the budget; None if none fit."""
        keys = list(attributes or ())
        while keys:
            kept = {key: (attributes or {})[key] for key in keys}
            text = plain_text(reasoning_text(kept), self._controls)
            if len(self._tokenizer(text, add_special_tokens=False)["input_ids"]) <= self.max_tokens:
                return kept
            keys.pop()
        return None

    def names_of(self, ids: Iterable[int]) -> list[str]:
        """Return the full names of products by their `stable_id`, without products that are not in the tables."""
        return [self._names[number] for number in ids if number in self._names]

    def _row(self, name: str) -> ProductRow:
        row = self._rows.get(name)
        if row is None:
            raise ValueError(f"product: found {name!r}; expected one of the {len(self._rows)} products of the tables")
        return row


class ReasonedPairs(Dataset):
    """Pairs whose queries and products contain the reasoning that a model learns to write.

    Each record gets "reasoning", unless it does not support attributes or is drawn to have none, because a model embeds
    records with and without reasoning into the same space. The draw for record k of a pair depends only on (seed,
    position, attempt, k), so pairs remain pure functions of seed and position. Our design (precedent: MOON3.0's joint
    training of reasoned embeddings, arXiv 2604.00513).

    Every pair also gets `query_labels` and `product_labels`: all attributes that the query and the first product
    support in their form, even those that are not written or do not fit. Rewards compare with them.

    With `forms`, for dual alignment, each record with text and picture also gets a reasoning for its text and one for its
    picture, with the attributes of that form, drawn independently. Rollouts, whose number is fixed, are in one of the forms
    of a record, which is drawn uniformly for the query and for the product; the labels are those of that form. Over a
    training, rollouts thus have all forms of MOON3.0's triplets (arXiv 2604.00513).

    Args:
        pairs: `training.batches.pairs.PairDataset` of the tables of `targets`. For streams, use `ReasonedRows`.
        targets: the attributes to write.
        unreasoned_share: the share of records without reasoning, from 0 to 1.
        seed: the seed of the draws.
        forms: whether records are also reduced to their single forms. Default: False.

    Raises:
        ValueError: the share is out of range, or a product of a pair is not in the tables.
        IndexError: a position is not below the length.
    """

    def __init__(
        self, pairs: Any, targets: ReasoningTargets, unreasoned_share: float, seed: int, forms: bool = False
    ) -> None:
        self.pairs, self.targets, self.forms = pairs, targets, forms
        self.unreasoned_share, self.seed = _share(unreasoned_share), seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> Pair:
        return self._reasoned(self.pairs[position], position, 0)

    def draw(self, position: int, attempt: int = 0) -> Pair:
        """Return the pair of a position or a substitute; see `PairDataset.draw`."""
        return self._reasoned(self.pairs.draw(position, attempt), position, attempt)

    def _reasoned(self, pair: Pair, position: int, attempt: int) -> Pair:
        return _with_reasonings(pair, self.targets, self.unreasoned_share, (self.seed, position, attempt), self.forms)


class ReasonedRows(RowPairs):
    """The pairs of a stream's rows, with the reasoning that a model learns to write.

    Like `ReasonedPairs`, but with the attributes of the row by the rule of `ReasoningTargets`, and only with the row's
    own answer to its query, because the other rows of the stream are not known. The draw for record k depends only on
    (seed, source, epoch, shard, row, k), so a row becomes the same pair in every process.

    Args:
        sources, options, seed, length, variants: see `RowPairs`.
        targets: the rule and the budget.
        unreasoned_share: the share of records without reasoning, from 0 to 1.
        forms: see `ReasonedPairs`.

    Raises:
        ValueError: the share is out of range.
    """

    def __init__(
        self,
        sources: Sequence[StreamSource],
        options: PairArguments,
        seed: int,
        length: int,
        variants: VariantDraws | None = None,
        *,
        targets: ReasoningTargets,
        unreasoned_share: float,
        forms: bool = False,
    ) -> None:
        super().__init__(sources, options, seed, length, variants)
        self.forms = forms
        self.targets, self.unreasoned_share = targets.of_tables([]), _share(unreasoned_share)

    def pair(self, row: StreamRow) -> Pair | BadRow:
        """Return the row's pair with its reasoning, or the reason why there is none; see `RowPairs.pair`."""
        pair = super().pair(row)
        if isinstance(pair, BadRow):
            return pair
        targets = self.targets.of_tables([self.tables(row)])
        place = (self.seed, row.source, *row.key)
        return _with_reasonings(pair, targets, self.unreasoned_share, place, self.forms)


def _share(unreasoned_share: float) -> float:
    if not 0 <= unreasoned_share <= 1:
        raise ValueError(f"unreasoned_share: found {unreasoned_share!r}; expected a number from 0 to 1")
    return unreasoned_share


def _with_reasonings(
    pair: Pair, targets: ReasoningTargets, unreasoned_share: float, place: tuple[int, ...], single_forms: bool
) -> Pair:
    """Return a pair with its labels, and with "reasoning" in the records that are drawn by `place` to have it."""
    answers = list(dict.fromkeys([*pair.names[: pair.positive_count], *targets.names_of(pair.answers)]))
    before = [pair.query, *pair.products]

    def labels(slot: int, form: str) -> Attributes | None:
        if slot == 0:
            return targets.labels_of_query(in_form(pair.query, form), answers)
        record = pair.products[slot - 1]
        return targets.labels_of_product(pair.names[slot - 1], form_of(record) if form == "mm" else form)

    def reasoning(slot: int, form: str) -> dict[str, list[str]] | None:
        """Draw the reasoning of a record in a form; the draw of a form does not change that of another."""
        rng = np.random.default_rng((_SALT, *place, slot, *_DRAWS[form]))
        target = None if rng.random() < unreasoned_share else targets.fitting(labels(slot, form))
        return None if target is None else {key: list(values) for key, values in target.items()}

    written = [reasoning(slot, "mm") for slot in range(len(before))]
    records = [
        record if own is None else record | {"reasoning": own} for record, own in zip(before, written, strict=True)
    ]
    reasoned = dataclasses.replace(pair, query=records[0], products=records[1:])
    if not single_forms:
        return dataclasses.replace(reasoned, query_labels=labels(0, "mm"), product_labels=labels(1, "mm"))
    both = [all(has_form(record)) for record in before]
    in_forms = [
        {form: own for form in _DRAWS if form != "mm" and (own := reasoning(slot, form)) is not None}
        if both[slot]
        else {}
        for slot in range(len(before))
    ]
    rng = np.random.default_rng((_SALT, *place, len(before)))
    rolled = [str(rng.choice(list(_DRAWS))) if both[slot] else "mm" for slot in (0, 1)]
    return dataclasses.replace(
        reasoned,
        form_reasonings=in_forms,
        rollout_records=(in_form(before[0], rolled[0]), in_form(before[1], rolled[1])),
        query_labels=labels(0, rolled[0]),
        product_labels=labels(1, rolled[1]),
    )


def known_values(tables: Sequence[ProductTables]) -> dict[str, frozenset[str]]:
    """Return all attribute values of the products, by MBE's key, for a reward.

    Args:
        tables: the training split of each data set.

    Returns:
        REASONING_KEYS → values as written in reasoning; an empty set for a key without values.
    """
    values_of: dict[str, set[str]] = {key: set() for key in REASONING_KEYS}
    for table in tables:
        for row in table.products:
            for fact in _supported(row, "mm"):
                values_of[fact.key].add(fact.value)
    return {key: frozenset(values) for key, values in values_of.items()}


def form_of(record: Mapping[str, Any]) -> str:
    """Return the form of a product's record: "mm", "i" without text, "t" without pictures."""
    if not record.get("images"):
        return "t"
    return "mm" if any(record.get(name) for name in ("title", "description", "category", "attributes")) else "i"


def control_tokens_of(tokenizer: Any) -> re.Pattern[str]:
    """Return a pattern of all added tokens of a tokenizer; see `control_token_pattern`."""
    return control_token_pattern({token.content for token in tokenizer.added_tokens_decoder.values()})


def _supported(row: ProductRow, form: str) -> list[Fact]:
    """Return the facts that a product shows in a form, in the order of REASONING_KEYS, those of the image first."""
    if form not in PRODUCT_FORMS:
        raise ValueError(f"form: found {form!r}; expected one of {', '.join(PRODUCT_FORMS)}")
    if form == "mm":
        both = [*_supported(row, "i"), *_supported(row, "t")] if row.images else _supported(row, "t")
        return sorted(both, key=lambda fact: REASONING_KEYS.index(fact.key))
    annotated = row.attributes_image if form == "i" else row.attributes_text
    if annotated is not None:
        return facts_of(annotated)[0]
    stated = facts_of(row.attributes, row.category)[0]
    return [fact for fact in stated if fact.key in VISUAL_KEYS] if form == "i" else stated


def _report(tables: Sequence[ProductTables]) -> str:
    """Return a text with the number of products that have attributes, and the keys that are left out."""
    unknown: Counter[str] = Counter()
    products = able = 0
    for table in tables:
        for row in table.products:
            products += 1
            able += bool(_supported(row, "mm"))
            stated = (row.attributes, row.attributes_image or {}, row.attributes_text or {})
            unknown.update({key for attributes in stated for key in attributes if mbe_key(key) is None})
    lines = [f"reasoning: {able} of {products} products have attributes to write"]
    if unknown:
        examples = ", ".join(f"{key!r} ({count})" for key, count in unknown.most_common(_EXAMPLES))
        more = ", …" if len(unknown) > _EXAMPLES else ""
        lines.append(
            f"attributes with keys other than {', '.join(REASONING_KEYS)} are left out (number of products in brackets): "
            f"{examples}{more}"
        )
    return "\n  ".join(lines)
