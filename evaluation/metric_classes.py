"""Define local `evaluate.Metric` classes, which download nothing and write nothing to disk."""

import tempfile
from typing import Any

import datasets
import evaluate
from sklearn.metrics import precision_recall_fscore_support

_INPUTS = """
Args:
    predictions: predicted labels, as numbers.
    references: true labels, as numbers.
"""


class MacroScores(evaluate.Metric):
    """Macro-averaged precision, recall and F1 over the labels in the ground truth; 0 / 0 counts as 0.

    `MacroScores().compute(predictions=…, references=…)` → {"precision", "recall", "f1"};
    `evaluation.metrics.macro_scores` computes the same scores faster, for the many samples of a bootstrap.
    """

    def __init__(self, **options: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:  # the library makes a folder even if it writes no file
            super().__init__(**({"keep_in_memory": True, "cache_dir": folder} | options))

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": label, "references": label}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        found = precision_recall_fscore_support(
            references, predictions, labels=sorted(set(references)), average="macro", zero_division=0.0
        )
        return dict(zip(("precision", "recall", "f1"), map(float, found[:3]), strict=True))
