"""The cards of trained checkpoints: how a run made them, what its results files say, and what a person declares."""

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
_RECIPE_DETAILS = {
    "stage": "stage",
    "per_device_train_batch_size": "pairs per step and process",
    "max_steps": "steps",
    "learning_rate": "learning rate",
    "seed": "seed",
}


def training_step(run: Path) -> Step:
    """Return the step of a training, read from the recipe and the provenance in its folder.

    Args:
        run: the run's folder, or a checkpoint of it, with the resolved recipe and maybe the provenance.
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
    """An entry of a recipe's `data`; its licence is the entry's own, or what its folder's README.md says."""
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
    """Return how the weights of a checkpoint were made, as far as its files say.

    Args:
        folder: its folder. One without `model_card.json` was made before cards were, or by another tool: its training is
            read from its recipe where that lies there, and what was before it is unrecorded. A record that cannot be read
            counts as none.
    """
    with contextlib.suppress(CardError):  # met when a training is saved, which a record that is broken must not prevent
        card = read_card(folder if folder.is_dir() else _hub_folder(str(folder)))
        if card is not None:
            return card.steps
    if not folder.is_dir():
        return (Step("unrecorded", Base(str(folder), str(folder)), details={"checkpoint": str(folder)}),)
    unrecorded = Step("unrecorded", details={"checkpoint": folder.resolve().name})
    return (unrecorded, *_training_in(folder))


def _hub_folder(name: str) -> Path:
    """Where the facts of a checkpoint of the hub lie once they are fetched; a folder without them where it has none."""
    try:
        found = cached_file(
            name, FACTS_FILE, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
    except (OSError, ValueError):  # gone from the hub since, or a folder that is
        found = None
    return Path(found).parent if found else Path(name)


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
    return [training_step(run)] if RunFolder(run).recipe.is_file() else []


def results_of_run(run: Path) -> list[dict[str, Any]]:
    """Return the shortened results of a run's folder: results_before*.json and results_after*.json.

    Args:
        run: its folder.
    """
    return [summary(_json(path), path.name, side) for side in SIDES for path in RunFolder(run).all_results(side)]


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
    of_run = results_of_run(run.path) if is_final else []
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
        card = dataclasses.replace(card, results=check_apart([one for path in results for one in read_results(path)]))
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
