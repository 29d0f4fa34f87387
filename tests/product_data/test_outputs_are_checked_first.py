"""What a command is to write at its end is checked before it reads, loads or computes anything."""

import errno
import json
from pathlib import Path

import pytest

from evaluation import run
from moon3.__main__ import main
from product_data.outputs import OutputError, require_writable_file, require_writable_folder

COMMANDS = {
    "evaluate --output": ["--model", "nowhere", "--benchmark", "catalogue", "--catalogue-products", "60"],
    "evaluate --sheet": ["--model", "nowhere", "--benchmark", "catalogue", "--catalogue-products", "60"],
    "gate --output": ["--model", "nowhere", "--benchmark", "catalogue"],
    "bench --output": ["encode"],
    "heatmap --output": ["--model", "nowhere", "--data", "catalogue"],
    "catalogue --sheet": [],
    "catalogue --output": [],
    "bench --output ": ["train"],
    "soak --results": ["RECIPE", "--output", "SOAK"],
    "completions --output": ["RUN"],
    "reasoning-study --output": [],
    "ablate --output": ["training/recipes/ablations/suites/shared_small.yaml"],
    "prepare --output": ["nowhere"],
    "mine --output": ["--model", "nowhere", "--data", "catalogue"],
    "annotate --output": ["catalogue", "--model", "nowhere"],
    "co-augment --output": ["catalogue", "--model", "nowhere"],
    "co-augment --sheet": ["catalogue", "--model", "nowhere", "--output", "VARIANTS"],
    "upcycle --out": ["--base", "nowhere"],
    "shop --output": ["--data", "nowhere"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_below_a_file_is_refused_by_its_option(command, tmp_path, capsys):
    name, option = command.split()
    (tmp_path / "file").write_text("not a folder")
    where = tmp_path / "file" / ("out.json" if name == "gate" else "out.parquet" if name == "annotate" else "out.png")
    values = {"RECIPE": "training/recipes/smoke_moon1.yaml", "SOAK": str(tmp_path / "soak"), "RUN": str(tmp_path)}
    values |= {"VARIANTS": str(tmp_path / "variants")}
    arguments = [values.get(word, word) for word in COMMANDS[command]] + [option, str(where)]
    status = main([name, *arguments])
    said = capsys.readouterr().err
    assert status == 2, said
    assert f"{option} {where}: cannot be written (" in said
    assert "file is a file" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_what_is_there_stays_and_what_is_not_leaves_no_trace(tmp_path):
    there = tmp_path / "results.json"
    there.write_text("kept")
    require_writable_file("--output", there)
    require_writable_file("--output", tmp_path / "new.json")
    require_writable_file("--output", tmp_path / "new" / "folder" / "new.json")
    require_writable_folder("--output", tmp_path / "new" / "folder")
    require_writable_file("--output", None)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert there.read_text() == "kept"


def test_folders_files_long_names_and_refusals_of_the_system_are_told(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="found a folder; expected the name of a file"):
        require_writable_file("--output", tmp_path)
    for path in (tmp_path / ("n" * 300), tmp_path / "new" / ("n" * 300) / "x"):
        with pytest.raises(OutputError, match="cannot be written"):
            require_writable_file("--output", path)
        with pytest.raises(OutputError, match="cannot be written"):
            require_writable_folder("--output", path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is a file"):
        require_writable_folder("--output", tmp_path / "file")

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("product_data.outputs.tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("product_data.outputs.os.open", refuse)
    for require in (require_writable_folder, require_writable_file):
        with pytest.raises(OutputError, match=r"--output .*new: cannot be written \(Read-only file system\)"):
            require("--output", tmp_path / "new")


def test_a_result_that_cannot_be_written_after_all_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        run._write({"scores": {"t2mm": 0.5}}, tmp_path / "results.json")
    assert json.loads(capsys.readouterr().out) == {"scores": {"t2mm": 0.5}}
