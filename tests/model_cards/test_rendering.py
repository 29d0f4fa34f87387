"""The card as text: it follows its facts, names stay what they are, and a user's own README.md stays."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from evaluation.metrics import LEVEL as SHARE_INSIDE
from model_cards.facts import NOTES, Base, Card, CardError, DataSet, Licence, Sizes, Step, card_of, read_card
from model_cards.metadata import front_matter, problems_of
from model_cards.rendering import LEVEL, MARK, render, write_card
from model_cards.scores import check_apart, summary

RESULTS = Path(__file__).resolve().parents[2] / "results"
QWEN = Base("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-2B-Instruct", Licence("apache-2.0"))


def results_of(name):
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def make_card(**changed):
    steps = (
        Step("upcycling", QWEN, details={"preset": "moon1", "seed": 0}),
        Step("training", data=(DataSet("fashion", "mit"),), details={"stage": "contrastive", "seed": 3, "LoRA r": 4}),
    )
    facts = {
        "name": "shop search",
        "source": "shop-search",
        "kind": "moon",
        "sizes": Sizes(2_000_000, 4_000_000, active=1_500_000, active_in_aspect=1_600_000, vector=256, prefixes=(64,)),
        "steps": steps,
        "settings": {"preset": "moon1", "backbone": "qwen3_vl", "max_tokens": 512},
        "licence": Licence("apache-2.0"),
        "results": tuple(
            summary(results_of(f"shared_moon1_{side}-fashion.json"), f"results_{side}.json", side)
            for side in ("before", "after")
        ),
    }
    return Card(**{**facts, **changed})


def test_a_changed_results_file_changes_the_card_where_its_number_stands():
    result = results_of("shared_moon1_after-fashion.json")
    changed = json.loads(json.dumps(result))
    changed["scores"]["t2mm"] |= {"R@10": 0.1234, "R@10_interval": [0.1, 0.2]}
    one, other = (render(make_card(results=(summary(found, "results_after.json"),))) for found in (result, changed))
    lines = [pair for pair in zip(one.splitlines(), other.splitlines(), strict=True) if pair[0] != pair[1]]
    assert len(lines) == 4  # the row of the table, and in the metadata the value and both ends of its interval
    assert "| 92.8 (90.7–94.8) |" in lines[-1][0]
    assert "| 12.3 (10.0–20.0) |" in lines[-1][1]


def test_before_and_after_stand_in_one_row_and_only_after_in_the_index():
    text = render(make_card())
    before = results_of("shared_moon1_before-fashion.json")["scores"]["t2mm"]
    shown = (
        f"{100 * before['R@10']:.1f} ({100 * before['R@10_interval'][0]:.1f}–{100 * before['R@10_interval'][1]:.1f})"
    )
    assert f"| t→mm | {shown} | 65.7 | 88.0 | 92.8 (90.7–94.8) | 2.8 | 600 | 891 |" in text
    index = front_matter(text)["model-index"][0]["results"]
    values = [metric for result in index for metric in result["metrics"] if metric["name"] == "R@10, t→mm"]
    assert values == [
        {
            "type": "recall_at_10",
            "value": 92.8,
            "name": "R@10, t→mm",
            "args": {"queries": 600, "gallery": 891, "interval": [90.7, 94.8]},
        }
    ]


def test_results_of_other_benchmarks_and_reasonings_stay_apart():
    result = results_of("shared_moon1_after-fashion.json")
    thought = {**result, "reasoning": {"query": "generate", "product": "none"}}
    grocery = results_of("shared_moon1_after-grocery.json")
    card = make_card(results=tuple(summary(found, "x.json") for found in (result, thought, grocery)))
    text = render(card)
    assert re.findall(r"^### (.*)$", text, flags=re.MULTILINE) == ["fashion", "fashion, reasoning generate", "grocery"]
    configs = {one["dataset"]["config"] for one in front_matter(text)["model-index"][0]["results"]}
    assert configs == {"fashion", "fashion-query-generate", "grocery"}
    assert "- grocery, t→mm: the data has no queries of type 'text'." in text


def test_dimensions_against_quality_only_where_a_file_has_them():
    result = results_of("shared_moon1_after-fashion.json")
    assert "## Dimensions" not in render(make_card())
    assert "Quality of the narrower vectors (64)." in render(make_card())
    narrow = {"64": {"scores": {"t2mm": {**result["scores"]["t2mm"], "R@10": 0.5, "R@10_interval": [0.4, 0.6]}}}}
    text = render(make_card(results=(summary({**result, "dimensions": narrow}, "x.json"),)))
    table = text.partition("## Dimensions against quality: fashion")[2].partition("\n## ")[0]
    assert "| numbers of the vector | t→mm |" in table
    assert "| 64 | 50.0 (40.0–60.0) |" in table
    assert "| 256 | 92.8 (90.7–94.8) |" in table
    assert "narrower vectors (64)." not in text


def test_a_model_that_nobody_measured_says_so_and_has_no_index():
    text = render(make_card(results=(), steps=make_card().steps[:1]))
    assert "Nothing was measured." in text
    assert "- All scores: no results file of these weights was given." in text
    assert "It was upcycled and not trained" in text
    values = front_matter(text)
    assert "model-index" not in values
    assert values["base_model"] == "Qwen/Qwen3-VL-2B-Instruct"
    assert problems_of(text) == []


def test_names_that_markdown_or_yaml_would_read_stay_names():
    name = "a|b <i>*x*\n# y: [z]"
    card = make_card(name=name, steps=(Step("training", QWEN, (DataSet("p|q\nr", "own"),)),))
    text = render(card)
    assert r"# a\|b \<i\>\*x\* \# y: \[z\]" in text
    assert r"| p\|q r | the publisher's own |" in text
    assert r"1. Training on p\|q r." in text
    assert front_matter(text)["model-index"][0]["name"] == name
    assert problems_of(text) == []


def test_a_users_own_readme_stays_until_it_is_asked_for(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("# mine\n")
    assert not write_card(tmp_path, make_card())
    assert path.read_text() == "# mine\n"
    assert read_card(tmp_path) == make_card()
    assert write_card(tmp_path, make_card(), overwrite=True)
    assert MARK in path.read_text()
    assert write_card(tmp_path, make_card(name="other"))
    assert "# other" in path.read_text()
    path.write_text(path.read_text().replace(MARK, "") + "and a word of mine\n")
    assert not write_card(tmp_path, make_card())
    assert "a word of mine" in path.read_text()


def test_facts_come_back_from_their_file_as_they_were():
    card = make_card(adapter_base="base", licence=Licence("other", "qwen-research", "LICENSE"))
    assert card_of(json.loads(card.to_json())) == card


@pytest.mark.parametrize("content", ["not json", "[]", '{"name": 1}'])
def test_facts_that_cannot_be_read_are_refused(content, tmp_path):
    (tmp_path / "model_card.json").write_text(content)
    with pytest.raises(CardError, match=r"model_card.json: cannot be read .*expected the facts that moon3 card writes"):
        read_card(tmp_path)


@pytest.mark.parametrize("result", [{}, {"scores": {}}, {"scores": {"t2mm": 3}, "benchmark": "x"}])
def test_what_is_no_result_is_refused(result):
    with pytest.raises(CardError, match=r"x.json: .*expected a file that moon3 evaluate wrote"):
        summary(result, "x.json")


def test_two_results_of_one_search_are_refused():
    result = results_of("shared_moon1_after-fashion.json")
    one, other = (summary(result, name) for name in ("a.json", "b.json"))
    assert check_apart([one, summary(result, "a.json", "before")])
    with pytest.raises(CardError, match=r"a.json and b.json: found two results of 'fashion'; expected one"):
        check_apart([one, other])


def test_community_results_are_written_for_data_sets_of_the_hub_alone(tmp_path):
    results = make_card().results
    assert write_card(tmp_path, make_card())
    assert not (tmp_path / ".eval_results").exists()
    named = tuple({**result, "hub_dataset": "shop/fashion-search"} for result in results)
    write_card(tmp_path, make_card(results=named))
    entries = yaml.safe_load((tmp_path / ".eval_results" / "fashion.yaml").read_text())
    assert entries[0] == {
        "dataset": {"id": "shop/fashion-search", "task_id": "t2mm"},
        "value": 92.8,
        "date": "2026-11-21T08:11:50Z",
        "notes": "R@10 in per cent, interval 90.7–94.8, 600 queries among 891 products",
    }
    elsewhere = tuple({**result, "benchmark": "../fashion"} for result in named)
    write_card(tmp_path, make_card(results=elsewhere))
    assert [path.name for path in (tmp_path / ".eval_results").iterdir()] == [".._fashion.yaml"]
    write_card(tmp_path, make_card())
    assert not list((tmp_path / ".eval_results").iterdir())


def test_the_interval_on_the_card_is_the_one_that_evaluation_computes():
    assert round(100 * SHARE_INSIDE) == LEVEL


def test_kinds_of_checkpoints_have_tags_and_libraries_of_their_own():
    adapter = dataclasses.replace(make_card(), kind="adapter", adapter_base="base", results=())
    values = front_matter(render(adapter))
    assert values["library_name"] == "peft"
    assert values["base_model_relation"] == "adapter"
    assert "lora" in values["tags"]
    assert "merged into the weights" not in render(adapter)
    assert "merged into the weights" in render(make_card())
    tower = dataclasses.replace(make_card(), kind="dual_tower", sizes=Sizes(1, 1, vector=8))
    assert {"dual-tower"} <= {*front_matter(render(tower))["tags"]}
    assert problems_of(render(tower)) == problems_of(render(adapter)) == []


def test_notes_stand_in_their_sections_and_survive_the_facts_file(tmp_path):
    notes = {name: (f"A note on {name}.",) for name in NOTES}
    card = make_card(notes=notes)
    write_card(tmp_path, card)
    assert read_card(tmp_path).notes == notes
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    sections = dict(
        zip(
            ("what", "loading", "data", "making", "results", "limits", "unmeasured"),
            re.split(r"^## .*$", text, flags=re.M),
            strict=True,
        )
    )
    for name in NOTES:
        assert [where for where, part in sections.items() if f"A note on {name}." in part] == [name]
    assert render(make_card()) == re.sub(
        r"(?m)^- A note on limits\.\n|\n\nA note on \w+\.|(?<=\.) A note on \w+\.", "", text
    )
    with pytest.raises(CardError, match="notes: found colour; expected some of what, loading, data"):
        make_card(notes={"colour": ("red",)})


def test_a_folder_without_code_says_how_to_load_it_without():
    text = render(make_card(has_code=False))
    assert "trust_remote_code" not in text
    assert text.count("import modeling_moon") == 2
    assert "The code is not in this folder, but in our package" in text
