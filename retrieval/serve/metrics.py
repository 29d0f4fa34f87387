"""Count requests and measure times, and write them in Prometheus' text format.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

Labels = tuple[tuple[str, str], ...]


@dataclass
class _Histogram:
    """Numbers of observations up to each bound, their sum and their number."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Metrics:
    """The counters, gauges and histograms of a service; several threads may change them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._help: dict[str, tuple[str, str]] = {}
        self._numbers: dict[str, dict[Labels, float]] = {}
        self._histograms: dict[str, dict[Labels, _Histogram]] = {}
        self._bounds: dict[str, Sequence[float]] = {}

    def counter(self, name: str, description: str) -> None:
        """Declare a counter, which only grows."""
        self._help[name], self._numbers[name] = ("counter", description), {}

    def gauge(self, name: str, description: str) -> None:
        """Declare a gauge, which has a current value."""
        self._help[name], self._numbers[name] = ("gauge", description), {}

    def histogram(self, name: str, description: str, bounds: Sequence[float]) -> None:
        """Declare a histogram with the upper bounds of its buckets, ascending."""
        self._help[name], self._histograms[name], self._bounds[name] = ("histogram", description), {}, bounds

    def count(self, name: str, **labels: str) -> None:
        """Add one to a counter."""
        with self._lock:
            series = self._numbers[name]
            key = tuple(labels.items())
            series[key] = series.get(key, 0) + 1

    def put(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._numbers[name][tuple(labels.items())] = value

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add an observation to a histogram."""
        with self._lock:
            series = self._histograms[name]
            series.setdefault(tuple(labels.items()), _Histogram(self._bounds[name])).observe(value)

    def text(self) -> str:
        """Return everything in Prometheus' text format."""
        lines = []
        with self._lock:
            for name, (kind, description) in self._help.items():
                lines += [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]
                for labels, value in self._numbers.get(name, {}).items():
                    lines.append(f"{name}{_labels(dict(labels))} {value:g}")
                for labels, histogram in self._histograms.get(name, {}).items():
                    lines += _histogram_lines(name, dict(labels), histogram)
        return "\n".join(lines) + "\n"


def _histogram_lines(name: str, labels: Mapping[str, str], histogram: _Histogram) -> list[str]:
    lines, below = [], 0
    for bound, count in zip([*histogram.bounds, float("inf")], histogram.counts, strict=True):
        below += count
        shown = "+Inf" if bound == float("inf") else f"{bound:g}"
        lines.append(f"{name}_bucket{_labels({**labels, 'le': shown})} {below}")
    return [*lines, f"{name}_sum{_labels(labels)} {histogram.total:.9g}", f"{name}_count{_labels(labels)} {below}"]


def _labels(labels: Mapping[str, str]) -> str:
    """Return labels in braces; backslash, quote and line end are escaped as the format demands."""
    escaped = {
        key: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for key, value in labels.items()
    }
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped.items()) + "}" if labels else ""
