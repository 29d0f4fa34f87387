"""Ask a chat model for the attributes or an enriched title of a product, and parse its answers.

The model can be any checkpoint with a chat template that transformers loads: a vision-language model
(`AutoModelForImageTextToText` and `AutoProcessor`), such as Qwen3-VL, or a language model (`AutoModelForCausalLM` and
`AutoTokenizer`), such as Qwen2.5, also as a GGUF file. A language model is asked about texts only. For attributes, a model
sees either the picture or the text of a product, so its answer contains what that form shows. For a title it sees both.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image
from torch import Tensor
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

from processing_moon.reasoning_moon import REASONING_KEYS, THINK_END, THINK_START, read_reasoning
from processing_moon.text_moon import plain_text
from product_data.attribute_keys import as_attributes, facts_of
from product_data.errors import OptionError
from product_data.tables import ProductRow
from training.labels.reasoning import control_tokens_of
from training.model.donor import source_of

FORMS = ("image", "text")
TEXT_ONLY = ("text",)
"""The forms that a language model reads."""
_LINES = (
    (
        "Aurora Mug 300 ml, blue and white ceramic",
        "colour: blue, white; category: mug; brand: Aurora; size/specification: 300 ml; material: ceramic",
    ),
    (
        "Nordholt Men Winter Coat in Black",
        "colour: black; category: coat; brand: Nordholt; target demographic: men; season/occasion: winter",
    ),
)
"""Texts and the lines that answer them. Two of different products, because small models copy the values of a single one."""
_ASKED = f"""Use these keys: {", ".join(REASONING_KEYS)}. Leave out every key that is not certain; if nothing is certain,
write "none". A value is a few words, without a comma, a colon or a semicolon. Write one line of keys and values and nothing
else."""
PROMPTS = {
    "image": f"Write the attributes of the product being sold that this picture shows. {_ASKED} For a mug the line could be\n"
    f"{_LINES[0][1]}",
    "text": f"Write the attributes of the product being sold that a text states. {_ASKED}\n\n"
    + "".join(f"Text: {text}\nLine: {line}\n\n" for text, line in _LINES)
    + "Text: {text}\nLine:",
    "title": """Rewrite the title of the product being sold, so that it describes the product more completely and naturally.
Keep the brand, the category, the colour and every number of the title. Add only what the record below states or the picture
shows with certainty. Write one line of at most 30 words in the language of the title, and nothing else.

The record:
{text}""",
}
"""The prompt of each form."""
_NOTHING = frozenset(("none", "unknown", "n/a", "na", "not visible", "not stated", "not specified", "unspecified", "-"))
_TEMPERATURE = 0.7  # of sampling
_READ_BYTES = 2**20  # of each weight file, to distinguish models in the same folder
_LONGEST_VALUE = 8  # words; longer ones are sentences
_TITLE = re.compile(r"^\W*(?:enriched |new |rewritten )?title\s*:\s*", re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")


@dataclass(frozen=True)
class Question:
    """A question about a product: its form ("image", "text" or "title"), and the pictures or the text to show."""

    form: str
    images: tuple[Image.Image, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Answer:
    """The text that a model generated, whether it is complete, and the numbers of tokens read and generated."""

    text: str
    finished: bool = True
    prompt_tokens: int = field(default=0, compare=False)
    tokens: int = field(default=0, compare=False)


class _GumbelNoise(LogitsProcessor):
    """Turn greedy decoding into sampling: `argmax(s / τ + noise)` with Gumbel noise is a sample of softmax(s / τ).

    Each row has its own generator, so its sample does not depend on the other rows of the batch. Source: the Gumbel-max
    trick (Maddison, Tarlow and Minka 2014, arXiv 1411.0030).

    Shapes: scores (B, V) float32 → the same.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators]
        return scores / _TEMPERATURE - torch.stack(noise).log().to(scores.device)


class ChatWriter:
    """A chat model that answers questions in batches.

    Args:
        model: the model, with `generate`.
        processor: its processor, with `apply_chat_template` and a tokenizer, or the tokenizer of a language model; see
            `load_writer`.
        max_new_tokens (`int`): the number of tokens after which an answer is cut off. Default: 128.
        revision (`str`): the revision of the weights, for `settings`. Default: "".

    Raises:
        ValueError: `max_new_tokens` is below 1.

    Relations:
        `read_answer` parses its answers. `forms` has the forms that the model reads.
    """

    def __init__(self, model: Any, processor: Any, max_new_tokens: int = 128, revision: str = "") -> None:
        if max_new_tokens < 1:
            raise OptionError(f"max_new_tokens: found {max_new_tokens}; expected a number of at least 1")
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.forms: tuple[str, ...] = TEXT_ONLY if self.tokenizer is processor else FORMS
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._controls = control_tokens_of(self.tokenizer)
        self.settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": _TEMPERATURE,
            "dtype": str(model.dtype).removeprefix("torch."),
            "revision": revision,
        }
        """The settings that change an answer, besides the question, its seed and the name of the model."""

    def __call__(self, questions: Sequence[Question], seeds: Sequence[int] | None = None) -> list[Answer]:
        """Answer a batch of questions. Except for rounding, an answer does not depend on the other questions.

        Args:
            questions: questions of one or both forms.
            seeds: None for greedy decoding, or a seed for each question, for sampling at temperature 0.7.

        Returns:
            An answer for each question.

        Raises:
            ValueError: the number of seeds differs from the number of questions, or a question shows what the model does not
            read.
        """
        if seeds is not None and len(seeds) != len(questions):
            raise ValueError(f"seeds: found {len(seeds)}; expected {len(questions)}, a seed for each question")
        unread = [question.form for question in questions if question.form not in self.forms]
        if unread:
            raise OptionError(
                f"model: found a question about {unread[0]} for a language model; expected questions about text"
            )
        padding: dict[str, Any] = {"padding": True}
        inputs = self.processor.apply_chat_template(
            [self._conversation(question) for question in questions],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            **(padding if self.forms == TEXT_ONLY else {"processor_kwargs": padding}),
        ).to(self.model.device)
        # The checkpoint's settings of sampling and penalties must not change greedy decoding.
        settings: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        processors = LogitsProcessorList([] if seeds is None else [_GumbelNoise(seeds)])
        with torch.inference_mode():
            ids = self.model.generate(
                **inputs,
                **settings,
                logits_processor=processors,
                max_new_tokens=self.max_new_tokens,
                repetition_penalty=1.0,
                num_beams=1,
            )
        written = ids[:, inputs["input_ids"].shape[1] :].tolist()
        read = inputs["attention_mask"].sum(dim=1).tolist()
        return [self._answer(row, tokens) for row, tokens in zip(written, read, strict=True)]

    def _conversation(self, question: Question) -> list[dict[str, Any]]:
        prompt = PROMPTS[question.form].format(text=plain_text(question.text, self._controls))
        if self.forms == TEXT_ONLY:
            return [{"role": "user", "content": prompt}]
        pictures: list[dict[str, Any]] = [{"type": "image", "image": image} for image in question.images]
        return [{"role": "user", "content": [*pictures, {"type": "text", "text": prompt}]}]

    def _answer(self, ids: list[int], prompt_tokens: int) -> Answer:
        ends = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        stop = next((place for place, token in enumerate(ids) if token in ends), None)
        text = self.tokenizer.decode(ids[:stop], skip_special_tokens=True)
        tokens = len(ids) if stop is None else stop + 1
        return Answer(text, stop is not None, prompt_tokens, tokens)


def load_writer(path: str, device: str | None = None, max_new_tokens: int = 128) -> ChatWriter:
    """Load a chat model: in bfloat16 on a GPU if available, otherwise in float32 on the CPU.

    Args:
        path: a folder or a hub id of a vision-language model or of a language model, or a GGUF file of a language model.
        device: the device. Default: a GPU if available.
        max_new_tokens: see `ChatWriter`.

    Raises:
        ValueError: the model does not exist, does not have a chat template, or needs a package that is not installed.

    Relations: the class of the model's configuration decides whether it reads pictures.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    source = source_of(path, "model")
    try:
        if type(AutoConfig.from_pretrained(**source)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            processor = _load_processor(path)
            model: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype)
        else:
            processor = AutoTokenizer.from_pretrained(**source)
            model = AutoModelForCausalLM.from_pretrained(**source, dtype=dtype)
    except (OSError, ImportError, ValueError) as error:
        raise OptionError(
            f"model: found {path!r}, which cannot be loaded ({error}); expected the folder or hub id of a chat model that "
            "AutoModelForImageTextToText or AutoModelForCausalLM supports, or a GGUF file"
        ) from error
    tokenizer = getattr(processor, "tokenizer", processor)
    if not (getattr(processor, "chat_template", None) or tokenizer.chat_template):
        raise OptionError(f"model: found {path!r} without a chat template; expected a chat model")
    return ChatWriter(model.to(device).eval(), processor, max_new_tokens, _revision(path))


def _revision(path: str) -> str:
    """Return the cached commit of a model on the Hub, or for a folder or file a digest of configuration and weights."""
    if Path(path).is_file():
        return _digest([Path(path)])
    if not Path(path).is_dir():
        cached = try_to_load_from_cache(path, "config.json")
        return Path(cached).parent.name if isinstance(cached, str) else ""
    return _digest(sorted([*Path(path).glob("config.json"), *Path(path).glob("*.safetensors")]))


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(file.name.encode() + stream.read(_READ_BYTES) + str(file.stat().st_size).encode())
    return digest.hexdigest()[:16]


def _load_processor(path: str) -> Any:
    """Load the processor. Without torchvision, load it without video support, which alone requires torchvision."""
    config = type(AutoConfig.from_pretrained(path))
    kind: Any = None if is_torchvision_available() else PROCESSOR_MAPPING.get(config, None)
    if kind is None or "video_processor" not in kind.get_attributes():
        return AutoProcessor.from_pretrained(path)

    class StillPictures(kind):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in kind.get_attributes() if name != "video_processor"]

    return StillPictures.from_pretrained(path)


def ask_about(row: ProductRow, form: str, images: Sequence[Image.Image] = ()) -> Question:
    """Return the question about a product in a form.

    Args:
        row: the product.
        form: "image" or "text" for its attributes; "title" for an enriched title.
        images: its opened pictures, for "image" and "title".
    """
    if form == "image":
        return Question(form, tuple(images))
    lines = [("Title", row.title), ("Category", " > ".join(row.category)), ("Description", row.description)]
    lines += [(key, ", ".join(values)) for key, values in row.attributes.items()]
    return Question(form, tuple(images), "\n".join(f"{name}: {value}" for name, value in lines if value))


def read_answer(answer: Answer) -> tuple[dict[str, tuple[str, ...]] | None, str]:
    """Return the attributes of an answer with MBE's keys, and "", or None and the problem.

    An answer is parsed like reasoning, by `processing_moon.read_reasoning`, after the thoughts of a thinking model (up
    to `</think>`). Several lines, with or without bullets, are joined. A value such as "unknown" is skipped. Any other
    text that is not an attribute makes the whole answer invalid, and the model is asked again.
    """
    text = answer.text.rpartition(THINK_END)[2]
    lines = [_BULLET.sub("", line).strip().strip(";") for line in text.splitlines()]
    body = "; ".join(line for line in lines if line)
    if not answer.finished:
        return None, "the answer was cut off before its end"
    if body.casefold().strip(" .") in _NOTHING:
        return {}, ""
    reading = read_reasoning(f"{THINK_START}{body}{THINK_END}")
    if not reading.well_formed:
        return None, "; ".join(reading.unparsed) or "the answer is empty"
    facts, unknown = facts_of(reading.attributes)
    if unknown:
        return None, f"unknown keys: {', '.join(unknown)}"
    for fact in facts:
        if len(fact.value.split()) > _LONGEST_VALUE:
            return None, f"a value of more than {_LONGEST_VALUE} words: {fact.value[:60]!r}"
    return as_attributes(fact for fact in facts if fact.cell.casefold().strip(" .") not in _NOTHING), ""


def read_title(answer: Answer) -> tuple[str | None, str]:
    """Return the title of an answer and "", or None and the problem.

    The title follows the thoughts of a thinking model (up to `</think>`). Quotation marks around it, and "Title:" before it, are
    left out. The facts of the title are checked by `product_data.co_augmentation.titles.TitleCheck`.
    """
    if not answer.finished:
        return None, "the answer was cut off before its end"
    lines = [line.strip() for line in answer.text.rpartition(THINK_END)[2].splitlines() if line.strip()]
    if len(lines) != 1:
        return None, f"the answer has {len(lines)} lines; expected one"
    title = _TITLE.sub("", lines[0]).strip().strip("\"'“”„«»*").strip()
    return (title, "") if title else (None, "the answer is empty")
