"""Errors of a disk without room are recognised, whichever library raises them, and every command says the same of them."""

from __future__ import annotations

import errno
import sqlite3

import pytest

from moon3 import decide, tables
from moon3.__main__ import run_command
from product_data.full_disk import is_full_disk


def caused(inner):
    try:
        try:
            raise inner
        except Exception as error:
            raise ValueError("the table cannot be written") from error
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (sqlite3.OperationalError("database or disk is full"), True),
        (sqlite3.OperationalError("no such table: rows"), False),
        (RuntimeError("lance error: IO error (os error 28)"), True),
        (RuntimeError("lance error: IO error (os error 2)"), False),
        (caused(OSError(errno.ENOSPC, "No space left on device")), True),
        (caused(KeyError("x")), False),
        (None, False),
    ],
)
def test_an_error_of_a_full_disk_is_recognised(error, full):
    assert is_full_disk(error) is full


@pytest.mark.parametrize(
    ("command", "words"), [(tables, ["shop.csv"]), (decide, ["vectors", "--output", "x", "--to-label", "100"])]
)
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), sqlite3.OperationalError("database or disk is full")]
)
def test_a_command_says_that_the_disk_is_full_and_can_be_run_again(command, words, error, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setattr(command, "run", fail)
    assert run_command(command, words) == 3
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert str(error) in said
    assert "Free some space and run the same command again" in said
