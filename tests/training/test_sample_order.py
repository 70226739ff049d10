"""The samples of a step follow from its number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.data.sequences.sample_order import (
    OrderedSamples,
    SampleOrder,
    read_order,
    write_order,
)
from modeling_foundry.settings import FoundryError


@given(st.integers(1, 64), st.lists(st.tuples(st.integers(1, 30), st.integers(1, 3)), max_size=4))
def test_steps_read_disjoint_samples_in_order_and_leave_out_what_was_said(size, spikes):
    order = SampleOrder(size)
    for step, num_steps in sorted(spikes):
        order = order.without(step, num_steps)
    seen = [index for step in range(1, 41) for index in order.samples(step)]
    assert seen == sorted(set(seen))
    for steps in (0, 1, 7, 40):
        read = [index for step in range(1, steps + 1) for index in order.samples(step)]
        assert [index for one in order.ranges_read(steps) for index in one] == read
    left_out = set(range(order.num_samples(40))) - set(seen)
    assert len(left_out) == size * sum(number for _, number in spikes)


@given(st.integers(1, 8), st.integers(1, 20))
def test_a_resumed_dataset_goes_on_where_the_whole_one_was(size, first_step):
    order = SampleOrder(size).without(5, 2)
    data = list(range(order.num_samples(20)))
    whole, resumed = OrderedSamples(data, order), OrderedSamples(data, order, first_step)
    rest = range((20 - first_step + 1) * size)
    assert [resumed[i] for i in rest] == [whole[i + (first_step - 1) * size] for i in rest]
    assert len(resumed) == len(whole)


def test_it_is_kept_with_the_run(tmp_path):
    assert read_order(tmp_path) is None
    order = SampleOrder(32).without(7, 1)
    write_order(tmp_path, order)
    assert read_order(tmp_path) == order
    (tmp_path / "sample_order.json").write_text("{")
    with pytest.raises(FoundryError, match=r"sample_order\.json: not a sample order"):
        read_order(tmp_path)
