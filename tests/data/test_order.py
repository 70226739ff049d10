"""The shuffle: a permutation, a pure function, different every epoch, reached at once."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.data.sequences.shuffle import shuffled_position


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 10**6))
def test_every_position_comes_once(size, seed, epoch):
    positions = shuffled_position(np.arange(size), size, seed, epoch)
    assert np.array_equal(np.sort(positions), np.arange(size))


@given(st.integers(1, 2**45), st.data())
def test_one_position_alone_is_the_same_as_among_others(size, data):
    index = data.draw(st.integers(0, size - 1))
    among = shuffled_position(np.array([0, index, size - 1]), size, 7, 3)
    assert int(shuffled_position(index, size, 7, 3)) == among[1]
    assert among.min() >= 0
    assert among.max() < size


def test_epochs_and_seeds_differ_and_neighbours_are_scattered():
    orders = [
        shuffled_position(np.arange(1000), 1000, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert all((orders[0] != other).mean() > 0.98 for other in orders[1:])
    # A shuffle leaves about 2 of 999 neighbours adjacent.
    assert (np.abs(np.diff(orders[0])) == 1).sum() < 12
    # and is uniform: the first half of the positions holds half of the values' sum
    assert abs(orders[0][:500].mean() - 499.5) < 60


def test_a_position_far_into_a_huge_corpus_is_reached_at_once():
    start = time.process_time()
    shuffled_position(3 * 10**8, 306_000_000, seed=1, epoch=4)
    assert time.process_time() - start < 1, "a list of the positions takes longer, and 2.4 GB"


@pytest.mark.parametrize("index", [-1, 10])
def test_outside_is_refused(index):
    with pytest.raises(ValueError, match="outside"):
        shuffled_position(index, 10, 0)
