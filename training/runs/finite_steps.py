"""Stop training at a loss or gradient that is not finite, before it reaches the weights and a checkpoint."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from training.libraries.accelerate_library import skips_steps
from training.libraries.trainer import TrainerSteps
from training.parallel.distributed import rank
from training.runs.folder import RunFolder


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient is NaN or infinite. The message names the file that lists the batch."""

    exit_status = 3


class FiniteSteps(TrainerSteps):
    """Mixin that comes before a Trainer: a NaN or infinite loss or gradient stops training and lists its batch.

    The trainer adds the names of each batch to `items_of_step`, and calls `stop_not_finite` for its loss.

    Raises:
        NonFiniteLossError: raised in a step; the last valid checkpoint is unchanged.
    """

    items_of_step: list[Any]

    def after_gradient_norm(self: Any, norm: Any) -> None:
        """Stop training in all processes before a gradient that is not finite reaches the weights."""
        if norm is not None and not skips_steps(self.accelerator) and not math.isfinite(norm):
            self.stop_not_finite("gradient's norm", float(norm), self.items_of_step)
        self.items_of_step = []

    def stop_not_finite(self: Any, what: str, value: float, items: list[Any]) -> NoReturn:
        """Write the names of the step's queries and products to `nonfinite_batch_<rank>.json` in output_dir, and stop.

        Args:
            what: "loss" or "gradient's norm".
            value: the value that is not finite.
            items: names of queries and products.
        """
        path = RunFolder(Path(self.args.output_dir)).nonfinite_batch(rank())
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"step": self.state.global_step, what: str(value), "items": items}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        raise NonFiniteLossError(
            f"the {what} is {value} at step {self.state.global_step}; {path} lists the queries and positives of the batch; "
            "a lower learning_rate or max_grad_norm, or bf16 instead of fp16, usually helps"
        )
