"""Let a chat model write what the picture and what the text of each product show: MOON3.0's attribute sets (arXiv 2604.00513).

    moon3 annotate PRODUCTS --model Qwen/Qwen3-VL-8B-Instruct --output FOLDER/written_attributes.parquet

PRODUCTS is a data folder, a products file or "catalogue". Put the file beside the products as `written_attributes.parquet`, and
the reader of tables fills the columns attributes_image and attributes_text with it. Its further columns say how each set
was written: written_… (the model's words), problem_… (why they could not be read; the set is then missing), attempts_…, model.

Every answer is kept in OUTPUT.answers.jsonl as soon as it is there: an interrupted run goes on where it stopped, a later run
asks only about products that are new or changed, and two products that look alike are asked about once. The file begins with
everything that changes an answer (model and weights, prompts, pictures, length, seed, precision); a run with other settings is
refused. The number of questions asked together is none of it: words are drawn by each question's own seed.
"""

import hashlib
import sys
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
_READ_BYTES = 2**20  # of a picture's file, for telling pictures apart
_NAMED = 5  # pictures that cannot be opened


class WritingError(ValueError):
    """What cannot be written, or not into this file."""

    exit_status = 2


@dataclass(frozen=True)
class WritingJob:
    """Where to write what.

    Args:
        output: the table, a .parquet file.
        model (`str`): the model's name, kept beside what it wrote.
        forms (`tuple`): of "image" and "text", what is asked about. Default both.
        batch_size (`int`): questions that are answered together. Default 8.
        attempts (`int`): how often a model is asked whose answer cannot be read: first for its likeliest words, then for
            words drawn at random. Default 3.
        images (`int`): how many of a product's pictures are shown. Default 1.
        max_pixels (`int`): larger pictures are shown smaller. Default 786,432.
        seed (`int`): of the random words. Default 0.
        allow_urls (`bool`): fetch pictures from public addresses. Default False.
        overwrite (`bool`): begin anew, without the answers that another model or setting gave. Default False.
        progress (`bool`): show a bar. Default True.
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
            raise WritingError(f"forms: found {self.forms}; expected {', '.join(FORMS)} or both")
        for name in ("batch_size", "attempts", "images", "max_pixels"):
            if getattr(self, name) < 1:
                raise WritingError(f"{name}: found {getattr(self, name)}; expected a number of at least 1")


@dataclass
class _Written:
    """What is known of one question: the last answer, and how many there were."""

    text: str = ""
    attributes: dict[str, tuple[str, ...]] | None = None
    problem: str = ""
    attempts: int = 0


@dataclass
class _Task:
    """One question about a product; `digest` tells what is shown."""

    row: ProductRow
    form: str
    digest: str


@dataclass
class _Journal:
    """The answers so far, by the digest of what was shown; every one stands in the file before the next is asked.

    Why pictures cannot be opened is known of this run alone: the next one tries again.
    """

    path: Path
    found: dict[str, _Written] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def open(self, settings: dict[str, Any], overwrite: bool) -> None:
        """Read the answers of earlier runs with the same settings, or begin."""
        mend_lines(self.path)
        try:
            lines = [] if overwrite else read_lines(self.path)
        except ValueError as error:
            raise WritingError(
                f"{self.path} holds a line that is no JSON ({error}); expected the file as it was written, another output, "
                "or --overwrite"
            ) from error
        if not lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            append_line(self.path, {"settings": settings})
            return
        stored = lines[0].get("settings", {})
        differing = [
            f"{key} {_said(stored, key)}, not {_said(settings, key)}"
            for key in {**settings, **stored}
            if _said(stored, key) != _said(settings, key)
        ]
        if differing:
            raise WritingError(
                f"{self.path} holds answers with {'; '.join(differing)}; expected the same, another output, or --overwrite"
            )
        for line in lines[1:]:
            attributes = line["attributes"]
            given = None if attributes is None else {key: tuple(values) for key, values in attributes.items()}
            self.found[line["shown"]] = _Written(line["text"], given, line["problem"], line["attempt"])

    def add(self, task: _Task, answer: Answer) -> None:
        attributes, problem = read_answer(answer)
        written = _Written(answer.text, attributes, problem, self.attempts(task) + 1)
        line = {"shown": task.digest, "product_id": task.row.product_id, "form": task.form, "attempt": written.attempts}
        append_line(self.path, line | {"text": answer.text, "attributes": attributes, "problem": problem})
        self.found[task.digest] = written

    def attempts(self, task: _Task) -> int:
        return self.found[task.digest].attempts if task.digest in self.found else 0

    def is_open(self, task: _Task, attempt: int) -> bool:
        """Whether a question is to be asked for the so-manieth time, from 1."""
        there = self.found.get(task.digest)
        return attempt == 1 if there is None else bool(there.problem) and there.attempts == attempt - 1


def _said(settings: Mapping[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "unknown"


Writer = Callable[..., Sequence[Answer]]
"""(questions, seeds=None or a number for each) → an answer for each, as `training.labels.chat_writer.ChatWriter`.

Its attribute `settings`, where it has one, says what else changes its answers; answers of other settings are never mixed.
"""


def write_attributes(products: Sequence[ProductRow], writer: Writer, job: WritingJob) -> dict[str, dict[str, int]]:
    """Have attributes written and write the table.

    Args:
        products: what to ask about; product ids that differ.
        writer: answers questions; with seeds it draws its words at random.
        job: see WritingJob.

    Returns:
        form → "asked" (products that have it), "written" (sets that could be read), "empty" (those among them that name
        nothing), "unread" (answers that could not be read), "unreadable" (pictures that cannot be opened).

    Raises:
        WritingError: no products, a product_id that is used twice, or an output whose journal holds answers of other
            settings (names what differs) or a line that is no JSON.
    """
    twice = [name for name, uses in Counter(row.product_id for row in products).items() if uses > 1]
    if not products or twice:
        found = f"product_id {twice[0]!r} twice" if twice else "no products"
        raise WritingError(f"products: found {found}; expected at least one product, each with a product_id of its own")
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
    """The questions about products, form by form; a picture's file that cannot be read is noted."""
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
                shown.update(row.product_id.encode())  # it looks like no other product
            digest = shown.hexdigest()[:32]
            if problem:
                journal.unreadable[digest] = problem
            yield _Task(row, form, digest)


def _picture_digest(image: ImageSource) -> bytes:
    """What tells a picture from another: its pixels, the start and the size of its file, or its address."""
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
    """Say which pictures cannot be opened, the first ones by name; all of them stand in the table."""
    found = [task for task in tasks if task.digest in journal.unreadable]
    for task in found[:_NAMED]:
        print(f"{task.row.product_id}: {journal.unreadable[task.digest]}", file=sys.stderr)
    if len(found) > _NAMED:
        print(f"and {len(found) - _NAMED} more pictures, see problem_image in the table", file=sys.stderr)


def _ask_all(
    tasks: Sequence[_Task], writer: Writer, job: WritingJob, journal: _Journal, attempt: int, total: int
) -> None:
    """Ask every question once, in batches of one form; pictures that cannot be opened are noted and not asked about.

    The bar counts to `total`, beginning with what earlier runs have answered.
    """
    label = "writing" if attempt == 1 else f"attempt {attempt}"
    done, hidden = total - len(tasks), not job.progress or not tasks
    with tqdm(total=total, initial=done, unit="set", desc=label, disable=hidden) as bar:
        for form in FORMS:
            of_form = [task for task in tasks if task.form == form]
            for start in range(0, len(of_form), job.batch_size):
                batch = of_form[start : start + job.batch_size]
                asked = [(task, found) for task in batch if (found := _question(task, job, journal)) is not None]
                seeds = None if attempt == 1 else [_seed(job.seed, attempt, task.digest) for task, _ in asked]
                answers = writer([question for _, question in asked], seeds=seeds) if asked else []
                for (task, _), answer in zip(asked, answers, strict=True):
                    journal.add(task, answer)
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
    written = [journal.found[task.digest] for task in tasks if task.digest in journal.found]
    return {
        "asked": len(tasks),
        "written": sum(one.attributes is not None for one in written),
        "empty": sum(one.attributes == {} for one in written),
        "unread": sum(one.attributes is None for one in written),
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
    """Write one row for each product, whole or not at all."""
    rows: dict[str, dict[str, Any]] = {
        row.product_id: {"product_id": row.product_id, "model": job.model} for row in products
    }
    for task in tasks:
        name, form = task.row.product_id, task.form
        found = journal.found.get(task.digest, _Written())
        pairs = [{"key": key, "value": value} for key, values in (found.attributes or {}).items() for value in values]
        rows[name] |= {
            f"attributes_{form}": None if found.attributes is None else pairs,
            f"written_{form}": found.text if found.attempts else None,
            f"problem_{form}": found.problem or (None if found.attempts else journal.unreadable.get(task.digest)),
            f"attempts_{form}": found.attempts,
        }
    partial = job.output.with_name(job.output.name + ".partial")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows.values()), schema=_SCHEMA), partial)
    partial.replace(job.output)
