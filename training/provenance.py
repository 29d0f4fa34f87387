"""Where a run comes from: commit, versions, seed, command, machine."""

import importlib.metadata
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

PROJECT_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "sentence-transformers", "numpy", "pillow")


def provenance(seed: int, command: list[str], **more: Any) -> dict[str, Any]:
    """Return what is needed to repeat a run beside its recipe.

    Args:
        seed: the run's seed.
        command: the command line.
        **more: further facts to record.
    """
    commit, changed = _commit()
    return {
        "commit": commit,
        "uncommitted_changes": changed,
        "versions": {"python": platform.python_version(), **_versions()},
        "seed": seed,
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        **more,
    }


def command_line() -> list[str]:
    """Return this process's command, the program by its name alone."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _commit() -> tuple[str | None, bool | None]:
    """The checkout's commit and whether files differ from it; (None, None) outside a checkout."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True, timeout=20
        )
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit.stdout.strip(), bool(status.stdout.strip())
