"""Write one JSON line for each request, without the words of queries unless the operator wants them."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

NAME = "moon3.serve"


def request_logger() -> logging.Logger:
    """Return the logger of requests; it writes to standard error unless the program has configured it."""
    logger = logging.getLogger(NAME)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


def log_request(logger: logging.Logger, **facts: Any) -> None:
    """Write the facts of a request as one line of JSON; facts that are None are left out."""
    logger.info(json.dumps({name: fact for name, fact in facts.items() if fact is not None}, ensure_ascii=False))
