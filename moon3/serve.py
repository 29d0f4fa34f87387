"""Serve searches of a catalogue over HTTP."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

from moon3._arguments import add_device

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from retrieval.serve.settings import ServiceSettings

ORDER = 67
KEY_VARIABLE = "MOON_API_KEY"
WORKER_VARIABLE = "MOON_SERVE_OPTIONS"
"""Passes the options of the command to the processes of `--workers`."""


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
        "--workers", type=int, default=1, help="processes that serve, each with the model in memory (default: 1)"
    )
    parser.add_argument(
        "--batch-milliseconds", type=float, default=4.0, help="wait for queries to share a batch (default: 4)"
    )
    parser.add_argument(
        "--picture-host", nargs="+", default=[], metavar="HOST", help="hosts whose pictures the page may show"
    )
    parser.add_argument("--log-queries", action="store_true", help="write the words of queries into the log")
    add_device(parser)


def run(chosen: argparse.Namespace) -> None:
    """Load the model, and serve until the process is stopped."""
    import sys
    from importlib.util import find_spec

    from product_data.errors import OptionError

    if missing := [name for name in ("starlette", "uvicorn", "multipart") if find_spec(name) is None]:
        raise OptionError(f"found no package {missing[0]}; expected pip install 'moon3[serve]'")
    if chosen.workers < 1:
        raise OptionError(f"--workers: found {chosen.workers}; expected at least 1")
    import uvicorn

    from retrieval.serve.connections import server_options

    settings_of(chosen)
    place = {"host": chosen.host, "port": chosen.port}
    with contextlib.ExitStack() as opened:
        if chosen.workers > 1:
            from retrieval.stores.opening import open_store

            about = opened.enter_context(contextlib.closing(open_store(chosen.store))).about
            os.environ[WORKER_VARIABLE] = json.dumps(vars(chosen))
            served: Any = "moon3.serve:worker_app"
            place |= {"factory": True, "workers": chosen.workers, "timeout_worker_healthcheck": 60}
        else:
            served, about = app_of(chosen, opened)
        print(about, file=sys.stderr)
        print(f"search at http://{chosen.host}:{chosen.port}/ (API: /openapi.json)", file=sys.stderr)
        uvicorn.run(served, **server_options(**place))


def settings_of(chosen: argparse.Namespace) -> ServiceSettings:
    """Return the settings of the service; the key comes from the environment."""
    from retrieval.serve.settings import ServiceSettings

    return ServiceSettings(
        api_key=os.environ.get(KEY_VARIABLE) or None,
        origins=tuple(chosen.allow_origin),
        picture_hosts=tuple(chosen.picture_host),
        max_requests=chosen.max_requests,
        batch_milliseconds=chosen.batch_milliseconds,
        log_queries=chosen.log_queries,
    )


def app_of(chosen: argparse.Namespace, opened: contextlib.ExitStack) -> tuple[Starlette, str]:
    """Load the model, and return the application, and what the store is.

    Args:
        chosen: the options of the command.
        opened: closes the store.
    """
    import evaluation.baselines  # noqa: F401 - registers the kinds of models
    from evaluation.match_page import heat_maps
    from moon3._arguments import phrases_folder
    from retrieval.search import open_searcher
    from retrieval.serve.app import create_app
    from retrieval.serve.explaining import MatchAnswers
    from retrieval.serve.memory import return_large_blocks

    return_large_blocks()
    searcher = opened.enter_context(open_searcher(chosen.store, model=chosen.model, device=chosen.device))
    answers = MatchAnswers(searcher, phrases_folder(chosen.store), heat_maps)
    return create_app(searcher, settings_of(chosen), answers), searcher.store.about


def worker_app() -> Starlette:
    """Return the application of one of several processes; its share of the processors is that of one process among them."""
    import torch

    chosen = argparse.Namespace(**json.loads(os.environ[WORKER_VARIABLE]))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // chosen.workers))
    opened = contextlib.ExitStack()
    app, _ = app_of(chosen, opened)
    app.state.opened = opened  # the store is open as long as the application exists
    return app
