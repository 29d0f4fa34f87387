"""Run `moon3 <command>`, or list the commands in the order in which a person needs them.

A command is one file of this folder, and nothing else has to know of it. The first line of its docstring is its help and
`ORDER` places it in the list. `add_arguments(parser)` names what it takes, and `run(chosen)` calls the library and prints.
Three things are optional: `NAME`, where the file cannot bear the command's name; `TAKES_RECIPE_KEYS = True`, where words that
the parser does not know are `--key value` of a recipe (they are in `chosen.keys`); and a file without `add_arguments` gets its
words as they are, in `run(words)`. Torch, transformers and our own packages are imported inside these functions alone, so that
`moon3 --help` answers at once.

An error that a user can put right bears the class attribute `exit_status`; it is printed as one line, here and nowhere else.
Every other error is a defect and keeps its traceback.

Exit status of every command: 0 done; 1 done, and what was checked is not in order; 2 refused before the work began; 3 stopped
on the way, by bad data or a full disk, and the same command goes on from there.
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
    """Return the commands by name, in their order."""
    files = [found.name for found in pkgutil.iter_modules(moon3.__path__) if not found.name.startswith("_")]
    modules = sorted((import_module(f"moon3.{name}") for name in files), key=lambda module: module.ORDER)
    return {name_of(module): module for module in modules}


def name_of(command: ModuleType) -> str:
    """Return what a command is called: its file's name with hyphens, or its own `NAME`."""
    return getattr(command, "NAME", command.__name__.rpartition(".")[2].replace("_", "-"))


def help_of(command: ModuleType) -> str:
    """Return the first line of a command's docstring."""
    return (command.__doc__ or "").splitlines()[0]


def usage() -> str:
    """Return what `moon3 --help` prints."""
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {help_of(command)}" for name, command in known.items()]
    return "\n".join(
        ["usage: moon3 <command> [options]", "", *lines, "", "moon3 <command> --help says what a command takes."]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; see this file's docstring.

    Args:
        arguments: the command and its options. Default: those of the process.
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
        words: what follows its name on the command line.
    """
    try:
        return command.run(parsed(command, words)) or 0
    except SystemExit as stop:  # argparse, after its help or after a sentence on what it cannot parse
        return stop.code if isinstance(stop.code, int) else 2
    except Exception as error:
        status = getattr(error, "exit_status", 2 if isinstance(error, OSError) else None)
        if status is None:
            raise
        print(f"moon3 {name_of(command)}: {error}", file=sys.stderr)
        return status


def parsed(command: ModuleType, words: Sequence[str]) -> argparse.Namespace | list[str]:
    """Return the options of a command, or its words as they are where it has no parser."""
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
