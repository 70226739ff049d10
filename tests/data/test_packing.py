"""Packed sequences: every token once an epoch, the same sample wherever it is read."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_foundry.data.sequences.packing import PackedDataset
from modeling_foundry.data.tokens.shards import TokenShard, write_shard
from modeling_foundry.settings import FoundryError

DOCUMENTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9], [10, 11, 12]]  # 16 tokens with the ends


def open_shard(folder, documents=DOCUMENTS):
    write_shard(folder / "train.ds", documents, 300, eos_token_id=0, tokenizer_sha256="t")
    return TokenShard.open(folder / "train.ds")


def test_an_epoch_sees_every_token_once_in_another_order_each_time(tmp_path):
    dataset = PackedDataset(open_shard(tmp_path), 4, num_samples=12, seed=3)
    blocks = dataset.sample_ids(0, 12).tolist()
    for epoch in range(3):
        assert sorted(blocks[4 * epoch : 4 * epoch + 4]) == [0, 1, 2, 3]
        rows = [dataset[i]["input_ids"].tolist() for i in range(4 * epoch, 4 * epoch + 4)]
        assert sorted(id for row in rows for id in row) == sorted(dataset.source.tokens().tolist())
    assert len({tuple(blocks[4 * epoch : 4 * epoch + 4]) for epoch in range(3)}) > 1
    with pytest.raises(IndexError):
        dataset[12]


@settings(max_examples=40)
@given(st.integers(20, 10**6), st.integers(0, 2**40), st.lists(st.integers(0, 150), max_size=12))
def test_a_sample_is_the_same_however_it_is_reached(num_blocks, seed, reads):
    """In any order of reading, alone or in a range that spans epochs."""
    dataset = object.__new__(PackedDataset)  # the order needs no shard
    vars(dataset).update(num_blocks=num_blocks, shuffle=True, seed=seed, _chunk=(-1, np.empty(0, np.int64)))
    expected = dataset.sample_ids(0, 151)
    for index in reads:
        assert dataset._block_of(index) == expected[index]
        assert dataset.sample_ids(index, index + 1)[0] == expected[index]


def test_the_sample_ids_of_a_step_do_not_depend_on_ranks_or_restarts(tmp_path):
    shard = open_shard(tmp_path, [[i] for i in range(1, 200)])
    whole = PackedDataset(shard, 2, num_samples=1000, seed=5)
    first_rank, second_rank = (PackedDataset(shard, 2, num_samples=1000, seed=5) for _ in range(2))
    for i in range(300, 340, 2):  # a run that goes on at sample 300, on two ranks
        assert torch.equal(first_rank[i]["input_ids"], whole[i]["input_ids"])
        assert torch.equal(second_rank[i + 1]["input_ids"], whole[i + 1]["input_ids"])


def test_evaluation_reads_in_file_order(tmp_path):
    dataset = PackedDataset(open_shard(tmp_path), 4)
    assert [dataset[i]["input_ids"].tolist() for i in range(len(dataset))] == [
        [1, 2, 3, 0], [4, 5, 6, 7], [8, 0, 9, 0], [10, 11, 12, 0],
    ]  # fmt: skip
    assert dataset.num_corpus_tokens == 16


def test_positions_restart_at_each_document(tmp_path):
    dataset = PackedDataset(open_shard(tmp_path), 4, document_mask=True)
    assert [dataset[i]["position_ids"].tolist() for i in range(4)] == [
        [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 0, 1], [0, 1, 2, 3],
    ]  # fmt: skip


def test_a_loader_worker_gets_no_copy_of_the_corpus(tmp_path):
    dataset = PackedDataset(open_shard(tmp_path, [[7] * 100_000]), 4, num_samples=8, document_mask=True)
    first = dataset[0]
    assert len(pickle.dumps(dataset)) < 2000
    received = copy.copy(dataset)  # through the same state as pickle
    assert not {"_tokens", "_ends"} & set(vars(received))
    assert torch.equal(received[0]["position_ids"], first["position_ids"])


def test_a_document_does_not_see_its_neighbour(tmp_path):
    """With document_mask, changing document A leaves the logits of document B as they were."""
    from modeling_foundry import FoundryConfig, FoundryForCausalLM

    row = PackedDataset(open_shard(tmp_path, [[5, 6, 7], [8, 9, 10]]), 8, document_mask=True)[0]
    torch.manual_seed(0)
    model = FoundryForCausalLM(
        FoundryConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=16,
        )  # fmt: skip
    ).eval()

    def logits(ids):
        with torch.no_grad():
            return model(input_ids=ids[None], position_ids=row["position_ids"][None], use_cache=False).logits[
                0
            ]

    changed = row["input_ids"].clone()
    changed[:3] += 100
    before, after = logits(row["input_ids"]), logits(changed)
    assert torch.equal(before[4:], after[4:])
    assert not torch.allclose(before[:3], after[:3])


def test_too_little_text_for_one_sequence_is_said(tmp_path):
    with pytest.raises(FoundryError, match="2 tokens do not fill one sequence"):
        PackedDataset(open_shard(tmp_path, [[1]]), 4)
