"""The InfoNCE over rollouts and the similarities of the rewards, against loops written from their formulas.

Shape suffixes: B pairs, G rollouts of one side, R = B · G, N products of the batch, D embedding width.
"""

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional

from training.batches.negatives import NO_ID, Candidates
from training.losses.info_nce import InfoNCELoss
from training.losses.matryoshka import MatryoshkaLoss
from training.reasoning.rollout_terms import RolloutVectors, queue_of, rollout_loss, rollout_similarities
from training.rewards.retrieval import ranks

ROLLOUTS, WIDTH, TEMPERATURE = 3, 6, 0.2
# Pairs 0 and 2 have the same product 10; row 3 is a variant of it (group 7) that pair 1 knows to be wrong, row 6 a variant
# that pair 3 knows to be wrong although its own product is of the group; pair 3 also knows product 20 to be right.
BATCH = {
    "target": torch.tensor([0, 2, 4, 5]),
    "product": torch.tensor([10, 11, 20, 12, 10, 30, 13]),
    "group": torch.tensor([7, NO_ID, NO_ID, 7, 7, 7, 7]),
    "query_group": torch.tensor([7, NO_ID, NO_ID, 7]),
    "other": torch.tensor([[NO_ID, NO_ID], [NO_ID, NO_ID], [40, NO_ID], [20, 41]]),
    "negative": torch.tensor([[11, NO_ID], [12, NO_ID], [NO_ID, NO_ID], [13, NO_ID]]),
}
QUEUE_IDS = ([10, 20, 40, 50, 12, 51], [7, NO_ID, NO_ID, NO_ID, 7, 7])


def unit(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, dtype=torch.float64, generator=generator), dim=-1)


def vectors_of(batch=BATCH, seed=0, rollouts=ROLLOUTS):
    pairs, products = len(batch["target"]), len(batch["product"])
    shapes = [(pairs * rollouts, WIDTH), (pairs * rollouts, WIDTH), (pairs, WIDTH), (products, WIDTH)]
    return RolloutVectors(*(unit(*shape, seed=seed + place) for place, shape in enumerate(shapes)))


def queue(ids=QUEUE_IDS):
    return Candidates(unit(len(ids[0]), WIDTH, seed=9), torch.tensor(ids[0]), torch.tensor(ids[1]))


@dataclass
class Candidate:
    vector: torch.Tensor
    product: int
    group: int


def candidates_of(vectors, batch, queued, rollouts=ROLLOUTS):
    """All candidates, and where the rollouts and the plain vector of a pair's product stand among them."""
    found = []
    for row, vector in enumerate(vectors.product_RD):
        place = int(batch["target"][row // rollouts])
        found.append(Candidate(vector, int(batch["product"][place]), int(batch["group"][place])))
    for place, vector in enumerate(vectors.plain_product_ND):
        found.append(Candidate(vector, int(batch["product"][place]), int(batch["group"][place])))
    if queued is not None:
        rows = zip(queued.vector_CD, queued.product_C.tolist(), queued.group_C.tolist(), strict=True)
        found += [Candidate(*row) for row in rows]
    return found


def no_negative(batch, pair, candidate):
    known_wrong = batch["negative"][pair].tolist()
    right = [int(batch["product"][batch["target"][pair]]), *batch["other"][pair].tolist()]
    if candidate.product in right:
        return True
    same_group = candidate.group != NO_ID and candidate.group == int(batch["query_group"][pair])
    return same_group and candidate.product not in known_wrong


def slow_term(query, pair, positives, candidates, batch, width, margin):
    """mean over the positives of -log( e^{s_p} / (e^{s_p} + Σ e^{s_n}) ), at the first `width` dimensions."""
    cut = lambda vector: vector if width == WIDTH else vector[:width] / vector[:width].norm()  # noqa: E731
    cosine = [torch.dot(cut(query), cut(candidate.vector)) for candidate in candidates]
    best = max(float(cosine[place].detach()) for place in positives)
    negatives = []
    for place, candidate in enumerate(candidates):
        if place in positives or no_negative(batch, pair, candidate):
            continue
        too_near = margin is not None and float(cosine[place].detach()) > best + margin
        if too_near and candidate.product not in batch["negative"][pair].tolist():
            continue
        negatives.append(place)
    losses = []
    for positive in positives:
        own = torch.exp(cosine[positive] / TEMPERATURE)
        rest = sum(torch.exp(cosine[place] / TEMPERATURE) for place in negatives)
        losses.append(-torch.log(own / (own + rest)))
    return sum(losses) / len(losses)


def slow_loss(vectors, batch, queued, share, margin, widths, rollouts=ROLLOUTS):
    candidates = candidates_of(vectors, batch, queued, rollouts)
    pairs = range(len(batch["target"]))
    relevance = batch.get("positive_weight", torch.ones(len(pairs), 1))
    thought = {pair: [pair * rollouts + turn for turn in range(rollouts)] for pair in pairs}
    plain = {pair: len(vectors.product_RD) + int(batch["target"][pair]) for pair in pairs}
    rows = [(pair, turn) for pair in pairs for turn in range(rollouts)]
    reasoned = [(vectors.query_RD[pair * rollouts + turn], pair, turn) for pair, turn in rows]
    unreasoned = [(vectors.plain_query_BD[pair], pair) for pair in pairs]
    terms = [
        ((1 - share) ** 2, [(query, pair, [thought[pair][turn]]) for query, pair, turn in reasoned]),
        (share * (1 - share), [(query, pair, [plain[pair]]) for query, pair, _ in reasoned]),
        (share * (1 - share), [(query, pair, thought[pair]) for query, pair in unreasoned]),
        (share**2, [(query, pair, [plain[pair]]) for query, pair in unreasoned]),
    ]
    total = 0.0
    for weight, queries in terms:
        for width in widths:
            each = [
                slow_term(*query, candidates, batch, width, margin) * float(relevance[query[1], 0]) for query in queries
            ]
            total = total + weight * sum(each) / len(each) / len(widths)
    return total


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("queued", "margin", "dims"),
    [(None, None, None), (queue(), None, None), (queue(), 0.1, None), (queue(), 0.1, [2, 4])],
    ids=["batch", "queue", "queue_margin", "queue_margin_matryoshka"],
)
def test_the_loss_and_its_gradient_are_those_of_the_formula(share, queued, margin, dims):
    contrastive = InfoNCELoss(TEMPERATURE, block_size=4)
    contrastive = contrastive if dims is None else MatryoshkaLoss(contrastive, dims)
    fast, slow = vectors_of().leaves(), vectors_of().leaves()
    found = rollout_loss(fast, BATCH, queued, contrastive, share, margin)
    expected = slow_loss(slow, BATCH, queued, share, margin, [WIDTH, *(dims or [])])
    assert expected.item() > 0.1
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-7)  # 1/P is float32
    found["loss"].backward()
    expected.backward()
    for name, leaf in slow.tensors().items():
        own = getattr(fast, name).grad
        assert torch.allclose(torch.zeros_like(leaf) if own is None else own, leaf.grad, rtol=1e-6, atol=1e-7), name
    reached = {name for name, leaf in slow.tensors().items() if bool(leaf.grad.any())}
    everything = set(slow.tensors())
    assert (
        reached
        == {
            0.0: everything - {"plain_query_BD"},
            0.3: everything,
            1.0: everything - {"query_RD"},
        }[share]
    )


def test_a_click_pulls_less_than_a_purchase():
    graded = BATCH | {"positive_weight": torch.tensor([[1.0, 0.9], [0.25, 0.0], [0.5, 0.0], [1.0, 0.0]])}
    fast, slow = vectors_of().leaves(), vectors_of().leaves()
    found = rollout_loss(fast, graded, queue(), InfoNCELoss(TEMPERATURE), 0.3)["loss"]
    expected = slow_loss(slow, graded, queue(), 0.3, None, [WIDTH])
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.item() < 0.9 * rollout_loss(fast, BATCH, queue(), InfoNCELoss(TEMPERATURE), 0.3)["loss"].item()
    found.backward()
    expected.backward()
    torch.testing.assert_close(fast.query_RD.grad, slow.query_RD.grad, rtol=1e-6, atol=1e-7)


def test_float32_vectors_give_the_formula_to_a_millionth():
    narrow = RolloutVectors(*(value.float().requires_grad_() for value in vectors_of().tensors().values()))
    wide = RolloutVectors(*(value.detach().double().requires_grad_() for value in narrow.tensors().values()))
    found = rollout_loss(narrow, BATCH, queue(), InfoNCELoss(TEMPERATURE), 0.3, 0.1)["loss"]
    expected = slow_loss(wide, BATCH, queue(), 0.3, 0.1, [WIDTH])
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    expected.backward()
    for name, leaf in wide.tensors().items():
        assert torch.allclose(getattr(narrow, name).grad.double(), leaf.grad, atol=1e-6), name


def test_the_parts_of_the_loss_add_up_with_their_weights():
    parts = rollout_loss(vectors_of(), BATCH, None, InfoNCELoss(TEMPERATURE), 0.3)
    weights = {"reasoned": 0.49, "to_plain": 0.21, "from_plain": 0.21, "plain": 0.09}
    total = sum(weight * float(parts[f"loss_{name}"]) for name, weight in weights.items())
    assert float(parts["loss"]) == pytest.approx(total, rel=1e-12)
    assert len({round(float(value), 6) for value in parts.values()}) == 5  # each part is another number
    only = rollout_loss(vectors_of(), BATCH, None, InfoNCELoss(TEMPERATURE), 0.0)
    assert only.keys() == {"loss", "loss_reasoned"}


def one_product(ids=(10,), group=NO_ID):
    """Pairs that all have one product, without hard negatives."""
    count = len(ids)
    nothing = torch.full((count, 1), NO_ID)
    return {
        "target": torch.arange(count),
        "product": torch.tensor(ids),
        "group": torch.full((count,), group),
        "query_group": torch.full((count,), group),
        "other": nothing,
        "negative": nothing,
    }


@pytest.mark.parametrize(
    ("batch", "queued"),
    [
        (one_product(), None),
        (one_product((10, 10)), None),
        (one_product((10, 10)), queue(([10, 10], [NO_ID, NO_ID]))),
        (one_product((10, 11), group=7), queue(([12, 10], [7, 7]))),
    ],
    ids=["one pair", "two queries", "queue", "variants"],
)
def test_rollouts_of_one_product_are_never_each_others_negatives(batch, queued):
    leaves = vectors_of(batch).leaves()
    loss = rollout_loss(leaves, batch, queued, InfoNCELoss(TEMPERATURE), 0.3)["loss"]
    assert loss.item() == 0.0
    loss.backward()
    assert all(leaf.grad is None or not leaf.grad.any() for leaf in leaves.tensors().values())
    stranger = queue(([99], [NO_ID]))
    assert rollout_loss(leaves, batch, stranger, InfoNCELoss(TEMPERATURE), 0.3)["loss"].item() > 0.1
    if len(batch["target"]) > 1:  # the same vectors of products that have nothing in common are negatives
        apart = one_product((10, 20))
        assert rollout_loss(leaves, apart, None, InfoNCELoss(TEMPERATURE), 0.3)["loss"].item() > 0.1


def slow_similarities(vectors, batch, queued, rollouts=ROLLOUTS):
    """(positive, negative) of each rollout in the order pair, side, rollout, as sorted lists of numbers."""
    pairs = range(len(batch["target"]))
    own = batch["target"].tolist()
    of_pair = {pair: range(pair * rollouts, (pair + 1) * rollouts) for pair in pairs}
    candidates = []
    for pair in pairs:
        mean = sum(vectors.product_RD[row] for row in of_pair[pair]) / rollouts
        candidates.append(Candidate(mean, int(batch["product"][own[pair]]), int(batch["group"][own[pair]])))
    for row, vector in enumerate(vectors.plain_product_ND):
        if row not in own:
            candidates.append(Candidate(vector, int(batch["product"][row]), int(batch["group"][row])))
    if queued is not None:
        rows = zip(queued.vector_CD, queued.product_C.tolist(), queued.group_C.tolist(), strict=True)
        candidates += [Candidate(*row) for row in rows]
    found = []
    for pair in pairs:
        others = [candidate.vector for candidate in candidates if not no_negative(batch, pair, candidate)]
        for row in of_pair[pair]:
            query = vectors.query_RD[row]
            positive = [float(query @ vectors.product_RD[other]) for other in of_pair[pair]]
            found.append((positive, [float(query @ other) for other in others]))
        for row in of_pair[pair]:
            product = vectors.product_RD[row]
            positive = [float(vectors.query_RD[other] @ product) for other in of_pair[pair]]
            negative = [
                sum(float(vectors.query_RD[other] @ vector) for other in of_pair[pair]) / rollouts for vector in others
            ]
            found.append((positive, negative))
    return found


@pytest.mark.parametrize("queued", [None, queue()], ids=["batch", "queue"])
def test_the_rewards_similarities_are_those_of_loops(queued):
    vectors = vectors_of()
    found = rollout_similarities(vectors, BATCH, queued)
    expected = slow_similarities(vectors, BATCH, queued)
    assert len(found.positive) == len(found.negative) == len(expected) == 2 * 4 * ROLLOUTS
    for positive, negative, (right, wrong) in zip(found.positive, found.negative, expected, strict=True):
        assert torch.allclose(positive.double(), torch.tensor(right, dtype=torch.float64), atol=1e-6)
        assert torch.allclose(negative.double(), torch.tensor(wrong, dtype=torch.float64), atol=1e-6)
    counts = [len(negative) for negative in found.negative[:: 2 * ROLLOUTS]]
    # of 3 other products, 3 hard negatives and 6 queued ones, counted by hand
    assert counts == ([2, 6, 5, 2] if queued is None else [5, 11, 9, 4])
    for rank, (right, wrong) in zip(ranks(found.positive, found.negative), expected, strict=True):
        assert rank == 1 + sum(number > sum(right) / len(right) for number in wrong)


def test_the_vectors_without_reasoning_are_compared_among_themselves():
    vectors, queued = vectors_of(), queue()
    found = rollout_similarities(vectors, BATCH, queued)
    rows = [(vector, place) for place, vector in enumerate(vectors.plain_product_ND)]
    for pair, query in enumerate(vectors.plain_query_BD):
        own = int(BATCH["target"][pair])
        assert float(found.plain_positive[pair]) == pytest.approx(
            float(query @ vectors.plain_product_ND[own]), abs=1e-6
        )
        of_batch = [Candidate(one, int(BATCH["product"][at]), int(BATCH["group"][at])) for one, at in rows]
        of_queue = itertools.starmap(
            Candidate, zip(queued.vector_CD, queued.product_C.tolist(), queued.group_C.tolist(), strict=True)
        )
        others = [one.vector for one in (*of_batch, *of_queue) if not no_negative(BATCH, pair, one)]
        expected = torch.stack([query @ vector for vector in others])
        assert torch.allclose(found.plain_negative[pair].double(), expected, atol=1e-6)


def test_a_single_pair_has_nothing_to_be_compared_with():
    batch = one_product()
    found = rollout_similarities(vectors_of(batch), batch, None)
    assert [len(negative) for negative in found.negative] == [0] * 2 * ROLLOUTS
    assert ranks(found.positive, found.negative) == [1.0] * 2 * ROLLOUTS
    assert len(found.plain_negative[0]) == 0


def test_the_queue_keeps_each_products_first_rollout_and_the_hard_negatives():
    vectors = vectors_of()
    kept = queue_of(vectors, BATCH)
    first = [vectors.product_RD[pair * ROLLOUTS] for pair in range(4)]
    hard = [vectors.plain_product_ND[row] for row in (1, 3, 6)]
    assert torch.allclose(kept.vector_CD.double(), torch.stack(first + hard), atol=1e-6)
    assert kept.product_C.tolist() == [10, 20, 10, 30, 11, 12, 13]
    assert kept.group_C.tolist() == [7, NO_ID, 7, 7, NO_ID, 7, 7]
    assert not kept.vector_CD.requires_grad
