"""Serve searches of a catalogue over HTTP."""

from __future__ import annotations

import argparse

from moon3._arguments import add_device

ORDER = 67
KEY_VARIABLE = "MOON_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = (
        f"Clients can change products if the environment variable {KEY_VARIABLE} has a key of 16 or more characters."
    )
    parser.add_argument("store", metavar="STORE", help="folder of moon3 embed, or qdrant=URL/COLLECTION")
    parser.add_argument("--model", help="folder or hub id (default: the model that made the vectors)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--allow-origin", nargs="+", default=[], metavar="ORIGIN", help="web pages that may call it (CORS)"
    )
    parser.add_argument(
        "--max-requests", type=int, default=64, help="requests in work at once; others get 429 (default: 64)"
    )
    parser.add_argument(
        "--batch-milliseconds", type=float, default=4.0, help="wait for queries to share a batch (default: 4)"
    )
    parser.add_argument("--log-queries", action="store_true", help="write the words of queries into the log")
    add_device(parser)


def run(chosen: argparse.Namespace) -> None:
    """Load the model, and serve until the process is stopped."""
    import os
    import sys

    import uvicorn

    import evaluation.baselines  # noqa: F401 - registers the kinds of models
    from retrieval.search import open_searcher
    from retrieval.serve.app import create_app
    from retrieval.serve.settings import ServiceSettings

    settings = ServiceSettings(
        api_key=os.environ.get(KEY_VARIABLE) or None,
        origins=tuple(chosen.allow_origin),
        max_requests=chosen.max_requests,
        batch_milliseconds=chosen.batch_milliseconds,
        log_queries=chosen.log_queries,
    )
    with open_searcher(chosen.store, model=chosen.model, device=chosen.device) as searcher:
        print(f"{searcher.store.about}: http://{chosen.host}:{chosen.port}/openapi.json", file=sys.stderr)
        uvicorn.run(create_app(searcher, settings), host=chosen.host, port=chosen.port, log_level="warning")
