"""Compute the InfoNCE over the rollouts of a step, and the similarities for the rewards.

A pair is a query and the product that answers it. Each side has G rollouts and a vector without reasoning.

Shape suffixes: B pairs of this process, G rollouts of one side, R = B · G, N products of this process (positives and
hard negatives), C candidates of all processes and the queue, K valid negatives of one query, D embedding width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from training.batches.negatives import Candidates, FalseNegatives, QueryFacts, false_negative_mask
from training.contrastive.terms import make_terms
from training.losses.dual_alignment import ContrastiveTerm, DualAlignmentLoss
from training.parallel.distributed import first_row, gather_all_with_gradient, gather_ids, mean_rows
from training.recipe.loss import LossArguments


@dataclass
class RolloutVectors:
    """The vectors of a step and process.

    Shapes:
        query_RD, product_RD (B · G, D) float32: the consecutive rollouts of each pair; plain_query_BD (B, D) and
        plain_product_ND (N, D) float32: vectors without reasoning, with the products in the order of the batch; forms:
        "queries/t", "products/i", … → (rows of the form, D) float32: vectors without reasoning of single forms, for dual
        alignment.
    """

    query_RD: Tensor
    product_RD: Tensor
    plain_query_BD: Tensor
    plain_product_ND: Tensor
    forms: dict[str, Tensor] = field(default_factory=dict)

    def plain(self) -> dict[str, Tensor]:
        """Return the vectors without reasoning by the names of `training.encoding.batch_encoding.BatchEncoder`."""
        return {"queries": self.plain_query_BD, "products": self.plain_product_ND, **self.forms}

    def tensors(self) -> dict[str, Tensor]:
        """Return the vectors by the names of the fields, without single forms."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def each(self, change: Callable[[Tensor], Tensor]) -> "RolloutVectors":
        """Return the vectors with a change of each tensor."""
        whole = [change(value) for value in self.tensors().values()]
        return RolloutVectors(*whole, {name: change(value) for name, value in self.forms.items()})

    def leaves(self) -> "RolloutVectors":
        """Return detached copies that require a gradient."""
        return self.each(lambda value: value.detach().clone().requires_grad_())


def rollout_loss(
    vectors: RolloutVectors,
    batch: Mapping[str, Any],
    queued: Candidates | None,
    contrastive: nn.Module,
    unreasoned_share: float,
    margin: float | None = None,
    triplet_B: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute the InfoNCE over all rollouts and the vectors without reasoning.

    `L = (1-u)² L(q_g → p_g) + u(1-u) (L(q_g → p) + L(q → {p_g})) + u² L(q → p)`, where q_g, p_g are rollouts, q, p the
    vectors without reasoning, and u their share: the expected loss of a random mix of vectors with and without
    reasoning. Every term has the same candidates: the products of all processes, as rollouts and without reasoning, and
    the queue. Rollouts of a product are not negatives of its queries.

    Source: MOON3.0 (GRPO with InfoNCE, arXiv 2604.00513) with all G rollouts as in LREM, arXiv 2510.14321; the mix of
    vectors with and without reasoning is our design.

    Args:
        vectors: the vectors of this process.
        batch: the batch of `training.batches.collate.PairCollator`: "target", "product", "group", "query_group",
            "other", "negative", and optionally "positive_weight", the relevance of each pair's answer, which multiplies
            its losses.
        queued: the candidates of past steps, or None.
        contrastive: `InfoNCELoss` or `MatryoshkaLoss`.
        unreasoned_share: u, from 0 to 1.
        margin: exclude negatives whose similarity exceeds that of the positive by more than this. None: do not exclude
            them.
        triplet_B: the weight of each pair, from a sample filter, which multiplies its losses. None: 1.

    Shapes:
        Scalars "loss", and "loss_reasoned", "loss_to_plain", "loss_from_plain", "loss_plain" if their weight is not 0.
        With several processes, each is scaled so that averaged gradients are those of the mean over all processes.
    """
    count, device = len(vectors.plain_query_BD), vectors.query_RD.device
    rollouts = len(vectors.query_RD) // count
    think_CD, plain_CD = gather_all_with_gradient([vectors.product_RD, vectors.plain_product_ND])
    own = batch["target"]
    product_C = torch.cat([gather_ids(batch["product"][own].repeat_interleave(rollouts)), gather_ids(batch["product"])])
    group_C = torch.cat([gather_ids(batch["group"][own].repeat_interleave(rollouts)), gather_ids(batch["group"])])
    segments = [torch.cat([think_CD, plain_CD])]
    if queued is not None:
        segments.append(queued.vector_CD)
        product_C, group_C = torch.cat([product_C, queued.product_C]), torch.cat([group_C, queued.group_C])
    first = first_row(len(vectors.product_RD), device)
    reasoned_R = first + torch.arange(len(vectors.product_RD), device=device)
    plain_B = len(think_CD) + first_row(len(vectors.plain_product_ND), device) + own
    share, relevance_B = unreasoned_share, None if "positive_weight" not in batch else batch["positive_weight"][:, 0]
    if triplet_B is not None:
        relevance_B = triplet_B if relevance_B is None else triplet_B * relevance_B
    terms = {
        "reasoned": ((1 - share) ** 2, vectors.query_RD, reasoned_R[:, None]),
        "to_plain": (share * (1 - share), vectors.query_RD, plain_B.repeat_interleave(rollouts)[:, None]),
        "from_plain": (share * (1 - share), vectors.plain_query_BD, reasoned_R.view(count, rollouts)),
        "plain": (share**2, vectors.plain_query_BD, plain_B[:, None]),
    }
    parts: dict[str, Tensor] = {}
    total: Any = 0.0
    for name, (weight, query_QD, target_QP) in terms.items():
        if weight:
            facts = _facts(batch, len(query_QD) // count)
            masks = FalseNegatives(facts, product_C, group_C, target_QP[:, 0], margin)
            weight_QP = None if relevance_B is None else _each(relevance_B, len(query_QD) // count, target_QP)
            term = ContrastiveTerm(query_QD, segments, target_QP, mean_rows(len(query_QD), device), masks, weight_QP)
            parts[f"loss_{name}"] = term.loss(contrastive)
            total = total + weight * parts[f"loss_{name}"]
    return {"loss": total, **parts}


def aligned_loss(
    vectors: RolloutVectors,
    batch: Mapping[str, Any],
    queued: Candidates | None,
    objective: DualAlignmentLoss,
    options: LossArguments,
    earlier_ND: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute the terms of the objective that rollouts do not have, over the vectors without reasoning.

    `L = Σ_θ ω_θ L_inter^θ + λ L_intra + κ L_compatible`; see `training.losses.dual_alignment.DualAlignmentLoss`. They are
    added to `rollout_loss` with weight 1. The rollouts themselves are in one of the forms of their record, drawn for each
    step, so dual alignment does not multiply the number of texts to generate. Our design: MOON3.0, arXiv 2604.00513, joins
    InfoNCE and GRPO for the three forms of each element, and does not say how.

    Args:
        vectors: with `forms` for dual alignment.
        batch: see `rollout_loss`; with dual alignment "query_forms" and "product_forms".
        queued: the candidates of past steps, or None.
        objective: the objective of the recipe. Without constant weights, ω is 1: the passes of rollouts do not return the
            expert gates from which a moon2 computes it.
        options: the recipe's keys of the loss.
        earlier_ND: an earlier model's vectors of the products. None: no earlier model.

    Shapes: scalars "loss", and "loss_inter_t", "loss_intra", "loss_compatible", … for the terms that exist; {} for none.
    """
    if not (options.dual_alignment or earlier_ND is not None):
        return {}
    terms = make_terms(vectors.plain(), batch, queued, options, 0.0, earlier_ND=earlier_ND)
    inter = terms.inter if options.dual_alignment else {}
    return objective(inter, terms.intra, compatible=terms.compatible)


def _each(relevance_B: Tensor, times: int, target_QP: Tensor) -> Tensor:
    """Return the relevance of each pair, repeated for all its targets."""
    return relevance_B.repeat_interleave(times)[:, None].expand(target_QP.shape)


def _facts(batch: Mapping[str, Any], times: int) -> QueryFacts:
    """Return the related products of each pair's query, repeated `times` times."""
    ids = (batch["product"][batch["target"]], batch["query_group"], batch["other"], batch["negative"])
    return QueryFacts(*(tensor.repeat_interleave(times, dim=0) for tensor in ids))


@dataclass
class RolloutSimilarities:
    """The similarities of rollouts. Lists have one entry for each rollout.

    The order is: pair, side (query first), rollout.

    Shapes:
        positive: (G,) float32, cosine with each rollout of the pair's other side. negative: (K,) float32, cosine with
            each
        valid negative; K may differ between pairs. plain_positive (B,) and plain_negative, a list of (K,): the same for
        the pair's vectors without reasoning.
    """

    positive: list[Tensor]
    negative: list[Tensor]
    plain_positive: Tensor
    plain_negative: list[Tensor]


@torch.no_grad()
def rollout_similarities(
    vectors: RolloutVectors, batch: Mapping[str, Any], queued: Candidates | None
) -> RolloutSimilarities:
    """Return the similarities for the rewards.

    A rollout is compared with averages over rollouts, so that its reward does not depend on other single rollouts:
    other products are the means of their G vectors (the cosine with the mean is the mean cosine), and a product's
    rollout is compared with the negatives by the mean of its query's G vectors. Hard negatives and the queue have a
    single vector. The same product, its variants and known positives are not negatives. Our design.

    Args:
        vectors: the vectors of this process.
        batch: see `rollout_loss`.
        queued: the candidates of past steps, or None.
    """
    count = len(vectors.plain_query_BD)
    query_BGD = vectors.query_RD.float().view(count, -1, vectors.query_RD.shape[1])
    product_BGD = vectors.product_RD.float().view(query_BGD.shape)
    own = batch["target"]
    hard = torch.ones(len(batch["product"]), dtype=torch.bool, device=own.device)
    hard[own] = False
    plain_ND = vectors.plain_product_ND.float()
    mean_CD, hard_CD, plain_CD = gather_all_with_gradient([product_BGD.mean(dim=1), plain_ND[hard], plain_ND])
    product, group = batch["product"], batch["group"]
    ids = [gather_ids(tensor) for tensor in (product[own], product[hard], product, group[own], group[hard], group)]
    reasoned = _with_queue(torch.cat([mean_CD, hard_CD]), torch.cat(ids[0:2]), torch.cat(ids[3:5]), queued)
    plain = _with_queue(plain_CD, ids[2], ids[5], queued)
    facts = _facts(batch, 1)
    valid_BC = ~false_negative_mask(facts, reasoned.product_C, reasoned.group_C)
    of_query_BGC = query_BGD @ reasoned.vector_CD.float().T
    of_product_BC = query_BGD.mean(dim=1) @ reasoned.vector_CD.float().T
    each_BGG = query_BGD @ product_BGD.transpose(1, 2)
    similarities = RolloutSimilarities([], [], (vectors.plain_query_BD.float() * plain_ND[own]).sum(dim=1), [])
    for pair in range(count):
        valid_C = valid_BC[pair]
        similarities.positive += [*each_BGG[pair], *each_BGG[pair].T]
        shared_K = of_product_BC[pair, valid_C]
        similarities.negative += [*of_query_BGC[pair][:, valid_C], *[shared_K] * query_BGD.shape[1]]
    plain_valid_BC = ~false_negative_mask(facts, plain.product_C, plain.group_C)
    plain_BC = vectors.plain_query_BD.float() @ plain.vector_CD.float().T
    similarities.plain_negative = [row[valid] for row, valid in zip(plain_BC, plain_valid_BC, strict=True)]
    return similarities


def _with_queue(vector_CD: Tensor, product_C: Tensor, group_C: Tensor, queued: Candidates | None) -> Candidates:
    if queued is None:
        return Candidates(vector_CD, product_C, group_C)
    return Candidates(
        torch.cat([vector_CD, queued.vector_CD.to(vector_CD.dtype)]),
        torch.cat([product_C, queued.product_C]),
        torch.cat([group_C, queued.group_C]),
    )


def queue_of(vectors: RolloutVectors, batch: Mapping[str, Any]) -> Candidates:
    """Return the candidates of a step for the queue: the first rollout of each product, and all hard negatives.

    Args:
        vectors: the vectors of this process.
        batch: see `rollout_loss`.
    """
    own, count = batch["target"], len(batch["target"])
    hard = torch.ones(len(batch["product"]), dtype=torch.bool, device=own.device)
    hard[own] = False
    first_BD = vectors.product_RD.view(count, -1, vectors.product_RD.shape[1])[:, 0]
    with torch.no_grad():
        vector = gather_all_with_gradient([first_BD.float(), vectors.plain_product_ND[hard].float()])
    ids = [
        torch.cat([gather_ids(tensor[own]), gather_ids(tensor[hard])]) for tensor in (batch["product"], batch["group"])
    ]
    return Candidates(torch.cat(vector).detach(), *ids)
