"""Collect the facts of a checkpoint for its card: what its own files say, what its base and its data say of themselves.

A step in the making of weights is written down when it is made, in `model_card.json`, and handed on: a training copies the steps
of the checkpoint that it starts from, so that data and base are known however many trainings lie between.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from safetensors import safe_open
from transformers.utils import cached_file

from model_cards.facts import FACTS_FILE, README_FILE, Base, Card, CardError, DataSet, Licence, Sizes, Step, read_card
from model_cards.licences import check_data_licence, check_licence
from model_cards.metadata import HUB_ID, front_matter
from model_cards.rendering import write_card
from model_cards.results import SIDES, summary
from training.runs.resume import PARTIAL

OURS = "apache-2.0"
"""The licence of the code, of what it draws and of weights that it makes at random."""
RANDOM_TAG = "random-weights"
_RECIPE_FILE, _PROVENANCE_FILE = "resolved_recipe.yaml", "provenance.json"
_CATALOGUE = "catalogue"
_WIDTHS = "Matryoshka widths"
_EXPERTS = (".experts.gate_up_proj", ".experts.down_proj")
_MOON_SETTINGS = ("expert_routing", "num_experts", "num_experts_per_token", "readout", "fusion", "fire_layers")
_RECIPE_DETAILS = {
    "stage": "stage",
    "per_device_train_batch_size": "pairs per step and process",
    "max_steps": "steps",
    "learning_rate": "learning rate",
    "seed": "seed",
}


def described(folder: Path) -> dict[str, Any]:
    """Return the metadata at the head of a folder's README.md, as the hub has it; nothing where there is none.

    Args:
        folder: of a checkpoint or a data set.
    """
    try:
        return front_matter((folder / README_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _licence_of(values: dict[str, Any]) -> Licence:
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
        hub_id or Path(base).resolve().name, hub_id, _licence_of(values), RANDOM_TAG in (values.get("tags") or [])
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


def training_step(run: Path) -> Step:
    """Return the step of a training, read from the recipe and the provenance in its folder.

    Args:
        run: the folder that holds resolved_recipe.yaml, and maybe provenance.json.
    """
    recipe, facts = _yaml(run / _RECIPE_FILE), _json(run / _PROVENANCE_FILE)
    details = {"recipe": facts["recipe"]} if "recipe" in facts else {}
    details |= {words: recipe[key] for key, words in _RECIPE_DETAILS.items() if recipe.get(key) is not None}
    if facts.get("processes", 1) > 1:
        details["processes"] = facts["processes"]
    if recipe.get("lora") is not None:
        details |= {f"LoRA {name}": value for name, value in recipe["lora"].items() if name in ("r", "alpha")}
    if recipe.get("matryoshka_dims"):
        details[_WIDTHS] = recipe["matryoshka_dims"]
    details |= {name: facts[name] for name in ("commit", "time") if facts.get(name)}
    details = {name: value[:12] if name == "commit" else value for name, value in details.items()}
    entries = recipe.get("data") or []
    return Step(
        "training", data=tuple(_data_set(entry, bool(recipe.get("streaming"))) for entry in entries), details=details
    )


def _data_set(entry: Any, streaming: bool) -> DataSet:
    """An entry of a recipe's `data`; its licence is the entry's own, or what its folder's README.md says."""
    entry = entry if isinstance(entry, dict) else {"path": str(entry)}
    place = entry.get("path") or entry.get("products") or entry.get("parquet") or entry.get("hub")
    place = str(place[0] if isinstance(place, list) else place)
    if place == _CATALOGUE:
        return DataSet(entry.get("name", _CATALOGUE), entry.get("licence", OURS))
    folder = Path(place) if Path(place).is_dir() else Path(place).parent
    hub_id = entry.get("hub") or (place if streaming and not Path(place).exists() and place.count("/") == 1 else None)
    licence = entry.get("licence") or (None if hub_id else _licence_of(described(folder)).id)
    return DataSet(
        entry.get("name") or (hub_id or (Path(place).name if Path(place).is_dir() else folder.name)), licence, hub_id
    )


def steps_of(folder: Path) -> tuple[Step, ...]:
    """Return how the weights of a checkpoint were made, as far as its files say.

    Args:
        folder: its folder. One without `model_card.json` was made before cards were, or by another tool: its training is
            read from its recipe where that lies there, and what was before it is unrecorded.
    """
    card = read_card(folder if folder.is_dir() else _hub_folder(str(folder)))
    if card is not None:
        return card.steps
    if not folder.is_dir():
        return (Step("unrecorded", Base(str(folder), str(folder)), details={"checkpoint": str(folder)}),)
    unrecorded = Step("unrecorded", details={"checkpoint": folder.resolve().name})
    return (unrecorded, *_training_in(folder))


def _hub_folder(name: str) -> Path:
    """Where the facts of a checkpoint of the hub lie once they are fetched; a folder without them where it has none."""
    found = cached_file(
        name, FACTS_FILE, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return Path(found).parent if found else Path(name)


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
    trained = {width for step in steps for width in step.details.get(_WIDTHS, ())}
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


def write_trained_card(folder: Path, start: Path) -> None:
    """Write the card of a model that a training has just written, with the results that lie in the run's folder.

    Args:
        folder: the model, in the run's folder under whatever name it is being written.
        start: the checkpoint that the training started from.
    """
    run = folder.parent
    steps = (*steps_of(start), *_training_in(run))
    card = facts_of(folder, run.resolve().name, steps, source=folder.name.removesuffix(PARTIAL))
    write_card(folder, dataclasses.replace(card, results=tuple(results_of_run(run))), overwrite=True)


def write_adapter_card(folder: Path, start: Path) -> None:
    """Write the card of an adapter beside the model that it is merged into, in place of the one that peft writes.

    Args:
        folder: the adapter, in the run's folder under whatever name it is being written.
        start: the checkpoint that it was trained on.
    """
    run = folder.parent
    steps = (*steps_of(start), *_training_in(run))
    card = facts_of(folder, f"{run.resolve().name} adapter", steps, source=folder.name.removesuffix(PARTIAL))
    settings = settings_of(start, steps) if start.is_dir() else card.settings
    shown = start.name if start.is_dir() else str(start)
    write_card(folder, dataclasses.replace(card, adapter_base=shown, settings=settings), overwrite=True)


def _training_in(run: Path) -> list[Step]:
    """The training of a run's folder; none where a model was saved without a recipe."""
    return [training_step(run)] if (run / _RECIPE_FILE).is_file() else []


def results_of_run(run: Path) -> list[dict[str, Any]]:
    """Return the shortened results of a run's folder: results_before*.json and results_after*.json.

    Args:
        run: its folder.
    """
    return [
        summary(_json(path), path.name, side) for side in SIDES for path in sorted(run.glob(f"results_{side}*.json"))
    ]


def update_results(folder: Path) -> None:
    """Render a model's card with the results that now lie in its run's folder; a model without facts is left alone.

    Args:
        folder: the model, in the run's folder.
    """
    card = read_card(folder)
    if card is not None:
        write_card(folder, dataclasses.replace(card, results=tuple(results_of_run(folder.parent))))


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the shortened results of a file: one, or one each under "before" and "after".

    Raises:
        CardError: a file that cannot be read or holds no scores.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CardError(f"{path}: cannot be read ({error}); expected a results file of moon3 evaluate") from error
    if not isinstance(content, dict):
        raise CardError(f"{path}: found a {type(content).__name__}; expected a results file of moon3 evaluate")
    parts = [(side, content[side]) for side in SIDES if isinstance(content.get(side), dict)]
    if not parts:
        parts = [("before" if path.name.startswith("results_before") else "after", content)]
    shared = {name: content[name] for name in ("benchmark",) if name in content}
    return [summary(shared | part, path.name, side) for side, part in parts]


def collected(folder: Path) -> Card:
    """Return the facts of a checkpoint that is there: those that lie in it, with its sizes and settings read again.

    Results are those of its run's folder where there are any, or those that it holds already.

    Args:
        folder: the checkpoint.

    Raises:
        CardError: no checkpoint.
    """
    kind_of(folder)
    known = read_card(folder)
    name = folder.resolve().name
    if known is None:
        card = facts_of(
            folder, folder.resolve().parent.name if name == "final" else name, steps_of(folder), source=name
        )
    else:
        sizes, settings = sizes_of(folder, known.steps), settings_of(folder, known.steps)
        settings = known.settings if known.kind == "adapter" else settings
        card = dataclasses.replace(known, sizes=sizes, settings=settings, source=name)
    of_run = results_of_run(folder.resolve().parent) if name == "final" else []
    return dataclasses.replace(card, results=tuple(of_run) or card.results)


def rendered_again(
    folder: Path,
    *,
    results: Sequence[Path] | None = None,
    name: str | None = None,
    licence: Licence | None = None,
    data_licences: dict[str, str] | None = None,
    hub_datasets: dict[str, str] | None = None,
) -> Card:
    """Return the facts of a checkpoint with what a person gives and declares.

    Args:
        folder: the checkpoint.
        results: results files of its weights. Default: those of its run's folder, or those that it holds already.
        name: its heading. Default: as it is.
        licence: of its weights. Default: the one that it has, or that follows from base and data.
        data_licences: of data sets, by name.
        hub_datasets: data sets of the hub, by the benchmark of a result.

    Raises:
        CardError: no checkpoint, results that cannot be read, or what cannot be declared.
    """
    card = declared(collected(folder), data_licences or {})
    if results is not None:
        card = dataclasses.replace(card, results=tuple(one for path in results for one in read_results(path)))
    card = dataclasses.replace(card, results=with_hub_datasets(card.results, hub_datasets or {}))
    known = card.licence if card.licence.id else licence_of(card.steps)
    return dataclasses.replace(
        card, name=name or card.name, licence=known if licence is None else check_licence(licence)
    )


def with_hub_datasets(results: Sequence[dict[str, Any]], names: dict[str, str]) -> tuple[dict[str, Any], ...]:
    """Return results with the data sets of the hub that they were measured on.

    Args:
        results: shortened ones.
        names: by the benchmark of a result.

    Raises:
        CardError: a benchmark that no result has, or what is no id of the hub.
    """
    known = {result["benchmark"] for result in results}
    for benchmark, hub_id in names.items():
        if benchmark not in known:
            raise CardError(
                f"found benchmark {benchmark!r}; expected one of the results: {', '.join(sorted(known)) or 'none'}"
            )
        if not HUB_ID.fullmatch(hub_id):
            raise CardError(f"{benchmark}: found {hub_id!r}; expected the id of a data set of the hub, OWNER/NAME")
    return tuple(result | {"hub_dataset": names.get(result["benchmark"], result["hub_dataset"])} for result in results)


def declared(card: Card, licences: dict[str, str]) -> Card:
    """Return the facts with licences of data sets that a person declares.

    Args:
        card: the facts.
        licences: by the name of a data set. A further name is a data set of a step that is not recorded.

    Raises:
        CardError: an unknown licence, or a name that no data set has where every step is recorded.
    """
    for name, licence in licences.items():
        check_data_licence(name, licence)
    steps = [
        dataclasses.replace(
            step, data=tuple(dataclasses.replace(one, licence=licences.get(one.name, one.licence)) for one in step.data)
        )
        for step in card.steps
    ]
    further = {name: licence for name, licence in licences.items() if name not in {one.name for one in card.data}}
    places = [place for place, step in enumerate(steps) if step.kind == "unrecorded"]
    if further and not places:
        known = ", ".join(one.name for one in card.data) or "none: it was trained on nothing"
        raise CardError(f"--data-licence: found {', '.join(further)}; expected a data set of the checkpoint: {known}")
    if further:
        step = steps[places[-1]]
        data = (*step.data, *(DataSet(name, licence) for name, licence in further.items()))
        steps[places[-1]] = dataclasses.replace(step, data=data)
    return dataclasses.replace(card, steps=tuple(steps))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _yaml(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
