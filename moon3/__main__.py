"""Run `moon3 <command>`, or list the commands in the order of use.

Each file of this folder is one command. The first line of its docstring is its help text, and `ORDER` sets its place in the
list and its heading, see `HEADINGS`. `add_arguments(parser)` adds its options, and `run(chosen)` calls the library and prints.
Five parts are optional: `NAME`, if the file cannot have the name of the command; `TAKES_RECIPE_KEYS = True`, if unknown
options are `--key value` of a recipe (`chosen.keys` holds them); `STARTS_PROCESSES = True`, if SIGTERM must interrupt the command
as Ctrl-C does, so that it stops the processes that it has started; `RESUMES = True`, if an interrupted command says that the same
command resumes; and a file without `add_arguments` receives its unparsed words in `run(words)`. Torch, transformers and our own
packages are only imported inside these functions: `moon3 --help` therefore answers at once.

An error that a user can correct has the class attribute `exit_status`, or is an OSError: a file, a folder, a model or a server
that cannot be read or written. It is printed as one line, and only here. Every other error is a defect and keeps its traceback.

Exit status of every command: 0 done; 1 done, but a check failed; 2 refused, or a file or folder cannot be read or written; 3 not
finished because of bad data, a full disk or a training that failed, and the same command resumes; 130 interrupted with Ctrl-C
(or SIGTERM, see above); 141 the output's reader ended first, as `head` does.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from types import ModuleType

import moon3

HEADINGS = {
    0: "Start",
    20: "Prepare data",
    40: "Train",
    60: "Search a catalogue",
    90: "Evaluate and publish",
    130: "Studies, and checks of Moon itself",
}
"""`ORDER` → heading of the commands from this number on."""
INTERRUPTED, UNREAD = 130, 141
"""Exit statuses of a shell after SIGINT and SIGPIPE."""
FULL_DISK = 3


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


def heading_of(command: ModuleType) -> str:
    """Return the heading of a command in the list."""
    return HEADINGS[max(start for start in HEADINGS if start <= command.ORDER)]


def usage() -> str:
    """Return the text of `moon3 --help`."""
    known = commands()
    width = max(map(len, known))
    lines = ["usage: moon3 <command> [options]"]
    above = ""
    for name, command in known.items():
        if (heading := heading_of(command)) != above:
            lines += ["", heading]
            above = heading
        lines.append(f"  {name:{width}}  {help_of(command)}")
    return "\n".join([*lines, "", "moon3 <command> --help lists the options of a command."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; see the docstring of this file.

    Args:
        arguments: the command and its options. Default: `sys.argv[1:]`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a letter that the terminal does not have must not end a command
            stream.reconfigure(errors="backslashreplace")
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
        chosen = parse_words(command, words)
        with terminated_as_interrupted() if getattr(command, "STARTS_PROCESSES", False) else nullcontext():
            status = command.run(chosen) or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        hint = "; the same command resumes" if getattr(command, "RESUMES", False) else ""
        print(f"moon3 {name_of(command)}: interrupted{hint}", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # argparse exits after its help and after an error
        return stop.code if isinstance(stop.code, int) else 2
    except Exception as error:
        if isinstance(error, BrokenPipeError) and output_is_closed():
            return UNREAD
        status, reason = status_of(error)
        if status is None:
            raise
        print(f"moon3 {name_of(command)}: {reason}", file=sys.stderr)
        return status


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so that a command stops the processes that it has started."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def status_of(error: Exception) -> tuple[int | None, str]:
    """Return the exit status of an error and what is printed of it; `None` for a defect."""
    if (status := getattr(error, "exit_status", None)) is not None:
        return status, str(error)
    from product_data.full_disk import is_full_disk

    if is_full_disk(error):
        full = "the disk is full, or a quota or a limit on file sizes is reached"
        return FULL_DISK, f"{full} ({error}). Free some space and run the same command again"
    return (2 if isinstance(error, OSError) else None), str(error)


def output_is_closed() -> bool:
    """Return whether the reader of the standard output has ended; what is still to be written is then dropped."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


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
