"""Any model of sentence-transformers: text models embed texts, multimodal ones pictures too (`sentence_transformer=PLACE`).

Queries are embedded as `SentenceTransformer.encode_query` does, products and label texts as `encode_document`, with the prompts
that the model brings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from evaluation.baselines.peers import (
    TOWERS_NOTE,
    Peer,
    PeerConfig,
    PeerOutput,
    PeerProcessor,
    PeerRow,
    towers_mean,
)
from processing_moon import Shortened
from retrieval.model_kinds import KINDS, ModelKind

JOINT = ("image", "text")
JOINT_NOTE = "one input with the text and the pictures"
# The prompts that sentence-transformers looks for, by its task.
PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}


class SentenceTransformerProcessor(PeerProcessor):
    """Texts and pictures as features of a `SentenceTransformer`.

    A batch has up to three groups of inputs: texts, pictures, and texts with pictures where the model embeds both together.

    Args:
        model: the `SentenceTransformer`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__("sentence_transformer", reads_pictures=model.supports("image"))
        self.model, self.is_joint = model, model.supports(JOINT)

    def prompt(self, task: str) -> str | None:
        """Return the model's prompt for a task, "query" or "document", or its default prompt."""
        name = next((name for name in PROMPTS[task] if name in self.model.prompts), self.model.default_prompt_name)
        return self.model.prompts.get(name) if name is not None else None

    def tensors(self, rows: Sequence[PeerRow], shortened: list[Shortened]) -> Mapping[str, Any]:
        """Return the features of each group under "group/modality/name", and the rows that they belong to.

        sentence-transformers does not say which texts it cuts.
        """
        task = "query" if rows[0].side == "query" else "document"
        inputs: dict[str, list[Any]] = {"joint": [], "text": [], "picture": []}
        places: dict[str, list[int]] = {"joint": [], "text": [], "picture": []}

        def add(group: str, row: int, value: Any) -> None:
            inputs[group].append(value)
            places[group].append(row)

        for number, row in enumerate(rows):
            if row.pictures and self.is_joint:
                add("joint", number, self._joint(row))
                continue
            if row.text:
                # A dictionary, since a string that looks like the path of a picture would be opened.
                add("text", number, {"text": row.text} if self.reads_pictures else row.text)
            for picture in row.pictures:
                add("picture", number, picture)
        tensors = {f"{group}_row": torch.tensor(found, dtype=torch.int64) for group, found in places.items()}
        tensors["rows"] = torch.arange(len(rows))
        tensors["is_query"] = torch.tensor(task == "query")
        for group, values in inputs.items():
            if values:
                tensors |= self._features(group, values, task)
        return tensors

    def _joint(self, row: PeerRow) -> Any:
        """A picture and a text as one input; several pictures as a message."""
        if len(row.pictures) == 1:
            picture: Image.Image = row.pictures[0]
            return {"image": picture, "text": row.text} if row.text else picture
        content = [{"type": "image", "image": picture} for picture in row.pictures]
        content += [{"type": "text", "text": row.text}] if row.text else []
        return {"role": "user", "content": content}

    def _features(self, group: str, values: list[Any], task: str) -> dict[str, torch.Tensor]:
        features = self.model.preprocess(values, prompt=self.prompt(task), task=task)
        modality = features.pop("modality", "text")
        modality = modality if isinstance(modality, str) else "+".join(modality)
        return {f"{group}/{modality}/{name}": torch.as_tensor(value) for name, value in features.items()}


class SentenceTransformerPeer(Peer):
    """A `SentenceTransformer`; where it does not embed text and picture together, "mm" is the mean of unit vectors.

    Args:
        config: PeerConfig.
        model: the `SentenceTransformer`.
    """

    def forward(self, rows: torch.Tensor, is_query: torch.Tensor, **inputs: torch.Tensor) -> PeerOutput:
        """Embed a batch of `SentenceTransformerProcessor`."""
        task = "query" if bool(is_query) else "document"
        found = {group: self._group(group, inputs, task) for group in ("joint", "text", "picture")}
        places = {"rows": rows, "text_row": inputs["text_row"], "picture_row": inputs["picture_row"]}
        vector_BD = torch.zeros(len(rows), self.config.vector_size, device=rows.device)
        if found["text"] is not None or found["picture"] is not None:
            vector_BD = towers_mean(found["text"], found["picture"], places)
        if found["joint"] is not None:
            vector_BD = vector_BD.index_add(0, inputs["joint_row"], found["joint"].float())
        return PeerOutput(vector_BD)

    def _group(self, group: str, inputs: Mapping[str, torch.Tensor], task: str) -> torch.Tensor | None:
        names = [name for name in inputs if name.startswith(f"{group}/")]
        if not names:
            return None
        modality = names[0].split("/")[1]
        # What is not a tensor in sentence-transformers' features, such as the length of the prompt, became one of no axes.
        features: dict[str, Any] = {
            name.split("/", 2)[2]: inputs[name] if inputs[name].ndim else inputs[name].item() for name in names
        }
        features["modality"] = tuple(modality.split("+")) if "+" in modality else modality
        vector_ND = self.model(features, task=task)["sentence_embedding"]
        return vector_ND if self.model.truncate_dim is None else vector_ND[:, : self.model.truncate_dim]


def load(place: str, dtype: Any = "auto") -> tuple[SentenceTransformerPeer, SentenceTransformerProcessor]:
    """Load a model of sentence-transformers.

    Args:
        place: folder or hub id.
        dtype: of the weights; "auto" is that of the checkpoint.

    Raises:
        OSError: no such folder or hub id.
    """
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(place, device="cpu", model_kwargs={"dtype": dtype})
    processor = SentenceTransformerProcessor(model)
    prompts = {task: processor.prompt(task) for task in PROMPTS}
    joined = JOINT_NOTE if processor.is_joint else TOWERS_NOTE
    recipe: dict[str, Any] = {"mm": joined if processor.reads_pictures else None, "instruction": prompts}
    recipe |= {"max_tokens": model.max_seq_length, "reads_pictures": processor.reads_pictures}
    own = getattr(getattr(model[0], "auto_model", None), "config", None)
    size = int(model.encode(["a"]).shape[1])
    config = PeerConfig("sentence_transformer", size, recipe, {} if own is None else own.to_dict())
    return SentenceTransformerPeer(config, model), processor


KINDS["sentence_transformer"] = ModelKind(load)
