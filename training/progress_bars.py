"""Hide the progress bars of the libraries while a run asks for none."""

import contextlib
from collections.abc import Iterator

import datasets
from transformers.utils import logging


@contextlib.contextmanager
def bars_shown(shown: bool) -> Iterator[None]:
    """Keep the bars of transformers, datasets and the hub, and ours that follow transformers' switch, away where not shown.

    Args:
        shown: False while `disable_tqdm` is set; True changes nothing.
    """
    of_transformers, of_datasets = logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    if not shown:
        logging.disable_progress_bar()
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not shown and of_transformers:
            logging.enable_progress_bar()
        if not shown and of_datasets:
            datasets.enable_progress_bars()
