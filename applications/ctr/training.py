"""Train one click model and score the rows of the test period; its length is chosen on the validation period."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from applications.ctr.model import VARIANTS, CtrModel, CtrSettings
from applications.ctr.periods import Histories, Periods
from applications.ctr.product_vectors import ProductVectors, similarity_histogram
from product_data.impressions import ImpressionLog

CHECKS_PER_EPOCH = 4
PATIENCE = 4
"""Checks without a lower validation loss after which training stops."""
_ROWS_PER_PASS = 4096


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished training.

    Args:
        probability_N: predicted chance of a click for the rows of the test period, float32.
        steps (`int`): steps of the kept model, that with the lowest validation loss.
        valid_loss (`float`): its mean log loss on the validation period.
    """

    probability_N: np.ndarray
    steps: int
    valid_loss: float


class ClickRows:
    """The inputs of a click model for the rows of a log.

    Args:
        log, periods: the log and its periods.
        vectors: vectors of the products, for variants with vectors; `None` without.
        settings: sizes.
    """

    def __init__(
        self, log: ImpressionLog, periods: Periods, vectors: ProductVectors | None, settings: CtrSettings
    ) -> None:
        self.periods, self.product_N = periods, log.product_N
        self.clicked_N = torch.from_numpy(log.clicked_N.astype(np.float32))
        self.histories = Histories(log, settings.history)
        seen_P = np.unique(log.product_N[periods.train])
        self.id_P = np.zeros(len(log.products) + 1, dtype=np.int64)  # the last entry is that of NONE
        self.id_P[seen_P] = 1 + np.arange(len(seen_P))
        self.known_ids = len(seen_P)
        self.vector_PD: Tensor | None = None
        self.histogram_NT = torch.zeros(len(log), 0)
        if vectors is not None:
            centred_PD = vectors.centred(seen_P)
            self.vector_PD = torch.from_numpy(centred_PD)
            counts_NT = similarity_histogram(centred_PD, log.product_N, self.histories, settings.tiers)
            self.histogram_NT = torch.from_numpy(counts_NT)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids, places and histogram of rows, as `CtrModel.forward` takes them."""
        place = np.concatenate([self.product_N[rows][:, None], self.histories.of(rows)], axis=1)
        ids = torch.from_numpy(self.id_P[place])
        return ids, torch.from_numpy(place), self.histogram_NT[torch.from_numpy(rows)]


def train(rows: ClickRows, variant: str, settings: CtrSettings, *, seed: int = 0) -> Trained:
    """Train one variant and score the test period.

    The validation loss is measured four times in an epoch. Training stops after four checks without a lower one, or after
    `settings.epochs`, and the model of the lowest validation loss is kept. The test period is read once, at the end.

    Args:
        rows: inputs; with vectors for a variant that uses them.
        variant (`str`): a name of `applications.ctr.model.VARIANTS`.
        settings: sizes and training.
        seed (`int`): of the starting weights, the order of rows and the replaced ids. Default 0.

    Raises:
        OptionError: a variant with vectors without vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CtrModel(variant, rows.known_ids, rows.vector_PD if VARIANTS[variant].vectors else None, settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    train_rows = rows.periods.train
    per_epoch = max(1, -(-len(train_rows) // settings.batch_size))
    check_every = max(1, per_epoch // CHECKS_PER_EPOCH)
    best, best_step, best_state, step = float("inf"), 0, copy.deepcopy(model.state_dict()), 0
    for _ in range(settings.epochs):
        order = train_rows[torch.randperm(len(train_rows), generator=generator).numpy()]
        for chosen in np.array_split(order, per_epoch):
            _step(model, optimizer, rows, chosen, generator)
            step += 1
            if step % check_every == 0:
                loss = _validation_loss(model, rows)
                if loss < best:
                    best, best_step, best_state = loss, step, copy.deepcopy(model.state_dict())
                elif step - best_step >= PATIENCE * check_every:
                    break
        if step - best_step >= PATIENCE * check_every:
            break
    model.load_state_dict(best_state)
    return Trained(_probabilities(model, rows, rows.periods.test), best_step, best)


def _step(
    model: CtrModel, optimizer: torch.optim.Optimizer, rows: ClickRows, chosen: np.ndarray, generator: torch.Generator
) -> None:
    model.train()
    ids, places, histogram = rows.batch(chosen)
    replaced = torch.rand(ids.shape, generator=generator) < model.settings.unknown_share
    logits = model(ids.masked_fill(replaced, 0), places, histogram)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, rows.clicked_N[torch.from_numpy(chosen)])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _validation_loss(model: CtrModel, rows: ClickRows) -> float:
    valid = rows.periods.valid
    probability_N = torch.from_numpy(_probabilities(model, rows, valid))
    return float(torch.nn.functional.binary_cross_entropy(probability_N, rows.clicked_N[torch.from_numpy(valid)]))


@torch.inference_mode()
def _probabilities(model: CtrModel, rows: ClickRows, chosen: np.ndarray) -> np.ndarray:
    model.eval()
    parts = [
        torch.sigmoid(model(*rows.batch(chosen[start : start + _ROWS_PER_PASS])))
        for start in range(0, len(chosen), _ROWS_PER_PASS)
    ]
    return torch.cat(parts).numpy()
