"""The contrastive trainer on streams: batches come from a sampler of rows, whose state is saved with each checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from training.batches.streams import StreamBatches
from training.contrastive.trainer import ContrastiveTrainer


class StreamedTrainer(ContrastiveTrainer):
    """ContrastiveTrainer whose `train_dataset` is made of rows in place of positions.

    Resumption is exact in the middle of an epoch: the streams go on where the last batch of the checkpoint had been read, and
    no picture is opened for what came before.

    Args:
        batches: the rows of this process; every process has its own.
        **kwargs: as ContrastiveTrainer, with `train_dataset` `batches.pairs` and a StreamCollator.
    """

    def __init__(self, *, batches: StreamBatches, **kwargs: Any) -> None:
        super().__init__(train_dataset=batches.pairs, **kwargs)
        self.batches = batches

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader as it is: the rows are this process's own, and are not to be parted once more."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,  # type: ignore[arg-type]  # lists of rows stand for lists of indices
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )

    def own_state(self) -> dict[str, Any]:
        consumed = self.state.global_step * self.args.gradient_accumulation_steps
        return super().own_state() | {"stream": json.dumps(self.batches.state_dict(consumed))}

    def load_own_state(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        """As ContrastiveTrainer; the streams go on where they were."""
        super().load_own_state(state, checkpoint)
        self.batches.load_state_dict(json.loads(state["stream"]))
