"""Make the terms of the objective from vectors: targets, candidates of all processes and the queue, masks and weights.

Shape suffixes: B queries of this process, N products of this process, C candidates of all processes, D embedding width,
P positives of a query (padded with -1), R rows of one form, I products with image and text, L mixture layers, E
experts.
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
from training.parallel.distributed import (
    first_row,
    gather_all_with_gradient,
    gather_ids,
    gather_with_gradient,
    mean_rows,
)
from training.recipe.loss import LossArguments

GIVEN = "given"
"""The form in which a query was drawn."""


@dataclass
class Terms:
    """The terms of a step.

    Args:
        inter: a term for each form that a query of any process has; only "given" without forms.
        intra: the terms between images and texts.
        batch: the products of all processes, or without spatial negatives those of this process.
        target_B: the index of each query's answer in `batch`.
        exclusions: the masks of false negatives, by form.
        gates: expert gates (R, L, E) of the queries of all processes, and the form (R,) of each query, as its index in
            t, i, mm; None for a model without gates.
        measures: values to log, by name.
        compatible: the term of the queries with the products of an earlier model; None without one.
    """

    inter: dict[str, ContrastiveTerm]
    intra: list[ContrastiveTerm]
    batch: Candidates
    target_B: Tensor
    exclusions: dict[str, FalseNegatives]
    gates: tuple[Tensor, Tensor] | None
    measures: dict[str, Tensor] = field(default_factory=dict)
    compatible: ContrastiveTerm | None = None


def make_terms(
    vectors: Vectors,
    inputs: Mapping[str, Any],
    queued: Candidates | None,
    options: LossArguments,
    progress: float,
    sample_filter: SampleFilter | None = None,
    earlier_ND: Tensor | None = None,
) -> Terms:
    """Return the terms of a batch.

    Args:
        vectors: the vectors of all parts from `training.encoding.batch_encoding.BatchEncoder`.
        inputs: the batch of `training.batches.collate.PairCollator`: "target", "product", "group", "query_group",
            "other", "negative"; with several positives "positive", "positive_weight", "known_positive", "known_weight";
            with forms "query_forms" and "product_forms".
        queued: the candidates of the queue.
        options: the recipe's keys of the loss, of which several_positives, negative_margin, spatial_negatives,
            dual_alignment and the keys of the image terms are read.
        progress: the finished share of the training.
        sample_filter: the filter that weighs triplets. None: all have the same weight.
        earlier_ND: an earlier model's vectors of the batch's products, without gradient. None: no earlier model.

    Shapes:
        earlier_ND (N, D) float, rows as in `vectors["products"]`.
    """
    gathered = _Gathered(vectors, inputs, options)
    facts = QueryFacts(inputs["product"][inputs["target"]], inputs["query_group"], inputs["other"], inputs["negative"])
    targets_BP, weight_BP = _positives(gathered, inputs, options.several_positives)
    measures: dict[str, Tensor] = {}
    if sample_filter is not None:
        triplet_B, below_B, has_B = triplet_weights(vectors, inputs, facts, sample_filter, progress)
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
    compatible = None
    if earlier_ND is not None:
        every_B = torch.arange(len(targets_BP), device=targets_BP.device)
        exclusion = _exclusion(facts, every_B, gathered, None, options.negative_margin)
        compatible = compatible_term(vectors["queries"], gathered.earlier(earlier_ND), targets_BP, weight_BP, exclusion)
    return Terms(inter, intra, gathered.batch, gathered.target_B, exclusions, gathered.gates, measures, compatible)


def compatible_term(
    query_BD: Tensor, earlier_CD: Tensor, target_BP: Tensor, weight_BP: Tensor, excluded: FalseNegatives
) -> ContrastiveTerm:
    """Return the term in which the new model's queries look for their answers among an earlier model's products.

    `L_compatible = InfoNCE(r_q^new → r_p^old; r_n^old)`: the earlier model is frozen, so that its candidates take the place
    of the frozen classifier of the influence loss, and only the new model's queries have a gradient. The candidates are
    the products of the step in all processes, with hard negatives. The queue is left to the term of the new model: vectors
    of a frozen model do not age, so a larger batch, not a queue, would add to them.

    Source: backward-compatible training, Shen et al., arXiv 2003.11942 §3.2, equation 6 (L = L_new + λ L_influence); InfoNCE in
    place of the softmax over classes is our design (precedent: the contrastive form of Zhang et al., arXiv 2204.13919).

    Args:
        query_BD: the new model's vectors of the queries, in the form in which they were drawn.
        earlier_CD: the earlier model's vectors of the products of all processes, without gradient.
        target_BP, weight_BP: the positives of each query and their weights, as in `ContrastiveTerm`.
        excluded: the mask of false negatives.

    Raises:
        ValueError: the two models' vectors have different widths.
    """
    if query_BD.shape[1] != earlier_CD.shape[1]:
        raise ValueError(
            f"earlier_CD: found width {earlier_CD.shape[1]}; expected {query_BD.shape[1]}, as of the queries"
        )
    count = mean_rows(len(query_BD), query_BD.device)
    return ContrastiveTerm(query_BD, earlier_CD, target_BP, count, excluded, weight_BP)


class _Gathered:
    """The vectors and ids of all processes, gathered at once; without spatial negatives only the gates."""

    def __init__(self, vectors: Vectors, inputs: Mapping[str, Any], options: LossArguments) -> None:
        product_ND = vectors["products"]
        self.spatial = options.spatial_negatives
        own = {"products": product_ND}
        if options.aligns_images:
            rows_t = inputs["product_forms"]["t"]["rows"]
            own["t"] = vectors.get("products/t", product_ND[:0])
            own["i"] = vectors.get("products/i", product_ND[:0])
            self.both_product, self.both_group = inputs["product"][rows_t], inputs["group"][rows_t]
            self.first_both = first_row(len(rows_t), product_ND.device) if options.spatial_negatives else 0
        gates = _own_gates(vectors, inputs, options.dual_alignment)
        exchanged = own if options.spatial_negatives else {}
        if gates is not None:
            exchanged = exchanged | {"gates": gates[0]}
        self.vectors = own | dict(zip(exchanged, gather_all_with_gradient(list(exchanged.values())), strict=True))
        self.gates = None if gates is None else (self.vectors["gates"], gather_ids(gates[1]))
        self.batch = Candidates(self.vectors["products"], inputs["product"], inputs["group"])
        self.first = first_row(len(product_ND), product_ND.device) if options.spatial_negatives else 0
        if options.spatial_negatives:
            self.batch = replace(
                self.batch, product_C=gather_ids(inputs["product"]), group_C=gather_ids(inputs["group"])
            )
            if options.aligns_images:
                self.both_product, self.both_group = gather_ids(self.both_product), gather_ids(self.both_group)
        self.target_B = inputs["target"] + self.first

    def earlier(self, earlier_ND: Tensor) -> Tensor:
        """Return an earlier model's vectors of the products in `batch`, without gradient."""
        earlier_ND = earlier_ND.detach()
        return gather_with_gradient(earlier_ND) if self.spatial else earlier_ND

    def segments(self, queued: Candidates | None) -> list[Tensor]:
        return [self.batch.vector_CD] if queued is None else [self.batch.vector_CD, queued.vector_CD]


def _own_gates(vectors: Vectors, inputs: Mapping[str, Any], forms: bool) -> tuple[Tensor, Tensor] | None:
    """Return the expert gates of this process's queries in each form, and the index of each form in t, i, mm."""
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


def _query_forms(vectors: Vectors, inputs: Mapping[str, Any], forms: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the vectors and rows of queries by form. A query of one modality is encoded once, in that form."""
    query_BD = vectors["queries"]
    every_B = torch.arange(len(query_BD), device=query_BD.device)
    if not forms:
        return {GIVEN: (query_BD, every_B)}
    query_forms = inputs["query_forms"]
    has_text, has_image = query_forms["has_text"], query_forms["has_image"]
    by_form = {}
    for form, alone in (("t", has_text & ~has_image), ("i", has_image & ~has_text)):
        rows, vector_RD = every_B[alone], query_BD[alone]
        if f"queries/{form}" in vectors:
            rows = torch.cat([query_forms[form]["rows"], rows])
            vector_RD = torch.cat([vectors[f"queries/{form}"], vector_RD])
        by_form[form] = (vector_RD, rows)
    return by_form | {"mm": (query_BD[has_text & has_image], every_B[has_text & has_image])}


def _positives(gathered: _Gathered, inputs: Mapping[str, Any], several: bool) -> tuple[Tensor, Tensor]:
    """Return the indices of each query's positives among the candidates of all processes, and their weights."""
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
    """Return (query, candidate, weight) triples as padded lists by query. Of repeated pairs, the first counts."""
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


def triplet_weights(
    vectors: Vectors, inputs: Mapping[str, Any], facts: QueryFacts, sample_filter: SampleFilter, progress: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weight of each query's triplet with its nearest hard negative, if it is lowered, and if there is one.

    Args:
        vectors: "queries" and "products", of which no gradient is taken.
        inputs: the batch, see `make_terms`.
        facts: the related products of its queries.
        sample_filter: weighs triplets.
        progress: the finished share of the training.

    Shapes: (B,) float32, bool, bool.
    """
    query_BD, product_ND = vectors["queries"].detach().float(), vectors["products"].detach().float()
    target_B = inputs["target"]
    every_N = torch.arange(len(product_ND), device=target_B.device)
    owner_N = torch.searchsorted(target_B, every_N, right=True) - 1
    similarity_N = (query_BD[owner_N] * product_ND).sum(dim=1)
    excluded_N = false_negatives_among(facts, owner_N, inputs["product"], inputs["group"])
    nearest_B = similarity_N.new_full((len(target_B),), -math.inf)
    nearest_B = nearest_B.scatter_reduce(0, owner_N, similarity_N.masked_fill(excluded_N, -math.inf), "amax")
    weights = sample_filter.weights(similarity_N[target_B], nearest_B, progress)
    return *weights, ~nearest_B.isinf()


def hits(query_BD: Tensor, batch: Candidates, facts: QueryFacts, target_B: Tensor, block_size: int = 4096) -> Tensor:
    """Return whether each query's answer is nearer than all other valid candidates of the batch.

    Args:
        query_BD: the vectors of the queries.
        batch: the candidates.
        facts: the related products of the queries.
        target_B: the index of each query's answer.
        block_size: the number of candidates that are compared at a time.

    Shapes:
        (B, D) → (B,) bool.
    """
    query_BD, candidate_CD = query_BD.float(), batch.vector_CD.float()
    best_B = query_BD.new_full((len(query_BD),), -math.inf)
    for start in range(0, len(batch), block_size):
        part = slice(start, start + block_size)
        excluded_BK = false_negative_mask(facts, batch.product_C[part], batch.group_C[part])
        here_B = (target_B >= part.start) & (target_B < part.stop)
        excluded_BK[here_B.nonzero()[:, 0], target_B[here_B] - start] = True
        best_B = best_B.maximum((query_BD @ candidate_CD[part].T).masked_fill(excluded_BK, -math.inf).amax(dim=1))
    return (query_BD * candidate_CD[target_B]).sum(dim=1) > best_B


def _intra(
    vectors: Vectors, inputs: Mapping[str, Any], gathered: _Gathered, options: LossArguments
) -> list[ContrastiveTerm]:
    """Return the term image → text of products, and with `symmetric_intra` the term text → image.

    Queries are not used, because the text of a query with an image often says what the image does not show ("same in
    blue"). Texts of the same product or variant group are not negatives.
    """
    rows = inputs["product_forms"]["t"]["rows"]
    count = mean_rows(len(rows), rows.device)
    if not count:
        return []
    no_ids = rows.new_zeros((len(rows), 0))
    facts = QueryFacts(inputs["product"][rows], inputs["group"][rows], no_ids, no_ids)
    target_I = torch.arange(len(rows), device=rows.device) + gathered.first_both
    terms = []
    for source, target in (("i", "t"), ("t", "i"))[: 2 if options.symmetric_intra else 1]:
        exclusion = FalseNegatives(facts, gathered.both_product, gathered.both_group, target_I)
        own_ID = vectors.get(f"products/{source}", vectors["products"][:0])
        terms.append(ContrastiveTerm(own_ID, [gathered.vectors[target]], target_I, count, exclusion))
    return terms
