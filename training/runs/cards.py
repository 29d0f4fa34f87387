"""Write the cards of trained checkpoints, from the run, its results files, and the declarations of a person."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from model_cards.facts import FACTS_FILE, Base, Card, CardError, DataSet, Licence, Step, read_card
from model_cards.licences import check_data_licence, check_licence
from model_cards.metadata import HUB_ID
from model_cards.rendering import write_card
from model_cards.scores import SIDES, check_apart, summary
from product_data.atomic_files import PARTIAL
from training.model.card_facts import (
    OUR_LICENCE,
    WIDTHS,
    facts_of,
    kind_of,
    licence_of,
    settings_of,
    sizes_of,
    stated_licence,
)
from training.runs.folder import RunFolder

_CATALOGUE = "catalogue"
_CODE = "modeling_moon.py"
_RECIPE_DETAILS = {
    "stage": "stage",
    "per_device_train_batch_size": "pairs per step and process",
    "max_steps": "steps",
    "learning_rate": "learning rate",
    "seed": "seed",
}


def training_step(run: Path) -> Step:
    """Return the step of a training run, read from the recipe and the provenance in its folder.

    Args:
        run: the run's folder, or one of its checkpoints, with the resolved recipe and optionally the provenance.
    """
    records = RunFolder(run)
    recipe, facts = records.stored_recipe() or {}, _json(records.provenance)
    details = {"recipe": facts["recipe"]} if "recipe" in facts else {}
    details |= {words: recipe[key] for key, words in _RECIPE_DETAILS.items() if recipe.get(key) is not None}
    if facts.get("processes", 1) > 1:
        details["processes"] = facts["processes"]
    if recipe.get("lora") is not None:
        details |= {f"LoRA {name}": value for name, value in recipe["lora"].items() if name in ("r", "alpha")}
    if recipe.get("matryoshka_dims"):
        details[WIDTHS] = recipe["matryoshka_dims"]
    details |= {name: facts[name] for name in ("commit", "time") if facts.get(name)}
    details = {name: value[:12] if name == "commit" else value for name, value in details.items()}
    entries = recipe.get("data") or []
    return Step(
        "training", data=tuple(_data_set(entry, bool(recipe.get("streaming"))) for entry in entries), details=details
    )


def _data_set(entry: Any, streaming: bool) -> DataSet:
    """Return the data set of an entry of `data`, with the licence of the entry or of its folder's README.md."""
    entry = entry if isinstance(entry, dict) else {"path": str(entry)}
    place = entry.get("path") or entry.get("products") or entry.get("parquet") or entry.get("hub")
    place = str(place[0] if isinstance(place, list) else place)
    if place == _CATALOGUE:
        return DataSet(entry.get("name", _CATALOGUE), entry.get("licence", OUR_LICENCE))
    folder = Path(place) if Path(place).is_dir() else Path(place).parent
    hub_id = entry.get("hub") or (place if streaming and not Path(place).exists() and place.count("/") == 1 else None)
    licence = entry.get("licence") or (None if hub_id else stated_licence(folder).id)
    return DataSet(
        entry.get("name") or (hub_id or (Path(place).name if Path(place).is_dir() else folder.name)), licence, hub_id
    )


def steps_of(folder: Path) -> tuple[Step, ...]:
    """Return the steps in which the weights of a checkpoint were made, as far as its files record them.

    Args:
        folder: its folder, or a hub id. A checkpoint without `model_card.json`, or with one that cannot be read, has
            the step "unrecorded", and the step of its training if the recipe is in the folder.
    """
    with contextlib.suppress(CardError):  # an invalid record must not prevent saving a model
        card = read_card(folder if folder.is_dir() else _hub_folder(str(folder)))
        if card is not None:
            return card.steps
    if not folder.is_dir():
        return (Step("unrecorded", Base(str(folder), str(folder)), details={"checkpoint": str(folder)}),)
    unrecorded = Step("unrecorded", details={"checkpoint": folder.resolve().name})
    return (unrecorded, *_training_in(folder))


def _hub_folder(name: str) -> Path:
    """Return the cache folder with the facts of a checkpoint on the Hub; a folder without them if it has none."""
    try:
        path = cached_file(
            name, FACTS_FILE, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
    except (OSError, ValueError):  # deleted from the Hub, or a deleted folder
        path = None
    return Path(path).parent if path else Path(name)


def write_trained_card(folder: Path, start: Path) -> None:
    """Write the card of a newly trained model, with the results in the run's folder.

    Args:
        folder: the model in the run's folder, which may still have a temporary name.
        start: the checkpoint from which the training started.
    """
    run = folder.parent
    steps = (*steps_of(start), *_training_in(run))
    card = facts_of(folder, run.resolve().name, steps, source=folder.name.removesuffix(PARTIAL))
    write_card(folder, dataclasses.replace(card, results=tuple(results_of_run(run))), overwrite=True)


def write_adapter_card(folder: Path, start: Path) -> None:
    """Write the card of an adapter, which replaces that of peft.

    Args:
        folder: the adapter in the run's folder, which may still have a temporary name.
        start: the checkpoint on which it was trained.
    """
    run = folder.parent
    steps = (*steps_of(start), *_training_in(run))
    card = facts_of(folder, f"{run.resolve().name} adapter", steps, source=folder.name.removesuffix(PARTIAL))
    settings = settings_of(start, steps) if start.is_dir() else card.settings
    base = start.name if start.is_dir() else str(start)
    write_card(folder, dataclasses.replace(card, adapter_base=base, settings=settings), overwrite=True)


def _training_in(run: Path) -> list[Step]:
    """Return the training step of a run's folder; an empty list without a recipe."""
    return [training_step(run)] if RunFolder(run).recipe.is_file() else []


def results_of_run(run: Path) -> list[dict[str, Any]]:
    """Return the summarized results in a run's folder, results_before*.json and results_after*.json.

    Args:
        run: its folder.
    """
    return [summary(_json(path), path.name, side) for side in SIDES for path in RunFolder(run).all_results(side)]


def update_results(folder: Path) -> None:
    """Render the card of a model again with the results in its run's folder; do nothing for a model without facts.

    Args:
        folder: the model, in the run's folder.
    """
    card = read_card(folder)
    if card is not None:
        write_card(folder, dataclasses.replace(card, results=tuple(results_of_run(folder.parent))))


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the summarized results of a file: a single result, or results under "before" and "after".

    Raises:
        CardError: the file cannot be read or does not contain scores.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CardError(f"{path}: cannot be read ({error}); expected a results file from moon3 evaluate") from error
    if not isinstance(content, dict):
        raise CardError(f"{path}: found a {type(content).__name__}; expected a results file of moon3 evaluate")
    parts = [(side, content[side]) for side in SIDES if isinstance(content.get(side), dict)]
    if not parts:
        parts = [("before" if path.name.startswith("results_before") else "after", content)]
    shared = {name: content[name] for name in ("benchmark",) if name in content}
    return [summary(shared | part, path.name, side) for side, part in parts]


def collected(folder: Path) -> Card:
    """Return the facts of an existing checkpoint, with its sizes and settings read again.

    Results come from the folder of its run or, without any there, from its recorded facts.

    Args:
        folder: the checkpoint.

    Raises:
        CardError: the folder does not contain a checkpoint.
    """
    kind_of(folder)
    known, place = read_card(folder), folder.resolve()
    run = RunFolder(place.parent)
    is_final = place == run.final
    if known is None:
        name = run.path.name if is_final else place.name
        card = facts_of(folder, name, steps_of(folder), source=place.name)
    else:
        settings = known.settings if known.kind == "adapter" else settings_of(folder, known.steps)
        sizes = sizes_of(folder, known.steps)
        card = dataclasses.replace(known, sizes=sizes, settings=settings, source=place.name)
    run_results = results_of_run(run.path) if is_final else []
    has_code = card.kind != "moon" or (folder / _CODE).is_file()
    return dataclasses.replace(card, results=tuple(run_results) or card.results, has_code=has_code)


def rendered_again(
    folder: Path,
    *,
    results: Sequence[Path] | None = None,
    name: str | None = None,
    licence: Licence | None = None,
    data_licences: dict[str, str] | None = None,
    hub_datasets: dict[str, str] | None = None,
) -> Card:
    """Return the facts of a checkpoint, with the results and declarations of a person.

    Args:
        folder: the checkpoint.
        results: results files of its weights. Default: those in its run's folder, or its recorded ones.
        name: the heading of the card. Default: unchanged.
        licence: the licence of its weights. Default: the recorded one, or the one that follows from base and data.
        data_licences: licences of data sets, by name.
        hub_datasets: ids of data sets on the Hub, by the benchmark of a result.

    Raises:
        CardError: the folder does not contain a checkpoint, results cannot be read, or a declaration is invalid.
    """
    card = declared(collected(folder), data_licences or {})
    if results is not None:
        parts = [result for path in results for result in read_results(path)]
        card = dataclasses.replace(card, results=check_apart(parts))
    card = dataclasses.replace(card, results=with_hub_datasets(card.results, hub_datasets or {}))
    known = card.licence if card.licence.id else licence_of(card.steps)
    return dataclasses.replace(
        card, name=name or card.name, licence=known if licence is None else check_licence(licence)
    )


def with_hub_datasets(results: Sequence[dict[str, Any]], names: dict[str, str]) -> tuple[dict[str, Any], ...]:
    """Return results with the ids of their data sets on the Hub.

    Args:
        results: summarized results.
        names: ids by the benchmark of a result.

    Raises:
        CardError: no result has the benchmark, or an id is invalid.
    """
    known = {result["benchmark"] for result in results}
    for benchmark, hub_id in names.items():
        if benchmark not in known:
            raise CardError(
                f"found benchmark {benchmark!r}; expected one of the results: {', '.join(sorted(known)) or 'no results'}"
            )
        if not HUB_ID.fullmatch(hub_id):
            raise CardError(f"{benchmark}: found {hub_id!r}; expected the id of a data set on the Hub, OWNER/NAME")
    return tuple(result | {"hub_dataset": names.get(result["benchmark"], result["hub_dataset"])} for result in results)


def declared(card: Card, licences: dict[str, str]) -> Card:
    """Return the facts with the declared licences of data sets.

    Args:
        card: the facts.
        licences: licences by the name of a data set. A name that is not on the card is the name of a data set of an
            unrecorded step.

    Raises:
        CardError: a licence is unknown, or no data set has the name and every step is recorded.
    """
    for name, licence in licences.items():
        check_data_licence(name, licence)
    steps = [
        dataclasses.replace(
            step,
            data=tuple(dataclasses.replace(data, licence=licences.get(data.name, data.licence)) for data in step.data),
        )
        for step in card.steps
    ]
    new = {name: licence for name, licence in licences.items() if name not in {data.name for data in card.data}}
    places = [place for place, step in enumerate(steps) if step.kind == "unrecorded"]
    if new and not places:
        known = ", ".join(data.name for data in card.data) or "none, because it was not trained"
        raise CardError(f"--data-licence: found {', '.join(new)}; expected a data set of the checkpoint: {known}")
    if new:
        step = steps[places[-1]]
        data = (*step.data, *(DataSet(name, licence) for name, licence in new.items()))
        steps[places[-1]] = dataclasses.replace(step, data=data)
    return dataclasses.replace(card, steps=tuple(steps))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
