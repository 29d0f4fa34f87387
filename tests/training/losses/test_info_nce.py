import math

import pytest
import torch
from torch.nn.functional import normalize

from training.losses.info_nce import InfoNCELoss, info_nce, streamed_info_nce, target_lists


def slow_info_nce(query, candidate, target, temperature, excluded):
    """The formula, one query and one candidate at a time, in float64."""
    losses = []
    for b in range(len(query)):
        terms = []
        for c in range(len(candidate)):
            score = sum(query[b, d] * candidate[c, d] for d in range(query.shape[1])) / temperature
            if c == target[b]:
                own = score
            elif excluded is not None and excluded[b, c]:
                continue
            terms.append(score.exp())
        losses.append(-(own.exp() / sum(terms)).log())
    return torch.stack(losses)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    query = normalize(torch.randn(4, 6, generator=generator), dim=1)
    candidate = normalize(torch.randn(9, 6, generator=generator), dim=1)
    target = torch.tensor([2, 0, 7, 7])
    excluded = torch.rand(4, 9, generator=generator) < 0.4
    return query, candidate, target, excluded


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_value_and_gradient_equal_the_formula(batch, masked, reduction):
    query, candidate, target, excluded = batch
    excluded = excluded if masked else None
    fast = [query.clone().requires_grad_(), candidate.clone().requires_grad_()]
    slow = [query.double().requires_grad_(), candidate.double().requires_grad_()]
    ours = info_nce(*fast, target, 0.1, excluded, reduction)
    reference = slow_info_nce(*slow, target, 0.1, excluded)
    reference = {"mean": reference.mean(), "sum": reference.sum(), "none": reference}[reduction]
    assert ours.dtype == torch.float32
    assert torch.allclose(ours.double(), reference, atol=1e-5)
    ours.sum().backward()
    reference.sum().backward()
    for got, wanted in zip(fast, slow, strict=True):
        assert wanted.grad.abs().max() > 0.01
        assert torch.allclose(got.grad.double(), wanted.grad, atol=1e-5)


def test_the_target_counts_even_when_the_mask_names_it(batch):
    query, candidate, target, _ = batch
    everything = torch.ones(4, 9, dtype=torch.bool)
    assert torch.allclose(info_nce(query, candidate, target, 0.1, everything), torch.tensor(0.0), atol=1e-6)


def test_a_masked_candidate_gets_no_gradient(batch):
    query, candidate, target, _ = batch
    candidate = candidate.clone().requires_grad_()
    excluded = torch.zeros(4, 9, dtype=torch.bool)
    excluded[:, 5] = True
    info_nce(query, candidate, target, 0.1, excluded).backward()
    assert torch.equal(candidate.grad[5], torch.zeros(6))
    assert candidate.grad[4].abs().max() > 0


def test_a_small_temperature_neither_overflows_nor_loses_precision_under_autocast(batch):
    query, candidate, target, _ = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(query, candidate, target, 0.001)
    assert torch.isfinite(inside)
    assert torch.equal(inside, info_nce(query, candidate, target, 0.001))


def test_equal_scores_cost_the_logarithm_of_the_number_of_candidates():
    loss = info_nce(torch.ones(2, 3), torch.ones(8, 3), torch.tensor([0, 5]), 0.05)
    assert loss.item() == pytest.approx(math.log(8), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_BD": torch.ones(2, 4)}, "same width D"),
        ({"query_BD": torch.ones(2, 3, 1)}, "same width D"),
        ({"query_BD": torch.ones(0, 3), "target_B": torch.zeros(0, dtype=torch.int64)}, "at least one query"),
        ({"target_B": torch.tensor([0])}, "target_B: found shape"),
        ({"target_B": torch.tensor([0.0, 1.0])}, "int64"),
        ({"target_B": torch.tensor([0, 5])}, "found values from 0 to 5; expected 0 to 4"),
        ({"target_B": torch.tensor([-1, 0])}, "expected 0 to 4"),
        ({"temperature": 0.0}, "temperature: found 0.0"),
        ({"temperature": float("nan")}, "temperature: found nan"),
        ({"temperature": float("inf")}, "temperature: found inf"),
        ({"excluded_BC": torch.zeros(2, 4, dtype=torch.bool)}, "excluded_BC: found shape"),
        ({"excluded_BC": torch.zeros(2, 5)}, "bool"),
        ({"reduction": "median"}, "reduction: found 'median'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    arguments = {"query_BD": torch.ones(2, 3), "candidate_CD": torch.ones(5, 3), "target_B": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=message):
        info_nce(**{**arguments, "temperature": 0.1, **change})


def test_the_loss_object_is_the_function_with_its_temperature(batch):
    query, candidate, target, excluded = batch
    ours = InfoNCELoss(temperature=0.2)(query, candidate, target, excluded)
    assert torch.equal(ours, info_nce(query, candidate, target, 0.2, excluded))
    with pytest.raises(ValueError, match="temperature: found -1"):
        InfoNCELoss(temperature=-1)


def slow_graded_info_nce(query, candidate, targets, temperature, excluded, weights):
    """The formula with several weighted positives, term by term, in float64."""
    losses = []
    for b in range(len(query)):
        score = [
            sum(query[b, d] * candidate[c, d] for d in range(query.shape[1])) / temperature
            for c in range(len(candidate))
        ]
        positives = [int(c) for c in targets[b] if c >= 0]
        negatives = [c for c in range(len(candidate)) if c not in positives and not excluded[b, c]]
        terms = []
        for place, p in enumerate(positives):
            total = score[p].exp() + sum(score[n].exp() for n in negatives)
            terms.append(weights[b, place] * (total.log() - score[p]))
        losses.append(sum(terms) / len(positives))
    return torch.stack(losses)


@pytest.fixture
def graded(batch):
    query, candidate, _, excluded = batch
    targets = torch.tensor([[2, -1, -1], [0, 8, 3], [7, 1, -1], [5, -1, -1]])
    weights = torch.tensor([[1.0, 0, 0], [0.2, 1.0, 0.5], [0.0, 0.7, 0], [0.3, 0, 0]])
    return query, candidate, targets, excluded, weights


@pytest.mark.parametrize("block_size", [None, 1, 4, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_several_weighted_positives_equal_the_formula_in_value_and_gradient(graded, weighted, block_size):
    query, candidate, targets, excluded, weights = graded
    fast = [query.clone().requires_grad_(), candidate.clone().requires_grad_()]
    slow = [query.double().requires_grad_(), candidate.double().requires_grad_()]
    loss = InfoNCELoss(0.1, block_size)
    ours = loss(*fast, targets, excluded, weights if weighted else None, reduction="none")
    reference = slow_graded_info_nce(*slow, targets, 0.1, excluded, weights if weighted else torch.ones(4, 3))
    assert torch.allclose(ours.double(), reference, atol=1e-5)
    assert reference.min() > 0.01
    ours.mean().backward()
    reference.mean().backward()
    for got, wanted in zip(fast, slow, strict=True):
        assert wanted.grad.abs().max() > 0.01
        assert torch.allclose(got.grad.double(), wanted.grad, atol=1e-5)


def test_a_mask_of_positives_becomes_lists():
    mask = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0], [0, 1, 1, 1]]).bool()
    assert target_lists(mask).tolist() == [[1, 3, -1], [0, -1, -1], [1, 2, 3]]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("block_size", [1, 2, 3, 9, 50])
def test_the_streamed_loss_equals_the_plain_one_in_value_and_gradient(batch, block_size, reduction):
    query, candidate, target, excluded = batch
    one = [query.clone().requires_grad_(), candidate.clone().requires_grad_()]
    two = [query.clone().requires_grad_(), candidate.clone().requires_grad_()]
    plain = info_nce(*one, target, 0.05, excluded, reduction)
    streamed = streamed_info_nce(*two, target, 0.05, excluded, reduction, block_size=block_size)
    assert torch.allclose(plain, streamed, atol=1e-5)
    plain.sum().backward()
    streamed.sum().backward()
    for left, right in zip(one, two, strict=True):
        assert left.grad.abs().max() > 0.01
        assert torch.allclose(left.grad, right.grad, atol=1e-5)


def test_the_streamed_gradient_passes_gradcheck_in_double_precision(graded):
    query, candidate, targets, excluded, weights = graded
    query, first, queued = query.double(), candidate.double(), torch.ones(4, 6).double() / 3
    excluded = torch.cat([excluded, torch.zeros(4, 4, dtype=torch.bool)], dim=1)

    def loss(query, first, queued):
        return streamed_info_nce(query, [first, queued], targets, 0.3, excluded, "none", weights.double(), block_size=3)

    assert torch.autograd.gradcheck(loss, [tensor.requires_grad_() for tensor in (query, first, queued)])


def test_further_candidates_count_as_rows_below_and_get_no_gradient_they_do_not_need(batch):
    query, candidate, _, excluded = batch
    target = torch.tensor([2, 0, 3, 3])
    leaves = [query.clone().requires_grad_(), candidate[:5].clone().requires_grad_()]
    streamed = streamed_info_nce(*leaves[:1], [leaves[1], candidate[5:]], target, 0.1, excluded, block_size=2)
    whole = [query.clone().requires_grad_(), candidate.clone().requires_grad_()]
    plain = info_nce(*whole, target, 0.1, excluded)
    assert torch.equal(plain, InfoNCELoss(0.1)(query, [candidate[:5], candidate[5:]], target, excluded))
    assert torch.allclose(streamed, plain, atol=1e-6)
    (streamed + plain).backward()
    assert torch.allclose(leaves[0].grad, whole[0].grad, atol=1e-6)
    assert torch.allclose(leaves[1].grad, whole[1].grad[:5], atol=1e-6)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_exclusion_is_asked_block_by_block_with_the_similarities(batch, streamed):
    query, candidate, target, _ = batch
    asked = []

    def exclusion(start, similarity_BK, positive_B):
        asked.append((start, similarity_BK.shape[1]))
        return similarity_BK > positive_B[:, None] + 0.1

    similarity = query @ candidate.T
    mask = similarity > similarity.gather(1, target[:, None]) + 0.1
    assert mask.any()
    wanted = info_nce(query, candidate, target, 0.1, mask)
    got = InfoNCELoss(0.1, 4 if streamed else None)(query, candidate, target, exclusion)
    assert torch.allclose(got, wanted, atol=1e-6)
    assert asked == ([(0, 4), (4, 4), (8, 1)] if streamed else [(0, 9)])


def test_a_query_without_negatives_costs_nothing_and_gives_no_gradient(batch):
    query, candidate, target, _ = batch
    everything = torch.ones(4, 9, dtype=torch.bool)
    for block_size in (None, 4):
        leaf = query.clone().requires_grad_()
        loss = InfoNCELoss(0.1, block_size)(leaf, candidate, target, everything)
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(leaf.grad, torch.zeros_like(query))


def test_the_streamed_loss_keeps_nothing_of_the_size_queries_times_candidates():
    query, candidate = torch.randn(64, 4, requires_grad=True), torch.randn(2048, 4, requires_grad=True)
    kept = []

    def measure(tensor):
        kept.append(tensor.numel())
        return tensor

    for streamed in (False, True):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(measure, lambda tensor: tensor):
            InfoNCELoss(0.1, 128 if streamed else None)(query, candidate, torch.arange(64))
        assert (max(kept) >= 64 * 2048) != streamed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_B": torch.tensor([[0, 1], [-1, -1]])}, r"no positive for queries \[1\]"),
        ({"target_B": torch.tensor([[0, 1], [-2, 1]])}, "found values from -2 to 1"),
        ({"weight_B": torch.ones(2, 1)}, r"weight_B: found shape \(2, 1\); expected \(2,\)"),
    ],
)
@pytest.mark.parametrize("kernel", [info_nce, streamed_info_nce])
def test_positives_and_weights_that_do_not_fit_are_refused(change, message, kernel):
    with pytest.raises(ValueError, match=message):
        kernel(torch.ones(2, 3), torch.ones(5, 3), **{"target_B": torch.tensor([0, 1]), "temperature": 0.1, **change})


@pytest.mark.parametrize(
    ("candidates", "options", "message"),
    [
        ([], {}, "found 0 tensors"),
        (torch.ones(5, 3), {"block_size": 0}, "found 1 tensors, 0"),
        ([torch.ones(5, 3), torch.ones(2, 4)], {}, "same width D"),
        ([torch.ones(1, 3), torch.ones(5, 3)], {}, "found values from 0 to 1; expected 0 to 0"),
        (torch.ones(5, 3), {"excluded": torch.zeros(2, 4, dtype=torch.bool)}, "excluded_BC: found shape"),
    ],
)
def test_candidates_that_cannot_be_streamed_are_refused(candidates, options, message):
    with pytest.raises(ValueError, match=message):
        streamed_info_nce(torch.ones(2, 3), candidates, torch.tensor([0, 1]), 0.1, **options)
    with pytest.raises(ValueError, match="block_size: found 0"):
        InfoNCELoss(0.1, block_size=0)
