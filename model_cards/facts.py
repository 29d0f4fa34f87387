"""The facts of a checkpoint that its card shows, as plain data that lies beside the weights in `model_card.json`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

FACTS_FILE = "model_card.json"
README_FILE = "README.md"


class CardError(ValueError):
    """A card that cannot be written or published: what was found, and what is expected."""

    exit_status = 2


@dataclass(frozen=True)
class Licence:
    """The licence of weights.

    Args:
        id: an identifier of the hub; `None` where nothing is declared.
        name: with "other", what the licence is called.
        link: with "other", a file of the checkpoint or an address where it can be read.
    """

    id: str | None = None
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Base:
    """What the weights were at first.

    Args:
        name: what a person calls it.
        hub_id: its id on the hub, where it came from there.
        licence: of its weights.
        random: whether it was made with random weights.
    """

    name: str
    hub_id: str | None = None
    licence: Licence = field(default_factory=Licence)
    random: bool = False


@dataclass(frozen=True)
class DataSet:
    """A data set that weights were trained on.

    Args:
        name: what results and recipes call it.
        licence: an identifier of the hub, or a word of `model_cards.licences.DECLARED`; `None` where nothing is declared.
        hub_id: its id on the hub, where it was read from there.
    """

    name: str
    licence: str | None = None
    hub_id: str | None = None


@dataclass(frozen=True)
class Step:
    """One step in the making of the weights.

    Args:
        kind: "upcycling", "training", or "unrecorded" for weights of which nothing is written down.
        base: what was upcycled.
        data: what was trained on.
        details: settings by name, in the order in which the card shows them.
    """

    kind: Literal["upcycling", "training", "unrecorded"]
    base: Base | None = None
    data: tuple[DataSet, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """How large a checkpoint is.

    Args:
        parameters: numbers in its weights files.
        active: those that a token uses which no expert of an aspect sees; `None` without a mixture of experts.
        active_in_aspect: those that a token of the category or of the attributes uses; `None` without guided experts.
        bytes: of its weights files.
        vector: width of a vector; `None` for an adapter.
        prefixes: narrower widths that it was made for (Matryoshka).
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
        name: its heading.
        source: what the code on the card loads: a folder's name, or an id on the hub.
        kind: "moon", "dual_tower", or "adapter" (LoRA weights alone).
        sizes: of the checkpoint.
        steps: how the weights were made, from the first on.
        settings: of the architecture and the processor, by name.
        licence: of the weights.
        results: of results files, as `model_cards.scores.summary` shortens them.
        adapter_base: of an adapter, what the code on the card loads under it.
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

    @property
    def data(self) -> tuple[DataSet, ...]:
        """Every data set of every step, once."""
        return tuple({one.name: one for step in self.steps for one in step.data}.values())

    @property
    def base(self) -> Base | None:
        """What the first step began with; `None` where that is not recorded."""
        return self.steps[0].base if self.steps else None

    def to_json(self) -> str:
        """Return the facts as the content of `model_card.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"


def card_of(values: dict[str, Any]) -> Card:
    """Return the facts that `Card.to_json` wrote.

    Args:
        values: the parsed JSON.
    """

    def step(found: dict[str, Any]) -> Step:
        base = found["base"] and Base(**{**found["base"], "licence": Licence(**found["base"]["licence"])})
        return Step(found["kind"], base, tuple(DataSet(**one) for one in found["data"]), found["details"])

    sizes = Sizes(**{**values["sizes"], "prefixes": tuple(values["sizes"]["prefixes"])})
    parts = {"sizes": sizes, "steps": tuple(map(step, values["steps"])), "licence": Licence(**values["licence"])}
    return Card(**{**values, **parts, "results": tuple(values["results"])})


def read_card(folder: Path) -> Card | None:
    """Return the facts that lie in a checkpoint's folder; `None` where none do.

    Raises:
        CardError: a file that is no such record.
    """
    path = folder / FACTS_FILE
    if not path.is_file():
        return None
    try:
        return card_of(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise CardError(f"{path}: cannot be read ({error!r}); expected the facts that moon3 card writes") from error
