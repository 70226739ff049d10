"""Any sample of a mixture with document masks is reached at once, and is the one a walk from the start comes to."""

import time
from itertools import count, islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_foundry.data.sequences import mixture
from modeling_foundry.data.sequences.mixture import MixedDataset
from modeling_foundry.data.sequences.packing import PackedDataset
from modeling_foundry.data.sequences.sample_order import OrderedSamples, SampleOrder
from modeling_foundry.data.sequences.shuffle import shuffled_position
from modeling_foundry.data.tokens.corpus import CorpusSplit, ShardEntry

PERIOD = 16


class Listed:
    """Documents in memory, each followed by id 0."""

    path = "listed"

    def __init__(self, documents):
        self.tokens = [id for document in documents for id in [*document, 0]]
        self.num_tokens = len(self.tokens)

    def read(self, start, stop):
        return np.array(self.tokens[start:stop], dtype=np.uint32)

    def document_ends_in(self, start, stop):
        ends = [place + 1 for place, id in enumerate(self.tokens) if id == 0]
        return np.array([end for end in ends if start < end < stop], dtype=np.int64)


def walked(sources, weights, length, seed):
    """Every sample from the first on, with counters in place of arithmetic."""

    def sequences(source, seed):
        num_blocks = source.num_tokens // length
        for epoch in count():
            for position in range(num_blocks):
                start = int(shuffled_position(position, num_blocks, seed, epoch)) * length
                ids, positions, since = source.tokens[start : start + length], [], 0
                for id in ids:
                    positions.append(since)
                    since = 0 if id == 0 else since + 1
                yield ids, positions

    readers = [sequences(source, seed + 1 + number) for number, source in enumerate(sources)]
    given = [0] * len(sources)
    for period in count():
        wanted = (period + 1) * PERIOD
        bounds = [wanted * sum(weights[:number]) // sum(weights) for number in range(len(weights) + 1)]
        quotas = [stop - start for start, stop in pairwise(bounds)]
        order = [source for source, quota in enumerate(quotas) for _ in range(quota - given[source])]
        given = quotas
        for place in range(PERIOD):
            yield next(readers[order[int(shuffled_position(place, PERIOD, seed, period))]])


DOCUMENTS = st.lists(st.lists(st.integers(1, 99), max_size=12), min_size=4, max_size=12)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 3), DOCUMENTS), min_size=1, max_size=3), st.integers(0, 2**31),
    st.lists(st.integers(0, 99), min_size=1, max_size=6), st.integers(1, 4),
)  # fmt: skip
def test_a_seek_comes_to_the_sample_of_the_walk(parts, seed, indices, length):
    weights = [weight for weight, _ in parts]
    sources = [Listed(documents) for _, documents in parts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "PERIOD_SAMPLES", PERIOD)
        names = [f"s{number}" for number in range(len(parts))]
        data = MixedDataset(
            dict(zip(names, sources, strict=True)), dict(zip(names, weights, strict=True)), length, 100, seed,
            max_epochs=1000, document_mask=True,
        )  # fmt: skip
        expected = list(islice(walked(sources, weights, length, seed), 100))
        for index in indices:
            item = data[index]
            assert (item["input_ids"].tolist(), item["position_ids"].tolist()) == expected[index]
            assert item["labels"].tolist() == item["input_ids"].tolist()


class Endless(Listed):
    """A corpus of 627B tokens whose id at each place, and whose documents of 1,000 tokens, are arithmetic."""

    def __init__(self, number):
        self.number, self.num_tokens = number, 627_000_000_000

    def read(self, start, stop):
        return (np.arange(start, stop) % 997 + 1000 * self.number).astype(np.uint32)

    def document_ends_in(self, start, stop):
        return np.arange(start // 1000 + 1, (stop - 1) // 1000 + 1, dtype=np.int64) * 1000


def test_step_one_million_of_a_mixture_is_there_at_once():
    """627B tokens each, document masks, 256 sequences a step: from nothing to the first batch."""
    sources, weights = {"a": Endless(0), "b": Endless(1), "c": Endless(2)}, {"a": 0.5, "b": 0.3, "c": 0.2}
    order = SampleOrder(256).without(1234, 2)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        data = MixedDataset(sources, weights, 2048, order.num_samples(1_000_100), 7, 4.0, document_mask=True)
        resumed = OrderedSamples(data, order, first_step=1_000_000)
        batch = [resumed[place] for place in range(256)]
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1
    used = data.tokens_in(order.ranges_read(1_000_000))
    assert sum(used.values()) == 1_000_000 * 256 * 2048
    for name, weight in weights.items():
        assert abs(used[name] / (1_000_000 * 256 * 2048) - weight) < 1e-6
    for item in batch:
        number, first = divmod(int(item["input_ids"][0]), 1000)
        part = data.parts[number]
        assert first < 997
        starts = np.flatnonzero(item["position_ids"].numpy() == 0)
        assert starts[0] == 0
        assert set(np.diff(starts)[1:]) <= {1000}
        assert part.num_blocks == 627_000_000_000 // 2048


def test_every_block_number_of_a_large_corpus_is_inside_it():
    data = PackedDataset(Endless(0), 2048, 10**12, seed=3)
    for start in (0, data.num_blocks - 100, 3 * data.num_blocks - 50, 10**12 - 200):
        blocks = data.sample_ids(start, start + 200)
        assert blocks.min() >= 0
        assert blocks.max() < data.num_blocks


def test_a_split_of_empty_shards_at_its_ends_is_read_across_them(tmp_path):
    """Shards without tokens stand before, between and after the others."""
    entries = [ShardEntry(f"{number}.ds", tokens, 0, "") for number, tokens in enumerate([0, 0, 5, 0, 3, 0])]
    split = CorpusSplit(tmp_path, "train", entries)
    split.shard = lambda number: number
    assert [part[:3] for part in split._parts(0, 8)] == [(2, 0, 5), (4, 0, 3)]
    assert [part[:3] for part in split._parts(5, 8)] == [(4, 0, 3)]
    with pytest.raises(IndexError):
        list(split._parts(7, 9))
