"""A training in which each query has its own answer as the only candidate is refused."""

from types import SimpleNamespace

import pytest

from product_data.tables import load_tables
from training.recipe.candidates import check_candidates, check_products, check_sample_filter


def groups(batch=1, processes=1, hard=0, queue=0, warmup=0.0, steps=10, spatial=True):
    data = SimpleNamespace(hard_negatives=hard)
    loss = SimpleNamespace(queue_steps=queue, queue_warmup_steps=warmup, spatial_negatives=spatial)
    return data, loss, SimpleNamespace(per_device_train_batch_size=batch, world_size=processes, max_steps=steps)


@pytest.mark.parametrize(
    "values",
    [{"batch": 2}, {"processes": 2}, {"hard": 1}, {"queue": 1}, {"queue": 1, "warmup": 9}, {"queue": 1, "warmup": 0.5}],
)
def test_one_further_candidate_from_anywhere_is_enough(values):
    check_candidates(*groups(**values), 1.0)


@pytest.mark.parametrize("values", [{}, {"queue": 2, "warmup": 10}])
def test_a_lone_candidate_is_refused_with_the_keys_that_change_it(values):
    with pytest.raises(ValueError, match="per_device_train_batch_size.*hard_negatives 0 and queue_steps.*loss is 0"):
        check_candidates(*groups(**values), 1.0)
    check_candidates(*groups(**values), 0.0)


def test_other_processes_give_no_candidate_where_the_spatial_half_is_off():
    with pytest.raises(
        ValueError, match="found 1 with spatial_negatives: false with hard_negatives 0 and queue_steps 0"
    ):
        check_candidates(*groups(processes=8, spatial=False), 1.0)
    check_candidates(*groups(processes=8, spatial=False, batch=2), 1.0)


def test_a_queue_that_follows_from_the_processes_counts_as_long_as_it_is():
    check_candidates(*groups(queue="auto"), 1.0)
    with pytest.raises(ValueError, match="queue_steps auto"):
        check_candidates(*groups(queue="auto", processes=400, spatial=False), 1.0)


def test_streams_without_a_column_of_hard_negatives_have_none_whatever_the_key_says():
    with pytest.raises(ValueError, match="hard_negatives 1 and no column of them"):
        check_candidates(*groups(hard=1), 1.0, False)


def test_a_sample_filter_without_hard_negatives_would_do_nothing_and_is_refused():
    pairs, loss, _ = groups()
    loss.sample_filter = True
    with pytest.raises(ValueError, match="sample_filter: found true with hard_negatives 0, where it does nothing"):
        check_sample_filter(pairs, loss)
    pairs.hard_negatives = 1
    check_sample_filter(pairs, loss)
    with pytest.raises(ValueError, match="sample_filter: .* hard_negatives 1 and no column of them"):
        check_sample_filter(pairs, loss, rows_have_negatives=False)
    loss.sample_filter = False
    check_sample_filter(pairs, loss, rows_have_negatives=False)


def tables(rows, negatives=()):
    products = [{"product_id": name, "title": "x", "group": group} for name, group in rows]
    queries = [{"query_id": "q", "text": "x", "positives": ["a"], "negatives": list(negatives)}]
    return load_tables({"products": products, "queries": queries})


def test_data_without_a_second_product_is_refused_and_variants_count_where_groups_are_not_masked():
    with pytest.raises(ValueError, match="data: found 1 product to train on"):
        check_products([tables([("a", None)])], [True])
    variants = tables([("a", "g"), ("b", "g")])
    with pytest.raises(ValueError, match="found 2 products, all of one group, with mask_groups: true"):
        check_products([variants], [True])
    check_products([variants], [False])
    check_products([tables([("a", "g"), ("b", "g")], ["b"])], [True])
    check_products([tables([("a", "g"), ("b", None)])], [True])
    check_products([tables([("a", None)]), tables([("a", None)])], [True, True])
