"""Hide the progress bars of libraries during a run without progress bars."""

import contextlib
from collections.abc import Iterator

import datasets
from transformers.utils import logging


@contextlib.contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Hide the progress bars of transformers, datasets, huggingface_hub and the project in a context unless `shown` is
    True.

    Args:
        shown: False for `disable_tqdm: true`. True does not change anything.
    """
    had_transformers, had_datasets = logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    if not shown:
        logging.disable_progress_bar()
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not shown and had_transformers:
            logging.enable_progress_bar()
        if not shown and had_datasets:
            datasets.enable_progress_bars()
