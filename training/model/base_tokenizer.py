"""Give a language model's tokenizer the tokens and the chat template that a vision-language model needs."""

from __future__ import annotations

from typing import Any

from jinja2.exceptions import TemplateError
from transformers import AddedToken

from training.model.donor import DonorError
from training.model.small_base import CHAT_TEMPLATE

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
_CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
_PADDING = "<|endoftext|>"
# Joins the parts of a message into one string, a picture as its placeholder; the line break after it is not rendered.
_JOIN_PARTS = """\
{%- set joined = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is defined and message['content'] is sequence and message['content'] is not string -%}
{%- set written = namespace(text='') -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part -%}
{%- set written.text = written.text + '<|vision_start|><|image_pad|><|vision_end|>' -%}
{%- elif part['type'] == 'video' or 'video' in part -%}
{%- set written.text = written.text + '<|vision_start|><|video_pad|><|vision_end|>' -%}
{%- elif 'text' in part -%}
{%- set written.text = written.text + part['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- set joined.messages = joined.messages + [dict(message, content=written.text)] -%}
{%- else -%}
{%- set joined.messages = joined.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = joined.messages %}
"""
_CLOCK = "strftime_now"
_SLOT = "a text"


def prepare_tokenizer(tokenizer: Any, name: str) -> list[str]:
    """Add what a Qwen2.5-VL processor needs to a tokenizer: vision tokens, a padding token, pictures in its chat template.

    The template stays as it is and follows a step that joins the parts of a message into one string, so conversations of
    strings are rendered as before (our design). A tokenizer without a chat template receives that of Qwen, without its
    default system message. All ids stay unchanged.

    Args:
        tokenizer: the tokenizer, which is changed.
        name: the name of the model, for error messages.

    Returns:
        The tokens that are new.

    Raises:
        DonorError: the chat template reads the clock, rejects a system message, or drops or repeats text or pictures.
    """
    known = tokenizer.get_vocab()
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    tokens = [*VISION_TOKENS, *(() if template else _CHAT_TOKENS)]
    if tokenizer.pad_token_id is None:
        tokens.append(_PADDING)
    for token in tokens:
        if token not in tokenizer.get_added_vocab():
            tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = _PADDING
    tokenizer.padding_side = "left"
    tokenizer.chat_template = _JOIN_PARTS + template if template else CHAT_TEMPLATE
    _check_template(tokenizer, name)
    return [token for token in tokens if token not in known]


def _check_template(tokenizer: Any, name: str) -> None:
    place = f"--text {name}: chat template"
    advice = (
        "expected a template of system, user and assistant messages; save the tokenizer with another one in a folder"
    )
    if _CLOCK in tokenizer.chat_template:
        raise DonorError(
            f"{place}: found {_CLOCK}, which would change each vector with the date; expected a template without a clock; "
            "save the tokenizer with one in a folder"
        )
    content = [{"type": "image"}, {"type": "text", "text": _SLOT}]
    messages = [{"role": "system", "content": "An instruction."}, {"role": "user", "content": content}]
    try:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise DonorError(f"{place}: cannot render a system and a user message ({error}); {advice}") from error
    if prompt.count(_SLOT) != 1 or prompt.count("<|image_pad|>") != 1:
        raise DonorError(f"{place}: found a template that drops or repeats text or pictures; {advice}")
