"""Run Moon, or a peer of `evaluation.baselines`, on tasks of mteb, the embedding benchmark (arXiv 2210.07316).

moon3 mteb TASK [TASK …] --model CHECKPOINT [--output results.json]. It needs mteb 2: pip install moon3[mteb].
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from mteb.types import PromptType

from evaluation.report import short_name
from evaluation.run import EvaluationOptions
from product_data.errors import OptionError
from product_data.outputs import require_writable_file
from retrieval.encode import encode, load_for_evaluation


class MtebInputError(ValueError):
    """An input of a task that the model cannot embed; mteb has no place for a missing vector."""

    exit_status = 3


class MtebEncoder(AbsEncoder):
    """A model of ours under mteb's interface, with its own prompts.

    Queries are embedded as queries with the query instruction. Documents, and inputs of tasks that have no queries, are
    embedded as products: a document's title is the title, its body the description, its picture the image. The prompts that
    mteb's tasks bring are not used.

    Args:
        model, processor: from `retrieval.encode.load_for_evaluation`.
        name (`str`): what mteb's results call the model.
        batch_size (`int`): records a batch. Default 32.

    Raises:
        OptionError: a model without vectors of its own, such as BM25.
    """

    def __init__(self, model: Any, processor: Any, name: str, *, batch_size: int = 32) -> None:
        if hasattr(model, "vector_cache"):
            raise OptionError(f"model {name!r} has no vectors of its own; expected a model that embeds, mteb has BM25")
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.mteb_model_meta = _meta(model, processor, name)

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: PromptType | None = None, **_: Any) -> np.ndarray:
        """Embed the inputs of a task.

        Args:
            inputs: mteb's loader of batches with "text", "image", "title", "body".
            task_metadata: the task's, which names it in errors.
            prompt_type: query, document, or None.

        Shapes: returns (N, D) float32, of unit length.

        Raises:
            MtebInputError: an input that cannot be embedded.
        """
        is_query = prompt_type == PromptType.query
        records: list[dict[str, Any]] = []
        for batch in inputs:
            columns = [name for name in ("text", "image", "title", "body") if name in batch]
            rows = zip(*(batch[name] for name in columns), strict=True)
            records += [record_of(dict(zip(columns, row, strict=True)), is_query) for row in rows]
        kind = "query" if is_query else "product"
        found = encode(self.model, self.processor, records, kind=kind, batch_size=self.batch_size, progress=False)
        if found.skipped:
            first = found.skipped[0]
            raise MtebInputError(
                f"{task_metadata.name}: {len(found.skipped)} of {len(records)} inputs cannot be embedded; first: "
                f"number {first.index}, {first.field}: {first.reason}"
            )
        return found.vectors


def record_of(fields: dict[str, Any], is_query: bool) -> dict[str, Any]:
    """Return an input of mteb as a query or product record.

    Args:
        fields: "text" and "image"; of documents also "title" and "body".
        is_query: whether it is a query.
    """
    image = fields.get("image")
    if is_query:
        return {"text": fields.get("text"), "image": image}
    named = {"title": fields["title"], "description": fields.get("body")} if fields.get("title") else {}
    return (named or {"title": fields.get("text")}) | {"images": image}


def _meta(model: Any, processor: Any, name: str) -> ModelMeta:
    reads_pictures = getattr(processor, "reads_pictures", True)
    return ModelMeta(
        loader=None,
        name=f"moon3/{short_name(name).replace(' ', '_')}",
        revision="local",
        release_date=None,
        languages=None,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        memory_usage_mb=None,
        max_tokens=getattr(processor, "max_tokens", None),
        embed_dim=model.config.vector_size,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=True,
        training_datasets=None,
        modalities=["text", "image"] if reads_pictures else ["text"],
    )


def run_tasks(
    checkpoint: str,
    tasks: Sequence[Any],
    *,
    output: Path | None = None,
    device: str | None = None,
    batch_size: int = EvaluationOptions.batch_size,
) -> list[dict[str, Any]]:
    """Run a model on tasks and return mteb's results.

    Args:
        checkpoint: folder or hub id, or "clip=PLACE" and so on.
        tasks: names of mteb's tasks, or tasks.
        output: JSON file for the results. Default: none is written.
        device (`str` or `None`): default: the first GPU, or else the CPU.
        batch_size (`int`): records a batch. Default 32.

    Returns: for each task what mteb writes to its results files: task_name, scores by split, versions.

    Raises:
        OptionError: a task that mteb does not have.
        OutputError: a file that cannot be written, before the model is loaded.
        MtebInputError: an input that cannot be embedded.
    """
    require_writable_file("--output", output)
    chosen = [task_named(task) if isinstance(task, str) else task for task in tasks]
    encoder: Any = MtebEncoder(*load_for_evaluation(checkpoint, device=device), checkpoint, batch_size=batch_size)
    found = mteb.evaluate(encoder, chosen, cache=None, show_progress_bar=False)
    results = [json.loads(result.model_dump_json()) for result in found.task_results]
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"model": checkpoint, "tasks": results}, indent=2) + "\n", encoding="utf-8")
    return results


def task_named(name: str) -> Any:
    """Return a task of mteb.

    Raises:
        OptionError: a name that mteb does not have; the message has mteb's own hint.
    """
    try:
        return mteb.get_task(name)
    except (KeyError, ValueError) as error:
        raise OptionError(f"task {name!r}: {error.args[0]}; expected a task of mteb {mteb.__version__}") from error


def main_scores(results: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Return (task, split, subset, main score) of results, a row for each subset of each split."""
    return [
        [result["task_name"], split, scores["hf_subset"], scores["main_score"]]
        for result in results
        for split, subsets in result["scores"].items()
        for scores in subsets
    ]
