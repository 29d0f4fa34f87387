"""Write the results of an application: a JSON file, its tables as Markdown, and its chart."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from product_data.atomic_files import write_atomically


def write_results(
    results: Mapping[str, Any],
    output: Path,
    *,
    parts: Sequence[str],
    draw: Callable[[Mapping[str, Any], Path], None],
) -> None:
    """Write the JSON file last, so that it never stands without its chart and tables.

    Args:
        results: JSON values with "words", sentences that end the Markdown file.
        output: the .json file; the others have its name.
        parts: paragraphs and tables of the Markdown file.
        draw: (results, PNG file to write) draws the chart.
    """
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    draw(results, output.with_suffix(".png"))
    lines = "\n".join(f"- {line}" for line in results["words"])
    write_atomically(output.with_suffix(".md"), "\n\n".join([*parts, lines]) + "\n")
    write_atomically(output, text)
