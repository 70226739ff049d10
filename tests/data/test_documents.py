"""Documents of every kind of file, and each row that gives none counted by its reason."""

import bz2
import gzip
import hashlib
import json
import lzma
from collections import Counter
from functools import partial

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.data.sources import documents
from modeling_foundry.data.sources.documents import read_documents
from modeling_foundry.data.sources.lines import DamagedFileError, _split_lines
from modeling_foundry.data.sources.manifest import SourceFile
from modeling_foundry.settings import FoundryError

packed = partial(gzip.compress, mtime=0)  # or the ids of tests hold the time, other ones in each worker

TEXTS = ["first", "zweiter Text\nin two lines", "第三 🙂", "e\u0301 and é", "x" * 3_000_000]
JSON_LINES = "".join(json.dumps({"text": text, "meta": {}}) + "\n" for text in TEXTS).encode()


def read(folder, name, format, compression="none", text_key="text"):
    bad_rows = Counter()
    file = SourceFile("train", name, 0, format, compression)
    return list(read_documents(str(folder), file, text_key, bad_rows)), dict(bad_rows)


def until_damage(folder, name, compression):
    texts = read_documents(str(folder), SourceFile("train", name, 0, "jsonl", compression), "text", Counter())
    found: list[str] = []
    with pytest.raises(DamagedFileError):
        found.extend(texts)  # keeps what came before
    return found


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("last_newline", [True, False])
def test_json_lines(tmp_path, compression, last_newline):
    content = JSON_LINES if last_newline else JSON_LINES[:-1]
    packed = {"none": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}[compression](content)
    (tmp_path / "a").write_bytes(packed)
    assert read(tmp_path, "a", "jsonl", compression) == (TEXTS, {})


def test_frames_one_after_the_other(tmp_path):
    half = len(JSON_LINES) // 2
    (tmp_path / "a").write_bytes(
        zstandard.compress(JSON_LINES[:half]) + zstandard.compress(JSON_LINES[half:])
    )
    assert read(tmp_path, "a", "jsonl", "zstd") == (TEXTS, {})


def test_a_frame_with_a_long_window(tmp_path):
    """As `zstd --long=31` writes them; a decoder that is not told refuses more than 128 MiB."""
    options = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, hash_log=10, chain_log=10)
    packer = zstandard.ZstdCompressor(compression_params=options).compressobj()
    (tmp_path / "a").write_bytes(packer.compress(JSON_LINES) + packer.flush())
    assert read(tmp_path, "a", "jsonl", "zstd") == (TEXTS, {})


def test_parquet_and_plain_text(tmp_path):
    table = pyarrow.table({"content": [*TEXTS, None, ""], "id": range(len(TEXTS) + 2)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    found = read(tmp_path, "a.parquet", "parquet", text_key="content")
    assert found == (TEXTS, {documents.NO_TEXT: 1, documents.EMPTY_TEXT: 1})
    with pytest.raises(FoundryError, match="no column text; it has content, id; give --text_key"):
        read(tmp_path, "a.parquet", "parquet")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + TEXTS[2].encode())
    assert read(tmp_path, "a.txt", "text") == ([TEXTS[2]], {})


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_a_byte_order_mark_costs_no_row(tmp_path, pack):
    """Windows programs write one; the first row was counted as broken JSON for it."""
    (tmp_path / "a").write_bytes(pack(b"\xef\xbb\xbf" + JSON_LINES))
    compression = {bytes: "none", gzip.compress: "gzip", zstandard.compress: "zstd"}[pack]
    assert read(tmp_path, "a", "jsonl", compression) == (TEXTS, {})


def test_members_of_gzip_and_zeros_after_them(tmp_path):
    """What ``cat a.gz b.gz`` and tapes make, and what gzip itself takes."""
    half = len(JSON_LINES) // 2
    members = packed(JSON_LINES[:half]) + packed(b"") + packed(JSON_LINES[half:])
    for end in (b"", b"\0" * 70_000):
        (tmp_path / "a").write_bytes(members + end)
        assert read(tmp_path, "a", "jsonl", "gzip") == (TEXTS, {})
    for damaged in (b"garbage" + members, b"\0" + members, members + b"garbage", members + b"\0garbage"):
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(DamagedFileError, match="corrupt gzip data"):
            read(tmp_path, "a", "jsonl", "gzip")


@pytest.mark.parametrize(("compression", "pack"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
def test_little_before_a_damage_is_lost(tmp_path, compression, pack):
    """Of gzip a whole mebibyte was, and of zstd all that a mebibyte of its bytes held."""
    numbers = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(40_000)]
    content = "".join(json.dumps({"text": text}) + "\n" for text in numbers).encode()
    packed = pack(content)
    (tmp_path / "a").write_bytes(packed[: len(packed) * 3 // 4])
    found = until_damage(tmp_path, "a", compression)
    assert found == numbers[: len(found)]
    assert len(found) > 25_000
    (tmp_path / "a").write_bytes(pack(content) + b"garbage")
    assert until_damage(tmp_path, "a", compression) == numbers


@pytest.mark.parametrize(
    ("column", "texts", "bad_rows"),
    [
        (pyarrow.array([b"ab", b"\xff", None], pyarrow.binary()), ["ab"], {"invalid UTF-8": 1, "no text": 1}),
        (pyarrow.nulls(2), [], {"no text": 2}),
        (pyarrow.array([b"ab"], pyarrow.binary(2)), ["ab"], {}),
        (pyarrow.array(["a", None], pyarrow.string_view()), ["a"], {"no text": 1}),
        (pyarrow.array(["a", "b"], pyarrow.large_string()), ["a", "b"], {}),
        (pyarrow.array(["a", "a", None]).dictionary_encode(), ["a", "a"], {"no text": 1}),
    ],
)
def test_parquet_columns_of_every_type(tmp_path, column, texts, bad_rows):
    """Bytes that are UTF-8 are text; a column of nothing may have text in another file."""
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert read(tmp_path, "a.parquet", "parquet") == (texts, bad_rows)


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([5, None]), pyarrow.array([{"text": "x"}]), pyarrow.array([["x"]]), pyarrow.array([True]),
        pyarrow.array([[["x"]]], pyarrow.large_list(pyarrow.list_(pyarrow.string()))),
        pyarrow.array([7, 7]).dictionary_encode(), pyarrow.array([0], pyarrow.timestamp("s")),
    ],
)  # fmt: skip
def test_a_column_that_is_no_text_is_refused(tmp_path, column):
    """Tokenizing a column of lists ended well, without a token."""
    pyarrow.parquet.write_table(pyarrow.table({"text": column, "n": column}), tmp_path / "a.parquet")
    with pytest.raises(
        FoundryError, match=r"a\.parquet: column text is .*, expected text; it has text, n; give"
    ):
        read(tmp_path, "a.parquet", "parquet")


def unchecked(kind, *rows):
    """Text of which one row need not be UTF-8, as other writers leave it."""
    data = pyarrow.array(rows, pyarrow.large_binary() if kind == pyarrow.large_string() else pyarrow.binary())
    return pyarrow.Array.from_buffers(kind, len(rows), data.buffers())


@pytest.mark.parametrize(
    "kind",
    ["text", "large text", "bytes", "dictionary", "dictionary of bytes", "categories of pandas", "long"],
)
def test_one_bad_row_costs_no_other(tmp_path, kind):
    """In a dictionary it was "not a whole Parquet file", and --damaged_files=keep lost all of its rows."""
    words, places = (b"good", b"\xff", b"fine"), pyarrow.array([0, 1, None, 2, 0], pyarrow.int32())
    rows = [None if place is None else words[place] for place in places.to_pylist()]
    column = {
        "text": lambda: unchecked(pyarrow.string(), *rows),
        "large text": lambda: unchecked(pyarrow.large_string(), *rows),
        "bytes": lambda: pyarrow.array(rows, pyarrow.binary()),
        "dictionary": lambda: pyarrow.DictionaryArray.from_arrays(
            places, unchecked(pyarrow.string(), *words)
        ),
        "dictionary of bytes": lambda: pyarrow.DictionaryArray.from_arrays(places, pyarrow.array(words)),
        "categories of pandas": lambda: pyarrow.DictionaryArray.from_arrays(
            places.cast(pyarrow.int8()), unchecked(pyarrow.large_string(), *words)
        ),
        "long": lambda: pyarrow.DictionaryArray.from_arrays(
            places.cast(pyarrow.int64()), unchecked(pyarrow.large_string(), *words)
        ),
    }[kind]()
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet", row_group_size=2)
    expected = ["good", "fine", "good"], {documents.NOT_UTF8: 1, documents.NO_TEXT: 1}
    assert read(tmp_path, "a.parquet", "parquet") == expected


def test_a_column_is_found_by_its_whole_name(tmp_path):
    """A dot has a meaning to the library: a part of a nested column."""
    columns = {"text.language": ["en"], "text": ["a text"], "meta": [{"text": "other"}]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert read(tmp_path, "a.parquet", "parquet") == (["a text"], {})
    assert read(tmp_path, "a.parquet", "parquet", text_key="text.language") == (["en"], {})
    with pytest.raises(FoundryError, match=r"no column meta\.text; it has text\.language, text, meta"):
        read(tmp_path, "a.parquet", "parquet", text_key="meta.text")
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(FoundryError, match="2 columns named text"):
        read(tmp_path, "b.parquet", "parquet")


ROWS = '{"text": "one"}\n{"text": "two"}\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n"


@pytest.mark.parametrize(
    ("content", "format", "compression", "reason"),
    [
        (ROWS.encode("utf-16"), "jsonl", "none", "is UTF-16 text, expected UTF-8 text; convert"),
        (ROWS.encode("utf-16-le"), "jsonl", "none", "is UTF-16 text"),
        (ROWS.encode("utf-16-be"), "jsonl", "none", "is UTF-16 text"),
        (ROWS.encode("utf-32"), "jsonl", "none", "is UTF-32 text"),
        (packed(ROWS.encode("utf-16")), "jsonl", "gzip", "is UTF-16 text"),
        ("a text".encode("utf-16"), "text", "none", "is UTF-16 text"),
        (
            packed(ROWS.encode()),
            "jsonl",
            "none",
            "is gzip data, expected UTF-8 text; convert or rename it",
        ),
        (zstandard.compress(ROWS.encode()), "text", "none", "is zstd data"),
        (packed(packed(ROWS.encode())), "jsonl", "gzip", "is gzip data"),
        (bz2.compress(ROWS.encode()), "jsonl", "none", "is bzip2 data"),
        (lzma.compress(ROWS.encode()), "jsonl", "gzip", r"corrupt gzip data \(it is xz data"),
        (ROWS.encode(), "jsonl", "gzip", r"corrupt gzip data \(it is plain JSON, whatever its name says\)"),
        (ROWS.encode(), "jsonl", "zstd", r"corrupt zstd data \(it is plain JSON"),
        (packed(ROWS.encode()), "jsonl", "zstd", r"corrupt zstd data \(it is gzip data"),
        (POINTER, "jsonl", "none", "is a pointer of Git LFS"),
        (POINTER, "jsonl", "zstd", "it is a pointer of Git LFS"),
        (POINTER, "parquet", "none", r"not a whole Parquet file \(it is a pointer of Git LFS"),
    ],
)
def test_what_a_file_really_is_is_said(tmp_path, content, format, compression, reason):
    """Such a file was some rows of broken JSON or invalid UTF-8, "incorrect header check", or no word at all."""
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DamagedFileError, match=f"/a: {reason}|/a: .*{reason}"):
        read(tmp_path, "a", format, compression)


def test_every_bad_row_is_counted(tmp_path):
    lines = [
        b'{"text": "good"}', b'{"text": "cut', b"", b'{"other": "key"}', b'{"text": 7}', b'["text"]', b'"text"',
        b'{"text": ""}', b'{"text": "\xff\xfe"}', b'{"text": "\\ud800"}', b'{"text": "good too", "n": NaN}',
        b"[" * 100_000,
    ]  # fmt: skip
    (tmp_path / "a").write_bytes(b"\n".join(lines))
    texts, bad_rows = read(tmp_path, "a", "jsonl")
    assert texts == ["good", "good too"]
    assert bad_rows == {
        documents.BROKEN_JSON: 2, documents.NO_TEXT: 4, documents.EMPTY_TEXT: 1, documents.NOT_UTF8: 1,
        documents.LONE_SURROGATE: 1,
    }  # fmt: skip


@pytest.mark.parametrize(("compression", "pack"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
def test_a_stream_cut_anywhere_is_damage_never_an_end(tmp_path, compression, pack):
    """zstandard's own reader takes a truncated frame for the end of the file."""
    content = "".join(json.dumps({"text": f"row {number}" * 50}) + "\n" for number in range(200)).encode()
    packed = pack(content)
    for end in range(1, len(packed), max(1, len(packed) // 20)):
        (tmp_path / "a").write_bytes(packed[:end])
        with pytest.raises(DamagedFileError, match=r"/a: corrupt"):
            read(tmp_path, "a", "jsonl", compression)


def test_corrupt_bytes_are_damage(tmp_path):
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(JSON_LINES))
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / "a").write_bytes(bytes(packed))
    with pytest.raises(DamagedFileError):
        read(tmp_path, "a", "jsonl", "zstd")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DamagedFileError, match="not a whole Parquet file"):
        read(tmp_path, "a.parquet", "parquet")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FoundryError, match="nowhere: cannot be read"):
        read(tmp_path, "nowhere", "jsonl")


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(1, 30)))
def test_lines_do_not_depend_on_the_blocks(lines, sizes):
    content = b"\n".join(line.replace(b"\n", b" ") for line in lines)
    blocks, start = [], 0
    for size in sizes:
        blocks.append(content[start : start + size])
        start += size
    blocks.append(content[start:])
    expected = content.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert list(_split_lines(iter(block for block in blocks if block))) == expected
