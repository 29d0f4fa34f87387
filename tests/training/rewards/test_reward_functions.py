import inspect
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from processing_moon import REASONING_KEYS, read_reasoning
from training.rewards import reward_function, reward_names, reward_weights

RANGES = {
    "attributes": (0, 1),
    "contradiction": (-1, 0),
    "format": (0, 1),
    "length": (0, 1),
    "margin": (-2, 2),
    "retrieval": (0, 1),
}
MAY_BE_UNKNOWN = {"attributes", "margin", "retrieval"}
WORDS = st.sampled_from(
    ["red", "Navy Blue", "blue", "cotton", "Noru", "tee", "sneakers", "xl", "☆", "", "<think>", "a\\"]
)
TEXTS = st.lists(WORDS | st.sampled_from([":", ";", ",", *REASONING_KEYS, "color"]), max_size=12).map(" ".join)
ATTRIBUTES = st.dictionaries(
    st.sampled_from(REASONING_KEYS), st.lists(WORDS, min_size=1, max_size=3).map(tuple), max_size=4
)
COSINES = st.floats(-1, 1, width=32)


@st.composite
def rollouts(draw):
    """All columns that the trainer gives, of up to four rollouts."""
    rows = draw(st.integers(1, 4))

    def column(one):
        return draw(st.lists(one, min_size=rows, max_size=rows))

    written = column(st.tuples(TEXTS, st.sampled_from(["", "</think>", "</think><emb>"])).map("".join))
    known = {key: frozenset(values) for key, values in draw(ATTRIBUTES).items()}
    return {
        "prompts": ["product p"] * rows,
        "completions": written,
        "completion_ids": column(st.lists(st.integers(0, 9), max_size=40)),
        "reasonings": [read_reasoning(text) for text in written],
        "target_tokens": column(st.tuples(st.integers(1, 16), st.integers(16, 32))),
        "positive_similarities": column(st.lists(COSINES, min_size=1, max_size=4).map(torch.tensor)),
        "negative_similarities": column(st.lists(COSINES, max_size=6).map(torch.tensor)),
        "labels": column(st.none() | ATTRIBUTES),
        "titles": column(st.none() | TEXTS),
        "known_values": [known] * rows,
        "trainer_state": None,
        "log_extra": None,
        "log_metric": None,
    }


def test_the_folder_is_the_registry():
    folder = Path(inspect.getfile(reward_function("format"))).parent
    assert reward_names() == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert set(RANGES) == set(reward_names())


@pytest.mark.parametrize("name", reward_names())
def test_a_reward_bears_the_name_that_trl_logs(name):
    assert reward_function(name).__name__ == f"{name}_reward"


@pytest.mark.parametrize("name", reward_names())
@settings(max_examples=60, deadline=None)
@given(columns=rollouts())
def test_each_reward_stays_in_its_documented_range_whatever_was_written(name, columns):
    low, high = RANGES[name]
    found = reward_function(name)(**columns)
    assert isinstance(found, list)
    assert len(found) == len(columns["prompts"])
    for one in found:
        if one is None:
            assert name in MAY_BE_UNKNOWN
        else:
            assert type(one) is float
            assert low <= one <= high


@pytest.mark.parametrize("name", reward_names())
def test_a_reward_of_nothing_is_nothing(name):
    columns: Mapping = dict.fromkeys(inspect.signature(reward_function(name)).parameters, [])
    assert reward_function(name)(**{key: value for key, value in columns.items() if key != "columns"}) == []


@pytest.mark.parametrize("name", reward_names())
@settings(max_examples=15, deadline=None)
@given(columns=rollouts())
def test_a_rollout_is_rewarded_alone_as_among_others(name, columns):
    among = reward_function(name)(**columns)
    for row, wanted in enumerate(among):
        alone = {key: value and [value[row]] for key, value in columns.items()}
        assert reward_function(name)(**alone) == [wanted]


@pytest.mark.parametrize("name", ["formats", "", "__init__", "format_reward", "os"])
def test_an_unknown_reward_is_refused_with_the_known_ones(name):
    with pytest.raises(
        ValueError, match=f"rewards: found '{name}'; expected one of attributes, contradiction, format, length"
    ):
        reward_function(name)


def test_weights_keep_their_order_and_become_numbers():
    found = reward_weights({"retrieval": 1, "format": 0.5, "length": 0})
    assert list(found.items()) == [("retrieval", 1.0), ("format", 0.5), ("length", 0.0)]
    assert all(isinstance(weight, float) for weight in found.values())


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"speed": 1.0}, r"rewards: found 'speed'; expected one of attributes"),
        ({"format": math.nan}, r"rewards\.format: found nan; expected a finite number"),
        ({"format": -math.inf}, r"rewards\.format: found -inf"),
        ({"format": "1"}, r"rewards\.format: found '1'"),
        ({"format": True}, r"rewards\.format: found True"),
        ({"format": None}, r"rewards\.format: found None"),
        ({"format": 0.0}, r"at least one weight that is not 0"),
        ({}, r"rewards: found \{\}"),
    ],
)
def test_weights_that_teach_nothing_or_are_none_are_refused(weights, said):
    with pytest.raises(ValueError, match=said):
        reward_weights(weights)
