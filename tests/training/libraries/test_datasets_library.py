"""The library datasets has what we read."""

import datasets
import pytest
from library_names import Relied, difference
from private_names import uses_of

from training.libraries.datasets_library import with_features

pytestmark = pytest.mark.lowest

FILE = "training/libraries/datasets_library.py"
RELIED = [Relied("datasets.IterableDataset", "_resolve_features", FILE, "(self)")]


@pytest.mark.parametrize("relied", RELIED, ids=str)
def test_the_installed_version_has_what_we_rely_on(relied):
    if sentence := difference(relied):
        pytest.fail(sentence, pytrace=False)


def test_every_private_name_of_the_file_is_compared():
    assert set(uses_of(FILE)) == {relied.name for relied in RELIED}


def test_a_changed_signature_is_named_with_our_file(monkeypatch):
    monkeypatch.setattr(datasets.IterableDataset, "_resolve_features", lambda self, rows: None)
    assert difference(RELIED[0]) == (
        "datasets.IterableDataset._resolve_features(self): found (self, rows); "
        "training/libraries/datasets_library.py depends on it"
    )


def test_streamed_rows_learn_their_features_from_the_first_rows():
    rows = datasets.IterableDataset.from_generator(lambda: iter([{"title": "mug", "price": 3}]))
    assert rows.features is None
    known = with_features(rows)
    assert known.features == {"title": datasets.Value("string"), "price": datasets.Value("int64")}
    assert with_features(known) is known
