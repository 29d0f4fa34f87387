"""Run `moon3 serve` as a process of its own, kill it, start it again, and call it as a client does."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

START_SECONDS = 180.0
KEY = "the key of a measurement"


class ServiceError(RuntimeError):
    """A service that does not start; its last lines follow."""


class ServiceProcess:
    """A service in a process of its own, on a free port of this machine.

    Args:
        store: what `moon3 serve` serves.
        log: file that receives what the process prints.
        options: further options of the command.
    """

    def __init__(self, store: Path, log: Path, options: Sequence[str] = ()) -> None:
        self.store, self.log, self.options = store, log, tuple(options)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process_id(self) -> int:
        """Return the id of the process, which runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process, and wait until it answers.

        Raises:
            ServiceError: it ends, or does not answer within `START_SECONDS`.
        """
        command = [sys.executable, "-m", "moon3", "serve", str(self.store), "--port", str(self.port), *self.options]
        with self.log.open("ab") as said:
            self._process = subprocess.Popen(
                command, stdout=said, stderr=said, env=os.environ | {"MOON_API_KEY": KEY}, start_new_session=True
            )
        give_up = time.monotonic() + START_SECONDS
        while Client(self.port, seconds=5).call("GET", "/health")[0] != 200:
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                raise ServiceError(f"{' '.join(command)}\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End the process, and those that it started, at once, as a machine that fails would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the process in order (SIGTERM)."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, how)
            self._process.wait()

    def resident_bytes(self) -> int:
        """Return the memory of the process; 0 where /proc does not say it."""
        try:
            lines = Path(f"/proc/{self.process_id}/status").read_text().splitlines()
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
        except (OSError, StopIteration):
            return 0


class Client:
    """A connection to a service, which is opened again after an error.

    Args:
        port (`int`): of the service on this machine.
        seconds (`float`): longest wait for an answer. Default 60.
    """

    def __init__(self, port: int, seconds: float = 60.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
        self.retry_after: int | None = None
        """Seconds after which the last answer asks the client to come again; `None` without it."""

    def call(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Return the status and the JSON of an answer; 0 and the error if there was no answer.

        Args:
            method, path (`str`): of the request.
            fields: sent as JSON, with the key of the service.
        """
        body = None if fields is None else json.dumps(fields)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        self.retry_after = None
        try:
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            wait = answer.getheader("Retry-After", "")
            self.retry_after = int(wait) if wait.isdecimal() and int(wait) > 0 else None
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()
            return 0, error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
