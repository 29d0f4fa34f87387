"""The bounds of pyproject.toml are those that are tested: its lower ones, and the releases after the tested ones."""

import tomllib
from pathlib import Path

import pytest
from library_names import LIBRARIES
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.lowest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    Requirement(line)
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in lines
    if not line.startswith("moon3[")
]
BOUNDED = {canonicalize_name(one.name): one for one in REQUIREMENTS if one.specifier}


def pins(name):
    """Return library → version of a file of pins."""
    lines = [Requirement(line) for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(one.name): Version(str(one.specifier).removeprefix("==")) for one in lines}


def bound(requirement, operator):
    """Return the version of the bound with an operator, or None."""
    return next((Version(one.version) for one in requirement.specifier if one.operator == operator), None)


def test_the_lowest_pins_are_the_lower_bounds():
    assert pins("constraints-lowest.txt") == {name: bound(one, ">=") for name, one in BOUNDED.items()}


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_every_pin_is_within_the_bounds(file):
    outside = {
        name: str(pin) for name, pin in pins(file).items() if name in BOUNDED and pin not in BOUNDED[name].specifier
    }
    assert not outside


@pytest.mark.parametrize("library", [canonicalize_name(name) for name in LIBRARIES])
def test_a_library_whose_private_names_we_use_ends_at_the_release_after_the_tested_one(library):
    tested = pins("constraints.txt")[library]
    assert bound(BOUNDED[library], "<") == Version(f"{tested.major}.{tested.minor + 1}")
