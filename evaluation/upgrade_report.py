"""Report what an upgrade recovers: R@10 of each search with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from evaluation.metrics import bootstrap_interval, recall_at
from retrieval.upgrade.fitting import ADAPTED, NEW_TO_NEW, OLD_TO_OLD, UNADAPTED, K
from retrieval.upgrade.upgrade_folder import Upgrade

SEARCHES = (OLD_TO_OLD, NEW_TO_NEW, UNADAPTED, ADAPTED)


def recall_of(rank_Q: Sequence[int] | np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Return R@10 of ranks with its 95 % bootstrap interval, and the number of queries."""
    hit_Q = (np.asarray(rank_Q) <= K).astype(np.float64)
    interval = [round(bound, 4) for bound in bootstrap_interval(hit_Q, seed=seed)]
    return {f"R@{K}": round(recall_at(np.asarray(rank_Q), K), 4), "interval": interval, "queries": len(hit_Q)}


def recalls(ranks: Mapping[str, Sequence[int]], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return `recall_of` each search, the four of an upgrade first."""
    order = [*(name for name in SEARCHES if name in ranks), *(name for name in ranks if name not in SEARCHES)]
    return {name: recall_of(ranks[name], seed=seed) for name in order}


def upgrade_report(upgrade: Upgrade) -> str:
    """Return a table of the searches of an upgrade and of every adapter, and sentences on what was chosen."""
    found = recalls(upgrade.ranks, seed=upgrade.seed)
    rows = [
        [name, percent(one), "" if name not in upgrade.chosen_by else f"{100 * upgrade.chosen_by[name]:.1f}"]
        for name, one in found.items()
    ]
    table = tabulate(rows, headers=["search", f"R@{K}, %", "score where it was chosen, %"], disable_numparse=True)
    queries = len(next(iter(upgrade.ranks.values())))
    sentences = [
        f"{upgrade.sample} products by {upgrade.old.model} (width {upgrade.old.dimension}) and {upgrade.new.model} (width "
        f"{upgrade.new.dimension}); {queries} queries, the titles of products that neither fitted nor chose an adapter.",
        f"Adapter: {upgrade.name}. {recovered(found)}",
        f"Calibrated cosine: {upgrade.calibration.scale:.3f} × cosine {upgrade.calibration.shift:+.3f}.",
        *upgrade.notes,
    ]
    return "\n".join([table, *sentences])


def recovered(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the sentence on the share of the old model's and of the new model's recall that the adapter keeps."""
    kept = found[ADAPTED][f"R@{K}"]
    shares = [
        f"{100 * kept / other[f'R@{K}']:.1f} % of {words}"
        for name, words in ((OLD_TO_OLD, "the old model's"), (NEW_TO_NEW, "the new model's"))
        if (other := found.get(name)) and other[f"R@{K}"]
    ]
    return f"R@{K} {100 * kept:.1f} % is {' and '.join(shares)}." if shares else f"R@{K} {100 * kept:.1f} %."


def percent(one: Mapping[str, Any]) -> str:
    """Return R@10 in percent with its interval."""
    low, high = one["interval"]
    return f"{100 * one[f'R@{K}']:.1f} ({100 * low:.1f}–{100 * high:.1f})"
