import pytest
import torch

from training.negatives import NO_ID, Candidates, NegativeQueue, QueryFacts, false_negative_mask, stable_id


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
    with pytest.raises(ValueError, match="found vectors of width 4; accepted: 3"):
        queue.push(step(2, 1, width=4))
    with pytest.raises(ValueError, match="saved queue of 2 steps; accepted: 5"):
        NegativeQueue(max_steps=5).load_state_dict(queue.state_dict())


def test_ids_are_stable_and_positive():
    assert stable_id("fashion/fa-1") == stable_id("fashion/fa-1") == 2513971821838862921
    assert stable_id("fashion/fa-1") != stable_id("grocery/fa-1")
    assert 0 <= stable_id("") < 2**63
