"""What a model is to write about a product or a query: attributes that the form of its input supports.

MOON3.0 (arXiv 2604.00513) has three attribute sets for each item, of the image, of the text, and their union: input that is
an image alone reasons to the first, a text alone to the second, both to the union. Where tables have these sets (the columns
attributes_image and attributes_text) they are taken; otherwise they are derived from `attributes` by a rule of our design.
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
from training.batches.pairs import Pair
from training.batches.streams import BadRow, RowPairs, StreamRow, StreamSource
from training.recipe.pairs import PairArguments

Attributes = Mapping[str, tuple[str, ...]]
_SALT = 0x7468696E  # so that these draws are none of the pairs' own
_EXAMPLES = 8


class ReasoningTargets:
    """The attributes that products and queries support, and as many of them as a reasoning has room for.

    Rule, our design (precedent: MOON3.0's three attribute sets, arXiv 2604.00513, of which only the names are published):

    - Keys are MBE's ten, see `product_data.attribute_keys.facts_of`; a key that is none of them is left out and counted.
    - A product's image supports attributes_image; without that column, the stated attributes of the visual keys (colour,
      category, category modifier, material, style elements, fashion style). Its text supports attributes_text; without that
      column, all stated attributes and the category, because they are part of its text in our prompts. Both: the union.
    - A query's image supports what the images of all its known answers support alike. Its text supports those attributes of
      the answer whose value it states, the category among them, see `product_data.synonyms`; without its synonyms, so that a
      model learns to write what it has read. Both: the union.
    - What does not fit into `max_tokens` is dropped from the end, whole attributes, never a part of one.

    Args:
        tables: the training split of each data set.
        processor: `MoonProcessor` of the model, whose tokens are counted.
        max_tokens: budget of a reasoning between its tags. Default None: the processor's `max_reasoning_tokens`.

    Raises:
        ValueError: a processor that does not reason, and no `max_tokens`; a number below 1.

    Relations:
        `ReasonedPairs` puts the targets into training pairs. `report` says what was left out.
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
        """Return the same rule and budget for the products of other tables; the report stays."""
        other = copy.copy(self)
        other._read(tables)
        return other

    def of_product(self, name: str, form: str) -> Attributes | None:
        """Return what a model is to write about a product: its labels as far as the budget goes, None for nothing.

        Args:
            name: the product's full name, "fashion/fa-10000".
            form: "mm", "t" or "i", see `ProductRow.record`.

        Raises:
            ValueError: a product that is in no table, or another form.
        """
        return self.fitting(self.labels_of_product(name, form))

    def labels_of_product(self, name: str, form: str) -> Attributes | None:
        """Return all attributes that a product supports in a form, None for none.

        Raises:
            ValueError: as `of_product`.
        """
        return as_attributes(_supported(self._row(name), form)) or None

    def of_query(self, record: Mapping[str, Any], answers: Sequence[str]) -> Attributes | None:
        """Return what a model is to write about a query: its labels as far as the budget goes, None for nothing.

        Args:
            record: the query's record, with "image", "text" or both.
            answers: full names of its known answers, the one that it is trained with first.

        Raises:
            ValueError: no answer, or one that is in no table.
        """
        return self.fitting(self.labels_of_query(record, answers))

    def labels_of_query(self, record: Mapping[str, Any], answers: Sequence[str]) -> Attributes | None:
        """Return all attributes that a query supports, None for none.

        Raises:
            ValueError: as `of_query`.
        """
        if not answers:
            raise ValueError(f"answers: found none for the query {record.get('id')!r}; expected at least one")
        first, *others = [self._row(name) for name in answers]
        facts: list[Fact] = []
        if record.get("image") is not None:
            facts = _supported(first, "i")
            for row in others:
                theirs = _supported(row, "i")
                facts = [fact for fact in facts if any(same_value(fact, other) for other in theirs)]
        if record.get("text"):
            said = record["text"]
            facts += [fact for fact in _supported(first, "mm") if states(said, fact.key, fact.value, synonyms=False)]
        return as_attributes(facts) or None

    def fitting(self, attributes: Attributes | None) -> Attributes | None:
        """Return attributes without the last ones, so that they fit into the budget; None where none is left."""
        keys = list(attributes or ())
        while keys:
            kept = {key: (attributes or {})[key] for key in keys}
            text = plain_text(reasoning_text(kept), self._controls)
            if len(self._tokenizer(text, add_special_tokens=False)["input_ids"]) <= self.max_tokens:
                return kept
            keys.pop()
        return None

    def names_of(self, ids: Iterable[int]) -> list[str]:
        """Return the full names of products by their `stable_id`, without those that are in no table."""
        return [self._names[number] for number in ids if number in self._names]

    def _row(self, name: str) -> ProductRow:
        row = self._rows.get(name)
        if row is None:
            raise ValueError(f"product: found {name!r}; expected one of the {len(self._rows)} products of the tables")
        return row


class ReasonedPairs(Dataset):
    """Pairs whose queries and products carry what a model is to write about them.

    Each record gets "reasoning", unless it supports nothing or is drawn to go without: a model has to embed both kinds into
    one space. The draw of record k of a pair is by (seed, position, attempt, k) alone, so that pairs stay pure functions
    of seed and position. Our design (precedent: MOON3.0's joint training of reasoned embeddings, arXiv 2604.00513).

    Every pair also gets `query_labels` and `product_labels`: all that the query and the first product support in the form
    that they have, whether or not it is written and fits; rewards compare with it.

    Args:
        pairs: `training.batches.pairs.PairDataset`, of the tables that `targets` was made of. For streams use `ReasonedRows`.
        targets: what to write.
        unreasoned_share: share of the records without a reasoning, 0 to 1.
        seed: of the draws.

    Raises:
        ValueError: a share out of range; a pair of products that are in no table.
        IndexError: a position outside the length.
    """

    def __init__(self, pairs: Any, targets: ReasoningTargets, unreasoned_share: float, seed: int) -> None:
        self.pairs, self.targets = pairs, targets
        self.unreasoned_share, self.seed = _share(unreasoned_share), seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> Pair:
        return self._reasoned(self.pairs[position], position, 0)

    def draw(self, position: int, attempt: int = 0) -> Pair:
        """Return the pair of a position, or another one in its place; see `PairDataset.draw`."""
        return self._reasoned(self.pairs.draw(position, attempt), position, attempt)

    def _reasoned(self, pair: Pair, position: int, attempt: int) -> Pair:
        return _with_reasonings(pair, self.targets, self.unreasoned_share, (self.seed, position, attempt))


class ReasonedRows(RowPairs):
    """The pairs of a stream's rows, with what a model is to write about their queries and products.

    As `ReasonedPairs`, of what the row itself tells: its attributes in the form of the record by the rule of `ReasoningTargets`,
    and of its query's answers the row's own alone, because a stream's other rows are not known. The draw of record k is by
    (seed, source, epoch, shard, row, k) alone, so that a row is a pure function of seed and place whoever reads it.

    Args:
        sources, options, seed, length: as `RowPairs`.
        targets: the rule and the budget.
        unreasoned_share: share of the records without a reasoning, 0 to 1.

    Raises:
        ValueError: a share out of range.
    """

    def __init__(
        self,
        sources: Sequence[StreamSource],
        options: PairArguments,
        seed: int,
        length: int,
        *,
        targets: ReasoningTargets,
        unreasoned_share: float,
    ) -> None:
        super().__init__(sources, options, seed, length)
        self.targets, self.unreasoned_share = targets.of_tables([]), _share(unreasoned_share)

    def pair(self, row: StreamRow) -> Pair | BadRow:
        """Return the row's pair with its reasonings, a pure function of (seed, source, key), or why there is none."""
        pair = super().pair(row)
        if isinstance(pair, BadRow):
            return pair
        targets = self.targets.of_tables([self.tables(row)])
        return _with_reasonings(pair, targets, self.unreasoned_share, (self.seed, row.source, *row.key))


def _share(unreasoned_share: float) -> float:
    if not 0 <= unreasoned_share <= 1:
        raise ValueError(f"unreasoned_share: found {unreasoned_share!r}; expected a number from 0 to 1")
    return unreasoned_share


def _with_reasonings(pair: Pair, targets: ReasoningTargets, unreasoned_share: float, place: tuple[int, ...]) -> Pair:
    """A pair with its labels, and with "reasoning" in those records for which none of the draws by `place` says otherwise."""
    answers = list(dict.fromkeys([*pair.names[: pair.positive_count], *targets.names_of(pair.answers)]))
    of_query = targets.labels_of_query(pair.query, answers)
    forms = [form_of(record) for record in pair.products]
    of_products = [targets.labels_of_product(name, form) for name, form in zip(pair.names, forms, strict=True)]
    records = []
    for slot, (record, labels) in enumerate(zip([pair.query, *pair.products], [of_query, *of_products], strict=True)):
        rng = np.random.default_rng((_SALT, *place, slot))
        target = None if rng.random() < unreasoned_share else targets.fitting(labels)
        given = {} if target is None else {"reasoning": {key: list(values) for key, values in target.items()}}
        records.append(record | given)
    return dataclasses.replace(
        pair, query=records[0], products=records[1:], query_labels=of_query, product_labels=of_products[0]
    )


def known_values(tables: Sequence[ProductTables]) -> dict[str, frozenset[str]]:
    """Return all values that the products have, by MBE's key: what an attribute may be, for a reward.

    Args:
        tables: the training split of each data set.

    Returns:
        REASONING_KEYS → values as a reasoning writes them; an empty set for a key that no product has.
    """
    found: dict[str, set[str]] = {key: set() for key in REASONING_KEYS}
    for table in tables:
        for row in table.products:
            for fact in _supported(row, "mm"):
                found[fact.key].add(fact.value)
    return {key: frozenset(values) for key, values in found.items()}


def form_of(record: Mapping[str, Any]) -> str:
    """Return the form that a product's record has: "mm", "i" without text fields, "t" without pictures."""
    if not record.get("images"):
        return "t"
    return "mm" if any(record.get(name) for name in ("title", "description", "category", "attributes")) else "i"


def control_tokens_of(tokenizer: Any) -> re.Pattern[str]:
    """Return a pattern of all tokens that were added to a tokenizer's vocabulary, see `control_token_pattern`."""
    return control_token_pattern({token.content for token in tokenizer.added_tokens_decoder.values()})


def _supported(row: ProductRow, form: str) -> list[Fact]:
    """What a product shows in a form, in the order of REASONING_KEYS, the image's before the text's."""
    if form not in PRODUCT_FORMS:
        raise ValueError(f"form: found {form!r}; expected {', '.join(PRODUCT_FORMS)}")
    if form == "mm":
        both = [*_supported(row, "i"), *_supported(row, "t")] if row.images else _supported(row, "t")
        return sorted(both, key=lambda fact: REASONING_KEYS.index(fact.key))
    given = row.attributes_image if form == "i" else row.attributes_text
    if given is not None:
        return facts_of(given)[0]
    stated = facts_of(row.attributes, row.category)[0]
    return [fact for fact in stated if fact.key in VISUAL_KEYS] if form == "i" else stated


def _report(tables: Sequence[ProductTables]) -> str:
    """How many products support anything, and which of their attributes have none of MBE's keys."""
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
        named = ", ".join(f"{key!r} ({count})" for key, count in unknown.most_common(_EXAMPLES))
        more = ", …" if len(unknown) > _EXAMPLES else ""
        lines.append(
            f"attributes with keys other than {', '.join(REASONING_KEYS)} are left out (and in how many products): {named}{more}"
        )
    return "\n  ".join(lines)
