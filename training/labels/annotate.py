"""Annotate the attributes of each product's picture and text with a chat model, as in MOON3.0 (arXiv 2604.00513).

    moon3 annotate PRODUCTS --model Qwen/Qwen3-VL-8B-Instruct --output FOLDER/written_attributes.parquet

PRODUCTS is a data folder, a products file or "catalogue". If the file is in the folder of the products, as
`written_attributes.parquet`, the reader of tables fills the columns attributes_image and attributes_text from it. Its
other columns describe each set: written_… (the text of the model), problem_… (why the text cannot be parsed; the set is
then missing), attempts_…, model.

Every answer is written to OUTPUT.answers.jsonl at once, with its tokens and its share of the batch's seconds. An
interrupted run resumes from this file, a later run asks only about new or changed products, and the model is asked only
once about products that look the same. The file begins with all settings that change an answer (model and weights,
prompts, pictures, length, seed, precision); a run with other settings raises an error. The batch size does not change
an answer, because each question has its own seed.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from product_data.tables import ProductRow
from training.labels.chat_writer import FORMS, PROMPTS, read_answer
from training.labels.journal import JOURNAL_SUFFIX, Asking, Journal, Task, Writer, WritingError, Written, ask, tasks_of

SUFFIX = ".parquet"
_NAMED = 5  # pictures that are named if they cannot be opened
Attributes = dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class WritingJob(Asking):
    """The options of an annotation: those of `Asking`, and what is written.

    Args:
        output: the table to write, a .parquet file.
        model (`str`): the name of the model, which is written to the table.
        forms (`tuple`): the forms to annotate, "image", "text" or both. Default: both.
        overwrite (`bool`): start again and delete existing answers. Default: False.
    """

    output: Path
    model: str
    forms: tuple[str, ...] = FORMS
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.output.suffix != SUFFIX:
            raise WritingError(f"output: found {str(self.output)!r}; expected a {SUFFIX} file")
        if not self.forms or set(self.forms) - set(FORMS):
            raise WritingError(f"forms: found {self.forms}; expected one or both of {', '.join(FORMS)}")
        for name in ("batch_size", "attempts", "images", "max_pixels"):
            if getattr(self, name) < 1:
                raise WritingError(f"{name}: found {getattr(self, name)}; expected a number of at least 1")


def write_attributes(products: Sequence[ProductRow], writer: Writer, job: WritingJob) -> dict[str, dict[str, int]]:
    """Annotate the attributes of products and write the table.

    Args:
        products: the products, with distinct ids.
        writer: answers questions; with seeds, by sampling.
        job: the options.

    Returns:
        form → "asked" (products with the form), "written" (sets that could be parsed), "empty" (those without
        attributes), "unread" (answers that could not be parsed), "unreadable" (pictures that cannot be opened).

    Raises:
        WritingError: there are no products, two products have the same id, or the journal of the output has other
            settings or a line that is not valid JSON.
    """
    twice = [name for name, uses in Counter(row.product_id for row in products).items() if uses > 1]
    if not products or twice:
        found = f"product_id {twice[0]!r} twice" if twice else "no products"
        raise WritingError(f"products: found {found}; expected at least one product, each with a distinct product_id")
    journal: Journal[Attributes] = Journal(
        job.output.with_name(job.output.name + JOURNAL_SUFFIX),
        "attributes",
        lambda _, answer: read_answer(answer),
        lambda stored: {key: tuple(values) for key, values in stored.items()},
    )
    prompts = hashlib.sha256("".join(PROMPTS[form] for form in FORMS).encode()).hexdigest()[:16]
    settings = {name: getattr(job, name) for name in ("model", "images", "max_pixels", "seed")} | {"prompts": prompts}
    journal.open(settings | getattr(writer, "settings", {}), job.overwrite)
    tasks = list(tasks_of(products, job, journal))
    ask(tasks, writer, job, journal)
    _write_table(products, tasks, journal, job)
    _name_unreadable(tasks, journal)
    return {form: _counts([task for task in tasks if task.form == form], journal) for form in job.forms}


def _name_unreadable(tasks: Sequence[Task], journal: Journal[Attributes]) -> None:
    """Print the first pictures that cannot be opened. The table lists all of them."""
    unreadable = [task for task in tasks if task.digest in journal.unreadable]
    for task in unreadable[:_NAMED]:
        print(f"{task.row.product_id}: {journal.unreadable[task.digest]}", file=sys.stderr)
    if len(unreadable) > _NAMED:
        print(f"and {len(unreadable) - _NAMED} more pictures, see problem_image in the table", file=sys.stderr)


def _counts(tasks: Sequence[Task], journal: Journal[Attributes]) -> dict[str, int]:
    answers = [journal.answers[task.digest] for task in tasks if task.digest in journal.answers]
    return {
        "asked": len(tasks),
        "written": sum(answer.value is not None for answer in answers),
        "empty": sum(answer.value == {} for answer in answers),
        "unread": sum(answer.value is None for answer in answers),
        "unreadable": sum(task.digest in journal.unreadable for task in tasks),
    }


_SET = pyarrow.list_(pyarrow.struct([("key", pyarrow.string()), ("value", pyarrow.string())]))
_SCHEMA = pyarrow.schema(
    [("product_id", pyarrow.string())]
    + [(f"attributes_{form}", _SET) for form in FORMS]
    + [(f"{name}_{form}", pyarrow.string()) for name in ("written", "problem") for form in FORMS]
    + [(f"attempts_{form}", pyarrow.int32()) for form in FORMS]
    + [("model", pyarrow.string())]
)


def _write_table(
    products: Sequence[ProductRow],
    tasks: Sequence[Task],
    journal: Journal[Attributes],
    job: WritingJob,
) -> None:
    """Write the table with a row for each product. An interruption does not leave an incomplete file."""
    rows: dict[str, dict[str, Any]] = {
        row.product_id: {"product_id": row.product_id, "model": job.model} for row in products
    }
    for task in tasks:
        name, form = task.row.product_id, task.form
        answer = journal.answers.get(task.digest, Written())
        pairs = [{"key": key, "value": value} for key, values in (answer.value or {}).items() for value in values]
        rows[name] |= {
            f"attributes_{form}": None if answer.value is None else pairs,
            f"written_{form}": answer.text if answer.attempts else None,
            f"problem_{form}": answer.problem or (None if answer.attempts else journal.unreadable.get(task.digest)),
            f"attempts_{form}": answer.attempts,
        }
    partial = job.output.with_name(job.output.name + ".partial")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows.values()), schema=_SCHEMA), partial)
    partial.replace(job.output)
