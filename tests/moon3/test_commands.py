"""The command line: what it lists, how fast it answers, what it refuses and how it exits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from moon3.__main__ import HEADINGS, commands, heading_of, help_of, main, run_command

ROOT = Path(__file__).resolve().parents[2]
EARLY = [
    "quickstart",
    "tables",
    "detect-core",
    "prepare",
    "catalogue",
    "mine",
    "annotate",
    "co-augment",
    "make-base",
    "upcycle",
    "train",
    "shop",
    "completions",
    "embed",
    "index",
    "search",
    "serve",
    "explain",
    "decide",
    "upgrade",
]
LATE = [
    "evaluate",
    "mteb",
    "card",
    "push",
    "report",
    "compare",
    "heatmap",
    "gate",
    "ctr",
    "exchange-rate",
    "ablate",
    "scale",
    "reasoning-study",
    "annotation-study",
    "frozen-study",
    "shops-study",
    "matching-study",
    "upgrade-study",
    "form-balance",
    "label-collapse",
    "core-crop-study",
    "bench",
    "soak",
    "soak-embed",
    "shipped-checkpoint",
    "reference-checkpoint",
]
IN_ORDER = EARLY + LATE
HELP = """
import resource, sys
from moon3.__main__ import main
status = main(["--help"])
seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime
slow = {"torch", "transformers", "datasets", "numpy", "PIL", "yaml", "pydantic", "product_data", "training"}
heavy = sorted(slow & set(sys.modules))
print(f"{seconds:.3f} seconds, {heavy}", file=sys.stderr)
sys.exit(status or bool(heavy))
"""


def test_the_list_shows_every_command_once_in_the_order_in_which_a_person_needs_them(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == IN_ORDER
    assert main([]) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert list(commands()) == IN_ORDER
    assert len({command.ORDER for command in commands().values()}) == len(IN_ORDER)
    assert all(help_of(command).endswith(".") for command in commands().values())


def test_the_list_has_headings_and_studies_stand_apart(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    places = [lines.index(heading) for heading in HEADINGS.values()]
    assert places == sorted(places)
    assert all(lines[place - 1] == "" and lines[place + 1].startswith("  ") for place in places)
    names = list(commands())
    apart = [name for name in names if heading_of(commands()[name]) == [*HEADINGS.values()][-1]]
    of_studies = [name for name in names if name.endswith("-study") or name.startswith(("soak", "shipped", "form-"))]
    assert set(of_studies) < set(apart)
    assert not {"train", "embed", "search", "evaluate", "push", "mine"} & set(apart)
    assert {name for name in names if heading_of(commands()[name]) == "Search a catalogue"} >= {
        *("embed", "index", "search", "serve", "explain", "decide", "upgrade")
    }


def test_an_interrupted_command_says_so_in_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("evaluation.report.report", interrupted)
    assert main(["report", "x.json"]) == 130
    assert capsys.readouterr().err == "moon3 report: interrupted\n"


def test_a_terminated_command_that_starts_processes_is_interrupted(capsys):
    stopped = []

    def run(chosen):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            stopped.append(chosen)

    command = ModuleType("moon3.some_study", "Study something.")
    vars(command).update(ORDER=0, add_arguments=lambda parser: None, run=run, STARTS_PROCESSES=True, RESUMES=True)
    before = signal.getsignal(signal.SIGTERM)
    assert run_command(command, []) == 130
    assert len(stopped) == 1
    assert capsys.readouterr().err == "moon3 some-study: interrupted; the same command resumes\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_output_that_nobody_reads_ends_without_a_traceback(tmp_path):
    rows = "".join(json.dumps({"product_id": str(n), "title": "x", f"c{n}": n}) + "\n" for n in range(500))
    (tmp_path / "p.jsonl").write_text(rows)
    words = [sys.executable, "-m", "moon3", "tables", str(tmp_path / "p.jsonl"), "--format", "tables"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 141
    assert "Traceback" not in said
    assert "Broken pipe" not in said


def test_letters_that_the_terminal_does_not_have_are_escaped(tmp_path):
    (tmp_path / "p.csv").write_text("product_id,title\nGrün,hat\nGrün,hat\n", encoding="utf-8")
    words = [sys.executable, "-m", "moon3", "tables", str(tmp_path / "p.csv")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Gr\\xfcn" in done.stdout


def test_the_list_needs_no_library():
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stderr)  # the processor's seconds, for who reads it: the goal is half a second
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout


def test_the_package_can_be_run():
    command = [sys.executable, "-m", "moon3", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: moon3 <command>")


@pytest.mark.parametrize("name", IN_ORDER)
def test_each_command_says_what_it_takes(name, capsys):
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage:")
    assert "--" in said


@pytest.mark.parametrize("kind", ["encode", "train"])
def test_both_benches_say_what_they_take(kind, capsys):
    assert main(["bench", kind, "--help"]) == 0
    assert "--repeats" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "hint"), [("evalute", "did you mean 'evaluate'?"), ("xyz", "expected one of: quickstart, tables")]
)
def test_an_unknown_command_is_refused_with_the_nearest_one(word, hint, capsys):
    assert main([word]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"moon3: found command {word!r};")
    assert hint in said


@pytest.mark.parametrize("words", [["report"], ["report", "x.json", "--comp", "MRR"], ["bench"], ["tables", ".", "-x"]])
def test_words_that_cannot_be_parsed_are_refused(words, capsys):
    assert main(words) == 2
    assert f"moon3 {words[0]}" in capsys.readouterr().err


def test_an_underscore_is_as_good_as_a_hyphen(tmp_path, capsys):
    assert main(["reasoning_study", "nowhere.yaml", "--output", str(tmp_path / "x.json")]) == 2
    assert capsys.readouterr().err.startswith("moon3 reasoning-study: ")


def test_each_exit_status_on_real_data(tmp_path, capsys, monkeypatch):
    products = tmp_path / "products.csv"
    products.write_text("product_id,title\n1,hat\n2,shoe\n")
    assert main(["tables", str(products)]) == 0
    products.write_text("product_id,title\n1,hat\n1,shoe\n")
    assert main(["tables", str(products)]) == 1
    assert "ERROR: 1 × product_id used by more than one product" in capsys.readouterr().out
    assert main(["tables", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith(f"moon3 tables: {tmp_path / 'nowhere'}: no such file or folder")
    from training.runs.full_disk import DiskFullError

    def full(run):
        raise DiskFullError(f"{run.folder.path}: the disk is full")

    monkeypatch.setattr("training.train.train", full)
    recipe = str(ROOT / "training" / "recipes" / "smoke_moon1.yaml")
    assert main(["train", recipe, "--output_dir", str(tmp_path / "run")]) == 3
    assert capsys.readouterr().err == f"moon3 train: {tmp_path / 'run'}: the disk is full\n"
    assert main(["train", recipe, "--learning_rat", "1"]) == 2
    assert "unknown key 'learning_rat'" in capsys.readouterr().err


def test_a_defect_keeps_its_traceback(monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr("evaluation.report.report", broken)
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        main(["report", "x.json"])


@pytest.mark.parametrize("content", [None, "not json", "{}"])
def test_results_that_cannot_be_read_are_refused(content, tmp_path, capsys):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert main(["report", str(path)]) == 2
    assert "expected a file that moon3 evaluate wrote" in capsys.readouterr().err


def test_the_command_stands_in_the_provenance_of_a_result(monkeypatch):
    from evaluation.provenance import provenance

    monkeypatch.setattr("sys.argv", [str(ROOT / "moon3" / "__main__.py"), "evaluate", "--seed", "0"])
    assert json.dumps(provenance(0)["command"]) == '["moon3", "evaluate", "--seed", "0"]'


def test_no_other_module_parses_a_command_line():
    packages = (
        "modeling_moon",
        "processing_moon",
        "product_data",
        "retrieval",
        "evaluation",
        "training",
        "applications",
    )
    found = {
        str(path.relative_to(ROOT))
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if "argparse" in path.read_text(encoding="utf-8")
    }
    assert not found  # `training/recipe/command_line.py` reads `--key value` of recipes by itself
