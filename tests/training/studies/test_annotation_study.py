"""The study of written attributes: which products it asks about, what it compares with labels, and that it resumes."""

import json

import pytest

from moon3.__main__ import main
from product_data.synonyms import canonical_attributes
from product_data.tables import ProductRow
from training.labels.annotate import WritingError
from training.labels.chat_writer import Answer
from training.studies.annotation_study import (
    AnnotationStudy,
    agreement,
    chosen_products,
    markdown,
    study,
    without_labels,
)

ROWS = [
    ProductRow(
        "a", title="red leather boot", category=("Shoes", "Boots"), attributes={"color": ("red",), "gender": ("men",)}
    ),
    ProductRow("b", title="blue mug", attributes={"colour": ("blue", "white")}),
    ProductRow("c", title="nothing known"),
    ProductRow("d", attributes={"colour": ("red",)}),
]


def test_products_without_a_text_or_a_label_are_not_asked_about():
    assert [row.product_id for row in chosen_products(ROWS, 9, 0)] == ["a", "b"]
    assert len(chosen_products(ROWS, 1, 0)) == 1
    with pytest.raises(WritingError, match="found no product with a text and an attribute or category"):
        chosen_products(ROWS[2:], 9, 0)


def test_the_model_does_not_see_the_labels():
    hidden = without_labels(ROWS[0])
    assert (hidden.title, hidden.category, hidden.attributes) == ("red leather boot", (), {})


def test_precision_recall_and_invented_values_are_counted_by_hand():
    written = {
        "a": canonical_attributes({"colour": ["red", "gold"], "material": ["leather"], "brand": ["Fjell"]}),
        "b": canonical_attributes({"color": ["Blue"]}),
    }
    found = agreement(ROWS[:2], written)
    # labels: red, men, Boots; blue, white. Of them the titles state red, boot and blue.
    counts = {name: found[name] for name in ("labels", "stated", "written", "right", "values")}
    assert counts == {"labels": 5, "stated": 3, "written": 3, "right": 2, "values": 5}
    assert found["precision"]["mean"] == pytest.approx(2 / 3)
    assert found["recall"]["mean"] == pytest.approx(2 / 5)
    assert found["recall_stated"]["mean"] == pytest.approx(2 / 3)
    assert found["f1"]["mean"] == pytest.approx(4 / 8)
    assert found["unseen"]["mean"] == pytest.approx(2 / 5)  # gold and Fjell
    assert found["by_key"]["colour"] == {"labels": 3, "written": 3, "right": 2}
    low, high = found["f1"]["interval"]
    assert low <= found["f1"]["mean"] <= high
    nothing = agreement(ROWS[:2], {})
    assert (nothing["f1"]["mean"], nothing["precision"]["mean"]) == (0.0, 0.0)


class Words:
    """A writer that writes the first word of the text as a colour; of a mug it writes nothing readable at first."""

    forms, settings = ("text",), {"dtype": "float32"}

    def __init__(self):
        self.asked = 0

    def __call__(self, questions, seeds=None):
        self.asked += len(questions)
        answers = []
        for question in questions:
            assert "gender" not in question.text
            broken = "mug" in question.text and seeds is None
            word = question.text.removeprefix("Title: ").split()[0]
            answers.append(Answer("a mug" if broken else f"colour: {word}", True, 10, 4))
        return answers


def test_a_study_is_written_measures_its_cost_and_asks_nothing_twice(tmp_path):
    lines = [
        {"product_id": row.product_id, "title": row.title, "color": values}
        for row, values in ((ROWS[0], "red"), (ROWS[1], "blue"))
    ]
    (tmp_path / "shop").mkdir()
    text = "\n".join(json.dumps({**line, "attributes": {"colour": line.pop("color")}}) for line in lines)
    (tmp_path / "shop" / "products.jsonl").write_text(text, encoding="utf-8")
    writer, output = Words(), tmp_path / "out" / "annotations.json"
    for _ in range(2):
        found = study([str(tmp_path / "shop")], lambda: writer, AnnotationStudy("words"), output, tmp_path / "runs")
        assert writer.asked == 3  # two products, one of them twice
    (one,) = json.loads(output.read_text())["data"]
    assert one == json.loads(json.dumps(found["data"][0]))
    cost = one["cost"]
    assert (cost["answers"], cost["attempts"], cost["well_formed_first"], cost["well_formed"]) == (2, 3, 0.5, 1.0)
    assert (cost["prompt_tokens_per_1000"], cost["tokens_per_1000"]) == (15000, 6000)
    assert cost["seconds_per_1000"] >= 0
    assert cost["problems"] == {"no": 1} or sum(cost["problems"].values()) == 1
    assert one["model"]["f1"]["mean"] == one["rule"]["f1"]["mean"] == 1.0
    page = output.with_suffix(".md").read_text()
    assert page == markdown(json.loads(output.read_text()))
    assert "| shop   | model    | 2          | 100 [100, 100]" in page


def test_the_command_refuses_before_it_loads_a_model(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    command = ["annotation-study", "--model", "none", "--data", "x", "--output", str(tmp_path / "file" / "a.json")]
    assert main(command) == 2
    assert "--output" in capsys.readouterr().err
