"""Token shards: what is written is read, and a damaged file is named."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.data.packing import PackedDataset
from modeling_foundry.data.shards import TokenShard, token_dtype, write_shard
from modeling_foundry.settings import FoundryError

documents_strategy = st.lists(st.lists(st.integers(1, 299), max_size=20), min_size=1, max_size=20)


def write(folder, documents, vocab_size=300):
    return write_shard(folder / "train.ds", documents, vocab_size, eos_token_id=0, tokenizer_sha256="t")


@given(documents_strategy)
def test_round_trip(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("shard")
    header = write(folder, documents)
    shard = TokenShard.open(folder / "train.ds")
    shard.verify()
    assert shard.header == header
    expected = [id for document in documents for id in [*document, 0]]
    assert shard.tokens().tolist() == expected
    assert shard.document_ends().tolist() == np.cumsum([len(d) + 1 for d in documents]).tolist()


def test_ids_of_a_large_vocabulary_are_not_cut_to_16_bits(tmp_path):
    write(tmp_path, [[151_643, 65_536, 3]], vocab_size=151_936)
    shard = TokenShard.open(tmp_path / "train.ds")
    assert shard.header.dtype == "uint32"
    assert shard.tokens().tolist() == [151_643, 65_536, 3, 0]
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32


def test_an_id_outside_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(FoundryError, match="document 1 holds id 300, outside a vocabulary of 300"):
        write(tmp_path, [[1], [300]])
    with pytest.raises(FoundryError, match="missing; the shard was not finished"):
        TokenShard.open(tmp_path / "train.ds")


@pytest.mark.parametrize("name", ["train.ds", "train.ds.index"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    write(tmp_path, [[1, 2, 3], [4, 5]])
    file = tmp_path / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        content = content[:-1] if damage == "truncated" else bytes([content[0] ^ 1]) + content[1:]
        file.write_bytes(content)
    with pytest.raises(FoundryError, match=name):
        TokenShard.open(tmp_path / "train.ds").verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "uint32"}, "dtype uint32 does not fit"),
        ({"version": 9}, "version 9"),
        ({"dtype": "float32"}, "cannot be read"),
        ({"extra": 1}, "not a shard header"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path, change, message):
    write(tmp_path, [[1, 2]])
    path = tmp_path / "train.ds.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FoundryError, match=message):
        TokenShard.open(tmp_path / "train.ds")


def packed(tmp_path, **options):
    write(tmp_path, [[1, 2, 3], [4, 5, 6, 7, 8], [9], [10, 11, 12]])  # 16 tokens with the ends
    return PackedDataset(TokenShard.open(tmp_path / "train.ds"), 4, **options)


def test_an_epoch_sees_every_token_once_in_another_order_each_time(tmp_path):
    dataset = packed(tmp_path, num_samples=12, seed=3)
    blocks = [dataset.block_of(i) for i in range(12)]
    for epoch in range(3):
        assert sorted(blocks[4 * epoch : 4 * epoch + 4]) == [0, 1, 2, 3]
    assert len({tuple(blocks[4 * e : 4 * e + 4]) for e in range(3)}) > 1
    again = packed(tmp_path, num_samples=12, seed=3)
    assert all((again[i]["input_ids"] == dataset[i]["input_ids"]).all() for i in range(12))
    with pytest.raises(IndexError):
        dataset[12]


def test_evaluation_reads_in_file_order(tmp_path):
    dataset = packed(tmp_path)
    assert [row["input_ids"].tolist() for row in (dataset[i] for i in range(len(dataset)))] == [
        [1, 2, 3, 0], [4, 5, 6, 7], [8, 0, 9, 0], [10, 11, 12, 0],
    ]  # fmt: skip


def test_positions_restart_at_each_document(tmp_path):
    dataset = packed(tmp_path, document_mask=True)
    assert [dataset[i]["position_ids"].tolist() for i in range(4)] == [
        [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 0, 1], [0, 1, 2, 3],
    ]  # fmt: skip


def test_a_document_does_not_see_its_neighbour(tmp_path):
    """With document_mask, changing document A leaves the logits of document B as they were."""
    import torch

    from modeling_foundry import FoundryConfig, FoundryForCausalLM

    write(tmp_path, [[5, 6, 7], [8, 9, 10]])
    row = PackedDataset(TokenShard.open(tmp_path / "train.ds"), 8, document_mask=True)[0]
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
    write(tmp_path, [[1]])
    with pytest.raises(FoundryError, match="2 tokens do not fill one sequence"):
        PackedDataset(TokenShard.open(tmp_path / "train.ds"), 4)
