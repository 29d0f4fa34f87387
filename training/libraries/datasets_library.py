"""Read what the library datasets keeps to itself.

The name is that of datasets 5.0 to 5.2; `tests/training/libraries/test_datasets_library.py` compares it with the installed
version.
"""

import datasets


def with_features(rows: datasets.IterableDataset) -> datasets.IterableDataset:
    """Return streamed rows that know their features; where their files do not state them, the first rows are read."""
    return rows if rows.features is not None else rows._resolve_features()
