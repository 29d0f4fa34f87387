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
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image
from tqdm import tqdm

from processing_moon import ImageLimits, ProductError, open_image
from product_data.atomic_files import append_line, mend_lines, read_lines
from product_data.table_files import ImageSource
from product_data.tables import ProductRow
from training.labels.chat_writer import FORMS, PROMPTS, Answer, Question, ask_about, read_answer

SUFFIX, JOURNAL_SUFFIX = ".parquet", ".answers.jsonl"
_READ_BYTES = 2**20  # of a picture's file, to distinguish pictures
_NAMED = 5  # pictures that are named if they cannot be opened


class WritingError(ValueError):
    """Attributes cannot be annotated, or cannot be written to the output file."""

    exit_status = 2


@dataclass(frozen=True)
class WritingJob:
    """The options of an annotation.

    Args:
        output: the table to write, a .parquet file.
        model (`str`): the name of the model, which is written to the table.
        forms (`tuple`): the forms to annotate, "image", "text" or both. Default: both.
        batch_size (`int`): the number of questions in a batch. Default: 8.
        attempts (`int`): the largest number of attempts for an answer that cannot be parsed. The first is greedy, the
            others are sampled. Default: 3.
        images (`int`): the largest number of pictures of a product that are shown. Default: 1.
        max_pixels (`int`): the largest number of pixels of a picture; larger pictures are reduced. Default: 786,432.
        seed (`int`): the seed of sampling. Default: 0.
        allow_urls (`bool`): download pictures from public URLs. Default: False.
        overwrite (`bool`): start again and delete existing answers. Default: False.
        progress (`bool`): show a progress bar. Default: True.
    """

    output: Path
    model: str
    forms: tuple[str, ...] = FORMS
    batch_size: int = 8
    attempts: int = 3
    images: int = 1
    max_pixels: int = 786_432
    seed: int = 0
    allow_urls: bool = False
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.output.suffix != SUFFIX:
            raise WritingError(f"output: found {str(self.output)!r}; expected a {SUFFIX} file")
        if not self.forms or set(self.forms) - set(FORMS):
            raise WritingError(f"forms: found {self.forms}; expected one or both of {', '.join(FORMS)}")
        for name in ("batch_size", "attempts", "images", "max_pixels"):
            if getattr(self, name) < 1:
                raise WritingError(f"{name}: found {getattr(self, name)}; expected a number of at least 1")


@dataclass
class _Written:
    """The last answer to a question, and the number of attempts."""

    text: str = ""
    attributes: dict[str, tuple[str, ...]] | None = None
    problem: str = ""
    attempts: int = 0


@dataclass
class _Task:
    """A question about a product. `digest` identifies the shown content."""

    row: ProductRow
    form: str
    digest: str


@dataclass
class _Journal:
    """The answers so far, by the digest of the shown content. Each is written to the file before the next question.

    Pictures that cannot be opened are not stored in the file, so the next run tries them again.
    """

    path: Path
    answers: dict[str, _Written] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def open(self, settings: dict[str, Any], overwrite: bool) -> None:
        """Read the answers of earlier runs with the same settings, or start a new file."""
        mend_lines(self.path)
        try:
            lines = [] if overwrite else read_lines(self.path)
        except ValueError as error:
            raise WritingError(
                f"{self.path}: found a line that is not valid JSON ({error}); expected the unchanged file, another output, "
                "or --overwrite"
            ) from error
        if not lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            append_line(self.path, {"settings": settings})
            return
        stored = lines[0].get("settings", {})
        differing = [
            f"{key} {_shown(stored, key)}, not {_shown(settings, key)}"
            for key in {**settings, **stored}
            if _shown(stored, key) != _shown(settings, key)
        ]
        if differing:
            raise WritingError(
                f"{self.path} was written with other settings ({'; '.join(differing)}); use the same settings, "
                "another output, or --overwrite"
            )
        for line in lines[1:]:
            attributes = line["attributes"]
            known = None if attributes is None else {key: tuple(values) for key, values in attributes.items()}
            self.answers[line["shown"]] = _Written(line["text"], known, line["problem"], line["attempt"])

    def add(self, task: _Task, answer: Answer, seconds: float) -> None:
        """Write an answer, which took a number of seconds: its share of the batch."""
        attributes, problem = read_answer(answer)
        written = _Written(answer.text, attributes, problem, self.attempts(task) + 1)
        line = {"shown": task.digest, "product_id": task.row.product_id, "form": task.form, "attempt": written.attempts}
        line |= {"text": answer.text, "attributes": attributes, "problem": problem, "seconds": round(seconds, 4)}
        append_line(self.path, line | {"prompt_tokens": answer.prompt_tokens, "tokens": answer.tokens})
        self.answers[task.digest] = written

    def attempts(self, task: _Task) -> int:
        return self.answers[task.digest].attempts if task.digest in self.answers else 0

    def is_open(self, task: _Task, attempt: int) -> bool:
        """Return whether a question needs an attempt, counted from 1."""
        written = self.answers.get(task.digest)
        return attempt == 1 if written is None else bool(written.problem) and written.attempts == attempt - 1


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "unknown"


Writer = Callable[..., Sequence[Answer]]
"""(questions, seeds=None or a seed for each) → an answer for each, such as `training.labels.chat_writer.ChatWriter`.

Its attribute `settings`, if present, contains other settings that change its answers. Answers with different settings
are never mixed.
"""


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
    journal = _Journal(job.output.with_name(job.output.name + JOURNAL_SUFFIX))
    prompts = hashlib.sha256("".join(PROMPTS[form] for form in FORMS).encode()).hexdigest()[:16]
    settings = {name: getattr(job, name) for name in ("model", "images", "max_pixels", "seed")} | {"prompts": prompts}
    journal.open(settings | getattr(writer, "settings", {}), job.overwrite)
    tasks = list(_tasks(products, job, journal))
    questions = {task.digest: task for task in reversed(tasks)}
    for attempt in range(1, job.attempts + 1):
        left = [task for task in reversed(questions.values()) if journal.is_open(task, attempt)]
        _ask_all(left, writer, job, journal, attempt, len(questions) if attempt == 1 else len(left))
    _write_table(products, tasks, journal, job)
    _name_unreadable(tasks, journal)
    return {form: _counts([task for task in tasks if task.form == form], journal) for form in job.forms}


def _tasks(products: Sequence[ProductRow], job: WritingJob, journal: _Journal) -> Iterator[_Task]:
    """Yield the questions about products, form by form, and note pictures whose file cannot be read."""
    for form in job.forms:
        for row in products:
            if not (row.images if form == "image" else row.has_text):
                continue
            shown, problem = hashlib.sha256(form.encode()), ""
            try:
                if form == "text":
                    shown.update(ask_about(row, form).text.encode())
                for image in row.images[: job.images] if form == "image" else ():
                    shown.update(_picture_digest(image))
            except OSError as error:
                problem = f"the picture cannot be read ({error})"
                shown.update(row.product_id.encode())  # different from all other products
            digest = shown.hexdigest()[:32]
            if problem:
                journal.unreadable[digest] = problem
            yield _Task(row, form, digest)


def _picture_digest(image: ImageSource) -> bytes:
    """Return a digest of a picture: of its pixels, of the first bytes and the size of its file, or of its URL."""
    if isinstance(image, Image.Image):
        return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).digest()
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    if image.startswith(("http://", "https://")):
        return hashlib.sha256(image.encode()).digest()
    path = Path(image)
    with path.open("rb") as stream:
        return hashlib.sha256(stream.read(_READ_BYTES) + str(path.stat().st_size).encode()).digest()


def _name_unreadable(tasks: Sequence[_Task], journal: _Journal) -> None:
    """Print the first pictures that cannot be opened. The table lists all of them."""
    unreadable = [task for task in tasks if task.digest in journal.unreadable]
    for task in unreadable[:_NAMED]:
        print(f"{task.row.product_id}: {journal.unreadable[task.digest]}", file=sys.stderr)
    if len(unreadable) > _NAMED:
        print(f"and {len(unreadable) - _NAMED} more pictures, see problem_image in the table", file=sys.stderr)


def _ask_all(
    tasks: Sequence[_Task], writer: Writer, job: WritingJob, journal: _Journal, attempt: int, total: int
) -> None:
    """Ask every question once, in batches of one form. Pictures that cannot be opened are noted and skipped.

    The progress bar counts to `total`, including the answers of earlier runs.
    """
    label = "writing" if attempt == 1 else f"attempt {attempt}"
    done, hidden = total - len(tasks), not job.progress or not tasks
    with tqdm(total=total, initial=done, unit="set", desc=label, disable=hidden) as bar:
        for form in FORMS:
            of_form = [task for task in tasks if task.form == form]
            for start in range(0, len(of_form), job.batch_size):
                batch = of_form[start : start + job.batch_size]
                questions = [(task, asked) for task in batch if (asked := _question(task, job, journal)) is not None]
                seeds = None if attempt == 1 else [_seed(job.seed, attempt, task.digest) for task, _ in questions]
                began = time.monotonic()
                answers = writer([question for _, question in questions], seeds=seeds) if questions else []
                seconds = (time.monotonic() - began) / max(len(answers), 1)
                for (task, _), answer in zip(questions, answers, strict=True):
                    journal.add(task, answer, seconds)
                bar.update(len(batch))


def _seed(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def _question(task: _Task, job: WritingJob, journal: _Journal) -> Question | None:
    if task.form == "text":
        return ask_about(task.row, task.form)
    try:
        limits = ImageLimits(allow_urls=job.allow_urls)
        images = [_shrunk(open_image(image, limits=limits), job.max_pixels) for image in task.row.images[: job.images]]
    except ProductError as error:
        journal.unreadable[task.digest] = f"the picture cannot be read ({error.reason})"
        return None
    return ask_about(task.row, task.form, images)


def _shrunk(image: Image.Image, max_pixels: int) -> Image.Image:
    scale = (max_pixels / (image.width * image.height)) ** 0.5
    if scale >= 1:
        return image
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.BICUBIC)


def _counts(tasks: Sequence[_Task], journal: _Journal) -> dict[str, int]:
    answers = [journal.answers[task.digest] for task in tasks if task.digest in journal.answers]
    return {
        "asked": len(tasks),
        "written": sum(answer.attributes is not None for answer in answers),
        "empty": sum(answer.attributes == {} for answer in answers),
        "unread": sum(answer.attributes is None for answer in answers),
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
    tasks: Sequence[_Task],
    journal: _Journal,
    job: WritingJob,
) -> None:
    """Write the table with a row for each product. An interruption does not leave an incomplete file."""
    rows: dict[str, dict[str, Any]] = {
        row.product_id: {"product_id": row.product_id, "model": job.model} for row in products
    }
    for task in tasks:
        name, form = task.row.product_id, task.form
        answer = journal.answers.get(task.digest, _Written())
        pairs = [{"key": key, "value": value} for key, values in (answer.attributes or {}).items() for value in values]
        rows[name] |= {
            f"attributes_{form}": None if answer.attributes is None else pairs,
            f"written_{form}": answer.text if answer.attempts else None,
            f"problem_{form}": answer.problem or (None if answer.attempts else journal.unreadable.get(task.digest)),
            f"attempts_{form}": answer.attempts,
        }
    partial = job.output.with_name(job.output.name + ".partial")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows.values()), schema=_SCHEMA), partial)
    partial.replace(job.output)
