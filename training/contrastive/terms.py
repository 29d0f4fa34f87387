"""From vectors to the terms of the objective: targets, candidates of the processes and the queue, masks and weights.

Shape suffixes: B queries of this process, N products of this process, C candidates of all processes, D embedding width,
P positives of a query (padded with -1), R rows of one form, I products with image and text, L mixture layers, E experts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from training.batches.negatives import (
    Candidates,
    FalseNegatives,
    QueryFacts,
    false_negative_mask,
    false_negatives_among,
    places,
)
from training.encoding.batch_encoding import SINGLE_FORMS
from training.encoding.chunked_encoding import Vectors
from training.losses.dual_alignment import ContrastiveTerm
from training.losses.info_nce import NO_TARGET
from training.losses.sample_filter import SampleFilter
from training.parallel.distributed import first_row, gather_all_with_gradient, gather_ids, mean_rows
from training.recipe.loss import LossArguments

GIVEN = "given"
"""The form of a query as it came."""


@dataclass
class Terms:
    """The terms of one step.

    Args:
        inter: a term for each form that a query of any process has; "given" alone without forms.
        intra: the terms between images and texts.
        batch: the products of all processes, or of this one alone where the spatial half is off.
        target_B: each query's own answer among them.
        exclusions: what leaves out false negatives, by form.
        gates: expert gates (R, L, E) of the queries of all processes and each one's form (R,) as its place in
            t, i, mm; None where the model gives none.
        measures: what is worth logging, by name.
    """

    inter: dict[str, ContrastiveTerm]
    intra: list[ContrastiveTerm]
    batch: Candidates
    target_B: Tensor
    exclusions: dict[str, FalseNegatives]
    gates: tuple[Tensor, Tensor] | None
    measures: dict[str, Tensor] = field(default_factory=dict)


def make_terms(
    vectors: Vectors,
    inputs: Mapping[str, Any],
    queued: Candidates | None,
    options: LossArguments,
    progress: float,
    sample_filter: SampleFilter | None = None,
) -> Terms:
    """Return the terms of a batch.

    Args:
        vectors: what `training.encoding.batch_encoding.BatchEncoder` gave, all parts together.
        inputs: the batch of `training.batches.collate.PairCollator`: "target", "product", "group", "query_group", "other",
            "negative"; where there are several positives "positive", "positive_weight", "known_positive",
            "known_weight"; with forms "query_forms" and "product_forms".
        queued: the queue's candidates.
        options: the recipe's keys of the loss: several_positives, negative_margin, dual_alignment and those of the image
            terms, spatial_negatives.
        progress: the share of the training that is done.
        sample_filter: weights of triplets; None: all count alike.
    """
    gathered = _Gathered(vectors, inputs, options)
    facts = QueryFacts(inputs["product"][inputs["target"]], inputs["query_group"], inputs["other"], inputs["negative"])
    targets_BP, weight_BP = _positives(gathered, inputs, options.several_positives)
    measures: dict[str, Tensor] = {}
    if sample_filter is not None:
        triplet_B, below_B, has_B = _filtered(vectors, inputs, facts, sample_filter, progress)
        weight_BP = weight_BP * triplet_B[:, None]
        measures["filtered_share"] = torch.stack([(below_B & has_B).sum(), has_B.sum()]).double()
    inter, exclusions = {}, {}
    for form, (vector_RD, rows) in _query_forms(vectors, inputs, options.dual_alignment).items():
        count = mean_rows(len(rows), vector_RD.device)
        if count:
            exclusions[form] = _exclusion(facts, rows, gathered, queued, options.negative_margin)
            inter[form] = ContrastiveTerm(
                vector_RD,
                gathered.segments(queued),
                targets_BP[rows],
                count,
                exclusions[form],
                weight_BP[rows],
            )
    intra = _intra(vectors, inputs, gathered, options) if options.aligns_images else []
    return Terms(inter, intra, gathered.batch, gathered.target_B, exclusions, gathered.gates, measures)


class _Gathered:
    """What comes from all processes, in one exchange; without spatial negatives the gates alone do."""

    def __init__(self, vectors: Vectors, inputs: Mapping[str, Any], options: LossArguments) -> None:
        product_ND = vectors["products"]
        own = {"products": product_ND}
        if options.aligns_images:
            rows_t = _rows_of_form(inputs["product_forms"], "t")
            own["t"] = vectors.get("products/t", product_ND[:0])
            own["i"] = vectors.get("products/i", product_ND[:0])
            self.both_product, self.both_group = inputs["product"][rows_t], inputs["group"][rows_t]
            self.first_both = first_row(len(rows_t), product_ND.device) if options.spatial_negatives else 0
        gates = _own_gates(vectors, inputs, options.dual_alignment)
        exchanged = own if options.spatial_negatives else {}
        if gates is not None:
            exchanged = exchanged | {"gates": gates[0]}
        self.found = own | dict(zip(exchanged, gather_all_with_gradient(list(exchanged.values())), strict=True))
        self.gates = None if gates is None else (self.found["gates"], gather_ids(gates[1]))
        self.batch = Candidates(self.found["products"], inputs["product"], inputs["group"])
        self.first = first_row(len(product_ND), product_ND.device) if options.spatial_negatives else 0
        if options.spatial_negatives:
            self.batch = replace(
                self.batch, product_C=gather_ids(inputs["product"]), group_C=gather_ids(inputs["group"])
            )
            if options.aligns_images:
                self.both_product, self.both_group = gather_ids(self.both_product), gather_ids(self.both_group)
        self.target_B = inputs["target"] + self.first

    def segments(self, queued: Candidates | None) -> list[Tensor]:
        return [self.batch.vector_CD] if queued is None else [self.batch.vector_CD, queued.vector_CD]


def _own_gates(vectors: Vectors, inputs: Mapping[str, Any], forms: bool) -> tuple[Tensor, Tensor] | None:
    """Expert gates of this process's queries in each form, and each one's form as its place in t, i, mm."""
    if not forms or "queries/gates" not in vectors:
        return None
    has_text, has_image = inputs["query_forms"]["has_text"], inputs["query_forms"]["has_image"]
    places = [torch.where(has_text & has_image, 2, torch.where(has_text, 0, 1))]
    gates = [vectors["queries/gates"]]
    for place, form in enumerate(SINGLE_FORMS):
        if f"queries/{form}/gates" in vectors:
            gates.append(vectors[f"queries/{form}/gates"])
            places.append(torch.full((len(gates[-1]),), place, device=places[0].device))
    return torch.cat(gates), torch.cat(places)


def _rows_of_form(forms: Mapping[str, Any], name: str) -> Tensor:
    return forms[name]["rows"]


def _query_forms(vectors: Vectors, inputs: Mapping[str, Any], forms: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """The vectors of each form and the queries' rows; a query of one modality is encoded once, in that form."""
    query_BD = vectors["queries"]
    every_B = torch.arange(len(query_BD), device=query_BD.device)
    if not forms:
        return {GIVEN: (query_BD, every_B)}
    given = inputs["query_forms"]
    has_text, has_image = given["has_text"], given["has_image"]
    found = {}
    for form, alone in (("t", has_text & ~has_image), ("i", has_image & ~has_text)):
        rows, vector_RD = every_B[alone], query_BD[alone]
        if f"queries/{form}" in vectors:
            rows = torch.cat([_rows_of_form(given, form), rows])
            vector_RD = torch.cat([vectors[f"queries/{form}"], vector_RD])
        found[form] = (vector_RD, rows)
    return found | {"mm": (query_BD[has_text & has_image], every_B[has_text & has_image])}


def _positives(gathered: _Gathered, inputs: Mapping[str, Any], several: bool) -> tuple[Tensor, Tensor]:
    """Rows of each query's positives among the candidates of all processes, and their weights."""
    rows_BP = inputs.get("positive", inputs["target"][:, None])
    weight_BP = inputs.get("positive_weight")
    weight_BP = torch.ones_like(rows_BP, dtype=torch.float32) if weight_BP is None else weight_BP
    target_BP = torch.where(rows_BP == NO_TARGET, NO_TARGET, rows_BP + gathered.first)
    if not several or "known_positive" not in inputs:
        return target_BP, weight_BP
    row, key, column = places(inputs["known_positive"], gathered.batch.product_C)
    own_row, own_place = (target_BP != NO_TARGET).nonzero(as_tuple=True)
    rows = torch.cat([own_row, row])
    columns = torch.cat([target_BP[own_row, own_place], column])
    weights = torch.cat([weight_BP[own_row, own_place], inputs["known_weight"][row, key].to(weight_BP.dtype)])
    return _padded_lists(rows, columns, weights, (len(target_BP), len(gathered.batch)))


def _padded_lists(rows: Tensor, columns: Tensor, weights: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(query, candidate, weight) triples as lists by query, padded; of the same pair the first counts."""
    queries, candidates = shape
    pair, place = (rows * candidates + columns).sort(stable=True)
    first = torch.ones_like(pair, dtype=torch.bool)
    first[1:] = pair[1:] != pair[:-1]
    rows, columns, weights = rows[place[first]], columns[place[first]], weights[place[first]]
    count_B = torch.bincount(rows, minlength=queries)
    nth = torch.arange(len(rows), device=rows.device) - (count_B.cumsum(0) - count_B)[rows]
    target_BP = rows.new_full((queries, int(count_B.max())), NO_TARGET)
    weight_BP = weights.new_zeros(target_BP.shape)
    target_BP[rows, nth], weight_BP[rows, nth] = columns, weights
    return target_BP, weight_BP


def _exclusion(
    facts: QueryFacts, rows: Tensor, gathered: _Gathered, queued: Candidates | None, margin: float | None
) -> FalseNegatives:
    chosen = QueryFacts(facts.product_B[rows], facts.group_B[rows], facts.other_BP[rows], facts.negative_BN[rows])
    product_C, group_C = gathered.batch.product_C, gathered.batch.group_C
    if queued is not None:
        product_C, group_C = torch.cat([product_C, queued.product_C]), torch.cat([group_C, queued.group_C])
    return FalseNegatives(chosen, product_C, group_C, gathered.target_B[rows], margin)


def _filtered(
    vectors: Vectors, inputs: Mapping[str, Any], facts: QueryFacts, sample_filter: SampleFilter, progress: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight of each query's triplet with its nearest hard negative, which are down-weighted, which have one at all."""
    query_BD, product_ND = vectors["queries"].detach().float(), vectors["products"].detach().float()
    target_B = inputs["target"]
    every_N = torch.arange(len(product_ND), device=target_B.device)
    owner_N = torch.searchsorted(target_B, every_N, right=True) - 1
    similarity_N = (query_BD[owner_N] * product_ND).sum(dim=1)
    none_N = false_negatives_among(facts, owner_N, inputs["product"], inputs["group"])
    nearest_B = similarity_N.new_full((len(target_B),), -math.inf)
    nearest_B = nearest_B.scatter_reduce(0, owner_N, similarity_N.masked_fill(none_N, -math.inf), "amax")
    weights = sample_filter.weights(similarity_N[target_B], nearest_B, progress)
    return *weights, ~nearest_B.isinf()


def hits(query_BD: Tensor, batch: Candidates, facts: QueryFacts, target_B: Tensor, block_size: int = 4096) -> Tensor:
    """Whether each query's answer is nearer than every other valid candidate of the batch, block by block.

    Args:
        query_BD: the queries' vectors.
        batch: the candidates.
        facts: what is known about the queries.
        target_B: the row of each query's answer.
        block_size: candidates that are compared at a time.

    Shapes:
        (B, D) → (B,) bool.
    """
    query_BD, candidate_CD = query_BD.float(), batch.vector_CD.float()
    best_B = query_BD.new_full((len(query_BD),), -math.inf)
    for start in range(0, len(batch), block_size):
        part = slice(start, start + block_size)
        gone_BK = false_negative_mask(facts, batch.product_C[part], batch.group_C[part])
        here_B = (target_B >= part.start) & (target_B < part.stop)
        gone_BK[here_B.nonzero()[:, 0], target_B[here_B] - start] = True
        best_B = best_B.maximum((query_BD @ candidate_CD[part].T).masked_fill(gone_BK, -math.inf).amax(dim=1))
    return (query_BD * candidate_CD[target_B]).sum(dim=1) > best_B


def _intra(
    vectors: Vectors, inputs: Mapping[str, Any], gathered: _Gathered, options: LossArguments
) -> list[ContrastiveTerm]:
    """Image → text, and text → image where asked for: over products alone, because the text of a query of both often says
    what its image does not show ("same in blue"). Texts of the same product or variant group are no negatives."""
    rows = _rows_of_form(inputs["product_forms"], "t")
    count = mean_rows(len(rows), rows.device)
    if not count:
        return []
    nothing = rows.new_zeros((len(rows), 0))
    facts = QueryFacts(inputs["product"][rows], inputs["group"][rows], nothing, nothing)
    target_I = torch.arange(len(rows), device=rows.device) + gathered.first_both
    terms = []
    for one, other in (("i", "t"), ("t", "i"))[: 2 if options.symmetric_intra else 1]:
        exclusion = FalseNegatives(facts, gathered.both_product, gathered.both_group, target_I)
        own_ID = vectors.get(f"products/{one}", vectors["products"][:0])
        terms.append(ContrastiveTerm(own_ID, [gathered.found[other]], target_I, count, exclusion))
    return terms
