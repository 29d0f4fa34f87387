"""Ask a writer about products, and keep every answer in a file from which an interrupted job resumes.

Each answer is appended to the journal at once. Products that look the same are asked about once, because an answer is kept by the
digest of what was shown. The first line holds all settings that change an answer; a job with other settings is refused.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from PIL import Image
from tqdm import tqdm

from processing_moon import ImageLimits, ProductError, open_image
from product_data.atomic_files import append_line, mend_lines, read_lines
from product_data.table_files import ImageSource, is_address
from product_data.tables import ProductRow
from training.labels.chat_writer import Answer, Question, ask_about

JOURNAL_SUFFIX = ".answers.jsonl"
_READ_BYTES = 2**20  # of a picture's file, to distinguish pictures
Value = TypeVar("Value")

Writer = Callable[..., Sequence[Answer]]
"""(questions, seeds=None or a seed for each) → an answer for each, such as `training.labels.chat_writer.ChatWriter`.

Its attribute `settings`, if present, contains other settings that change its answers. Answers with different settings
are never mixed.
"""


class WritingError(ValueError):
    """Answers cannot be asked for, or cannot be written to the output file."""

    exit_status = 2


@dataclass(frozen=True)
class Asking:
    """How questions are asked.

    Args:
        forms (`tuple`): the forms of the questions, asked in this order; see `training.labels.chat_writer.PROMPTS`.
        batch_size (`int`): the number of questions in a batch. Default: 8.
        attempts (`int`): the largest number of attempts for an answer that cannot be used. The first is greedy, the
            others are sampled. Default: 3.
        images (`int`): the largest number of pictures of a product that are shown. Default: 1.
        max_pixels (`int`): the largest number of pixels of a picture; larger pictures are reduced. Default: 786,432.
        seed (`int`): the seed of sampling. Default: 0.
        allow_urls (`bool`): download pictures from public URLs. Default: False.
        progress (`bool`): show a progress bar. Default: True.
    """

    forms: tuple[str, ...]
    batch_size: int = 8
    attempts: int = 3
    images: int = 1
    max_pixels: int = 786_432
    seed: int = 0
    allow_urls: bool = False
    progress: bool = True


@dataclass
class Written(Generic[Value]):
    """The last answer to a question, what was read from it (None with a problem), and the number of attempts."""

    text: str = ""
    value: Value | None = None
    problem: str = ""
    attempts: int = 0


@dataclass
class Task:
    """A question about a product. `digest` identifies the shown content."""

    row: ProductRow
    form: str
    digest: str


@dataclass
class Journal(Generic[Value]):
    """The answers so far, by the digest of the shown content. Each is written to the file before the next question.

    Pictures that cannot be opened are not stored in the file, so the next run tries them again.

    Args:
        path: the file of JSON lines.
        key (`str`): the name of the values in the lines, such as "attributes".
        read: (product, answer) → the value and "", or None and the problem.
        restored: the JSON of a value → the value.
    """

    path: Path
    key: str
    read: Callable[[ProductRow, Answer], tuple[Value | None, str]]
    restored: Callable[[Any], Value]
    answers: dict[str, Written[Value]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def open(self, settings: dict[str, Any], overwrite: bool) -> None:
        """Read the answers of earlier runs with the same settings, or start a new file.

        Raises:
            WritingError: the file has other settings, or a line that is not valid JSON.
        """
        for line in journal_lines(self.path, settings, overwrite):
            stored = line[self.key]
            value = None if stored is None else self.restored(stored)
            self.answers[line["shown"]] = Written(line["text"], value, line["problem"], line["attempt"])

    def add(self, task: Task, answer: Answer, seconds: float) -> None:
        """Read an answer, which took a number of seconds (its share of the batch), and write it to the file."""
        value, problem = self.read(task.row, answer)
        written = Written(answer.text, value, problem, self.attempts(task) + 1)
        line = {"shown": task.digest, "product_id": task.row.product_id, "form": task.form, "attempt": written.attempts}
        line |= {"text": answer.text, self.key: value, "problem": problem, "seconds": round(seconds, 4)}
        append_line(self.path, line | {"prompt_tokens": answer.prompt_tokens, "tokens": answer.tokens})
        self.answers[task.digest] = written

    def attempts(self, task: Task) -> int:
        """Return how often a question was asked."""
        return self.answers[task.digest].attempts if task.digest in self.answers else 0

    def is_open(self, task: Task, attempt: int) -> bool:
        """Return whether a question needs an attempt, counted from 1."""
        written = self.answers.get(task.digest)
        return attempt == 1 if written is None else bool(written.problem) and written.attempts == attempt - 1


def journal_lines(path: Path, settings: Mapping[str, Any], overwrite: bool) -> list[dict[str, Any]]:
    """Return the lines of a journal after its settings; start a new file if there is none, or to overwrite it.

    Raises:
        WritingError: the file has other settings, or a line that is not valid JSON.
    """
    mend_lines(path)
    try:
        lines = [] if overwrite else read_lines(path)
    except ValueError as error:
        raise WritingError(
            f"{path}: found a line that is not valid JSON ({error}); expected the unchanged file, another output, "
            "or --overwrite"
        ) from error
    if not lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        append_line(path, {"settings": dict(settings)})
        return []
    stored = lines[0].get("settings", {})
    differing = [
        f"{key} {_shown(stored, key)}, not {_shown(settings, key)}"
        for key in {**settings, **stored}
        if _shown(stored, key) != _shown(settings, key)
    ]
    if differing:
        raise WritingError(
            f"{path} was written with other settings ({'; '.join(differing)}); use the same settings, "
            "another output, or --overwrite"
        )
    return lines[1:]


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "unknown"


def tasks_of(products: Sequence[ProductRow], asking: Asking, journal: Journal[Any]) -> Iterator[Task]:
    """Yield the questions about products, form by form, and note pictures whose file cannot be read."""
    for form in asking.forms:
        for row in products:
            if not (row.images if form == "image" else row.has_text):
                continue
            shown, problem = hashlib.sha256(form.encode()), ""
            try:
                if form != "image":
                    shown.update(ask_about(row, form).text.encode())
                for image in row.images[: asking.images] if form != "text" else ():
                    shown.update(picture_digest(image))
            except OSError as error:
                problem = f"the picture cannot be read ({error})"
                shown.update(row.product_id.encode())  # different from all other products
            digest = shown.hexdigest()[:32]
            if problem:
                journal.unreadable[digest] = problem
            yield Task(row, form, digest)


def picture_digest(image: ImageSource) -> bytes:
    """Return a digest of a picture: of its pixels, of the first bytes and the size of its file, or of its URL."""
    if isinstance(image, Image.Image):
        return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).digest()
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    if is_address(image):
        return hashlib.sha256(image.encode()).digest()
    path = Path(image)
    with path.open("rb") as stream:
        return hashlib.sha256(stream.read(_READ_BYTES) + str(path.stat().st_size).encode()).digest()


def ask(tasks: Sequence[Task], writer: Writer, asking: Asking, journal: Journal[Any]) -> None:
    """Ask every question that has no usable answer, each at most `asking.attempts` times."""
    questions = {task.digest: task for task in reversed(tasks)}
    for attempt in range(1, asking.attempts + 1):
        left = [task for task in reversed(questions.values()) if journal.is_open(task, attempt)]
        _ask_all(left, writer, asking, journal, attempt, len(questions) if attempt == 1 else len(left))


def _ask_all(
    tasks: Sequence[Task], writer: Writer, asking: Asking, journal: Journal[Any], attempt: int, total: int
) -> None:
    """Ask every question once, in batches of one form. Pictures that cannot be opened are noted and skipped.

    The progress bar counts to `total`, including the answers of earlier runs.
    """
    label = "writing" if attempt == 1 else f"attempt {attempt}"
    done, hidden = total - len(tasks), not asking.progress or not tasks
    with tqdm(total=total, initial=done, unit="set", desc=label, disable=hidden) as bar:
        for form in asking.forms:
            of_form = [task for task in tasks if task.form == form]
            for start in range(0, len(of_form), asking.batch_size):
                batch = of_form[start : start + asking.batch_size]
                questions = [(task, asked) for task in batch if (asked := _question(task, asking, journal)) is not None]
                seeds = None if attempt == 1 else [_seed(asking.seed, attempt, task.digest) for task, _ in questions]
                began = time.monotonic()
                answers = writer([question for _, question in questions], seeds=seeds) if questions else []
                seconds = (time.monotonic() - began) / max(len(answers), 1)
                for (task, _), answer in zip(questions, answers, strict=True):
                    journal.add(task, answer, seconds)
                bar.update(len(batch))


def _seed(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def _question(task: Task, asking: Asking, journal: Journal[Any]) -> Question | None:
    if task.form == "text":
        return ask_about(task.row, task.form)
    try:
        limits = ImageLimits(allow_urls=asking.allow_urls)
        shown = task.row.images[: asking.images]
        images = [_shrunk(open_image(image, limits=limits), asking.max_pixels) for image in shown]
    except ProductError as error:
        journal.unreadable[task.digest] = f"the picture cannot be read ({error.reason})"
        return None
    return ask_about(task.row, task.form, images)


def _shrunk(image: Image.Image, max_pixels: int) -> Image.Image:
    scale = (max_pixels / (image.width * image.height)) ** 0.5
    if scale >= 1:
        return image
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.BICUBIC)
