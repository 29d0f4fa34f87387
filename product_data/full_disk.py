"""Recognise the errors of a disk without room, whichever library raises them."""

from __future__ import annotations

import errno
import re
import sqlite3

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a full disk, a quota, and a limit on file sizes."""
_IN_WORDS = re.compile(rf"No space left on device|Disk quota exceeded|\(os error (?:{'|'.join(map(str, FULL))})\)")


def is_full_disk(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes means that a file could not be written for lack of space.

    Args:
        error: an OSError with one of these numbers, SQLite's error of a full disk, or an error of a library that has no number
            and says it in words, as those of Arrow and Lance do.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
            return True
        if _IN_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
