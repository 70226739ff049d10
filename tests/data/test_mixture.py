"""Shares exact to one sample, an order that is arithmetic, and no silent repeats."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_foundry.data.sequences.mixture import (
    PERIOD_SAMPLES,
    HeldOutMixture,
    MixedDataset,
    Mixture,
)
from modeling_foundry.settings import FoundryError
from tests.conftest import REPOSITORY

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


@settings(max_examples=30)
@given(
    WEIGHTS, st.integers(0, 2**31), st.lists(st.integers(0, 3 * PERIOD_SAMPLES), min_size=1).map(sorted),
    st.integers(0, 10**9),
)  # fmt: skip
def test_what_was_used_is_exact_at_any_stop_point(weights, seed, stops, periods):
    """By arithmetic as by a walk, wherever the run stands."""
    mixture, first = Mixture(weights, seed), periods * PERIOD_SAMPLES
    walked, before, start = Counter(), mixture.counts(first), 0
    for stop in stops:
        walked.update(mixture.place(first + index)[0] for index in range(start, stop))
        start = stop
        used = [after - there for after, there in zip(mixture.counts(first + stop), before, strict=True)]
        assert used == [walked[source] for source in range(len(weights))]


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=5))
def test_tokens_in_ranges_are_those_of_their_samples(bounds):
    """What a rolled-back spike left out is in no range."""
    data = MixedDataset({"a": Numbers(1, 100_000), "b": Numbers(2, 50_000)}, {"a": 2, "b": 1}, 8, 5000)
    ranges = [range(min(pair), max(pair)) for pair in bounds]
    walked = Counter(data.mixture.names[data.mixture.place(index)[0]] for one in ranges for index in one)
    assert data.tokens_in(ranges) == {name: 8 * walked[name] for name in "ab"}


@given(WEIGHTS, st.integers(0, 2**31), st.integers(0, 10**9))
def test_each_source_gives_its_samples_once_and_all(weights, seed, period):
    mixture = Mixture(weights, seed)
    first = period * PERIOD_SAMPLES
    before, after = mixture.counts(first), mixture.counts(first + PERIOD_SAMPLES)
    places = [mixture.place(first + offset) for offset in range(PERIOD_SAMPLES)]
    for source in range(len(weights)):
        numbers = [number for found, number in places if found == source]
        assert numbers == list(range(before[source], after[source]))


@pytest.mark.slow
def test_a_place_is_the_same_in_whatever_order_it_is_asked_for():
    mixture, other = Mixture({"a": 1, "b": 2.5}, 3), Mixture({"a": 1, "b": 2.5}, 3)
    forward = [mixture.place(index) for index in range(9000)]
    assert [other.place(index) for index in reversed(range(9000))] == forward[::-1]
    assert forward != [Mixture({"a": 1, "b": 2.5}, 4).place(index) for index in range(9000)]


def test_tokens_are_accounted_for_exactly():
    sources = {"a": Numbers(1, 100_000), "b": Numbers(2, 50_000)}
    data = MixedDataset(sources, {"a": 3, "b": 1}, sequence_length=8, num_samples=9000, seed=1)
    found = Counter(int(data[index]["input_ids"][0]) for index in range(len(data)))
    assert {"a": found[1] * 8, "b": found[2] * 8} == data.tokens_in([range(9000)])
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


# --------------------------------------------------------------------------------------------- held out


def held_out(sizes, weights, most, sequence_length=8):
    sources = {name: Numbers(place, size) for place, (name, size) in enumerate(sizes.items())}
    return HeldOutMixture(sources, weights, sequence_length, most)


def counted(data):
    """How many sequences of each source the dataset really gives."""
    found = Counter(int(data[index]["input_ids"][0]) for index in range(len(data)))
    return [found[number] for number in range(len(data.sequences_by_source))]


def test_every_corpus_is_held_out_by_its_weight():
    data = held_out({"a": 4000, "b": 4000, "c": 4000}, {"a": 5, "b": 3, "c": 2}, 40)
    assert counted(data) == [20, 12, 8] == list(data.sequences_by_source.values())
    assert data.accounting() == (
        "held out: a 20 sequences (50.00%); b 12 sequences (30.00%); c 8 sequences (20.00%)"
    )
    again = held_out({"a": 4000, "b": 4000, "c": 4000}, {"a": 5, "b": 3, "c": 2}, 40)
    assert all(data[index]["input_ids"].equal(again[index]["input_ids"]) for index in range(40))
    assert [data[index]["input_ids"][1] for index in (0, 1, 20, 21)] == [0, 8, 0, 8]  # from each one's start


def test_the_shortest_held_out_side_keeps_the_shares():
    assert counted(held_out({"a": 8 * 100, "b": 8 * 5}, {"a": 0.75, "b": 0.25}, 512)) == [15, 5]


def test_a_light_corpus_is_held_out_too():
    assert counted(held_out({"a": 8000, "b": 8000}, {"a": 999, "b": 1}, 16)) == [15, 1]


@given(WEIGHTS, st.lists(st.integers(8, 3000), min_size=6, max_size=6), st.integers(6, 200))
def test_held_out_shares_are_within_a_sequence(weights, lengths, most):
    sizes = dict(zip(weights, lengths, strict=False))
    data = held_out(sizes, weights, most)
    counts, total = list(data.sequences_by_source.values()), sum(weights.values())
    assert counted(data) == counts
    assert len(data) == sum(counts) <= max(most, len(weights))
    for (name, weight), count in zip(weights.items(), counts, strict=True):
        assert 1 <= count <= sizes[name] // 8
        # Within one, and one more for each corpus that was lifted to its first sequence.
        assert abs(count - len(data) * weight / total) <= len(weights)


def test_a_corpus_that_holds_nothing_out_is_refused_by_name():
    with pytest.raises(FoundryError, match="b: 7 held-out tokens do not fill one sequence of 8"):
        held_out({"a": 800, "b": 7}, {"a": 1, "b": 1}, 16)
    with pytest.raises(FoundryError, match="max_eval_sequences: expected at least 2, one a corpus, found 1"):
        held_out({"a": 800, "b": 80}, {"a": 1, "b": 1}, 1)


def test_the_page_s_lines_are_those_of_its_weights():
    """docs/data.md: 25,000 steps of 2,048 sequences, and 256 held out, from corpora of these sizes."""
    weights = {"runs/slimpajama_627b/data": 0.7, "runs/fineweb_edu/data": 0.3}
    sizes = dict(zip(weights, (627_000_000_000, 100_000_000_000), strict=True))
    sources = {name: Numbers(place, size) for place, (name, size) in enumerate(sizes.items())}
    train = MixedDataset(sources, weights, 2048, num_samples=25_000 * 2048, max_epochs=4.0)
    page = (REPOSITORY / "docs/data.md").read_text()
    assert f"{train.accounting()}\n{HeldOutMixture(sources, weights, 2048, 256).accounting()}\n" in page
