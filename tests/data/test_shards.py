"""Token shards: what is written is read, and a damaged file is named."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.data.tokens.shards import TokenShard, token_dtype, write_shard
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


def rewrite(folder, tokens=None, ends=None, **header):
    """Damage a shard and make its hashes agree, as a program that writes wrongly would."""
    from modeling_foundry.files import sha256_of_file

    path = folder / "train.ds"
    if tokens is not None:
        path.write_bytes(np.asarray(tokens, dtype="<u2").tobytes())
    if ends is not None:
        (folder / "train.ds.index").write_bytes(np.asarray(ends, dtype="<u8").tobytes())
    facts = json.loads((folder / "train.ds.json").read_text())
    facts |= {
        "num_tokens": path.stat().st_size // 2,
        "num_documents": (folder / "train.ds.index").stat().st_size // 8,
        "tokens_sha256": sha256_of_file(path),
        "index_sha256": sha256_of_file(folder / "train.ds.index"),
    }
    (folder / "train.ds.json").write_text(json.dumps(facts | header))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"tokens": [1, 2, 0, 300, 0]}, "train.ds: holds id 300, vocabulary is 300"),
        ({"tokens": [1, 2, 5, 3, 0]}, "train.ds: document 0 does not end with id 0"),
        ({"ends": [3, 4]}, r"train.ds.index: its ends do not divide 5 tokens"),
        ({"ends": [3, 3, 5]}, r"train.ds.index: its ends do not divide"),
        ({"ends": [5, 3]}, r"train.ds.index: its ends do not divide"),
        ({"ends": []}, r"train.ds.index: its ends do not divide"),
        ({"num_tokens": "5"}, "train.ds.json: not a shard header"),
    ],
)
def test_a_shard_that_was_written_wrongly_is_named(tmp_path, damage, message):
    write(tmp_path, [[1, 2], [3]])
    rewrite(tmp_path, **damage)
    with pytest.raises(FoundryError, match=message):
        TokenShard.open(tmp_path / "train.ds").verify()


def test_an_empty_shard_is_whole(tmp_path):
    write(tmp_path, [])
    TokenShard.open(tmp_path / "train.ds").verify()
