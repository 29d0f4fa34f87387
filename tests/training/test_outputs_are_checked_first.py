"""What a command is to write at its end is checked before it reads, loads or computes anything."""

import errno
import importlib
import json
from pathlib import Path

import pytest

from evaluation import run
from evaluation.outputs import OutputError, require_writable_file, require_writable_folder

COMMANDS = {
    "evaluation.run --output": ["--model", "nowhere", "--benchmark", "catalogue", "--catalogue-products", "60"],
    "evaluation.run --sheet": ["--model", "nowhere", "--benchmark", "catalogue", "--catalogue-products", "60"],
    "evaluation.gate --output": ["--model", "nowhere", "--benchmark", "catalogue"],
    "evaluation.speed --output": [],
    "evaluation.heatmap --output": ["--model", "nowhere", "--data", "catalogue"],
    "evaluation.data.catalogue --sheet": [],
    "evaluation.data.catalogue --output": [],
    "training.speed --output": [],
    "training.soak --results": ["RECIPE", "--output", "SOAK"],
    "training.completions_report --output": ["RUN"],
    "training.reasoning_study --output": [],
    "training.ablate --output": ["training/recipes/ablations/suites/shared_small.yaml"],
    "training.data.mine --output": ["--model", "nowhere", "--data", "catalogue"],
    "training.data.write_attributes --output": ["catalogue", "--model", "nowhere"],
    "training.upcycle --out": ["--base", "nowhere"],
    "training.shop --output": ["--data", "nowhere"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_below_a_file_is_refused_by_its_option(command, tmp_path, capsys, monkeypatch):
    name, option = command.split()
    (tmp_path / "file").write_text("not a folder")
    where = tmp_path / "file" / ("out.json" if "gate" in name else "out.parquet" if "write" in name else "out.png")
    values = {"RECIPE": "training/recipes/smoke_moon1.yaml", "SOAK": str(tmp_path / "soak"), "RUN": str(tmp_path)}
    arguments = [values.get(word, word) for word in COMMANDS[command]] + [option, str(where)]
    main = importlib.import_module(name).main
    monkeypatch.setattr("sys.argv", [name, *arguments])
    try:
        status = main() if name in ("evaluation.data.catalogue", "training.upcycle") else main(arguments)
    except SystemExit as stopped:
        status = stopped.code
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
    with pytest.raises(OutputError, match="this is a folder; accepted: the name of a file"):
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

    monkeypatch.setattr("evaluation.outputs.tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("evaluation.outputs.os.open", refuse)
    for require in (require_writable_folder, require_writable_file):
        with pytest.raises(OutputError, match=r"--output .*new: cannot be written \(Read-only file system\)"):
            require("--output", tmp_path / "new")


def test_a_result_that_cannot_be_written_after_all_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        run._write({"scores": {"t2mm": 0.5}}, tmp_path / "results.json")
    assert json.loads(capsys.readouterr().out) == {"scores": {"t2mm": 0.5}}
