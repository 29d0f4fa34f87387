"""Encode a batch from the collator: the vectors of queries and products and of their forms, and the router's
statistics.

Shape suffixes: B queries, N products, R rows of one form, D embedding width, L mixture layers, E experts.
"""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from retrieval.encode import vectors_of
from training.encoding.chunked_encoding import Vectors, images_per_row, number_of_rows, slice_rows
from training.encoding.shared_pictures import SharedPictures, vision_tower
from training.encoding.student_states import TowerOutput, is_state, picture_states, state_name, word_states

SIDES = ("queries", "products")
SINGLE_FORMS = ("t", "i")
ROUTER = "router"
CROSS_ENTROPY, RIGHT_TOKENS, WRITTEN_TOKENS = "cross_entropy", "right_tokens", "written_tokens"
REASONED_ROWS = "reasoned_rows"
SUMS = (ROUTER, CROSS_ENTROPY, RIGHT_TOKENS, WRITTEN_TOKENS, REASONED_ROWS)
"""Names of outputs that are one number for each forward pass, not a vector for each row."""


@dataclass
class BatchPart:
    """A part of a batch: queries or products, in all forms in which they are encoded.

    Args:
        side: "queries" or "products".
        inputs: the processor's tensors of the queries or products with all that they contain.
        forms: "t", "i" → the rows (ascending) that have text and image, and the processor's tensors of these rows in
            that form.
    """

    side: str
    inputs: dict[str, Tensor]
    forms: dict[str, tuple[Tensor, dict[str, Tensor]]] = field(default_factory=dict)


def parts_of(batch: Mapping[str, Any], chunk_size: int | None = None, forms: bool = False) -> list[BatchPart]:
    """Split a batch into parts of queries and parts of products.

    Args:
        batch: a batch from `training.batches.collate.PairCollator`: "queries", "products", and with forms "query_forms"
            and "product_forms", each {"t": {"rows", "inputs"}, "i": {…}}, with inputs None if no row has text and
            image.
        chunk_size: the largest number of rows of a part. None: one part for all queries and one for all products.
        forms: whether to include the forms.

    Raises:
        ValueError: `forms` is True and the batch has none.
    """
    parts: list[BatchPart] = []
    for side in SIDES:
        whole = BatchPart(side, dict(batch[side]), _forms_of(batch, side) if forms else {})
        rows = number_of_rows(whole.inputs)
        size = rows if chunk_size is None else chunk_size
        parts += [whole] if size >= rows else [_cut(whole, start, start + size) for start in range(0, rows, size)]
    return parts


def _forms_of(batch: Mapping[str, Any], side: str) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    key = {"queries": "query_forms", "products": "product_forms"}[side]
    if key not in batch:
        raise ValueError(f"batch: found no {key!r}; expected a collator that makes the forms of queries and products")
    forms = {name: batch[key][name] for name in SINGLE_FORMS}
    return {name: (form["rows"], dict(form["inputs"])) for name, form in forms.items() if len(form["rows"])}


def _cut(part: BatchPart, start: int, stop: int) -> BatchPart:
    count = number_of_rows(part.inputs)
    forms = {}
    for name, (form_rows, inputs) in part.forms.items():
        here = ((form_rows >= start) & (form_rows < stop)).nonzero()[:, 0]
        if len(here):
            forms[name] = (form_rows[here] - start, slice_rows(inputs, int(here[0]), int(here[-1]) + 1))
    return BatchPart(part.side, slice_rows(part.inputs, start, min(stop, count)), forms)


class BatchEncoder:
    """Encode parts of a batch. Each picture runs through the vision tower once, whatever the number of forms.

    Args:
        model: the model. Its forward returns `.embeddings`, and optionally `.sums` (name of SUMS → (1,)).
        tower: the vision tower of the model, see `training.encoding.shared_pictures.vision_tower`. None: each form runs
            its pictures through the tower.
        router_loss: whether to return the model's `.router_loss`.
        expert_gates: whether to return the model's `.expert_gates` of queries.
        states: names of further states to return, see `training.encoding.student_states.state_name`.

    Shapes:
        Called with a `BatchPart`, it returns by name: "queries" or "products" (rows, D); "queries/t", "queries/i", …
        (R, D); with expert_gates "queries/gates", "queries/t/gates", … (rows, L, E); with states
        "products/pictures", "queries/words", … (rows, H); with router_loss "router"
        (forward passes,), L_aux of each pass times its rows; the model's sums (forward passes,) by their names.
    """

    def __init__(
        self,
        model: nn.Module,
        tower: nn.Module | None,
        router_loss: bool = False,
        expert_gates: bool = False,
        states: Collection[str] = (),
    ) -> None:
        self.model, self.tower = model, tower
        self.router_loss, self.expert_gates = router_loss, expert_gates
        self.states = frozenset(name for name in states if is_state(name))

    def __call__(self, part: BatchPart) -> Vectors:
        vectors: Vectors = {}
        share = "i" in part.forms and self.tower is not None
        with SharedPictures(self.tower) if share else contextlib.nullcontext() as pictures:  # type: ignore[arg-type]
            if any(name.startswith(part.side) for name in self.states):
                self._encode_with_states(part.side, part.inputs, vectors)
            else:
                self._encode(part.side, part.inputs, vectors)
            for name, (rows, inputs) in part.forms.items():
                if name == "i" and pictures is not None:
                    places = _places(part.inputs, rows)
                    # Next to a long text, a picture can be smaller than alone; then it runs through the tower again.
                    if torch.equal(part.inputs["image_grid_thw"][places], inputs["image_grid_thw"]):
                        pictures.reuse(places)
                self._encode(f"{part.side}/{name}", inputs, vectors)
        return vectors

    def _encode_with_states(self, side: str, inputs: dict[str, Tensor], vectors: Vectors) -> None:
        pictures, words = state_name(side, "i"), state_name(side, "t")
        tower = vision_tower(self.model) if pictures in self.states else None
        with contextlib.nullcontext() if tower is None else TowerOutput(tower) as seen:
            last_BTH = self._encode(side, inputs, vectors).last_hidden_state
        if seen is not None:
            vectors[pictures] = picture_states(seen.merged, inputs, last_BTH.shape[-1])
        if words in self.states:
            vectors[words] = word_states(last_BTH, inputs)

    def _encode(self, name: str, inputs: dict[str, Tensor], vectors: Vectors) -> Any:
        stats = {"output_router_stats": True} if self.router_loss or self.expert_gates else {}
        output = self.model(**inputs, **stats)
        vectors[name] = vectors_of(output)
        if self.expert_gates and name.startswith("queries"):
            vectors[f"{name}/gates"] = output.expert_gates
        sums = dict(getattr(output, "sums", {}))
        if self.router_loss:
            sums[ROUTER] = (output.router_loss * len(output.embeddings)).reshape(1)
        for kind, value in sums.items():
            vectors[kind] = torch.cat([vectors[kind], value]) if kind in vectors else value
        return output


def encoded_rows(vectors: Vectors) -> int:
    """Return the number of encoded rows; each form of a query or product counts as a row."""
    return sum(
        len(tensor)
        for name, tensor in vectors.items()
        if name not in SUMS and not name.endswith("/gates") and not is_state(name)
    )


def _places(inputs: dict[str, Tensor], rows: Tensor) -> list[int]:
    """Return the indices of the selected rows' pictures among all pictures."""
    image_B = images_per_row(inputs)
    row_G = torch.repeat_interleave(torch.arange(len(image_B), device=image_B.device), image_B)
    return torch.isin(row_G, rows).nonzero()[:, 0].tolist()
