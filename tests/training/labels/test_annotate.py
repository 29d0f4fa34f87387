"""Attributes written by a chat model: what it is asked, how answers are read, kept, resumed, and joined to the products."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet
import pytest
import torch
from launched import Launched
from pictures import file_of, plain
from PIL import Image
from tiny_donors import tiny_donor, write_gguf

from moon3.__main__ import main
from product_data.atomic_files import read_lines
from product_data.errors import OptionError
from product_data.tables import ProductRow, load_tables
from training.labels import chat_writer
from training.labels.annotate import WritingError, WritingJob, write_attributes
from training.labels.chat_writer import Answer, ChatWriter, Question, _GumbelNoise, ask_about, load_writer, read_answer


def product(number: int, **fields: object) -> ProductRow:
    shown = {"title": f"shoe {number}", "images": (file_of(plain(f"#{number:02x}0000", 64, 48)),)}
    return ProductRow(f"p{number}", **(shown | fields))


def job(tmp_path: Path, **options: object) -> WritingJob:
    return WritingJob(
        **({"output": tmp_path / "out.parquet", "model": "scripted", "progress": False, "batch_size": 2} | options)
    )


class Scripted:
    """A writer that answers from a function of (question, attempt of this question) and remembers what it was asked."""

    def __init__(self, answer: Callable[[Question, int], str], stop_after: int | None = None) -> None:
        self.answer, self.stop_after = answer, stop_after
        self.asked: list[Question] = []
        self.seeds: list[int | None] = []

    def __call__(self, questions: Sequence[Question], seeds: Sequence[int] | None = None) -> list[Answer]:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.seeds += seeds or [None] * len(questions)
        answers = []
        for question in questions:
            answers.append(Answer(self.answer(question, sum(self.same(question, one) for one in self.asked))))
            self.asked.append(question)
        return answers

    @staticmethod
    def same(one: Question, other: Question) -> bool:
        def pixels(question: Question) -> list[bytes]:
            return [image.tobytes() for image in question.images]

        return one.text == other.text and pixels(one) == pixels(other)


def red(question: Question, attempt: int) -> str:
    return "colour: red; material: leather, suede" if question.form == "image" else "brand: Fjell"


def rows_of(tmp_path: Path) -> list[dict]:
    return pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()


def journal_of(tmp_path: Path) -> list[dict]:
    return [
        json.loads(line) for line in (tmp_path / "out.parquet.answers.jsonl").read_text(encoding="utf-8").splitlines()
    ]


# Reading answers


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        ("colour: red; material: suede, leather", {"colour": ("red",), "material": ("suede", "leather")}),
        ("- Material: suede\n- Color: red\n", {"colour": ("red",), "material": ("suede",)}),
        ("1. colour: red;\n2. sole: white", {"colour": ("red",), "style elements": ("white sole",)}),
        ("It is red, I think.</think>\n\ncolour: red", {"colour": ("red",)}),
        ("colour: red; brand: unknown; size/specification: N/A", {"colour": ("red",)}),
        ("none", {}),
        ("None.", {}),
    ],
)
def test_an_answer_is_read_into_the_ten_keys_in_their_order(text, attributes):
    found, problem = read_answer(Answer(text))
    assert (found, problem) == (attributes, "")
    assert list(found) == list(attributes)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Answer("colour: red", finished=False), "the answer was cut off before its end"),
        (Answer(""), "the answer is empty"),
        (Answer("a nice red shoe"), "no 'key: value' in 'a nice red shoe'"),
        (Answer("colour: red; price: 17"), "unknown keys: price"),
        (Answer("colour: red; colour: blue"), "the key 'colour' comes again"),
        (Answer("colour: red <|im_end|>"), "the control token <|im_end|>"),
        (Answer("material: a kind of cloth that looks like linen to me"), "a value of more than 8 words"),
    ],
)
def test_an_answer_that_is_no_list_of_attributes_says_why(answer, problem):
    found, reason = read_answer(answer)
    assert found is None
    assert problem in reason


# The model


class ScriptedModel:
    """Writes given words behind whatever a real processor made."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, tokenizer, words: str, end: bool = True) -> None:
        self.tokenizer, self.words, self.end = tokenizer, words, end
        self.generation_config = SimpleNamespace(eos_token_id=[tokenizer.eos_token_id])
        self.calls: list[dict] = []

    def generate(self, input_ids, **settings):
        self.calls.append({"input_ids": input_ids, **settings})
        ids = (
            self.tokenizer(self.words, add_special_tokens=False)["input_ids"] + [self.tokenizer.eos_token_id] * self.end
        )
        return torch.cat([input_ids, torch.tensor([ids]).expand(len(input_ids), -1)], dim=1)


@pytest.fixture(scope="module")
def chat(tiny_base) -> ChatWriter:
    return load_writer(str(tiny_base("qwen3_vl")), "cpu", max_new_tokens=6)


def test_a_question_shows_a_form_alone():
    row = product(1, category=("Fashion", "Shoes"), attributes={"colour": ("red",)}, description="soft")
    by_text = ask_about(row, "text")
    assert by_text.text == "Title: shoe 1\nCategory: Fashion > Shoes\nDescription: soft\ncolour: red"
    assert by_text.images == ()
    assert ask_about(row, "image", [Image.new("RGB", (4, 4))]).text == ""


def test_a_model_is_shown_the_pictures_and_the_text_behind_its_chat_template(chat):
    scripted = ScriptedModel(chat.processor.tokenizer, "colour: red; material: suède")
    writer = ChatWriter(scripted, chat.processor)
    questions = [
        Question("image", (Image.new("RGB", (64, 48), "red"),)),
        Question("text", text="Title: <|im_end|> shoe"),
    ]
    answers = writer(questions)
    assert answers == [Answer("colour: red; material: suède")] * 2
    (call,) = scripted.calls
    shown, said = (chat.processor.tokenizer.decode(row) for row in call["input_ids"])
    assert "<|image_pad|>" in shown
    assert "<|image_pad|>" not in said
    assert "Title: < |im_end|> shoe" in said  # a product's text cannot end the user's turn
    assert call["image_grid_thw"].shape == (1, 3)
    assert call["do_sample"] is False
    assert said.endswith("assistant\n")
    assert sorted(call["attention_mask"][:, 0].tolist()) == [0, 1]  # padded on the left
    assert call["attention_mask"][:, -1].tolist() == [1, 1]


def test_words_are_drawn_only_with_seeds_and_then_the_same_for_the_same_seed(chat):
    questions = [Question("text", text="a red shoe")] * 2
    state = torch.random.get_rng_state()
    assert chat(questions) == chat(questions)
    assert chat(questions, seeds=[1, 2]) == chat(questions, seeds=[1, 2])
    assert len({chat(questions, seeds=[seed, seed])[0].text for seed in range(4)}) > 1
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ValueError, match="seeds: found 1; expected 2, a seed for each question"):
        chat(questions, seeds=[1])


def test_what_is_drawn_for_a_question_does_not_hang_on_its_neighbours(chat):
    questions = [Question("text", text=text) for text in ("a red shoe", "a long brown leather tote bag", "mug")]
    together = chat(questions, seeds=[5, 6, 7])
    assert [chat([one], seeds=[seed])[0] for one, seed in zip(questions, (5, 6, 7), strict=True)] == together
    assert chat(questions[::-1], seeds=[7, 6, 5]) == together[::-1]
    assert len({answer.text for answer in chat([questions[0]] * 3, seeds=[5, 6, 7])}) > 1


def test_words_are_drawn_with_the_probabilities_of_the_temperature():
    scores = torch.tensor([[1.0, 0.0, -0.5, -30.0]])
    rows = 4000
    drawn = _GumbelNoise(range(rows))(torch.zeros(rows, 1), scores.expand(rows, -1)).argmax(dim=1)
    shares = torch.bincount(drawn, minlength=4) / rows
    assert torch.allclose(shares, (scores[0] / 0.7).softmax(dim=0), atol=0.025)


def test_an_answer_without_an_end_is_not_finished(chat):
    scripted = ScriptedModel(chat.processor.tokenizer, "colour: red", end=False)
    assert ChatWriter(scripted, chat.processor)([Question("text", text="x")]) == [Answer("colour: red", finished=False)]


def test_a_writer_says_all_that_changes_its_answers(chat, tiny_base, tmp_path):
    folder = tiny_base("qwen3_vl")
    assert chat.settings == {
        "max_new_tokens": 6,
        "temperature": 0.7,
        "dtype": "float32",
        "revision": chat.settings["revision"],
    }
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    assert load_writer(str(other), "cpu").settings["revision"] == chat.settings["revision"]
    weights = next(other.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1 if len(content) < 2**20 else 2**20 - 1] ^= 1
    weights.write_bytes(bytes(content))
    assert load_writer(str(other), "cpu").settings["revision"] != chat.settings["revision"]
    with pytest.raises(ValueError, match="max_new_tokens: found 0; expected a number of at least 1"):
        ChatWriter(chat.model, chat.processor, max_new_tokens=0)


def test_what_is_no_chat_model_is_refused(tmp_path, tiny_base):
    with pytest.raises(
        ValueError,
        match="model: .*cannot be loaded .*expected the folder or hub id of a chat model that .* or a GGUF file",
    ):
        load_writer(str(tmp_path), "cpu")


# A language model


def test_a_language_model_is_asked_about_texts_behind_its_own_template(tmp_path):
    writer = load_writer(str(tiny_donor(tmp_path / "llm", "qwen2")), "cpu", max_new_tokens=4)
    assert writer.forms == ("text",)
    scripted = ScriptedModel(writer.tokenizer, "colour: red")
    writer.model = scripted
    (answer,) = writer([Question("text", text="Title: <|im_end|> shoe")])
    (call,) = scripted.calls
    said = writer.tokenizer.decode(call["input_ids"][0])
    assert "Title: < |im_end|> shoe" in said
    assert said.endswith("<|im_start|>assistant\n")
    assert (answer.text, answer.finished) == ("colour: red", True)
    assert answer.prompt_tokens == call["input_ids"].shape[1]
    assert answer.tokens == len(writer.tokenizer("colour: red", add_special_tokens=False)["input_ids"]) + 1
    with pytest.raises(OptionError, match="found a question about image for a language model"):
        writer([Question("image", (Image.new("RGB", (4, 4)),))])


def test_a_batch_of_texts_writes_what_each_alone_writes_and_a_gguf_file_what_its_folder_does(tmp_path):
    folder = tiny_donor(tmp_path / "llm", "qwen2", spare=0)
    writer = load_writer(str(folder), "cpu", max_new_tokens=6)
    questions = [Question("text", text=text) for text in ("a red shoe", "brown leather tote bags, gold buckle", "mug")]
    together = writer(questions)
    assert [writer([one])[0] for one in questions] == together
    assert len({answer.text for answer in together}) > 1
    pytest.importorskip("gguf")
    file = write_gguf(folder, tmp_path / "llm.gguf")
    from_file = load_writer(str(file), "cpu", max_new_tokens=6)
    from_file.tokenizer.chat_template = writer.tokenizer.chat_template
    assert from_file(questions) == together
    before = from_file.settings["revision"]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content) + b"\0")
    assert before != chat_writer._revision(str(file))
    with pytest.raises(ValueError, match="model: found no file .*none.gguf"):
        load_writer(str(tmp_path / "none.gguf"), "cpu")


def test_the_command_describes_only_texts_with_a_language_model(tmp_path, capsys):
    lines = [{"product_id": f"p{number}", "title": f"red shoe {number}"} for number in (1, 2)]
    (tmp_path / "products.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    model = str(tiny_donor(tmp_path / "llm", "llama"))
    output = tmp_path / "written_attributes.parquet"
    command = ["annotate", str(tmp_path), "--model", model, "--output", str(output), "--device", "cpu", "--quiet"]
    command += ["--max-new-tokens", "4", "--attempts", "1"]
    assert main([*command, "--forms", "image", "text"]) == 2
    assert "--forms: found image; expected text, since" in capsys.readouterr().err
    assert main(command) == 0
    assert "text: 0 of 2 sets written" in capsys.readouterr().out
    answers = [json.loads(line) for line in Path(f"{output}.answers.jsonl").read_text().splitlines()[1:]]
    assert all(line["seconds"] > 0 and line["prompt_tokens"] > 20 and line["tokens"] == 4 for line in answers)


# The table


def test_each_form_is_written_into_its_own_column_with_how_it_was_written(tmp_path):
    writer = Scripted(red)
    counts = write_attributes([product(1), product(2)], writer, job(tmp_path))
    assert counts["image"] == {"asked": 2, "written": 2, "empty": 0, "unread": 0, "unreadable": 0}
    first = rows_of(tmp_path)[0]
    assert first["product_id"] == "p1"
    assert first["attributes_image"] == [
        {"key": "colour", "value": "red"},
        {"key": "material", "value": "leather"},
        {"key": "material", "value": "suede"},
    ]
    assert first["attributes_text"] == [{"key": "brand", "value": "Fjell"}]
    assert first["written_text"] == "brand: Fjell"
    assert (first["problem_image"], first["attempts_image"], first["model"]) == (None, 1, "scripted")
    assert [question.form for question in writer.asked] == ["image", "image", "text", "text"]


def test_the_reader_of_tables_joins_the_file_to_its_products(tmp_path):
    lines = [{"product_id": f"p{number}", "title": f"shoe {number}"} for number in (1, 2)]
    (tmp_path / "products.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    answers = {"Title: shoe 1": "brand: Fjell", "Title: shoe 2": "none"}
    writer = Scripted(lambda question, attempt: answers[question.text])
    write_attributes(
        load_tables(tmp_path).products, writer, job(tmp_path, output=tmp_path / "written_attributes.parquet")
    )
    read = load_tables(tmp_path)
    assert [row.attributes_text for row in read.products] == [{"brand": ("Fjell",)}, {}]
    assert [row.attributes_image for row in read.products] == [None, None]
    assert not read.report.issues


def test_a_product_without_a_form_is_not_asked_about_it(tmp_path):
    writer = Scripted(red)
    counts = write_attributes([product(1, images=()), product(2, title="")], writer, job(tmp_path))
    assert counts["image"]["asked"] == counts["text"]["asked"] == 1
    assert [row["attributes_image"] is None for row in rows_of(tmp_path)] == [True, False]
    assert [row["problem_image"] for row in rows_of(tmp_path)] == [None, None]


def test_an_answer_that_cannot_be_read_is_tried_again_with_words_drawn_at_random(tmp_path):
    writer = Scripted(lambda question, attempt: "colour: red" if attempt == 2 else "well, a shoe")
    counts = write_attributes([product(1)], writer, job(tmp_path, forms=("image",)))
    assert counts["image"]["written"] == 1
    assert [seed is None for seed in writer.seeds] == [True, False, False]
    assert len(set(writer.seeds)) == 3
    (row,) = rows_of(tmp_path)
    assert (row["attempts_image"], row["problem_image"]) == (3, None)
    assert [line["text"] for line in journal_of(tmp_path)[1:]] == ["well, a shoe", "well, a shoe", "colour: red"]


def test_an_answer_that_never_can_be_read_stays_in_the_table_with_its_reason(tmp_path):
    writer = Scripted(lambda question, attempt: "well, a shoe")
    counts = write_attributes([product(1)], writer, job(tmp_path, forms=("image",), attempts=2))
    assert counts["image"] == {"asked": 1, "written": 0, "empty": 0, "unread": 1, "unreadable": 0}
    (row,) = rows_of(tmp_path)
    assert row["attributes_image"] is None
    assert row["written_image"] == "well, a shoe"
    assert "no 'key: value'" in row["problem_image"]
    again = Scripted(red)
    write_attributes([product(1)], again, job(tmp_path, forms=("image",), attempts=2))
    assert again.asked == []  # it had its attempts
    write_attributes([product(1)], again, job(tmp_path, forms=("image",), attempts=3))
    assert len(again.asked) == 1
    assert rows_of(tmp_path)[0]["attempts_image"] == 3


def test_an_interrupted_run_goes_on_and_asks_nothing_twice(tmp_path):
    products = [product(number) for number in range(1, 8)]
    with pytest.raises(KeyboardInterrupt):
        write_attributes(products, Scripted(red, stop_after=6), job(tmp_path))
    assert not (tmp_path / "out.parquet").exists()
    journal = tmp_path / "out.parquet.answers.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])  # killed in the middle of a line
    writer = Scripted(red)
    write_attributes(products, writer, job(tmp_path))
    assert len(writer.asked) == 14 - 5
    write_attributes(products, Scripted(red), job(tmp_path / "straight"))
    assert rows_of(tmp_path) == rows_of(tmp_path / "straight")


def test_a_later_run_asks_about_new_and_changed_products_alone(tmp_path):
    write_attributes([product(1), product(2)], Scripted(red), job(tmp_path))
    writer = Scripted(red)
    changed = [product(1), product(2, title="another title"), product(3)]
    write_attributes(changed, writer, job(tmp_path))
    assert sorted((question.form, question.text) for question in writer.asked) == [
        ("image", ""),
        ("text", "Title: another title"),
        ("text", "Title: shoe 3"),
    ]
    assert all(row["attempts_image"] == 1 for row in rows_of(tmp_path))


def test_products_that_look_alike_are_asked_about_once(tmp_path):
    writer = Scripted(red)
    twins = [product(1), replace(product(1), product_id="twin", title="other")]
    write_attributes(twins, writer, job(tmp_path, forms=("image",)))
    assert len(writer.asked) == 1
    assert rows_of(tmp_path)[0]["attributes_image"] == rows_of(tmp_path)[1]["attributes_image"]


def test_a_picture_that_cannot_be_opened_is_named_and_tried_again_by_the_next_run(tmp_path, capsys):
    missing = tmp_path / "there.png"
    products = [product(1, images=(str(missing),)), product(2, images=(b"no picture",)), product(3)]
    writer = Scripted(red)
    counts = write_attributes(products, writer, job(tmp_path, forms=("image",)))
    assert counts["image"] == {"asked": 3, "written": 1, "empty": 0, "unread": 0, "unreadable": 2}
    assert len(writer.asked) == 1
    problems = [row["problem_image"] for row in rows_of(tmp_path)]
    assert all("the picture cannot be read" in problem for problem in problems[:2])
    assert problems[2] is None
    said = capsys.readouterr().err
    assert "p1: the picture cannot be read" in said
    assert "p2: the picture cannot be read" in said
    missing.write_bytes(file_of(plain("blue", 64, 48)))
    counts = write_attributes(products, writer, job(tmp_path, forms=("image",)))
    assert (counts["image"]["written"], counts["image"]["unreadable"]) == (2, 1)


def test_large_pictures_are_shown_smaller_and_only_as_many_as_asked(tmp_path):
    writer = Scripted(red)
    row = product(1, images=(file_of(plain("red", 64, 48)), file_of(plain("blue", 64, 48))))
    write_attributes([row], writer, job(tmp_path, forms=("image",), max_pixels=300))
    (question,) = writer.asked
    (image,) = question.images
    assert image.width * image.height <= 300
    assert image.width / image.height == pytest.approx(4 / 3, rel=0.1)


def test_answers_of_another_model_are_refused_unless_they_are_to_be_overwritten(tmp_path):
    write_attributes([product(1)], Scripted(red), job(tmp_path))
    other = job(tmp_path, model="another")
    with pytest.raises(
        WritingError,
        match="model 'scripted', not 'another'\\); use the same settings, another output, or --overwrite",
    ):
        write_attributes([product(1)], Scripted(red), other)
    writer = Scripted(red)
    write_attributes([product(1)], writer, replace(other, overwrite=True))
    assert len(writer.asked) == 2
    assert rows_of(tmp_path)[0]["model"] == "another"


def with_settings(**settings) -> Scripted:
    writer = Scripted(red)
    writer.settings = settings
    return writer


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (
            {"max_new_tokens": 64, "dtype": "float32"},
            {},
            "max_new_tokens 128, not 64\\); use the same settings, another output",
        ),
        (
            {"max_new_tokens": 64, "dtype": "bfloat16"},
            {},
            "max_new_tokens 128, not 64; dtype 'float32', not 'bfloat16'",
        ),
        ({"max_new_tokens": 128}, {}, r"dtype 'float32', not unknown\); use the same settings"),
        ({"max_new_tokens": 128, "dtype": "float32", "top_k": 4}, {}, r"top_k unknown, not 4\); use the same settings"),
        (
            {"max_new_tokens": 128, "dtype": "float32"},
            {"seed": 1},
            r"written with other settings \(seed 0, not 1\); use the same settings",
        ),
        (
            {"max_new_tokens": 128, "dtype": "float32"},
            {"images": 2},
            r"written with other settings \(images 1, not 2\); use the same settings",
        ),
        (
            {"max_new_tokens": 128, "dtype": "float32"},
            {"max_pixels": 9},
            r"written with other settings \(max_pixels 786432, not 9\); use the same settings",
        ),
    ],
)
def test_answers_of_other_settings_are_never_mixed(tmp_path, settings, options, message):
    write_attributes([product(1)], with_settings(max_new_tokens=128, dtype="float32"), job(tmp_path))
    before = (tmp_path / "out.parquet.answers.jsonl").read_bytes()
    with pytest.raises(WritingError, match=message):
        write_attributes([product(1), product(2)], with_settings(**settings), job(tmp_path, **options))
    assert (tmp_path / "out.parquet.answers.jsonl").read_bytes() == before


def test_what_changes_no_answer_may_change_when_a_run_goes_on(tmp_path):
    write_attributes([product(1)], with_settings(max_new_tokens=128), job(tmp_path))
    writer = with_settings(max_new_tokens=128)
    other = job(tmp_path, batch_size=5, attempts=4, allow_urls=True, forms=("text",))
    write_attributes([product(1), product(2)], writer, other)
    assert [question.text for question in writer.asked] == ["Title: shoe 2"]


def test_a_journal_with_a_line_that_is_no_json_is_refused_and_kept(tmp_path):
    write_attributes([product(1)], Scripted(red), job(tmp_path))
    journal = tmp_path / "out.parquet.answers.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'{"shown"', b"\0\0\0", 1))
    before = journal.read_bytes()
    with pytest.raises(
        WritingError, match="answers.jsonl: found a line that is not valid JSON .*expected the unchanged file"
    ):
        write_attributes([product(1)], Scripted(red), job(tmp_path))
    assert journal.read_bytes() == before
    write_attributes([product(1)], Scripted(red), job(tmp_path, overwrite=True))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import training.labels.annotate as annotate
import training.labels.journal as module
from test_annotate import Scripted, job, product, red
written = 0

def append(path, value):
    global written
    written += 1
    if written == 6:
        import json
        with path.open("ab", buffering=0) as stream:
            stream.write(json.dumps(value).encode()[:25])
        os.kill(os.getpid(), signal.SIGKILL)
    append_line(path, value)

append_line, module.append_line = module.append_line, append
annotate.write_attributes([product(number) for number in range(1, 5)], Scripted(red), job(Path({folder!r})))
"""


def without_times(journal):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read_lines(journal)]


def test_a_run_that_is_killed_in_the_middle_of_a_line_loses_that_answer_alone(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(paths=[str(Path(__file__).parent)], folder=str(tmp_path)))
    with Launched(script) as writing:
        assert writing.finish() == [-signal.SIGKILL], writing.said()[-2000:]
    journal = tmp_path / "out.parquet.answers.jsonl"
    assert not journal.read_bytes().endswith(b"\n")
    assert not (tmp_path / "out.parquet").exists()
    writer, products = Scripted(red), [product(number) for number in range(1, 5)]
    write_attributes(products, writer, job(tmp_path))
    assert len(writer.asked) == 8 - 4
    write_attributes(products, Scripted(red), job(tmp_path / "straight"))
    assert rows_of(tmp_path) == rows_of(tmp_path / "straight")
    straight = tmp_path / "straight" / "out.parquet.answers.jsonl"
    assert without_times(journal) == without_times(straight)


def test_the_bar_begins_where_an_earlier_run_stopped(tmp_path, capsys):
    write_attributes([product(1)], Scripted(red), job(tmp_path))
    write_attributes([product(1), product(2)], Scripted(red), job(tmp_path, progress=True))
    said = capsys.readouterr().err
    assert "writing:  50%" in said
    assert "4/4" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": Path("out.csv")}, "output: found 'out.csv'; expected a .parquet file"),
        ({"forms": ("sound",)}, "forms: found .*expected one or both of image, text"),
        ({"forms": ()}, "forms: found"),
        ({"attempts": 0}, "attempts: found 0; expected a number of at least 1"),
        ({"batch_size": 0}, "batch_size: found 0"),
    ],
)
def test_a_job_that_cannot_be_done_is_refused(tmp_path, options, message):
    with pytest.raises(WritingError, match=message):
        job(tmp_path, **options)


@pytest.mark.parametrize("products", [[], [product(1), product(1)]])
def test_no_products_or_one_id_twice_is_refused(tmp_path, products):
    with pytest.raises(
        WritingError, match="products: found .*expected at least one product, each with a distinct product_id"
    ):
        write_attributes(products, Scripted(red), job(tmp_path))


# The command


def test_the_command_runs_a_random_model_and_keeps_what_it_cannot_read(tmp_path, tiny_base, capsys):
    lines = [
        {"product_id": f"p{number}", "title": f"red shoe {number}", "image": f"{number}.png"} for number in (1, 2, 3)
    ]
    (tmp_path / "products.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(file_of(plain("red", 64, 48)))
    output = tmp_path / "written_attributes.parquet"
    model = str(tiny_base("qwen3_vl"))
    command = [str(tmp_path), "--model", model, "--output", str(output), "--device", "cpu", "--max-new-tokens", "4"]
    assert main(["annotate", *command, "--attempts", "2", "--batch-size", "2", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert (
        "image: 0 of 3 sets written (0 of them empty), 2 answers could not be read, 1 pictures cannot be opened" in said
    )
    rows = pyarrow.parquet.read_table(output).to_pylist()
    assert [row["attempts_image"] for row in rows] == [2, 2, 0]
    assert all(row["problem_text"] and row["attributes_text"] is None and row["model"] == model for row in rows)
    assert load_tables(tmp_path).report.count("malformed_cells") == 0


def test_the_command_says_in_a_sentence_what_it_cannot_do(tmp_path, capsys):
    assert main(["annotate", str(tmp_path / "none"), "--model", "x", "--output", str(tmp_path / "o.parquet")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert main(["annotate", "catalogue", "--model", "x", "--output", "o.csv"]) == 2
    assert "expected a .parquet file" in capsys.readouterr().err
