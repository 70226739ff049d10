"""Shares exact to one sample, an order that is arithmetic, and no silent repeats."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.data.mixture import PERIOD_SAMPLES, MixedDataset, Mixture
from modeling_foundry.settings import FoundryError

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.05, 20), min_size=1)


class Numbers:
    """A source whose tokens are its own number over and over."""

    path = "numbers"

    def __init__(self, number, num_tokens):
        self.number, self.num_tokens = number, num_tokens

    def read(self, start, stop):
        assert 0 <= start < stop <= self.num_tokens
        return np.array([self.number, *range(start, stop - 1)], dtype=np.uint32)

    def document_ends_in(self, start, stop):
        return np.empty(0, dtype=np.int64)


@given(WEIGHTS, st.integers(0, 3 * PERIOD_SAMPLES), st.integers(0, 2**31))
def test_shares_are_exact(weights, num_samples, seed):
    mixture = Mixture(weights, seed)
    counts = mixture.counts(num_samples)
    assert sum(counts) == num_samples
    periods = num_samples // PERIOD_SAMPLES * PERIOD_SAMPLES
    for weight, count in zip(weights.values(), mixture.counts(periods), strict=True):
        assert abs(count - periods * weight / sum(weights.values())) <= 1


@given(WEIGHTS, st.integers(0, 2**31), st.integers(0, 10**9))
def test_each_source_gives_its_samples_once_and_all(weights, seed, period):
    mixture = Mixture(weights, seed)
    first = period * PERIOD_SAMPLES
    before, after = mixture.counts(first), mixture.counts(first + PERIOD_SAMPLES)
    places = [mixture.place(first + offset) for offset in range(PERIOD_SAMPLES)]
    for source in range(len(weights)):
        numbers = [number for found, number in places if found == source]
        assert numbers == list(range(before[source], after[source]))


def test_a_place_is_the_same_in_whatever_order_it_is_asked_for():
    mixture, other = Mixture({"a": 1, "b": 2.5}, 3), Mixture({"a": 1, "b": 2.5}, 3)
    forward = [mixture.place(index) for index in range(9000)]
    assert [other.place(index) for index in reversed(range(9000))] == forward[::-1]
    assert forward != [Mixture({"a": 1, "b": 2.5}, 4).place(index) for index in range(9000)]


def test_tokens_are_accounted_for_exactly():
    sources = {"a": Numbers(1, 100_000), "b": Numbers(2, 50_000)}
    data = MixedDataset(sources, {"a": 3, "b": 1}, sequence_length=8, num_samples=9000, seed=1)
    found = Counter(int(data[index]["input_ids"][0]) for index in range(len(data)))
    assert {"a": found[1] * 8, "b": found[2] * 8} == data.tokens_by_source
    assert abs(found[1] - 6750) <= 20
    assert data.accounting().startswith("mixture: a 54,")
    blocks = [tuple(data[index]["input_ids"].tolist()) for index in range(len(data))]
    assert len(set(blocks)) == len(blocks)  # nothing is seen twice in one epoch


def test_a_repeat_beyond_the_limit_is_refused_by_name():
    sources = {"a": Numbers(1, 100_000), "b": Numbers(2, 800)}
    make = lambda limit: MixedDataset(sources, {"a": 1, "b": 1}, 8, num_samples=400, max_epochs=limit)  # noqa: E731
    with pytest.raises(
        FoundryError, match=r"mixture: b: 400 sequences would repeat it .* times and max_epochs is 1"
    ):
        make(1.0)
    assert len(make(4.0)) == 400


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 0, "b": 1}, "a: expected a positive weight, found 0"),
        ({"a": -1}, "a: expected a positive weight"),
        ({"a": float("nan")}, "a: expected a positive weight"),
        ({"a": "much"}, "a: expected a positive weight"),
        ({"a": 1, "b": 1e-6}, "b: a share of 1e-06 is below 1/4096"),
    ],
)
def test_weights_without_sense_are_refused(weights, message):
    with pytest.raises(FoundryError, match=message):
        Mixture(weights, 0)
