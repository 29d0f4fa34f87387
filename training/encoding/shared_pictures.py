"""Run each picture through the vision tower once when queries and products are encoded in several forms.

Shape suffixes: P patches of all pictures, M merged patches of all pictures.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


class SharedPictures:
    """Context in which later forward passes reuse the vision tower's output for the pictures of the first one.

    The first forward pass with pictures runs the tower, and its output is kept with its graph. Later passes whose
    pictures are declared with `reuse` do not run the tower. Our design (we know of no precedent; MOON2.0, arXiv
    2511.12449, encodes three forms of each item and does not say how).

    Args:
        tower: the vision tower, which is called as tower(pixel_values, grid_thw=…); see `vision_tower`.

    Raises:
        ValueError: `reuse` is called before a forward pass with pictures, or for pictures of different sizes.
    """

    def __init__(self, tower: nn.Module) -> None:
        self.tower = tower
        self._seen: tuple[Any, Tensor] | None = None
        self._places: list[int] | None = None

    def __enter__(self) -> "SharedPictures":
        self._forward = self.tower.forward
        self.tower.forward = self._see  # type: ignore[method-assign]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self.tower.forward  # the method of the class is visible again
        self._seen = None

    def reuse(self, places: Sequence[int]) -> None:
        """Declare that the pictures of the next forward pass are those at these indices of the first pass."""
        self._places = list(places)

    def _see(self, pixel_values: Tensor, grid_thw: Tensor, **options: Any) -> Any:
        places, self._places = self._places, None
        if places is None:
            output = self._forward(pixel_values, grid_thw=grid_thw, **options)
            if self._seen is None:
                self._seen = (_copied(output), grid_thw)
            return output
        if self._seen is None:
            raise ValueError("pictures: call reuse() only after a forward pass with pictures")
        output, grid = self._seen
        if not torch.equal(grid[places], grid_thw):
            raise ValueError(
                f"pictures: found sizes {grid_thw.tolist()}; expected {grid[places].tolist()}, as in the first pass"
            )
        return _selected(output, grid.prod(dim=1), places)


def vision_tower(model: nn.Module) -> nn.Module | None:
    """Return the module named `visual` of a model, with or without adapters, or None for a model without it."""
    return next((module for name, module in model.named_modules() if name.split(".")[-1] == "visual"), None)


def _copied(output: Any) -> Any:
    """Return a shallow copy of an output, because models replace its fields in place."""
    return type(output)(**{name: value for name, value in output.items() if value is not None})


def _selected(output: Any, patches: Tensor, places: list[int]) -> Any:
    """Return the tower's output for selected pictures, in the given order."""
    counts = patches.tolist()
    total = sum(counts)

    def choose(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)([choose(part) for part in value])
        merged = total // len(value)  # the number of patches that are merged into a row
        parts = value.split([count // merged for count in counts])
        return torch.cat([parts[place] for place in places])

    return type(output)(**{name: choose(value) for name, value in output.items() if value is not None})
