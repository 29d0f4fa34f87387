"""Dual-level alignment: query to product in each modality form, and each product's image to its text.

Shape suffixes: B queries, C candidates, D embedding width, M objectives (modality forms), I products with image and
text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.losses.info_nce import Exclusion

FORMS = ("t", "i", "mm")


@dataclass
class ContrastiveTerm:
    """One InfoNCE term: queries against candidates.

    Args:
        count: the divisor of the sum over the queries. In one process it is the number of queries. With several, it is
            the number of queries of all processes divided by the number of processes, so that the averaged gradient is
            the gradient of the global mean.
        query_BD, candidates, target_B, excluded, weight_B: as in `InfoNCELoss.forward`.
    """

    query_BD: Tensor
    candidates: Tensor | Sequence[Tensor]
    target_B: Tensor
    count: float
    excluded: Tensor | Exclusion | None = None
    weight_B: Tensor | None = None

    def loss(self, contrastive: nn.Module) -> Tensor:
        """Return the mean loss of the term's queries.

        A term without queries returns a zero that depends on all vectors, because other processes may have queries, and
        every process must take part in the backward pass of the gathered vectors.
        """
        if not len(self.query_BD):
            vectors = [self.candidates] if isinstance(self.candidates, Tensor) else self.candidates
            return torch.stack([vector_ND.sum() for vector_ND in (self.query_BD, *vectors)]).sum() * 0.0
        terms = (self.query_BD, self.candidates, self.target_B, self.excluded, self.weight_B)
        return contrastive(*terms, reduction="sum") / self.count


class DualAlignmentLoss(nn.Module):
    """The total objective of MOON2.0.

    `L = Σ_θ ω_θ L_inter^θ + λ L_intra + ρ L_aux + ς L_sparsity + κ L_compatible`, θ in {t, i, mm}, with
    `L_inter^θ = InfoNCE(r_q^θ → r_p^mm; r_n^mm)` and `L_intra = InfoNCE(r_w^i → r_w^t; other products' r^t)`, with
    `symmetric` its mean with `InfoNCE(r_w^t → r_w^i; other products' r^i)`.

    Source: MOON2.0, arXiv 2511.12449, dual-level alignment (λ = 1, one direction). ρ, ς and τ are unpublished; λ as a
    setting and the symmetric form (precedent: CLIP, arXiv 2103.00020) are our design. L_compatible, for models that
    search the vectors of an earlier one, is the influence loss of `training.contrastive.terms.compatible_term`.

    Args:
        contrastive: `InfoNCELoss` or `MatryoshkaLoss`, applied to every term.
        weights: constant ω of each form, which replace those of the model. None: the model's ω, or 1 for a model
            without them.
        intra_weight: λ, at least 0; 0 leaves L_intra out.
        symmetric: whether to add the direction text → image to L_intra.
        router_weight: ρ, the weight of the load-balancing loss, at least 0.
        sparsity_weight: ς, the weight of the entropy of the preference matrix, at least 0.
        compatible_weight: κ, the weight of the term with an earlier model's products, at least 0.

    Raises:
        ValueError: a negative weight or an unknown form.

    Relations:
        `training.contrastive.terms.make_terms` makes its terms.
    """

    def __init__(
        self,
        contrastive: nn.Module,
        weights: Mapping[str, float] | None = None,
        intra_weight: float = 1.0,
        symmetric: bool = False,
        router_weight: float = 0.0,
        sparsity_weight: float = 0.0,
        compatible_weight: float = 1.0,
    ) -> None:
        super().__init__()
        given = dict(weights or {})
        named = {"intra_weight": intra_weight, "router_weight": router_weight, "sparsity_weight": sparsity_weight}
        named |= {"compatible_weight": compatible_weight}
        if not set(given) <= set(FORMS):
            raise ValueError(f"weights: found {sorted(given)}; expected only {', '.join(FORMS)}")
        for name, value in {**{f"weights.{form}": value for form, value in given.items()}, **named}.items():
            if not value >= 0:
                raise ValueError(f"{name}: found {value}; expected 0 or more")
        self.contrastive = contrastive
        self.weights = None if weights is None else {form: float(given.get(form, 0.0)) for form in FORMS}
        self.intra_weight, self.symmetric = float(intra_weight), symmetric
        self.router_weight, self.sparsity_weight = float(router_weight), float(sparsity_weight)
        self.compatible_weight = float(compatible_weight)

    @property
    def temperature(self) -> float:
        """Return τ of the contrastive terms."""
        return float(self.contrastive.temperature)  # type: ignore[arg-type]

    def forward(
        self,
        inter: Mapping[str, ContrastiveTerm],
        intra: Sequence[ContrastiveTerm] = (),
        omega: Mapping[str, Tensor] | None = None,
        router_loss: Tensor | None = None,
        sparsity: Tensor | None = None,
        compatible: ContrastiveTerm | None = None,
    ) -> dict[str, Tensor]:
        """Return the total and its parts.

        Args:
            inter: one term for each form that a query of any process has. The objective of MOON (v1) is a single term
                named "given": the queries in the form in which they were drawn, with weight 1.
            intra: the term image → text, and with `symmetric` the term text → image.
            omega: ω_θ of the model, scalars; not used if constant weights are set.
            router_loss: L_aux, a scalar; None for a model without routers.
            sparsity: L_sparsity, a scalar; None for a model without a preference matrix.
            compatible: the term with the products of an earlier model; None for a training without one.

        Shapes:
            Scalars: "loss"; "loss_inter_t", … for each term; "loss_intra", "loss_aux", "loss_sparsity" and
            "loss_compatible" if present.
        """
        parts: dict[str, Any] = {f"loss_inter_{form}": term.loss(self.contrastive) for form, term in inter.items()}
        weights = self.weights or omega or {}
        total = sum(weights.get(form, 1.0) * parts[f"loss_inter_{form}"] for form in inter)
        if intra and self.intra_weight:
            parts["loss_intra"] = torch.stack([term.loss(self.contrastive) for term in intra]).mean()
            total = total + self.intra_weight * parts["loss_intra"]
        for name, value, weight in (
            ("loss_aux", router_loss, self.router_weight),
            ("loss_sparsity", sparsity, self.sparsity_weight),
            ("loss_compatible", compatible and compatible.loss(self.contrastive), self.compatible_weight),
        ):
            if value is not None:
                parts[name] = value
                total = total + weight * value
        return {"loss": total, **parts}
