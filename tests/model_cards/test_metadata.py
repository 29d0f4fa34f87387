"""Metadata is checked without the hub: licence, task, tags, ids, the index and community results."""

import pytest
import yaml

from model_cards.licences import hub_lists
from model_cards.metadata import community_problems, problems_of

GOOD = {
    "license": "apache-2.0",
    "library_name": "transformers",
    "pipeline_tag": "feature-extraction",
    "tags": ["multimodal", "e-commerce", "my-own-word", "arxiv:2508.11999"],
    "base_model": "Qwen/Qwen3-VL-2B-Instruct",
    "base_model_relation": "finetune",
    "datasets": ["squad", "shop/products"],
    "language": ["en", "pt-BR"],
    "model-index": [
        {
            "name": "shop",
            "results": [
                {
                    "task": {"type": "information-retrieval"},
                    "dataset": {"type": "unknown", "name": "shop"},
                    "metrics": [{"type": "recall_at_10", "value": 92.8}],
                }
            ],
        }
    ],
}


def card(**changed):
    values = {name: value for name, value in {**GOOD, **changed}.items() if value is not None}
    return f"---\n{yaml.safe_dump(values, allow_unicode=True)}---\n# shop\n"


def index(**changed):
    result = {**GOOD["model-index"][0]["results"][0], **changed}
    return [{"name": "shop", "results": [result]}]


def test_good_metadata_has_no_problems():
    assert problems_of(card()) == []
    assert problems_of(card(license="other", license_name="qwen-research", license_link="LICENSE")) == []


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"license": "apache-2"}, "license: found 'apache-2'; did you mean 'apache-2.0'?; expected an identifier"),
        ({"license": "none"}, "license: found 'none'"),
        ({"license": None}, "license: found nothing"),
        ({"license": ["mit", "MIT"]}, "license: found 'MIT'"),
        ({"license": "other"}, "license_name: found None; expected text, because the license is other"),
        ({"pipeline_tag": "product-search"}, "pipeline_tag: found 'product-search'"),
        ({"pipeline_tag": "feature_extraction"}, "did you mean 'feature-extraction'?"),
        ({"pipeline_tag": 3}, "pipeline_tag: found 3"),
        ({"tags": "moon"}, "tags: found 'moon'; expected a list"),
        ({"tags": ["moon", False]}, "tags: found False"),
        ({"tags": ["sentence-transformer"]}, "did you mean 'sentence-transformers'?"),
        ({"tags": ["license:mit"]}, "which the hub derives from another field"),
        ({"base_model": "Qwen3-VL"}, "base_model: found 'Qwen3-VL'; expected an id on the hub"),
        ({"base_model": "/home/me/qwen"}, "base_model: found '/home/me/qwen'"),
        ({"base_model_relation": "child"}, "base_model_relation: found 'child'"),
        ({"datasets": ["a/b/c"]}, "datasets: found 'a/b/c'"),
        ({"language": "English"}, "language: found 'English'"),
        ({"metrics": {"recall": 1}}, "metrics: found {'recall': 1}"),
        ({"library_name": 5}, "library_name: found 5"),
        ({"model-index": {"name": "shop"}}, "model-index: found {'name': 'shop'}; expected a list"),
        ({"model-index": [{"results": []}]}, "model-index[0].name: found None"),
        ({"model-index": [{"name": "x", "results": []}]}, "model-index[0].results: found []"),
        ({"model-index": index(task={"type": "retrieving"})}, "results[0].task.type: found 'retrieving'"),
        ({"model-index": index(dataset={"name": "x"})}, "results[0].dataset.type: found None"),
        ({"model-index": index(metrics=[])}, "results[0].metrics: found []"),
        ({"model-index": index(metrics=[{"type": "r"}])}, "metrics[0].value: found None; expected a finite number"),
        ({"model-index": index(metrics=[{"type": "r", "value": float("nan")}])}, "metrics[0].value: found nan"),
        ({"model-index": index(metrics=[{"value": 1}])}, "metrics[0].type: found None"),
        ({"model-index": index(metrics=[{"type": "r", "value": 1, "args": 3}])}, "metrics[0].args: found 3"),
    ],
)
def test_wrong_metadata_is_named_with_what_is_expected(changed, problem):
    assert any(problem in said and "expected" in said for said in problems_of(card(**changed))), problems_of(
        card(**changed)
    )


@pytest.mark.parametrize("text", ["# no metadata\n", "---\na: [\n---\n", "---\n- a\n---\n"])
def test_a_head_that_is_no_metadata_is_one_problem(text):
    assert len(problems_of(text)) == 1


def test_the_lists_hold_what_they_are_asked_for():
    lists = hub_lists()
    assert {*lists["permissive"], *lists["noncommercial"]} <= {*lists["licences"]}
    assert not {*lists["permissive"]} & {*lists["noncommercial"]}
    for name in ("licences", "tasks", "tags"):
        assert len(lists[name]) == len(set(lists[name]))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([{"dataset": {"id": "a/b", "task_id": "t2mm"}, "value": 1.5}], None),
        ([{"dataset": {"id": "squad", "task_id": "t"}, "value": 1}], "dataset.id: found 'squad'"),
        ([{"dataset": {"id": "a/b"}, "value": 1}], "dataset.task_id: found None"),
        ([{"dataset": {"id": "a/b", "task_id": "t"}}], "value: found None"),
        ([{"dataset": {"id": "a/b", "task_id": "t"}, "value": 1, "date": "yesterday"}], "date: found 'yesterday'"),
        ([{"dataset": {"id": "a/b", "task_id": "t"}, "value": 1, "source": {"name": "x"}}], "source.url: found"),
        ({"dataset": 1}, "expected a list of results"),
        ([3], "dataset.id: found None"),
    ],
)
def test_community_results_are_checked_by_field(content, problem, tmp_path):
    (tmp_path / ".eval_results").mkdir()
    (tmp_path / ".eval_results" / "x.yaml").write_text(yaml.safe_dump(content))
    said = community_problems(tmp_path)
    assert said == [] if problem is None else any(problem in one for one in said), said
