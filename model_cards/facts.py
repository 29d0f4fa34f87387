"""The facts that a card shows, as plain data in `model_card.json` beside the weights."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

FACTS_FILE = "model_card.json"
README_FILE = "README.md"
RANDOM_TAG = "random-weights"
"""The tag of a README.md beside weights that nobody trained."""
NOTES = ("what", "loading", "data", "making", "results", "limits")
"""The sections of a card that notes can belong to."""


class CardError(ValueError):
    """Raised if a card cannot be written, or a checkpoint cannot be published."""

    exit_status = 2


@dataclass(frozen=True)
class Licence:
    """The licence of weights.

    Args:
        id: an identifier from the hub; `None` if no licence is declared.
        name: with "other", the name of the licence.
        link: with "other", a file of the checkpoint or a URL with its text.
    """

    id: str | None = None
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Base:
    """The model that the weights started from.

    Args:
        name: name of the model.
        hub_id: its id on the hub, if it was loaded from there.
        licence: licence of its weights.
        random: whether its weights were random.
    """

    name: str
    hub_id: str | None = None
    licence: Licence = field(default_factory=Licence)
    random: bool = False


@dataclass(frozen=True)
class DataSet:
    """A data set that weights were trained on.

    Args:
        name: its name in results and recipes.
        licence: an identifier from the hub, or a word of `model_cards.licences.DECLARED`; `None` if no licence is declared.
        hub_id: its id on the hub, if it was read from there.
    """

    name: str
    licence: str | None = None
    hub_id: str | None = None


@dataclass(frozen=True)
class Step:
    """One step in the making of the weights.

    Args:
        kind: "upcycling", "training", or "unrecorded" for weights of unknown origin.
        base: the upcycled model.
        data: the data sets that were trained on.
        details: settings by name, in the order of the card.
    """

    kind: Literal["upcycling", "training", "unrecorded"]
    base: Base | None = None
    data: tuple[DataSet, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """The size of a checkpoint.

    Args:
        parameters: number of parameters in its weights files.
        active: number of parameters that a token outside category and attributes uses; `None` without a mixture of experts.
        active_in_aspect: number of parameters that a token of the category or the attributes uses; `None` without guided
            experts.
        bytes: size of its weights files.
        vector: width of a vector; `None` for an adapter.
        prefixes: narrower widths that it was trained for (Matryoshka).
    """

    parameters: int
    bytes: int
    active: int | None = None
    active_in_aspect: int | None = None
    vector: int | None = None
    prefixes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Card:
    """Everything that a card shows.

    Args:
        name: heading of the card.
        source: name of the folder, or id on the hub, that the code on the card loads.
        kind: "moon", "dual_tower", or "adapter" (LoRA weights only).
        sizes: size of the checkpoint.
        steps: steps in the making of the weights, in order.
        settings: settings of the architecture and the processor, by name.
        licence: licence of the weights.
        results: results files, as `model_cards.scores.summary` shortens them.
        adapter_base: for an adapter, the checkpoint that the code on the card loads first.
        has_code: whether the folder of a Moon model contains the code that loads it. Default True.
        notes: section of the card, one of `NOTES` → sentences of a person below what the card says by itself.

    Raises:
        CardError: a note for an unknown section.
    """

    name: str
    source: str
    kind: Literal["moon", "dual_tower", "adapter"]
    sizes: Sizes
    steps: tuple[Step, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    licence: Licence = field(default_factory=Licence)
    results: tuple[dict[str, Any], ...] = ()
    adapter_base: str | None = None
    has_code: bool = True
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.notes) - set(NOTES)):
            raise CardError(f"notes: found {', '.join(unknown)}; expected some of {', '.join(NOTES)}")

    @property
    def data(self) -> tuple[DataSet, ...]:
        """The data sets of all steps, each once."""
        return tuple({data_set.name: data_set for step in self.steps for data_set in step.data}.values())

    @property
    def base(self) -> Base | None:
        """The model that the first step started from; `None` if it is not recorded."""
        return self.steps[0].base if self.steps else None

    def to_json(self) -> str:
        """Return the facts as the content of `model_card.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"


def card_of(values: dict[str, Any]) -> Card:
    """Return the card whose facts `Card.to_json` wrote.

    Args:
        values: the parsed JSON.
    """

    def step(fields: dict[str, Any]) -> Step:
        base = fields["base"] and Base(**{**fields["base"], "licence": Licence(**fields["base"]["licence"])})
        return Step(fields["kind"], base, tuple(DataSet(**data_set) for data_set in fields["data"]), fields["details"])

    sizes = Sizes(**{**values["sizes"], "prefixes": tuple(values["sizes"]["prefixes"])})
    parts = {"sizes": sizes, "steps": tuple(map(step, values["steps"])), "licence": Licence(**values["licence"])}
    notes = {section: tuple(sentences) for section, sentences in values.get("notes", {}).items()}
    return Card(**{**values, **parts, "results": tuple(values["results"]), "notes": notes})


def read_card(folder: Path) -> Card | None:
    """Return the facts in a checkpoint's folder, or `None` if it has no `model_card.json`.

    Raises:
        CardError: the file cannot be read.
    """
    path = folder / FACTS_FILE
    if not path.is_file():
        return None
    try:
        return card_of(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise CardError(f"{path}: cannot be read ({error!r}); expected the facts that moon3 card writes") from error
