"""The fingerprint of a model: what changes it, what does not, and what is refused."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from tiny_peers import make_clip

import evaluation.baselines  # noqa: F401 - the peers' kinds
from retrieval.model_kinds import CheckpointError
from retrieval.vectors import fingerprint
from retrieval.vectors.fingerprint import file_digest, model_fingerprint, settings_digest, vector_fingerprint


@pytest.fixture
def model(tiny_moon, tmp_path):
    return shutil.copytree(tiny_moon("qwen3_vl"), tmp_path / "model")


def test_a_copy_has_the_same_fingerprint_and_so_has_one_with_another_card_or_note_of_saving(model, tiny_moon):
    own = model_fingerprint(model)
    assert len(own) == 32
    assert own == model_fingerprint(str(tiny_moon("qwen3_vl")))
    config = json.loads((model / "config.json").read_text())
    changed = config | {"transformers_version": "9.9", "_name_or_path": "elsewhere"}
    (model / "config.json").write_text(json.dumps(dict(reversed(changed.items()))))
    (model / "README.md").write_text("another card")
    (model / "model_card.json").write_text("{}")
    (model / "trainer_state.json").write_text("{}")
    assert model_fingerprint(model) == own


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_weights_configuration_and_processor_change_it(model, name):
    own = model_fingerprint(model)
    path = model / name
    if name == "config.json":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_experts": 7}))
    else:
        contents = bytearray(path.read_bytes())
        contents[-3] ^= 1
        path.write_bytes(bytes(contents))
    assert model_fingerprint(model) != own


def test_a_kind_is_part_of_it(tmp_path):
    place = make_clip(tmp_path / "clip")
    assert model_fingerprint(f"clip={place}") != model_fingerprint(place)
    assert model_fingerprint(f"clip={place}") == model_fingerprint(f"clip={place}")


def test_the_version_of_the_code_is_part_of_it(model, monkeypatch):
    own = model_fingerprint(model)
    monkeypatch.setattr(fingerprint, "CODE_VERSION", fingerprint.CODE_VERSION + 1)
    assert model_fingerprint(model) != own


def test_a_hub_id_counts_by_its_commit(tmp_path, monkeypatch):
    def downloaded(commit):
        folder = tmp_path / "snapshots" / commit
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        return str(folder / "config.json")

    found = []
    for commit in ("a" * 40, "a" * 40, "b" * 40):
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file, commit=commit: downloaded(commit))
        found.append(model_fingerprint("owner/name"))
    assert found[0] == found[1] != found[2]


def test_no_model_or_no_weights_are_refused(model, tmp_path):
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"found no weights \(\.safetensors"):
        model_fingerprint(model)
    with pytest.raises(CheckpointError, match="owner/nothing: found neither a folder nor a model on the hub"):
        model_fingerprint("owner/nothing")


def test_the_digest_of_a_large_file_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "_CACHED_FROM_BYTES", 10)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x" * 20)
    own, state = file_digest(path), path.stat()
    path.write_bytes(b"y" * 20)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file_digest(path) == own  # the same size and time: not read again
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    other = file_digest(path)
    assert other != own
    (tmp_path / "cache" / "moon" / "fingerprints.json").write_text("not JSON")
    assert file_digest(path) == other


def test_settings_count_by_their_values():
    assert (
        settings_digest({"a": 1, "b": "x"})
        == settings_digest({"b": "x", "a": 1})
        != settings_digest({"a": 2, "b": "x"})
    )
    assert vector_fingerprint("f", {}) != vector_fingerprint("f", {"dtype": "int8"})
