import pytest
import torch
from torch.nn.functional import normalize

from training.losses.dual_alignment import ContrastiveTerm, DualAlignmentLoss
from training.losses.info_nce import InfoNCELoss


def slow_info_nce(query, candidate, target, temperature):
    total = 0.0
    for b in range(len(query)):
        scores = torch.stack([query[b] @ row / temperature for row in candidate])
        total = total - (scores[target[b]].exp() / scores.exp().sum()).log()
    return total / len(query)


def slow_total(vectors, omega, aux, sparsity, rho, sigma, symmetric):
    """The objective from the formula: three forms of three queries, three positives and three hard negatives each."""
    products = torch.cat([vectors["p", "mm"], vectors["n", "mm"]])
    answers = [0, 1, 2]
    inter = sum(omega[form] * slow_info_nce(vectors["q", form], products, answers, 0.1) for form in ("t", "i", "mm"))
    image, text = (torch.cat([vectors["p", form], vectors["n", form]]) for form in ("i", "t"))
    intra = slow_info_nce(image, text, list(range(6)), 0.1)
    if symmetric:
        intra = (intra + slow_info_nce(text, image, list(range(6)), 0.1)) / 2
    return inter + intra + rho * aux + sigma * sparsity


@pytest.fixture
def vectors():
    generator = torch.Generator().manual_seed(2)
    return {
        (item, form): normalize(torch.randn(3, 5, generator=generator), dim=1)
        for item in "qpn"
        for form in ("t", "i", "mm")
    }


def leaves(vectors, dtype):
    return {key: value.detach().clone().to(dtype).requires_grad_() for key, value in vectors.items()}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block_size", [None, 2])
def test_the_objective_equals_the_formula_in_value_and_gradient(vectors, symmetric, block_size):
    fast, slow = leaves(vectors, torch.float32), leaves(vectors, torch.float64)
    omega = {form: torch.tensor(value, requires_grad=True) for form, value in (("t", 0.5), ("i", 0.2), ("mm", 0.9))}
    aux, sparsity = torch.tensor(1.5, requires_grad=True), torch.tensor(0.7, requires_grad=True)
    products = torch.cat([fast["p", "mm"], fast["n", "mm"]])
    inter = {form: ContrastiveTerm(fast["q", form], products, torch.arange(3), count=3) for form in ("t", "i", "mm")}
    image, text = (torch.cat([fast["p", form], fast["n", form]]) for form in ("i", "t"))
    intra = [ContrastiveTerm(image, text, torch.arange(6), count=6)]
    if symmetric:
        intra.append(ContrastiveTerm(text, image, torch.arange(6), count=6))
    ours = DualAlignmentLoss(InfoNCELoss(0.1, block_size), symmetric=symmetric, router_weight=0.01, sparsity_weight=0.3)
    parts = ours(inter, intra, omega, aux, sparsity)
    constants = {form: value.item() for form, value in omega.items()}
    wanted = slow_total(slow, constants, 1.5, 0.7, 0.01, 0.3, symmetric)
    assert parts["loss"].item() == pytest.approx(wanted.item(), abs=1e-5)
    assert parts.keys() >= {"loss_inter_t", "loss_inter_i", "loss_inter_mm", "loss_intra", "loss_aux", "loss_sparsity"}
    parts["loss"].backward()
    wanted.backward()
    for key in fast:
        assert slow[key].grad.abs().max() > 1e-3
        assert torch.allclose(fast[key].grad.double(), slow[key].grad, atol=1e-5)
    for form in omega:
        assert omega[form].grad.item() == pytest.approx(parts[f"loss_inter_{form}"].item(), abs=1e-6)
    assert (aux.grad.item(), sparsity.grad.item()) == (pytest.approx(0.01), pytest.approx(0.3))


def test_without_a_model_that_weighs_objectives_the_constant_weights_count(vectors):
    terms = {"t": ContrastiveTerm(vectors["q", "t"], vectors["p", "mm"], torch.arange(3), count=3)}
    parts = DualAlignmentLoss(InfoNCELoss(), {"t": 0.25, "mm": 1.0})(terms)
    assert parts["loss"].item() == pytest.approx(0.25 * parts["loss_inter_t"].item())
    assert set(parts) == {"loss", "loss_inter_t"}


def test_a_term_that_no_query_has_is_zero_with_a_gradient(vectors):
    empty, products = torch.zeros(0, 5, requires_grad=True), vectors["p", "mm"].clone().requires_grad_()
    term = ContrastiveTerm(empty, [products], torch.zeros(0, dtype=torch.int64), count=1)
    loss = DualAlignmentLoss(InfoNCELoss())({"i": term})["loss"]
    loss.backward()
    assert loss.item() == 0
    assert empty.grad.shape == (0, 5)
    assert torch.equal(products.grad, torch.zeros(3, 5))


def test_the_queries_as_they_came_have_the_weight_one(vectors):
    term = ContrastiveTerm(vectors["q", "mm"], vectors["p", "mm"], torch.arange(3), count=3)
    parts = DualAlignmentLoss(InfoNCELoss(), router_weight=0.5)({"given": term}, router_loss=torch.tensor(2.0))
    assert parts["loss"].item() == pytest.approx(parts["loss_inter_given"].item() + 1.0)


def test_constant_weights_replace_those_of_the_model(vectors):
    terms = {"t": ContrastiveTerm(vectors["q", "t"], vectors["p", "mm"], torch.arange(3), count=3)}
    parts = DualAlignmentLoss(InfoNCELoss(), {"t": 0.5})(terms, omega={"t": torch.tensor(0.1)})
    assert parts["loss"].item() == pytest.approx(0.5 * parts["loss_inter_t"].item())


def test_intra_alignment_can_be_left_out(vectors):
    inter = {"t": ContrastiveTerm(vectors["q", "t"], vectors["p", "mm"], torch.arange(3), count=3)}
    intra = [ContrastiveTerm(vectors["p", "i"], vectors["p", "t"], torch.arange(3), count=3)]
    parts = DualAlignmentLoss(InfoNCELoss(), intra_weight=0.0)(inter, intra)
    assert torch.equal(parts["loss"], parts["loss_inter_t"])
    assert "loss_intra" not in parts


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": {"image": 1.0}}, r"weights: found \['image'\]; expected only t, i, mm"),
        ({"weights": {"t": -1.0}}, "weights.t: found -1.0"),
        ({"intra_weight": -1.0}, "intra_weight: found -1.0"),
        ({"router_weight": float("nan")}, "router_weight: found nan"),
        ({"sparsity_weight": -0.5}, "sparsity_weight: found -0.5"),
    ],
)
def test_weights_that_cannot_work_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DualAlignmentLoss(InfoNCELoss(), **values)
