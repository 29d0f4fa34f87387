"""Train the contrastive stage on streams, with a sampler of rows whose state is saved in each checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from training.batches.streams import StreamBatches
from training.contrastive.trainer import ContrastiveTrainer


class StreamedTrainer(ContrastiveTrainer):
    """ContrastiveTrainer for streams, whose batches are lists of rows instead of positions.

    A run resumes exactly, even within an epoch: the streams continue after the last batch of the checkpoint, without
    opening the pictures of earlier batches.

    Args:
        batches: the batches of this process, which differ from those of other processes.
        **kwargs: arguments of ContrastiveTrainer, with a StreamCollator. `train_dataset` is `batches.pairs`.
    """

    def __init__(self, *, batches: StreamBatches, **kwargs: Any) -> None:
        super().__init__(train_dataset=batches.pairs, **kwargs)
        self.batches = batches

    def get_train_dataloader(self) -> DataLoader:
        """Return a data loader that accelerate does not distribute, because the rows already belong to this process."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,  # type: ignore[arg-type]  # lists of rows instead of indices
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
        """Restore the state of ContrastiveTrainer and of the streams."""
        super().load_own_state(state, checkpoint)
        self.batches.load_state_dict(json.loads(state["stream"]))
