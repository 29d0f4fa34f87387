"""How near two trainings in float32 must be that compute the same thing in another order: in chunks, or by two processes.

The tolerances follow from float32, not from what one machine gave:

- ε = 2⁻²³ is the distance of float32 numbers near 1. Two orders of one sum are equally right and differ by some ε, and so
  does one order on two processors (wider vectors, fused multiply-add).
- How much of that reaches a gradient is a property of the function, its condition number: where every weight moves by one ε,
  the gradients of the models in these tests move by 10 to 150 ε, on any machine, and losses by up to 30 ε.
  `test_closeness.py` measures it.
- An algorithm is as good as float32 allows if its result is the exact one of inputs that moved by a few ε (backward
  stability). `GRADIENT` and `VALUE` allow about seven and four times the condition number: `GRADIENT` is 1.2e-4.
- Each step leaves its own rounding in the weights, which adds to that of the steps before: step k may differ k times as much.

The mistakes that such tests are for (negatives of a process or of the queue that are missing, a chunk that counts twice) move
a gradient by more than 1e-2; `test_closeness.py` has some. Where the whole computation can run in float64, tests do that
instead, and compare to `DOUBLE`.
"""

import pytest
import torch

EPSILON = torch.finfo(torch.float32).eps
GRADIENT = 1024 * EPSILON
VALUE = 128 * EPSILON
DOUBLE = 1e-12


def relative_difference(one, two):
    """The length of the difference of two gradients, relative to the length of the first; both by parameter name."""
    assert one.keys() == two.keys()
    whole, other = (torch.cat([gradient[name].double().flatten() for name in one]) for gradient in (one, two))
    assert whole.norm() > 1e-3
    return ((whole - other).norm() / whole.norm()).item()


def assert_same_gradients(one, two, what=""):
    """Assert that two lists, one gradient by parameter name for each step, are the same to float32's rounding."""
    assert len(one) == len(two) > 0
    for step, (left, right) in enumerate(zip(one, two, strict=True), start=1):
        found = relative_difference(left, right)
        assert found < step * GRADIENT, f"{what}, step {step}: gradients differ by {found / EPSILON:.0f} ε"


def assert_same_metrics(one, two, names=None):
    """Assert that two metrics files have the same steps and keys, and the same values to float32's rounding.

    `names` are the keys to compare: all but the speed by default. Parts of a loss may be small differences of cosines, so
    that their rounding is relative to 1 and not to them.
    """
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, len(one) + 1))
    for left, right in zip(one, two, strict=True):
        assert left.keys() == right.keys()
        for name in names or left.keys() - {"items_per_second"}:
            allowed = left["step"] * (GRADIENT if name == "grad_norm" else VALUE)
            assert left[name] == pytest.approx(right[name], rel=allowed, abs=allowed), (left["step"], name)


def move_by_one_rounding(model, seed=0):
    """Move every weight by one ε, up or down as the seed draws."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            up = torch.randint(0, 2, parameter.shape, generator=generator)
            parameter.mul_(1 + (2 * up - 1) * EPSILON)
