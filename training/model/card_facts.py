"""Collect what a checkpoint's card shows: what its own files say, and what its base says of itself.

A step in the making of weights is written down when it is made, in `model_card.json`, and handed on: a training copies the steps
of the checkpoint that it starts from (`training.runs.cards`), so that data and base are known however many trainings lie between.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from model_cards.facts import README_FILE, Base, Card, CardError, Licence, Sizes, Step
from model_cards.metadata import front_matter
from model_cards.rendering import write_card

OURS = "apache-2.0"
"""The licence of the code, of what it draws and of weights that it makes at random."""
RANDOM_TAG = "random-weights"
WIDTHS = "Matryoshka widths"
"""What a training's step calls the narrower widths that it trained at."""
_EXPERTS = (".experts.gate_up_proj", ".experts.down_proj")
_MOON_SETTINGS = ("expert_routing", "num_experts", "num_experts_per_token", "readout", "fusion", "fire_layers")


def described(folder: Path) -> dict[str, Any]:
    """Return the metadata at the head of a folder's README.md, as the hub has it; nothing where there is none.

    Args:
        folder: of a checkpoint or a data set.
    """
    try:
        return front_matter((folder / README_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def described_licence(folder: Path) -> Licence:
    """Return the licence that a folder's README.md states, as the hub has it; an empty one where it states none.

    Args:
        folder: of a checkpoint or a data set.
    """
    values = described(folder)
    texts = [values.get(name) for name in ("license", "license_name", "license_link")]
    return Licence(*(text if isinstance(text, str) else None for text in texts))


def base_facts(base: str | Path, folder: Path) -> Base:
    """Return what is known of a base that becomes a Moon.

    Args:
        base: what was asked for: a folder or an id of the hub.
        folder: where it lies.
    """
    values = described(folder)
    hub_id = None if Path(base).exists() else str(base)
    return Base(
        hub_id or Path(base).resolve().name, hub_id, described_licence(folder), RANDOM_TAG in (values.get("tags") or [])
    )


def write_upcycled_card(checkpoint: Path, name: str, base: str | Path, base_folder: Path, **details: Any) -> None:
    """Write the card of a checkpoint that has just been upcycled.

    Args:
        checkpoint: its folder, under whatever name it is being written.
        name: the name that it will have.
        base, base_folder: as in `base_facts`.
        **details: what the card shows of the upcycling, such as the preset.
    """
    step = Step("upcycling", base_facts(base, base_folder), details=details)
    write_card(checkpoint, facts_of(checkpoint, name, [step], source=name), overwrite=True)


def sizes_of(folder: Path, steps: Iterable[Step]) -> Sizes:
    """Return how large a checkpoint is, from the heads of its weights files and its configuration.

    Args:
        folder: its folder.
        steps: how it was made, for the narrower widths that it was trained at.
    """
    config, files = _json(folder / "config.json"), sorted(folder.glob("*.safetensors"))
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="pt") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    total = sum(map(math.prod, shapes.values()))
    text = (config.get("vlm_config") or {}).get("text_config") or {}
    vector = config.get("embedding_dim") or text.get("hidden_size")
    of_experts = sum(math.prod(shape[1:]) for name, shape in shapes.items() if name.endswith(_EXPERTS))
    trained = {width for step in steps for width in step.details.get(WIDTHS, ())}
    prefixes = tuple(sorted({*(config.get("matryoshka_dims") or ()), *trained}))
    sizes = Sizes(
        total,
        sum(file.stat().st_size for file in files),
        vector=vector,
        prefixes=prefixes,
    )
    if not of_experts:
        return sizes
    idle = config["num_experts"] - config["num_experts_per_token"]
    guided = config["expert_routing"] == "guided"
    return dataclasses.replace(
        sizes,
        active=total - idle * of_experts,
        active_in_aspect=total - (idle - 1) * of_experts if guided else None,
    )


def settings_of(folder: Path, steps: Iterable[Step]) -> dict[str, Any]:
    """Return the settings of architecture and processor that a card shows.

    Args:
        folder: the checkpoint.
        steps: how it was made, for the preset.
    """
    config, processor = _json(folder / "config.json"), _json(folder / "processor_config.json")
    presets = [step.details["preset"] for step in steps if "preset" in step.details]
    found: dict[str, Any] = {"preset": presets[-1]} if presets else {}
    found["backbone"] = (config.get("vlm_config") or {}).get("model_type")
    if config.get("expert_routing") == "none":
        config = {name: value for name, value in config.items() if not name.startswith("num_experts")}
    found |= {name: config.get(name) for name in (*_MOON_SETTINGS, "max_reasoning_tokens", "dtype")}
    found |= {name: processor.get(name) for name in ("max_tokens", "max_image_tokens", "core_crop")}
    return {name: value for name, value in found.items() if value not in (None, False)}


def kind_of(folder: Path) -> Literal["moon", "dual_tower", "adapter"]:
    """Return what kind of checkpoint lies in a folder.

    Raises:
        CardError: none that a card can be written for.
    """
    if (folder / "config.json").is_file():
        found = _json(folder / "config.json").get("model_type")
        if found in ("moon", "moon_dual_tower"):
            return "moon" if found == "moon" else "dual_tower"
        raise CardError(f"{folder}: found a checkpoint of type {found!r}; expected a Moon or a dual tower")
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    raise CardError(f"{folder}: found no config.json; expected a checkpoint's folder")


def licence_of(steps: Sequence[Step]) -> Licence:
    """Return the licence that follows from how weights were made; an empty one where a person has to say.

    Weights of a base keep the base's. Weights from random numbers are under the licence of the code if all their data is.
    """
    bases = [step.base for step in steps if step.base is not None]
    if not bases or any(step.kind == "unrecorded" for step in steps):
        return Licence()
    if bases[0].random and any(one.licence != OURS for step in steps for one in step.data):
        return Licence()
    return bases[0].licence


def facts_of(folder: Path, name: str, steps: Sequence[Step], *, source: str | None = None) -> Card:
    """Return the facts of a checkpoint that nobody has measured yet.

    Args:
        folder: where it lies now.
        name: its heading.
        steps: how it was made.
        source: what the code on the card loads. Default: the folder's name.
    """
    kind = kind_of(folder)
    return Card(
        name=name,
        source=source or folder.name,
        kind=kind,
        sizes=sizes_of(folder, steps),
        steps=tuple(steps),
        settings=settings_of(folder, steps),
        licence=licence_of(steps),
    )


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
