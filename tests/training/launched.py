"""Scripts that two CPU processes run together."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def launch_two(script: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run a script in two processes (gloo) and return how that ended."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*command, str(script), *arguments], env=environment, capture_output=True, text=True, timeout=180
    )


def run_twice(script: Path, *arguments: str) -> str:
    """Run a script in two processes and return what they print."""
    done = launch_two(script, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
