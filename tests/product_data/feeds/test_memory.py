"""A feed of any length is read with bounded memory, also where the rows of products do not stand together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEADER = "Handle,Title,Body (HTML),Vendor,Type,Tags,Option1 Name,Option1 Value,Variant SKU,Variant Price,Image Src\n"
DESCRIPTION = "<p>" + "Warm, soft and made to last. " * 20 + "</p>"
SCATTERED = 10  # every tenth product has its second row at the end of the file
MEBIBYTES = 48  # of one chunk of the file, one batch of products, SQLite's cache
CHILD = """
import resource, sys
from product_data.feeds.reading import read_feed
feed = read_feed(sys.argv[1])
products = sum(len(product.variants) == 2 for product in feed)
print(products, feed.report.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write(path: Path, rows: int) -> Path:
    """Write a Shopify file of two rows for each product."""
    with path.open("w", encoding="utf-8") as file:
        file.write(HEADER)
        late = []
        for number in range(rows // 2):
            row = f"p{number},,,,,,,Blue,{number}-b,13.50,https://x.example/{number}-b.jpg\n"
            file.write(
                f'p{number},Product {number},"{DESCRIPTION}",Acme,Hats,"a, b",Color,Red,{number}-r,12.50,'
                f"https://x.example/{number}.jpg\n"
            )
            if number % SCATTERED:
                file.write(row)
            else:
                late.append(row)
        file.writelines(late)
    return path


def read_in_child(path: Path) -> tuple[int, int, int]:
    """Return the products with two variants, the rows, and the peak of memory in KiB of a process that reads a feed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, path], env=environment, capture_output=True, text=True, check=True
    )
    products, rows, peak = map(int, done.stdout.split())
    return products, rows, peak


def check(folder: Path, few: int, many: int) -> None:
    sizes = {}
    for rows in (few, many):
        products, read, sizes[rows] = read_in_child(write(folder / f"{rows}.csv", rows))
        assert (products, read) == (rows // 2, rows)
    grown = (sizes[many] - sizes[few]) / 1024
    print(f"peak of memory: {sizes[few] / 1024:.0f} MiB for {few} rows, {sizes[many] / 1024:.0f} MiB for {many} rows")
    assert grown < MEBIBYTES


def test_ten_times_the_rows_need_hardly_more_memory(tmp_path):
    check(tmp_path, 1_000, 10_000)


@pytest.mark.slow
def test_two_hundred_thousand_rows_need_hardly_more_memory(tmp_path):
    check(tmp_path, 2_000, 200_000)
