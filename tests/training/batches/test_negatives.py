import pytest
import torch

from training.batches.negatives import (
    NO_ID,
    Candidates,
    DriftProbe,
    FalseNegatives,
    NegativeQueue,
    QueryFacts,
    contains,
    false_negative_mask,
    false_negatives_among,
    places,
    stable_id,
)
from training.losses.info_nce import InfoNCELoss


def slow_mask(queries, product, group, target):
    """The rule in words, one pair at a time."""
    rows = []
    for b in range(len(queries.product_B)):
        row = []
        for c in range(len(product)):
            same_product = queries.product_B[b] == product[c]
            known_positive = product[c] in queries.other_BP[b][queries.other_BP[b] != NO_ID]
            same_group = group[c] != NO_ID and queries.group_B[b] == group[c]
            known_wrong = product[c] in queries.negative_BN[b][queries.negative_BN[b] != NO_ID]
            excluded = same_product or known_positive or (same_group and not known_wrong)
            row.append(bool(excluded) and not (target is not None and target[b] == c))
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("with_target", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_mask_equals_the_rule_applied_pair_by_pair(seed, with_target):
    generator = torch.Generator().manual_seed(seed)

    def draw(high, *shape):
        return torch.randint(NO_ID, high, shape, generator=generator)

    product = draw(12, 30).clamp(min=0)
    group = torch.where(product % 4 == 3, NO_ID, product % 4)
    target = torch.randint(0, 30, (8,), generator=generator)
    queries = QueryFacts(product[target], group[target], draw(12, 8, 3), draw(12, 8, 2))
    target = target if with_target else None
    mask = false_negative_mask(queries, product, group, target)
    assert torch.equal(mask, slow_mask(queries, product, group, target))
    assert mask.any()
    assert not mask.all()


@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_judged_as_in_the_whole_mask(seed):
    queries, candidates, _, _ = random_batch(seed)
    row, column = torch.arange(5).repeat_interleave(20), torch.arange(20).repeat(5)
    mask = false_negative_mask(queries, candidates.product_C, candidates.group_C)
    pairs = false_negatives_among(queries, row, candidates.product_C[column], candidates.group_C[column])
    assert torch.equal(pairs.reshape(5, 20), mask)
    assert mask.any()


def facts(product, group=NO_ID, other=(), negative=()):
    return QueryFacts(
        torch.tensor([product]),
        torch.tensor([group]),
        torch.tensor([list(other)], dtype=torch.int64),
        torch.tensor([list(negative)], dtype=torch.int64),
    )


def test_the_same_product_in_batch_or_queue_is_no_negative_but_the_own_row_stays():
    mask = false_negative_mask(facts(7), torch.tensor([7, 3, 7]), torch.tensor([NO_ID] * 3), torch.tensor([0]))
    assert mask.tolist() == [[False, False, True]]


def test_a_known_negative_of_the_same_group_stays_a_negative():
    product, group = torch.tensor([1, 2, 3]), torch.tensor([5, 5, 5])
    assert false_negative_mask(facts(1, 5, negative=[2]), product, group).tolist() == [[True, False, True]]


def test_products_without_a_group_do_not_form_one():
    product, group = torch.tensor([1, 2]), torch.tensor([NO_ID, NO_ID])
    assert false_negative_mask(facts(1), product, group).tolist() == [[True, False]]


def test_masking_refuses_ids_and_groups_of_different_length():
    with pytest.raises(ValueError, match="group_C: found"):
        false_negative_mask(facts(1), torch.tensor([1, 2]), torch.tensor([1]))


def step(rows, value, width=3):
    ids = torch.arange(rows) + 100 * value
    return Candidates(torch.full((rows, width), float(value)), ids, ids + 1)


def test_the_queue_keeps_the_last_steps_whole_however_many_items_each_has():
    queue = NegativeQueue(max_steps=2)
    assert queue.items() is None
    for value, rows in enumerate([4, 1, 3]):
        queue.push(step(rows, value))
    assert len(queue) == 4
    kept = queue.items()
    assert kept.vector_CD[:, 0].tolist() == [1.0, 2.0, 2.0, 2.0]
    assert kept.product_C.tolist() == [100, 200, 201, 202]
    assert kept.group_C.tolist() == [101, 201, 202, 203]


def test_a_queue_of_no_steps_stays_empty():
    queue = NegativeQueue(max_steps=0)
    queue.push(step(4, 1))
    assert queue.items() is None


def test_queued_vectors_carry_no_gradient_and_do_not_change_with_their_source():
    queue = NegativeQueue(max_steps=1)
    source = step(2, 1)
    source.vector_CD.requires_grad_()
    queue.push(source)
    with torch.no_grad():
        source.vector_CD.zero_()
    assert not queue.items().vector_CD.requires_grad
    assert queue.items().vector_CD.sum() == 6


def test_a_restored_queue_continues_as_the_original_would(tmp_path):
    queue = NegativeQueue(max_steps=3)
    for value, rows in enumerate([2, 5]):
        queue.push(step(rows, value))
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    restored = NegativeQueue(max_steps=3)
    restored.push(step(1, 9))
    restored.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    for value, rows in enumerate([1, 2, 3]):
        assert torch.equal(restored.items().vector_CD, queue.items().vector_CD)
        assert torch.equal(restored.items().product_C, queue.items().product_C)
        assert torch.equal(restored.items().group_C, queue.items().group_C)
        queue.push(step(rows, 5 + value))
        restored.push(step(rows, 5 + value))
    assert len(restored) == len(queue) == 6


def test_the_queue_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="max_steps: found -1"):
        NegativeQueue(max_steps=-1)
    queue = NegativeQueue(max_steps=2)
    with pytest.raises(ValueError, match="3 product ids"):
        queue.push(Candidates(torch.ones(2, 3), torch.arange(3), torch.arange(2)))
    queue.push(step(2, 1))
    with pytest.raises(ValueError, match="found vectors of width 4; expected 3"):
        queue.push(step(2, 1, width=4))
    with pytest.raises(ValueError, match="saved queue of 2 steps; expected 5"):
        NegativeQueue(max_steps=5).load_state_dict(queue.state_dict())


def test_ids_are_stable_and_positive():
    assert stable_id("fashion/fa-1") == stable_id("fashion/fa-1") == 2513971821838862921
    assert stable_id("fashion/fa-1") != stable_id("grocery/fa-1")
    assert 0 <= stable_id("") < 2**63


def random_batch(seed, queries=5, candidates=20):
    generator = torch.Generator().manual_seed(seed)
    product = torch.randint(0, 12, (candidates,), generator=generator)
    group = torch.where(product % 4 == 3, NO_ID, product % 4)
    target = torch.randint(0, candidates, (queries,), generator=generator)
    other, negative = (torch.randint(NO_ID, 12, (queries, 3), generator=generator) for _ in range(2))
    vectors = torch.nn.functional.normalize(torch.randn(candidates + queries, 4, generator=generator), dim=1)
    facts_of = QueryFacts(product[target], group[target], other, negative)
    return facts_of, Candidates(vectors[:candidates], product, group), target, vectors[candidates:]


@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize("block", [3, 20])
def test_false_negatives_are_the_same_block_by_block(block, margin):
    queries, candidates, target, query = random_batch(1)
    similarity = query @ candidates.vector_CD.T
    positive = similarity.gather(1, target[:, None])[:, 0]
    wanted = slow_mask(queries, candidates.product_C, candidates.group_C, target)
    if margin is not None:
        near = similarity > positive[:, None] + margin
        for b, c in near.nonzero().tolist():
            wanted[b, c] |= int(candidates.product_C[c]) not in queries.negative_BN[b].tolist()
        assert (near & ~wanted).any()
        assert (wanted & ~slow_mask(queries, candidates.product_C, candidates.group_C, target)).any()
    ours = FalseNegatives(queries, candidates.product_C, candidates.group_C, target, margin)
    for _ in range(2):  # the second pass, as in a backward, is not counted again
        parts = [ours(start, similarity[:, start : start + block], positive) for start in range(0, 20, block)]
    assert torch.equal(torch.cat(parts, dim=1), wanted)
    assert (len(ours), ours.excluded()) == (5, wanted.sum())


def test_streamed_and_plain_losses_leave_out_the_same_false_negatives():
    queries, candidates, target, query = random_batch(2)
    losses = []
    for block_size in (None, 4):
        exclusion = FalseNegatives(queries, candidates.product_C, candidates.group_C, target, margin=0.1)
        losses.append(InfoNCELoss(0.1, block_size)(query, candidates.vector_CD, target, exclusion))
    assert torch.allclose(*losses, atol=1e-6)
    assert not torch.allclose(losses[0], InfoNCELoss(0.1)(query, candidates.vector_CD, target), atol=1e-3)


def test_a_margin_below_nothing_is_refused():
    queries, candidates, target, _ = random_batch(3)
    with pytest.raises(ValueError, match="margin: found -0.1"):
        FalseNegatives(queries, candidates.product_C, candidates.group_C, target, -0.1)


@pytest.mark.parametrize("seed", range(3))
def test_membership_equals_looking_up_each_id(seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(NO_ID, 2**62, (4, 6), generator=generator)
    ids[torch.rand(4, 6, generator=generator) < 0.3] = NO_ID
    product = torch.cat([ids.flatten()[torch.randint(0, 24, (9,), generator=generator)], torch.tensor([NO_ID, 7])])
    wanted = [[int(c) in row.tolist() and int(c) != NO_ID for c in product] for row in ids]
    assert contains(ids, product).tolist() == wanted
    found = [(int(b), int(c)) for b, k, c in zip(*places(ids, product), strict=True) if ids[b, k] == product[c]]
    assert len(places(ids, product)[0]) == len(found)
    assert {*found} == {(b, c) for b in range(4) for c in range(len(product)) if wanted[b][c]}
    assert contains(ids[:, :0], product).any() == contains(ids, product[:0]).any() == torch.tensor(False)


def test_a_graph_over_queued_vectors_outlives_later_steps():
    queue = NegativeQueue(max_steps=2)
    queue.push(step(3, 1))
    query = torch.ones(1, 3, requires_grad=True)
    score = (query @ queue.items().vector_CD.T).sum()
    for value in range(2, 9):
        queue.push(step(3, value))
    score.backward()
    assert query.grad.tolist() == [[3.0, 3.0, 3.0]]
    assert queue.items().vector_CD[:, 0].tolist() == [7.0] * 3 + [8.0] * 3


def test_the_saved_queue_holds_its_own_rows_only(tmp_path):
    queue = NegativeQueue(max_steps=2)
    for value in range(9):
        queue.push(step(50, value))
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    assert (tmp_path / "queue.pt").stat().st_size < 2 * 50 * (3 * 4 + 8 + 8) + 8000


def test_drift_compares_items_with_what_they_were_w_steps_before(tmp_path):
    angle = {"now": 0.0}

    def encode(inputs):
        return torch.stack([torch.cos(inputs["x"] + angle["now"]), torch.sin(inputs["x"] + angle["now"])], dim=1)

    def take(count):
        inputs = {"x": torch.arange(5.0)[:count]}
        return inputs, encode(inputs)

    probe, found = DriftProbe(max_age=2, max_items=3), []
    for number in range(7):
        if number == 3:
            torch.save(probe.state_dict(), tmp_path / "probe.pt")
            probe = DriftProbe(max_age=2, max_items=3)
            probe.load_state_dict(torch.load(tmp_path / "probe.pt", weights_only=True))
        drift = probe.step(take, encode)
        found.append(None if drift is None else round(drift.item(), 5))
        angle["now"] += 0.1
    wanted = round(1 - torch.cos(torch.tensor(0.2)).item(), 5)
    assert found == [None, None, wanted, None, wanted, None, wanted]
    assert DriftProbe(max_age=0).step(take, encode) is None
