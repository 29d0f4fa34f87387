"""Collect the facts of a checkpoint's card from its files and from the card of its base.

Each step that changes weights is recorded in `model_card.json`. A training run copies the steps of the checkpoint that
it starts from (`training.runs.cards`), so data and base are known after any number of training runs.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from model_cards.facts import RANDOM_TAG, README_FILE, Base, Card, CardError, Licence, Sizes, Step
from model_cards.metadata import front_matter
from model_cards.rendering import write_card

OUR_LICENCE = "apache-2.0"
"""The licence of the code, of the drawn catalogue and of random weights."""
WIDTHS = "Matryoshka widths"
"""The detail of a training step that lists the smaller widths that were trained."""
_EXPERTS = (".experts.gate_up_proj", ".experts.down_proj")
_MOON_SETTINGS = ("expert_routing", "num_experts", "num_experts_per_token", "readout", "fusion", "fire_layers")


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata at the beginning of a folder's README.md; empty without a README.md or metadata.

    Args:
        folder: the folder of a checkpoint or data set.
    """
    try:
        return front_matter((folder / README_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def stated_licence(folder: Path) -> Licence:
    """Return the licence that a folder's README.md states in its metadata, or an empty licence.

    Args:
        folder: the folder of a checkpoint or data set.
    """
    values = read_metadata(folder)
    texts = [values.get(name) for name in ("license", "license_name", "license_link")]
    return Licence(*(text if isinstance(text, str) else None for text in texts))


def base_facts(base: str | Path, folder: Path) -> Base:
    """Return the facts of a base that is upcycled.

    Args:
        base: the folder or hub id of the base.
        folder: its local folder.
    """
    values = read_metadata(folder)
    hub_id = None if Path(base).exists() else str(base)
    return Base(
        hub_id or Path(base).resolve().name, hub_id, stated_licence(folder), RANDOM_TAG in (values.get("tags") or [])
    )


def write_upcycled_card(checkpoint: Path, name: str, base: str | Path, base_folder: Path, **details: Any) -> None:
    """Write the card of a checkpoint that has just been upcycled.

    Args:
        checkpoint: its folder, which may still have a temporary name.
        name: its final name.
        base, base_folder: see `base_facts`.
        **details: details of the upcycling on the card, such as the preset.
    """
    step = Step("upcycling", base_facts(base, base_folder), details=details)
    write_card(checkpoint, facts_of(checkpoint, name, [step], source=name), overwrite=True)


def sizes_of(folder: Path, steps: Iterable[Step]) -> Sizes:
    """Return the sizes of a checkpoint, from the headers of its weight files and its configuration.

    Args:
        folder: its folder.
        steps: the steps in which it was made, which contain the smaller widths that were trained.
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
    """Return the settings of the architecture and of the processor, as a card lists them.

    Args:
        folder: the checkpoint.
        steps: the steps in which it was made, which contain the preset.
    """
    config, processor = _json(folder / "config.json"), _json(folder / "processor_config.json")
    presets = [step.details["preset"] for step in steps if "preset" in step.details]
    settings: dict[str, Any] = {"preset": presets[-1]} if presets else {}
    settings["backbone"] = (config.get("vlm_config") or {}).get("model_type")
    if config.get("expert_routing") == "none":
        config = {name: value for name, value in config.items() if not name.startswith("num_experts")}
    settings |= {name: config.get(name) for name in (*_MOON_SETTINGS, "max_reasoning_tokens", "dtype")}
    settings |= {name: processor.get(name) for name in ("max_tokens", "max_image_tokens", "core_crop")}
    return {name: value for name, value in settings.items() if value not in (None, False)}


def kind_of(folder: Path) -> Literal["moon", "dual_tower", "adapter"]:
    """Return the kind of checkpoint in a folder.

    Raises:
        CardError: the folder does not contain a checkpoint for which a card can be written.
    """
    if (folder / "config.json").is_file():
        model_type = _json(folder / "config.json").get("model_type")
        if model_type in ("moon", "moon_dual_tower"):
            return "moon" if model_type == "moon" else "dual_tower"
        raise CardError(f"{folder}: found a checkpoint of type {model_type!r}; expected a Moon model or a dual tower")
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    raise CardError(f"{folder}: found no config.json; expected a checkpoint's folder")


def licence_of(steps: Sequence[Step]) -> Licence:
    """Return the licence that follows from the steps of a checkpoint; an empty one if a person must declare it.

    Weights keep the licence of their base. Weights that were initialized at random have the licence of the code if all
    data sets have it.
    """
    bases = [step.base for step in steps if step.base is not None]
    if not bases or any(step.kind == "unrecorded" for step in steps):
        return Licence()
    if bases[0].random and any(data_set.licence != OUR_LICENCE for step in steps for data_set in step.data):
        return Licence()
    return bases[0].licence


def facts_of(folder: Path, name: str, steps: Sequence[Step], *, source: str | None = None) -> Card:
    """Return the facts of a checkpoint, without results.

    Args:
        folder: its folder.
        name: the heading of the card.
        steps: the steps in which it was made.
        source: the name that the code on the card loads. Default: the folder's name.
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
