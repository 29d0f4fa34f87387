"""The answers of a chat model are kept with the version of the model that gave them."""

import pytest
from huggingface_hub import constants

from training.labels.chat_writer import _revision

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache as it is after a model was loaded by its name."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--shop--chat"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "snapshots" / COMMIT).mkdir(parents=True)
    (model / "snapshots" / COMMIT / "config.json").write_text("{}")


def test_the_version_of_a_model_of_the_hub_is_its_commit(cache):
    assert _revision("shop/chat") == COMMIT


def test_a_model_that_is_not_cached_has_no_version(cache):
    assert _revision("shop/other") == ""


def test_the_version_of_a_folder_changes_with_its_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = _revision(str(tmp_path))
    assert first == _revision(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert first != _revision(str(tmp_path))
    assert len(first) == 16
