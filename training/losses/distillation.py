"""Compute the losses by which a teacher's vectors pull a student's states: direct, or by relations.

Shape suffixes: R rows that the teacher knows, C rows of all processes, S student width, E teacher width.
"""

import torch
from torch import Tensor
from torch.nn import functional

RELATION_TEMPERATURE = 0.1
"""τ of both distributions of `relation_loss`; our choice."""


def direct_loss(projected_RE: Tensor, teacher_RE: Tensor) -> Tensor:
    """Return `Σ_r 1 − cos(W s_r, t_r)`, for states that a learned linear map W has brought to the teacher's width.

    Source: the regressor of FitNets, Romero et al., arXiv 1412.6550 §2.2. The cosine in place of the squared distance is our
    design (precedent: the vectors of retrieval models have unit length).

    Args:
        projected_RE: W s, with gradient.
        teacher_RE: t, without gradient.

    Shapes: returns a scalar, the sum over rows; 0 without rows.
    """
    return (1.0 - functional.cosine_similarity(projected_RE, teacher_RE, dim=-1)).sum()


def relation_loss(
    state_RS: Tensor, state_CS: Tensor, teacher_RE: Tensor, teacher_CE: Tensor, own_R: Tensor, temperature: float
) -> Tensor:
    """Return `Σ_r KL(p_r ‖ q_r)`, the relations of a batch: how similar each row is to all others.

    `p_rc = softmax_c(t_r · t_c / τ)` and `q_rc = softmax_c(s_r · s_c / τ)`, c ≠ r, of unit vectors. The two widths may differ.
    Source: the similarity distributions of SEED, Fang et al., arXiv 2101.04731 §3.2, and CompRess, arXiv 2010.14713; the rows
    of the batch in place of a queue, and one τ for both, are our design.

    Args:
        state_RS, state_CS: the student's states of this process's rows and of all processes' rows, with gradient.
        teacher_RE, teacher_CE: the teacher's vectors of the same rows, without gradient.
        own_R: index of each of the R rows among the C rows, int64.
        temperature: τ, above 0, without a unit.

    Shapes: returns a scalar, the sum over rows; 0 with fewer than three rows, which have no relations to compare.
    """
    if len(state_CS) < 3 or not len(state_RS):
        return (state_RS.sum() + state_CS.sum()) * 0.0
    itself_RC = functional.one_hot(own_R, len(state_CS)).bool()

    def log_shares(vector_RD: Tensor, vector_CD: Tensor) -> Tensor:
        cosine_RC = functional.normalize(vector_RD, dim=-1) @ functional.normalize(vector_CD, dim=-1).T
        others_RC = (cosine_RC / temperature)[~itself_RC].reshape(len(vector_RD), -1)
        return torch.log_softmax(others_RC, dim=-1)

    return functional.kl_div(
        log_shares(state_RS, state_CS), log_shares(teacher_RE, teacher_CE), log_target=True, reduction="sum"
    )
