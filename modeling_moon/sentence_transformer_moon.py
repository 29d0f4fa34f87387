"""Use Moon as a module of sentence-transformers: encode text, pictures, queries and products, mixed in one call."""

from __future__ import annotations

import copy
import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import load_state_dict_from_file
from sentence_transformers.base.modules import InputModule
from transformers import AutoModel, AutoProcessor, GenerationConfig
from transformers.utils import cached_file, is_peft_available

# In the format of sentence-transformers' own module: tools that read a repository without loading it (mteb) see here that the
# model accepts pictures.
MODALITIES: dict[str, Any] = {
    "modality_config": {
        kind: {"method": "forward", "method_output_name": "embeddings"}
        for kind in ("text", "image", "image+text", "message")
    },
    "module_output_name": "sentence_embedding",
}
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_OUTPUT_LAYER = "lm_head.weight"
_UNDECODED = {"bytes", "path"}  # a picture as `datasets` stores it inside a record
# Keys of `processor_kwargs` besides the processor's own settings: where it is loaded from, padding, sizes of pictures.
_HUB = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)
_ALSO_ACCEPTED = {*_HUB, "code_revision", "padding_side", "min_pixels", "max_pixels", "size"}


class _Features(dict):
    """The features of a batch after the model; a name that Moon does not compute raises an explanation."""

    def __missing__(self, name: str) -> Any:
        raise ValueError(
            f"Moon computes one vector for each input, not {name!r}; expected output_value='sentence_embedding' or None. "
            "Hidden states are in encoder[0].model(**batch).last_hidden_state, for a batch of encoder[0].processor"
        )


class MoonTransformer(InputModule):
    """Read inputs with Moon's processor and write Moon's vectors to `sentence_embedding`.

    An input is a string (words; the path or URL of a picture is refused, see `refuse_picture_path`), a picture (PIL image or
    array of 3 dimensions), a query {"text", "image", "core_box", "id"} or a product {"title", "description", "images",
    "category", "attributes", "core_box", "id"}; a user's chat message is read as a query. A prompt of sentence-transformers is
    the instruction in the system message; without a prompt, a product gets the product instruction and any other input the
    query instruction.
    With `encode(…, reasoning="generate")`, a model that reasons (moon3) writes attributes before the vector is read, in the same
    pass; `thinking={"max_tokens": 16, "do_sample": True, …}` sets how. `reasoning="given"` uses each record's "reasoning".
    With `reasoning="auto", gallery=vectors, threshold=0.05`, only those inputs reason whose nearest gallery vector is uncertain
    (`MarginGate`); `output_value=None` then returns `reasoned` with each vector.

    Args:
        model: a `MoonModel`, or one inside a `PeftModel`.
        processor: its `MoonProcessor`.
        generation_config: the checkpoint's settings for text generation, which are saved with the weights. Default: neutral.
        output_layer: (vocabulary, H), for a model whose output layer is not its embedding matrix. It is kept for saving and
            for reasoning, outside the parameters. None: such a model is saved as an encoder, which cannot generate text.

    Relations: `AutoModel` and `AutoProcessor` compute the same vectors without sentence-transformers.
    """

    save_in_root = True
    config_file_name = "sentence_bert_config.json"
    forward_kwargs = {"reasoning", "thinking", "gallery", "threshold"}

    def __init__(
        self,
        model: torch.nn.Module,
        processor: Any,
        generation_config: GenerationConfig | None = None,
        output_layer: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.generation_config = generation_config
        if output_layer is not None:
            self.model._output_layer = [output_layer]  # where `MoonModel.writer` looks

    def __reduce__(self) -> tuple[Any, ...]:
        # Through a function, whose module another process can import: the class may have an alias, see modeling_moon/__init__.
        return _new_transformer, (), self.__getstate__()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set `model` for `auto_model`: torch would register a second module under the name of the property."""
        super().__setattr__("model" if name == "auto_model" else name, value)

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer.

        Raises:
            ValueError: (set) a different tokenizer: the processor uses the ids of this one.
        """
        return self.processor.tokenizer

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        if value is not self.processor.tokenizer:
            raise ValueError(
                f"tokenizer: found a different {type(value).__name__}; expected the processor's own, whose ids the model was "
                "trained with. For another processor, create a new module: MoonTransformer(model, processor)"
            )

    @property
    def auto_model(self) -> torch.nn.Module:
        """The `MoonModel`, under the name that it has in sentence-transformers' own module."""
        return self.model

    @property
    def modalities(self) -> list[Any]:
        # "message" lets inputs of several kinds share a batch.
        return ["text", "image", ("image", "text"), "message"]

    @property
    def max_seq_length(self) -> int:
        """Token budget of one input; pictures are reduced and text is shortened to it.

        Raises:
            ValueError: (set) not a whole number, or too few tokens for the shortest instruction and a token of text.
        """
        return self.processor.max_tokens

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        shortest = self.processor(
            records=[{"text": "a"}, {"description": "a"}], max_tokens=1 << 20, padding=False, return_tensors=None
        )
        least = min(len(ids) for ids in shortest["input_ids"])
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(
                f"max_seq_length: found {value!r}; expected a whole number of at least {least}: the tokens of instruction and "
                "template, and one of text"
            )
        self.processor.max_tokens = value

    def get_embedding_dimension(self) -> int:
        """Size of the vectors."""
        return self.model.config.vector_size

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        reasoning: str = "none",
        task: str | None = None,
        processing_kwargs: dict[str, dict[str, Any]] | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Convert inputs to tensors. If there are pictures, `num_images_per_sample` (B,) int64 is among them, by which the
        library's losses split a batch.

        Args:
            inputs: see the class.
            prompt: the instruction.
            reasoning: as in `forward`.
            task: with "document", a record without a query's fields is read as a product.
            processing_kwargs: options of Moon's processor for this call, in the library's groups "common", "text" and
                "image", between which Moon makes no difference: {"text": {"max_length": 128}, "image": {"max_image_tokens": 64}}.
            max_length: token budget of an input; the trainer passes that of its arguments.
            **kwargs: arguments of `forward`, which `encode` passes here as well.

        Raises:
            ValueError: `reasoning` other than "none" for a model that does not reason; an unknown argument or option.
            ProductError: an unsupported or unreadable input; the message has its index in the batch. sentence-transformers
                sorts inputs by length before it batches them; an "id" in each record identifies them.
        """
        unknown = sorted(set(kwargs) - self.forward_kwargs)
        if unknown:
            raise ValueError(
                f"{unknown[0]}={kwargs[unknown[0]]!r} is not known; expected one of task, processing_kwargs, max_length, "
                f"{', '.join(sorted(self.forward_kwargs))}"
            )
        if not inputs:
            return {}
        records = [self._record(source, place, task == "document") for place, source in enumerate(inputs)]
        options = {} if max_length is None else {"max_length": max_length}
        options |= _processor_options(processing_kwargs)
        if reasoning != "none":
            options["reasoning"] = "generate" if reasoning == "auto" else reasoning
        try:
            batch = dict(self.processor(records=records, instruction=prompt or None, return_tensors="pt", **options))
        except TypeError as error:  # the library would retry without the prompt
            raise ValueError(f"processing_kwargs: {error}") from error
        except ValueError as error:
            if getattr(error, "field", None) != "max_tokens":
                raise
            refused: Any = error  # a ProductError
            reason = refused.reason.replace("max_tokens", "max_seq_length")
            raise type(refused)(refused.item, "max_seq_length", reason) from error
        if "image_grid_thw" in batch:
            batch["num_images_per_sample"] = self._images_of_rows(batch["input_ids"])
        return batch

    def _images_of_rows(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the number of pictures (B,) in each row, including core crops."""
        start = self.tokenizer.convert_tokens_to_ids(self.processor.vision_start_token)
        opens_BT = (input_ids[:, :-1] == start) & (input_ids[:, 1:] == self.processor.image_token_id)
        return opens_BT.sum(dim=1)

    def _record(self, source: Any, place: int, is_document: bool) -> Any:
        """Return the product or query record of an input."""
        if isinstance(source, str):
            return self.processor.bare_query(source, place)
        if isinstance(source, dict) and set(source) == _UNDECODED:
            return {"image": _undecoded(source)}
        if isinstance(source, tuple) or (isinstance(source, list) and source and not isinstance(source[0], dict)):
            raise ValueError(
                f"input {place}: found a {type(source).__name__} of {len(source)}; expected one input at a time. Words with a "
                'picture are {"text": …, "image": …}; encode the two sides of a pair separately'
            )
        if isinstance(source, dict) and not {"role", "content"} <= set(source):
            source = {
                name: _undecoded(value) if name in ("image", "images") else value for name, value in source.items()
            }
            return source if not is_document or {"text", "image"} & set(source) else {"title": None, **source}
        if isinstance(source, dict | list):
            return _record_of_messages(source if isinstance(source, list) else [source])
        return {"image": source}

    def forward(
        self,
        features: dict[str, Any],
        reasoning: str = "none",
        thinking: dict[str, Any] | None = None,
        gallery: Any = None,
        threshold: float | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Add `sentence_embedding` (B, D) float32, each row of length 1, and `reasoned` (B,) bool to the features.

        Raises:
            ValueError: `reasoning`, `thinking`, `gallery` or `threshold` that `MoonModel.embed` does not accept.
        """
        tensors = {name: features[name] for name in self.processor.model_input_names if name in features}
        gate = {"gallery": gallery, "threshold": threshold}
        if reasoning in ("generate", "auto"):
            options = {"reasoning": reasoning, "processor": self.processor, "thinking": thinking}
            output = self.model.embed(tensors, **options, **gate)
            features |= {"sentence_embedding": output.embeddings, "reasoned": output.reasoned}
            return _Features(features)
        for name, value in gate.items():
            if value is not None:
                raise ValueError(f"{name}= was given with reasoning={reasoning!r}; expected with reasoning='auto'")
        features["sentence_embedding"] = self.model(**tensors, output_embeddings=True, return_dict=True).embeddings
        features["reasoned"] = torch.full_like(tensors["input_ids"][:, 0], reasoning == "given", dtype=torch.bool)
        return _Features(features)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the content of `sentence_bert_config.json`: the kinds of input, and an adapter's name."""
        adapters = getattr(self.model, "peft_config", None)
        return MODALITIES if not adapters else {**MODALITIES, "adapter_name": next(iter(adapters))}

    def _with_output_layer(self, encoder: Any) -> Any:
        """Return the encoder with its output layer; the encoder alone if the output layer is unknown."""
        if encoder.config.tie_word_embeddings:
            weight = encoder.get_input_embeddings().weight
        elif getattr(encoder, "_output_layer", None):
            weight = encoder._output_layer[0].to(encoder.dtype)
        else:
            return encoder
        whole = sys.modules[type(encoder).__module__].MoonForConditionalGeneration.around(encoder, weight)
        whole.generation_config = self.generation_config or whole.generation_config
        return whole

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write model and processor with the code that loads them. Nothing is read from the folder that the model came from.

        An adapter (of `add_adapter`, or a `PeftModel` as the model) is written beside the unchanged weights that it was trained
        on: `SentenceTransformer`, `AutoModel` and `AutoModelForImageTextToText` load both from the folder, and peft loads the
        adapter alone (`PeftModel.from_pretrained(model, folder)`).

        Raises:
            ValueError: several adapters; a merged adapter; an adapter outside the layers (prompt tuning); quantised weights
                under an adapter.
        """
        encoder, adapters = _inner(self.model), getattr(self.model, "peft_config", None) or {}
        if adapters:
            _refuse_adapters(encoder, adapters)
        whole = self._with_output_layer(encoder)
        weights = _weights_without_adapter(whole)
        for name in _ADAPTER_FILES:  # of an earlier save
            Path(output_path, name).unlink(missing_ok=True)
        with _writing_adapter(encoder, False):
            whole.save_pretrained(output_path, state_dict=weights)
        if adapters:
            with _writing_adapter(encoder, True):
                self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)
        self.save_config(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        *,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> MoonTransformer:
        """Load model and processor; `subfolder`, `token`, `revision`, `local_files_only` as in the library.

        Settings of `model_kwargs`, `config_kwargs` and `processor_kwargs` take precedence over those of the call.

        Raises:
            ValueError: a folder with an adapter but without a model; an adapter without peft installed; a backend other than
                "torch"; `processor_kwargs` that the processor does not have.
        """
        folder = Path(model_name_or_path, kwargs.get("subfolder") or "")
        if (folder / "adapter_config.json").is_file():
            if not (folder / "config.json").is_file():
                raise ValueError(
                    f"{folder} holds an adapter without its base and its processor; expected the whole model, which training "
                    f"writes to {folder.absolute().parent / 'final'} with the adapter merged"
                )
            if not is_peft_available():
                raise ValueError(f"{folder} holds an adapter, which needs peft; install peft")
        hub = {
            name: kwargs[name] for name in ("subfolder", "token", "revision", "local_files_only") if kwargs.get(name)
        }
        if kwargs.get("cache_folder"):
            hub["cache_dir"] = kwargs["cache_folder"]
        if kwargs.get("backend", "torch") != "torch":
            raise ValueError(f"backend: found {kwargs['backend']!r}; expected 'torch'")
        adapter = cls.load_config(
            model_name_or_path, **{"cache_folder" if k == "cache_dir" else k: v for k, v in hub.items()}
        ).get("adapter_name")
        named = {} if adapter is None else {"adapter_name": adapter}
        for_model = {**hub, "trust_remote_code": trust_remote_code, **(config_kwargs or {}), **(model_kwargs or {})}
        for_processor = {**hub, "trust_remote_code": trust_remote_code, **(processor_kwargs or {})}
        processor = AutoProcessor.from_pretrained(model_name_or_path, **for_processor)
        _refuse_unknown_settings(processor, processor_kwargs or {})
        model = AutoModel.from_pretrained(model_name_or_path, **named, **for_model)
        where = {name: for_model[name] for name in _HUB if name in for_model and name != "trust_remote_code"}
        tied = model.config.tie_word_embeddings
        output_layer = None if tied else _stored_output_layer(model_name_or_path, where)
        return cls(model, processor, _stored_generation_config(model_name_or_path, where), output_layer)


def _new_transformer() -> MoonTransformer:
    return MoonTransformer.__new__(MoonTransformer)


def _stored_generation_config(checkpoint: str, where: dict[str, Any]) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(checkpoint, **where)
    except OSError:  # a checkpoint without one
        return None


def _stored_output_layer(checkpoint: str, where: dict[str, Any]) -> torch.Tensor | None:
    """Load the untied output layer (vocabulary, H) of a checkpoint, without its other weights; return None if it has none."""
    where = {**where, "_raise_exceptions_for_missing_entries": False}
    name: str | None = "model.safetensors"
    index = cached_file(checkpoint, f"{name}.index.json", **where)
    if index is not None:
        name = json.loads(Path(index).read_text())["weight_map"].get(_OUTPUT_LAYER)
    file = None if name is None else cached_file(checkpoint, name, **where)
    if file is None:
        return None
    stored = load_state_dict_from_file(file).get(_OUTPUT_LAYER)  # memory-mapped: only the copy takes memory
    return None if stored is None else stored.clone()


def _refuse_unknown_settings(processor: Any, given: dict[str, Any]) -> None:
    settings = [*inspect.signature(type(processor)).parameters]
    for name in sorted(set(given) - _ALSO_ACCEPTED - set(settings)):
        hint = " (the token budget is max_tokens)" if name in ("model_max_length", "max_length") else ""
        raise ValueError(
            f"processor_kwargs (tokenizer_kwargs): {name}={given[name]!r} is not a setting of Moon's processor{hint}; expected "
            f"{', '.join([*settings, *sorted(_ALSO_ACCEPTED)])}"
        )


def _processor_options(groups: dict[str, dict[str, Any]] | None) -> dict[str, Any]:
    """Convert the library's `processing_kwargs` to options of Moon's processor."""
    options: dict[str, Any] = {}
    for group, values in (groups or {}).items():
        if group not in ("common", "text", "image"):
            raise ValueError(
                f"processing_kwargs: group {group!r} is not known; expected one of 'common', 'text', 'image'"
            )
        options |= values
    for name in ("return_tensors", "instruction", "on_error", "reasoning", "truncation"):
        if name in options:
            raise ValueError(
                f"processing_kwargs: {name} is not an option of this call; expected options of Moon's processor such as "
                "max_length, max_image_tokens, core_crop and padding. Inputs are always cut to the token budget"
            )
    return options


def _inner(model: Any) -> Any:
    """Return the `MoonModel` inside a `PeftModel`; any other model unchanged."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _refuse_adapters(encoder: torch.nn.Module, adapters: dict[str, Any]) -> None:
    if len(adapters) > 1:
        raise ValueError(
            f"found {len(adapters)} adapters ({', '.join(adapters)}); expected one, which is all that a checkpoint can hold: "
            "call delete_adapter for the others"
        )
    name, config = next(iter(adapters.items()))
    if getattr(config, "is_prompt_learning", False):
        raise ValueError(
            f"adapter {name!r} is {config.peft_type.value}, which sentence-transformers cannot load again; expected an "
            "adapter inside the layers, such as LoRA. To save this one, call PeftModel.save_pretrained"
        )
    if any(getattr(module, "merged", False) is True for module in encoder.modules()):
        raise ValueError(
            f"adapter {name!r} is merged into the weights and would be added again on loading; call unmerge_adapter first, or "
            "save the model that merge_and_unload returns"
        )


@contextmanager
def _writing_adapter(encoder: Any, wanted: bool) -> Iterator[None]:
    """Make `save_pretrained` of transformers write the adapter alone, or everything except the adapter."""
    before = encoder._hf_peft_config_loaded
    encoder._hf_peft_config_loaded = wanted
    try:
        yield
    finally:
        encoder._hf_peft_config_loaded = before


def _weights_without_adapter(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """Return the weights under an adapter with their names without it; None if no layer is wrapped."""
    wrapped = re.compile(r"\.(base_layer|original_module)(?=\.)")
    state = model.state_dict()
    if not any(wrapped.search(name) for name in state):
        return None
    with torch.device("meta"):
        plain = type(model)(copy.deepcopy(model.config)).state_dict()
    unwrapped = {wrapped.sub("", name): value for name, value in state.items()}
    odd = [name for name, value in plain.items() if name not in unwrapped or unwrapped[name].shape != value.shape]
    if odd:
        raise ValueError(
            f"weights under the adapter cannot be written, among them {odd[0]} (quantised, or wrapped by another tool); "
            "expected an adapter on unquantised weights, or encoder[0].model.save_pretrained, which writes the adapter alone"
        )
    return {name: unwrapped[name] for name in plain}


def _undecoded(picture: Any) -> Any:
    """Return the bytes or the path of a picture that `datasets` has not decoded, or of each picture of a list."""
    if isinstance(picture, list):
        return [_undecoded(entry) for entry in picture]
    if isinstance(picture, dict) and set(picture) == _UNDECODED:
        return picture["path"] if picture["bytes"] is None else picture["bytes"]
    return picture


def _record_of_messages(messages: list[Any]) -> dict[str, Any]:
    """Return the query that a user message contains."""
    if len(messages) != 1 or not isinstance(messages[0], dict) or messages[0].get("role") != "user":
        raise ValueError(
            "a chat is read as a query: expected one message of role 'user'; pass an instruction as prompt="
        )
    content = messages[0].get("content")
    record: dict[str, Any] = {}
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or []:
        kind = part.get("type")
        if kind not in ("text", "image") or kind in record:
            raise ValueError(f"a user message has a part of type {kind!r}; expected one 'text' and one 'image'")
        record[kind] = part[kind]
    return record
