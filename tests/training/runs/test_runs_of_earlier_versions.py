"""A run and a checkpoint that an earlier version of the code wrote, before its modules moved, go on and load as before.

`run_of_0_1` holds the recipe of a training of six steps, its metrics, its checkpoint after three steps without the copies of the
code, and the vectors of that checkpoint for `PRODUCTS`, all written by that version.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

import modeling_moon
import processing_moon  # noqa: F401 - registers the classes of the checkpoint
from product_data.atomic_files import read_lines
from training.runs.folder import RunFolder
from training.train import main

pytestmark = [pytest.mark.lowest, pytest.mark.usefixtures("one_thread")]
EARLIER = Path(__file__).resolve().parent / "run_of_0_1"
STEPS = 6
IMAGE = Image.fromarray(np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype("uint8"))
PRODUCTS = [
    {"title": "red sneakers", "attributes": {"colour": "red"}},
    {"images": IMAGE},
    {"title": "a mug", "category": ["Home", "Mugs"], "images": IMAGE, "core_box": [8, 8, 50, 50]},
]


def test_a_checkpoint_of_an_earlier_version_gives_its_vectors():
    folder = EARLIER / "checkpoint-3"
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    assert isinstance(model, modeling_moon.MoonModel)
    with torch.inference_mode():
        vectors = model(**processor(products=PRODUCTS)).embeddings
    expected = torch.tensor(json.loads((EARLIER / "vectors.json").read_text()))
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-6)


def test_a_killed_run_of_an_earlier_version_goes_on_where_it_stopped(tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(EARLIER, run.path)
    expected = read_lines(run.metrics)
    with pytest.warns(FutureWarning, match="is now"):  # forms and product_mix had other names
        assert main([str(run.path / "recipe.yaml"), "--output_dir", str(run.path)]) == 0
    assert f"resuming from {run.checkpoint(3)}" in capsys.readouterr().out
    metrics = read_lines(run.metrics)
    assert [line["step"] for line in metrics] == [line["step"] for line in expected] == list(range(1, STEPS + 1))
    assert metrics[:3] == expected[:3]  # of the steps before the checkpoint nothing is written again
    for name in ("loss", "grad_norm", "learning_rate", "negatives", "masked_share"):
        # On the machine that wrote them they are equal bit by bit; other kernels round otherwise.
        assert [line[name] for line in metrics] == pytest.approx([line[name] for line in expected], rel=1e-3), name
    assert run.steps() == STEPS
    assert (run.final / "config.json").is_file()
