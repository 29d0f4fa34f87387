"""Do the main job in five minutes: draw a catalogue, build a small Moon, train it, measure it, search with it."""

from __future__ import annotations

ORDER = 10


def run(words: list[str]) -> int:
    """Run it; the words are those of `training.quickstart`."""
    from training.quickstart import main

    return main(words)
