"""Metrics in Prometheus' text format."""

from __future__ import annotations

from retrieval.serve.metrics import Metrics


def test_counters_gauges_and_histograms_are_written_in_the_format_of_prometheus():
    metrics = Metrics()
    metrics.counter("hits_total", "Hits.")
    metrics.gauge("open", "Open ones.")
    metrics.histogram("seconds", "Time.", (0.5, 1.0))
    assert metrics.text().splitlines() == [
        "# HELP hits_total Hits.",
        "# TYPE hits_total counter",
        "# HELP open Open ones.",
        "# TYPE open gauge",
        "# HELP seconds Time.",
        "# TYPE seconds histogram",
    ]
    metrics.count("hits_total", path='a"b\\c\n')
    metrics.count("hits_total", path='a"b\\c\n')
    metrics.put("open", 3)
    for value in (0.5, 0.7, 4.0):
        metrics.observe("seconds", value, path="/x")
    lines = metrics.text().splitlines()
    assert lines[2] == r'hits_total{path="a\"b\\c\n"} 2'
    assert "open 3" in lines
    assert lines[-5:] == [
        'seconds_bucket{path="/x",le="0.5"} 1',
        'seconds_bucket{path="/x",le="1"} 2',
        'seconds_bucket{path="/x",le="+Inf"} 3',
        'seconds_sum{path="/x"} 5.2',
        'seconds_count{path="/x"} 3',
    ]
