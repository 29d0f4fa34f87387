"""Call a private method of the `datasets` library.

datasets 5.0 to 5.2 use this name; `tests/training/libraries/test_datasets_library.py` checks it against the installed
version.
"""

import datasets


def with_features(rows: datasets.IterableDataset) -> datasets.IterableDataset:
    """Return streamed rows with known features; if the files do not state them, read them from the first rows."""
    return rows if rows.features is not None else rows._resolve_features()
