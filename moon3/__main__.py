"""Run `moon3 <command>`, or list the commands in the order of use.

Each file of this folder is one command. The first line of its docstring is its help text, and `ORDER` sets its place in the
list. `add_arguments(parser)` adds its options, and `run(chosen)` calls the library and prints. Three parts are optional:
`NAME`, if the file cannot have the name of the command; `TAKES_RECIPE_KEYS = True`, if unknown options are `--key value` of a
recipe (`chosen.keys` holds them); and a file without `add_arguments` receives its unparsed words in `run(words)`. Torch,
transformers and our own packages are only imported inside these functions: `moon3 --help` therefore answers at once.

An error that a user can correct has the class attribute `exit_status`. It is printed as one line, and only here. Every other
error is a defect and keeps its traceback.

Exit status of every command: 0 done; 1 done, but a check failed; 2 refused before the work began; 3 interrupted by bad data or
a full disk, and the same command resumes.
"""

from __future__ import annotations

import argparse
import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import moon3


def commands() -> dict[str, ModuleType]:
    """Return the commands by name, in the order of use."""
    files = [found.name for found in pkgutil.iter_modules(moon3.__path__) if not found.name.startswith("_")]
    modules = sorted((import_module(f"moon3.{name}") for name in files), key=lambda module: module.ORDER)
    return {name_of(module): module for module in modules}


def name_of(command: ModuleType) -> str:
    """Return the name of a command: `NAME`, or the name of its file with hyphens."""
    return getattr(command, "NAME", command.__name__.rpartition(".")[2].replace("_", "-"))


def help_of(command: ModuleType) -> str:
    """Return the first line of a command's docstring."""
    return (command.__doc__ or "").splitlines()[0]


def usage() -> str:
    """Return the text of `moon3 --help`."""
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {help_of(command)}" for name, command in known.items()]
    return "\n".join(
        ["usage: moon3 <command> [options]", "", *lines, "", "moon3 <command> --help lists the options of a command."]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; see the docstring of this file.

    Args:
        arguments: the command and its options. Default: `sys.argv[1:]`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    known = commands()
    name = words[0].replace("_", "-")
    if name not in known:
        import difflib

        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        print(f"moon3: found command {words[0]!r}{hint} expected one of: {', '.join(known)}", file=sys.stderr)
        return 2
    return run_command(known[name], words[1:])


def run_command(command: ModuleType, words: Sequence[str]) -> int:
    """Parse the options of one command, run it and return its exit status.

    Args:
        command: its module.
        words: the words after its name on the command line.
    """
    try:
        return command.run(parse_words(command, words)) or 0
    except SystemExit as stop:  # argparse exits after its help and after an error
        return stop.code if isinstance(stop.code, int) else 2
    except Exception as error:
        status = getattr(error, "exit_status", 2 if isinstance(error, OSError) else None)
        if status is None:
            raise
        print(f"moon3 {name_of(command)}: {error}", file=sys.stderr)
        return status


def parse_words(command: ModuleType, words: Sequence[str]) -> argparse.Namespace | list[str]:
    """Return the parsed options of a command, or its unparsed words if it has no parser."""
    if not hasattr(command, "add_arguments"):
        return list(words)
    parser = argparse.ArgumentParser(prog=f"moon3 {name_of(command)}", description=help_of(command), allow_abbrev=False)
    command.add_arguments(parser)
    chosen, more = parser.parse_known_args(words)
    if more and not getattr(command, "TAKES_RECIPE_KEYS", False):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    chosen.keys = more
    return chosen


if __name__ == "__main__":
    sys.exit(main())
