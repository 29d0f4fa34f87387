"""The command line of upcycling: a checkpoint that every library loads, and refusals in one sentence."""

import json

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText

from modeling_moon import MoonModel
from moon3.__main__ import main
from processing_moon import MoonProcessor

CHANGES = ("--embedding-dim", 0, "--moe-layers", 1, "--num-experts", 5, "--max-tokens", 300, "--max-image-tokens", 9)


def call(*arguments):
    return main(["upcycle", *map(str, arguments)])


def test_the_command_writes_a_whole_checkpoint(tiny_base, tmp_path, capsys):
    out = tmp_path / "moon"
    assert call("--base", tiny_base("qwen2_5_vl"), "--out", out, *CHANGES) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    model = MoonModel.from_pretrained(out)
    assert (model.config.embedding_dim, model.config.mixture_layers, model.config.num_experts) == (None, (1,), 5)
    processor = MoonProcessor.from_pretrained(out)
    assert (processor.max_tokens, processor.max_image_tokens) == (300, 9)
    files = {path.name for path in out.iterdir()}
    assert {
        "modules.json",
        "modeling_moon.py",
        "processing_moon.py",
        "generation_config.json",
        "tokenizer.json",
    } <= files
    assert json.loads((out / "config.json").read_text())["auto_map"]["AutoModel"] == "modeling_moon.MoonModel"
    assert AutoModelForImageTextToText.from_pretrained(out).can_generate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--embedding-dim", "1000"], "expected 1 to the base's width 64"),
        (["--num-experts", "2"], "leaves no free expert"),
        (["--moe-layers", "9"], "whole numbers from 0 to 1"),
        (["--readout", "max"], "invalid choice"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(tiny_base, tmp_path, capsys, arguments, message):
    assert call("--base", tiny_base("qwen3_vl"), "--out", tmp_path / "moon", *arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_base_is_refused(tmp_path, capsys):
    AutoConfig.for_model("bert").save_pretrained(tmp_path / "bert")
    assert call("--base", tmp_path / "bert", "--out", tmp_path / "moon") == 2
    assert "cannot upcycle model type 'bert'" in capsys.readouterr().err
