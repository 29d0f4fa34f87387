"""What a library announces to drop is an error where our code uses it, and none where another library does."""

import warnings
from pathlib import Path

import pytest

PACKAGES = sorted(path.parent.name for path in Path(__file__).parents[1].glob("*/__init__.py"))
OURS = (*PACKAGES, "training.runs.folder", "transformers_modules.a_folder.modeling_moon", __name__)
OLD = "import warnings; warnings.warn('an old name', {kind})"


@pytest.mark.parametrize("kind", ["DeprecationWarning", "FutureWarning"])
@pytest.mark.parametrize("module", OURS)
def test_a_deprecation_that_blames_our_code_is_an_error(module, kind):
    with pytest.raises(Warning, match="an old name"):
        exec(OLD.format(kind=kind), {"__name__": module})


@pytest.mark.parametrize("module", ["torch", "transformers.modeling_utils", "trainer", "evaluate", "somebody.training"])
def test_a_deprecation_that_blames_another_library_is_none(module):
    with warnings.catch_warnings(record=True) as seen:
        exec(OLD.format(kind="FutureWarning"), {"__name__": module})
    assert len(seen) == 1
    exec(OLD.format(kind="DeprecationWarning"), {"__name__": module})
