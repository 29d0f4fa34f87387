"""Steps that are not finite end a training before the weights, and a checkpoint, are spoiled."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from training.libraries.accelerate_library import skips_steps
from training.libraries.trainer import TrainerSteps
from training.parallel.distributed import rank
from training.runs.folder import RunFolder


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient became NaN or infinite; the message names the file that lists the batch's items."""

    exit_status = 3


class FiniteSteps(TrainerSteps):
    """Mixin before a Trainer: a loss or a gradient that is NaN or infinite stops training, with the items named in a file.

    The trainer adds the names of each batch to `items_of_step`, and calls `stop_not_finite` for its loss.

    Raises:
        NonFiniteLossError: from a step; the last good checkpoint is untouched.
    """

    items_of_step: list[Any]

    def after_gradient_norm(self: Any, norm: Any) -> None:
        """End training before the weights, and a checkpoint, take a gradient that is not finite in all processes."""
        if norm is not None and not skips_steps(self.accelerator) and not math.isfinite(norm):
            self.stop_not_finite("gradient's norm", float(norm), self.items_of_step)
        self.items_of_step = []

    def stop_not_finite(self: Any, what: str, value: float, items: list[Any]) -> NoReturn:
        """Write the items of a step that is not finite to `nonfinite_batch_<rank>.json` in output_dir, and stop.

        Args:
            what: "loss" or "gradient's norm".
            value: what was found.
            items: names of queries and products.
        """
        path = RunFolder(Path(self.args.output_dir)).nonfinite_batch(rank())
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"step": self.state.global_step, what: str(value), "items": items}
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
        raise NonFiniteLossError(
            f"the {what} is {value} at step {self.state.global_step}; the batch's queries and positives are "
            f"listed in {path}; a lower learning_rate or max_grad_norm, or bf16 instead of fp16, usually helps"
        )
