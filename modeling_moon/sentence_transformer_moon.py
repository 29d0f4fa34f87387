"""Moon as a module of sentence-transformers: text, pictures, {"image", "text"} queries and products, mixed in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import InputModule
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor


class MoonTransformer(InputModule):
    """Reads records with Moon's processor and writes Moon's vectors to `sentence_embedding`.

    An input is a string (words; one that as a whole, without a space, is a picture's path or address is refused, see
    `refuse_picture_path`), a picture (PIL image or array of 3 dimensions), a query {"text", "image", "core_box", "id"} or a
    product {"title", "description", "images", "category", "attributes", "core_box", "id"}; a chat message of a user is read
    as a query. A prompt of sentence-transformers is the instruction of the system message; without one, a product gets the
    product instruction and everything else the query instruction.
    `encode(…, reasoning="generate")` lets a model that reasons (moon3) write attributes before the vector is read, in the same
    pass; `thinking={"max_tokens": 16, "do_sample": True, …}` says how. `reasoning="given"` takes each record's "reasoning".
    `reasoning="auto", gallery=vectors, threshold=0.05` lets only those reason whose vector is else unsure what in the gallery it
    is nearest to (`MarginGate`); `output_value=None` then tells of each, besides its vector, whether it `reasoned`.

    Args:
        model: a `MoonModel`.
        processor: its `MoonProcessor`.
        source: (checkpoint, loading arguments) that the model came from: saving takes the output layer and the generation
            settings from there, so that the saved checkpoint still writes text. None: only the encoder is saved.

    Relations: `AutoModel` and `AutoProcessor` give the same vectors without sentence-transformers.
    """

    save_in_root = True
    forward_kwargs = {"reasoning", "thinking", "gallery", "threshold"}

    def __init__(
        self, model: torch.nn.Module, processor: Any, source: tuple[str, dict[str, Any]] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.source = source

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def auto_model(self) -> torch.nn.Module:
        """The `MoonModel`, under the name that sentence-transformers' own module has for it."""
        return self.model

    @property
    def modalities(self) -> list[Any]:
        # "message" lets inputs of several kinds share a batch.
        return ["text", "image", ("image", "text"), "message"]

    @property
    def max_seq_length(self) -> int:
        """Token budget of one input; pictures are reduced and text is shortened to it.

        Raises:
            ValueError: (set) no whole number, or one that leaves no token for text beside the shortest instruction.
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
                f"max_seq_length: found {value!r}; accepted: a whole number of at least {least}, the tokens of instruction and "
                "template and one of text"
            )
        self.processor.max_tokens = value

    def get_embedding_dimension(self) -> int:
        """Size of the vectors."""
        return self.model.config.vector_size

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, reasoning: str = "none", **kwargs: Any
    ) -> dict[str, Any]:
        """Inputs to tensors. Where `task` is "document", a record without a query's fields is read as a product.

        Raises:
            ValueError: another reasoning than "none" for a model that does not reason.
            ProductError: an input that is not of the kinds above, or cannot be read, named by its place in the batch.
                sentence-transformers sorts by length before it batches: give records an "id" to find them again.
        """
        if not inputs:
            return {}
        is_document = kwargs.get("task") == "document"
        records = [self._record(item, place, is_document) for place, item in enumerate(inputs)]
        options = {} if reasoning == "none" else {"reasoning": "generate" if reasoning == "auto" else reasoning}
        try:
            return dict(self.processor(records=records, instruction=prompt or None, return_tensors="pt", **options))
        except ValueError as error:
            if getattr(error, "field", None) != "max_tokens":
                raise
            refused: Any = error  # a ProductError
            reason = refused.reason.replace("max_tokens", "max_seq_length")
            raise type(refused)(refused.item, "max_seq_length", reason) from error

    def _record(self, item: Any, place: int, is_document: bool) -> Any:
        if isinstance(item, str):
            return self.processor.bare_query(item, place)
        if isinstance(item, dict) and not {"role", "content"} <= set(item):
            return item if not is_document or {"text", "image"} & set(item) else {"title": None, **item}
        if isinstance(item, dict | list):
            return _record_of_messages(item if isinstance(item, list) else [item])
        return {"image": item}

    def forward(
        self,
        features: dict[str, Any],
        reasoning: str = "none",
        thinking: dict[str, Any] | None = None,
        gallery: Any = None,
        threshold: float | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Adds `sentence_embedding` (B, D) float32, each row of length 1, and `reasoned` (B,) bool to the features.

        Raises:
            ValueError: another kind of reasoning, of thinking, of gallery or of threshold than `MoonModel.embed` takes.
        """
        tensors = {name: features[name] for name in self.processor.model_input_names if name in features}
        gate = {"gallery": gallery, "threshold": threshold}
        if reasoning in ("generate", "auto"):
            options = {"reasoning": reasoning, "processor": self.processor, "thinking": thinking}
            found = self.model.embed(tensors, **options, **gate)
            features["sentence_embedding"], features["reasoned"] = found.embeddings, found.reasoned
            return features
        for name, value in gate.items():
            if value is not None:
                raise ValueError(f"{name}= was given with reasoning={reasoning!r}; accepted: with reasoning='auto'")
        features["sentence_embedding"] = self.model(**tensors, output_embeddings=True, return_dict=True).embeddings
        features["reasoned"] = torch.full_like(tensors["input_ids"][:, 0], reasoning == "given", dtype=torch.bool)
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes model and processor with the code that loads them."""
        if self.source is None:
            self.model.save_pretrained(output_path)
        else:
            checkpoint, hub = self.source
            whole = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=self.model.dtype, **hub)
            whole.model, whole.config = self.model, self.model.config
            whole.tie_weights()  # to the embeddings of this model, which may have been trained
            whole.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

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
        """Loads model and processor; `subfolder`, `token`, `revision`, `local_files_only` as in the library.

        Raises:
            ValueError: a folder that holds an adapter alone; another backend than "torch".
        """
        folder = Path(model_name_or_path, kwargs.get("subfolder") or "")
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise ValueError(
                f"{folder} holds an adapter without its base and its processor; accepted: the whole model, which training "
                f"writes to {folder.absolute().parent / 'final'} with the adapter merged"
            )
        hub = {
            name: kwargs[name] for name in ("subfolder", "token", "revision", "local_files_only") if kwargs.get(name)
        }
        if kwargs.get("cache_folder"):
            hub["cache_dir"] = kwargs["cache_folder"]
        if kwargs.get("backend", "torch") != "torch":
            raise ValueError(f"Moon has no backend {kwargs['backend']!r}; accepted: 'torch'")
        hub["trust_remote_code"] = trust_remote_code
        settings = {**(config_kwargs or {}), **(model_kwargs or {})}
        model = AutoModel.from_pretrained(model_name_or_path, **hub, **settings)
        processor = AutoProcessor.from_pretrained(model_name_or_path, **hub, **(processor_kwargs or {}))
        return cls(model, processor, source=(model_name_or_path, hub))


def _record_of_messages(messages: list[Any]) -> dict[str, Any]:
    """The query that one user message holds."""
    if len(messages) != 1 or not isinstance(messages[0], dict) or messages[0].get("role") != "user":
        raise ValueError(
            "a chat is read as a query: accepted is one message of role 'user'; pass an instruction as prompt="
        )
    content = messages[0].get("content")
    record: dict[str, Any] = {}
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or []:
        kind = part.get("type")
        if kind not in ("text", "image") or kind in record:
            raise ValueError(f"a user message has a part of type {kind!r}; accepted: one 'text' and one 'image'")
        record[kind] = part[kind]
    return record
