"""Record the origin of a result: commit, versions, seed, command, machine."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

PROJECT_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "transformers", "sentence-transformers", "numpy", "pillow", "scikit-learn", "pyarrow")


def provenance(seed: int, **more: Any) -> dict[str, Any]:
    """Return the facts that are needed to reproduce a result.

    Args:
        seed: the random seed.
        **more: further facts to record.

    Returns: commit, whether files differ from it (`None` outside a checkout), versions, seed, command, UTC time,
    device, threads, and `more`.
    """
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain")
    return {
        "commit": commit,
        "uncommitted_changes": None if status is None else bool(status),
        "versions": {"python": platform.python_version()} | {package: _version(package) for package in _PACKAGES},
        "seed": seed,
        "command": [_program(Path(sys.argv[0])), *sys.argv[1:]],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        **more,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str | None:
    """Return the output of git without the last line break; `None` without git or outside a checkout."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _program(path: Path) -> str:
    """Return the name of the running program: a script, or a package that was started with `python -m`."""
    return path.parent.name if path.name == "__main__.py" else path.name
