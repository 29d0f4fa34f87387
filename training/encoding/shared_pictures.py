"""Each picture through the vision tower once, where items are encoded in several forms.

Shape suffixes: P patches of all pictures, M merged patches of all pictures.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


class SharedPictures:
    """Context in which later forward passes take what the vision tower saw of the first one's pictures.

    The first forward with pictures runs the tower and is remembered, graph and all; of a later one, for which `reuse` names
    the pictures, the tower does not run. Our design (precedent: none published; MOON2.0, arXiv 2511.12449, encodes three
    forms of each item and does not say how).

    Args:
        tower: what is called as tower(pixel_values, grid_thw=…); see `vision_tower`.

    Raises:
        ValueError: pictures to reuse before any were seen, or of other sizes.
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
        del self.tower.forward  # the class's own shows again
        self._seen = None

    def reuse(self, places: Sequence[int]) -> None:
        """Say that the next forward's pictures are those at these places among the first forward's."""
        self._places = list(places)

    def _see(self, pixel_values: Tensor, grid_thw: Tensor, **options: Any) -> Any:
        places, self._places = self._places, None
        if places is None:
            found = self._forward(pixel_values, grid_thw=grid_thw, **options)
            if self._seen is None:
                self._seen = (_copied(found), grid_thw)
            return found
        if self._seen is None:
            raise ValueError("pictures: found none seen before; expected a forward with pictures first")
        found, grid = self._seen
        if not torch.equal(grid[places], grid_thw):
            raise ValueError(f"pictures: found sizes {grid_thw.tolist()}; expected {grid[places].tolist()}, as seen")
        return _chosen(found, grid.prod(dim=1), places)


def vision_tower(model: nn.Module) -> nn.Module | None:
    """Return the module named `visual` of a model, adapters or not, or None where there is none."""
    return next((module for name, module in model.named_modules() if name.split(".")[-1] == "visual"), None)


def _copied(found: Any) -> Any:
    """The same output in a container of its own: models replace its fields in place."""
    return type(found)(**{name: value for name, value in found.items() if value is not None})


def _chosen(found: Any, patches: Tensor, places: list[int]) -> Any:
    """The tower's output for some of its pictures, in a given order."""
    counts = patches.tolist()
    total = sum(counts)

    def choose(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)([choose(part) for part in value])
        merged = total // len(value)  # patches that became one row
        parts = value.split([count // merged for count in counts])
        return torch.cat([parts[place] for place in places])

    return type(found)(**{name: choose(value) for name, value in found.items() if value is not None})
