"""Draw the embedded catalogue as tables, or as a contact sheet."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from product_data.catalogue.making import IMAGE_SIZE

    parser.add_argument("--output", type=Path, help="folder for the three parquet tables")
    parser.add_argument("--products", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=IMAGE_SIZE, help="width and height in pixels")
    parser.add_argument("--sheet", type=Path, help="file of the contact sheet (.png or .jpg)")
    parser.add_argument("--rate", action="store_true", help="print pictures per second")


def run(chosen: argparse.Namespace) -> None:
    """Write the tables and the contact sheet, and print the picture rate."""
    from product_data.catalogue.making import contact_sheet, picture_rate, write_catalogue
    from product_data.errors import OptionError
    from product_data.outputs import OutputError, require_writable_file, require_writable_folder

    if not (chosen.output or chosen.sheet or chosen.rate):
        raise OptionError("found no option; expected --output DIR, --sheet PNG or --rate")
    require_writable_folder("--output", chosen.output)
    require_writable_file("--sheet", chosen.sheet)
    if chosen.sheet and chosen.sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise OutputError(f"--sheet: found {chosen.sheet}; expected a .png or .jpg file")
    if chosen.output:
        options = {"products": chosen.products, "seed": chosen.seed, "image_size": chosen.image_size}
        print(f"wrote {write_catalogue(chosen.output, **options)}")
    if chosen.sheet:
        print(f"wrote {contact_sheet(chosen.sheet, seed=chosen.seed)}")
    if chosen.rate:
        print(f"{picture_rate(image_size=chosen.image_size, seed=chosen.seed):.0f} pictures/s")
