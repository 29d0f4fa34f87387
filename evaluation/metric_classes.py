"""The retrieval metrics as local `evaluate.Metric` classes: the interface of that library, nothing downloaded or left
on disk. The arithmetic is in `evaluation.metrics`; use that directly when there are vectors rather than rankings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from evaluation.metrics import mean_reciprocal_rank, recall_at

_INPUTS = """
Args:
    predictions: for each query the ids found, best first.
    references: for each query the ids that are right.
"""


class _RankingMetric(evaluate.Metric):
    """Predictions are ranked lists of ids; references are lists of right ids."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"keep_in_memory": True} | options))

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": ids, "references": ids}),
        )


def _first_right(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    return np.asarray(
        [
            next((rank for rank, found in enumerate(ranking, start=1) if found in right), np.inf)
            for ranking, right in zip(predictions, map(set, references), strict=True)
        ]
    )


class RecallAtK(_RankingMetric):
    """Share of queries with a right id among the first k: `RecallAtK().compute(predictions=…, references=…, k=10)`."""

    def _compute(self, predictions: Any, references: Any, k: int = 1) -> dict[str, float]:
        return {f"R@{k}": recall_at(_first_right(predictions, references), k)}


class MeanReciprocalRank(_RankingMetric):
    """Mean of 1 / rank of the first right id; 0 where no right id was found."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"MRR": mean_reciprocal_rank(_first_right(predictions, references))}
