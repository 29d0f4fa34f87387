"""The command line of bases from language models: what it writes, and refusals in one sentence."""

import json

import pytest
from tiny_donors import tiny_donor
from transformers import AutoConfig

from moon3.__main__ import main


def call(*arguments):
    return main(["make-base", *map(str, arguments)])


def test_the_command_writes_a_base_that_upcycle_reads(tmp_path, capsys):
    donor, out = tiny_donor(tmp_path / "donor", dtype="float32"), tmp_path / "base"
    (tmp_path / "corpus.txt").write_text("red bags")
    vision = ["--vision", "hidden_size=64", "depth=3", "max_image_tokens=9"]
    options = ["--layers", 2, "--prune-vocabulary", tmp_path / "corpus.txt", "--dtype", "bfloat16", *vision]
    assert call("--text", donor, "--out", out, *options) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    config = AutoConfig.from_pretrained(out)
    assert (config.vision_config.hidden_size, config.vision_config.depth) == (64, 3)
    assert (config.text_config.num_hidden_layers, str(config.dtype)) == (2, "torch.bfloat16")
    assert config.text_config.vocab_size < AutoConfig.from_pretrained(donor).vocab_size
    assert json.loads((out / "preprocessor_config.json").read_text())["size"]["longest_edge"] == 9 * 28 * 28
    assert main(["upcycle", "--base", str(out), "--out", str(tmp_path / "moon"), "--preset", "moon3"]) == 0


def test_the_tower_may_be_that_of_a_checkpoint(tmp_path, tiny_base):
    donor = tiny_donor(tmp_path / "donor")
    assert call("--text", donor, "--out", tmp_path / "base", "--vision", tiny_base("qwen2_5_vl", vision_depth=3)) == 0
    assert AutoConfig.from_pretrained(tmp_path / "base").vision_config.depth == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vision", "depth=many"], "--vision: found 'depth=many'; expected KEY=VALUE with a whole number"),
        (["--vision", "depth=4", "big"], "--vision: found 'big'; expected KEY=VALUE"),
        (["--vision", "depth=1"], "--vision: small_base.vision_depth, num_layers: found 1"),
        (["--layers", "9"], "--layers: found 9; expected 1 to 3"),
        (["--prune-vocabulary", "nowhere"], "nowhere: no such file or folder"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(tmp_path, capsys, arguments, message):
    donor = tiny_donor(tmp_path / "donor")
    assert call("--text", donor, "--out", tmp_path / "base", *arguments) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["donor"]


def test_an_existing_base_is_only_replaced_on_request(tmp_path, capsys):
    donor = tiny_donor(tmp_path / "donor")
    words = ["--text", donor, "--out", tmp_path / "base"]
    assert call(*words) == 0
    assert call(*words) == 2
    assert "expected a new or empty folder, or --overwrite" in capsys.readouterr().err
    assert call(*words, "--overwrite", "--layers", 1) == 0
    assert AutoConfig.from_pretrained(tmp_path / "base").text_config.num_hidden_layers == 1
