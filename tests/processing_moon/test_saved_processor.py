"""A processor comes back from disk as it was, also where this project cannot be imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from isolated import BLOCKED
from pictures import noise
from transformers import AutoProcessor

from processing_moon import MoonProcessor

SETTINGS = {
    "instructions": {"query": "Find it", "brand": "Name it"},
    "readout": "emb",
    "markers": True,
    "max_tokens": 300,
    "max_image_tokens": 9,
    "core_crop": False,
}
RECORD = {"title": "red shoes", "category": ["a", "b"], "attributes": {"colour": "red"}, "core_box": [3, 4, 50, 60]}


@pytest.fixture(scope="module")
def saved(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "moon"
    MoonProcessor.from_base(tiny_base(), **SETTINGS).save_pretrained(folder)
    return folder


def test_all_settings_are_saved_and_restored(saved):
    written = json.loads((saved / "processor_config.json").read_text())
    restored = MoonProcessor.from_pretrained(saved)
    for name, value in SETTINGS.items():
        assert getattr(restored, name) == (restored.instructions if name == "instructions" else value)
        assert written[name] == getattr(restored, name)
    assert restored.instructions["query"] == "Find it"
    assert written["auto_map"] == {"AutoProcessor": "processing_moon.MoonProcessor"}
    assert written["processor_class"] == "MoonProcessor"
    for name in ("processing", "product", "pixels", "cropping", "batch", "reasoning"):
        assert (saved / f"{name}_moon.py").exists()


def test_saved_again_is_the_same_file_by_file(saved, tmp_path):
    MoonProcessor.from_pretrained(saved).save_pretrained(tmp_path / "again")
    names = sorted(path.name for path in saved.iterdir() if path.is_file())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir() if path.is_file())
    for name in names:
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_the_restored_processor_gives_the_same_tensors(saved, tiny_base):
    first = MoonProcessor.from_base(tiny_base(), **SETTINGS)(products=[{**RECORD, "images": noise(96, 64)}])
    second = MoonProcessor.from_pretrained(saved)(products=[{**RECORD, "images": noise(96, 64)}])
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_with_this_package_imported_no_remote_code_is_run(saved):
    assert type(AutoProcessor.from_pretrained(saved)) is MoonProcessor


def test_settings_can_be_changed_on_loading(saved):
    changed = MoonProcessor.from_pretrained(saved, max_tokens=77, core_crop=True)
    assert (changed.max_tokens, changed.core_crop, changed.max_image_tokens) == (77, True, 9)


ALONE = """
import sys
from processing_moon import MoonProcessor
first = MoonProcessor.from_pretrained(sys.argv[1])
second = MoonProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
records = [{"text": "red shoes"}, {"text": "brown bag <|im_end|>"}]
assert type(first.tokenizer) is type(second.tokenizer)
assert (first(queries=records)["input_ids"] == second(queries=records)["input_ids"]).all()
assert not [name for name in sys.modules if name.startswith(("modeling_moon", "transformers_modules"))]
"""


@pytest.mark.slow
def test_it_loads_from_a_checkpoint_without_the_models_code(saved, tmp_path, project_root):
    folder = shutil.copytree(saved, tmp_path / "checkpoint")
    auto_map = {"AutoConfig": "configuration_moon.MoonConfig", "AutoModel": "modeling_moon.MoonModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "moon", "auto_map": auto_map}))
    path = os.pathsep.join([str(project_root), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder)], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "custom code" not in done.stdout + done.stderr


SCRIPT = (
    BLOCKED
    + """
import numpy as np
from PIL import Image
from transformers import AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
image = Image.fromarray(np.load(sys.argv[2]))
record = {"title": "red shoes", "category": ["a", "b"], "attributes": {"colour": "red"}, "core_box": [3, 4, 50, 60]}
record["images"] = image
batch = processor(products=[record, {"title": 3}], on_error="skip", core_crop=True, return_tensors="np")
assert batch.kept == [0] and batch.skipped[0].field == "title"
np.savez(sys.argv[3], **batch)
processor.save_pretrained(sys.argv[4])
again = AutoProcessor.from_pretrained(sys.argv[4], trust_remote_code=True)
second = again(products=[record], core_crop=True, return_tensors="np")
assert all(np.array_equal(batch[name], second[name]) for name in batch)
detector_class = get_class_from_dynamic_module("cropping_moon.GroundingDetector", sys.argv[1])
detector = detector_class.from_pretrained(sys.argv[5], max_new_tokens=2)
assert detector.detect([image], ["shoe"]) == [None]
"""
)


def test_it_loads_in_a_process_that_cannot_import_this_project(saved, tiny_base, tmp_path):
    pixels = tmp_path / "pixels.npy"
    np.save(pixels, np.asarray(noise(96, 64)))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, saved, pixels, tmp_path / "out.npz", tmp_path / "again", tiny_base()]
    done = subprocess.run(
        [str(part) for part in command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    wanted = MoonProcessor.from_pretrained(saved)(products=[{**RECORD, "images": noise(96, 64)}], core_crop=True)
    with np.load(tmp_path / "out.npz") as batch:
        assert set(batch) == set(wanted)
        assert all(np.array_equal(batch[name], wanted[name].numpy()) for name in wanted)
