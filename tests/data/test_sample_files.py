"""A file of samples: every row is checked, whatever its length, its packing or the place of the bad row."""

import gzip
import json
import lzma
from functools import partial

import pytest
import zstandard

from modeling_foundry.data.samples.files import EvenSpread, check_file, samples_of_file
from modeling_foundry.settings import FoundryError

packed = partial(gzip.compress, mtime=0)  # or the ids of tests hold the time, other ones in each worker

ROW = {"messages": [{"role": "user", "content": "2024-01-03"}, {"role": "assistant", "content": "007"}]}
PAIR = {
    "prompt": ROW["messages"][:1],
    "chosen": ROW["messages"][1:],
    "rejected": [{"role": "assistant", "content": "x"}],
}


def lines(*rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def refusal(path, kind="sft"):
    with pytest.raises(FoundryError) as caught:
        check_file(path, kind, 10)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(path.parent) + "/")


@pytest.mark.parametrize("place", [1, 2, 201, 502, 1001])
def test_a_bad_row_is_found_wherever_it_stands(place, tmp_path):
    rows = [ROW] * 1001
    rows[place - 1] = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ["b"]}]
    }
    (tmp_path / "rows.jsonl").write_bytes(lines(*rows))
    expected = (
        f"rows.jsonl, line {place:,}: wrong type: messages, turn 2: content is a list of parts, not text"
    )
    assert refusal(tmp_path / "rows.jsonl").startswith(expected)


def test_all_bad_rows_are_counted(tmp_path):
    rows = [ROW, {"messages": None}, ROW, {}, {"messages": ROW["messages"][:1]}]
    (tmp_path / "rows.jsonl").write_bytes(lines(*rows) + b"{\n\n")
    assert refusal(tmp_path / "rows.jsonl") == (
        "rows.jsonl, line 2: missing key: messages (null); the row has nothing (3 more of 6 rows are refused)"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", lines(ROW, ROW)),
        ("rows.jsonl", b"\xef\xbb\xbf" + lines(ROW, ROW).replace(b"\n", b"\r\n\r\n")),
        ("rows", lines(ROW, ROW)),
        ("rows.txt", lines(ROW, ROW)),
        ("std::rows.jsonl", lines(ROW, ROW)),
        ("rows.json", json.dumps([ROW, ROW], indent=1).encode()),
        ("rows.jsonl", json.dumps([ROW, ROW]).encode()),
        ("rows.jsonl.gz", packed(lines(ROW, ROW))),
        ("rows.jsonl", packed(lines(ROW)) + packed(lines(ROW))),
        ("rows.json.zst", zstandard.compress(json.dumps([ROW, ROW]).encode())),
        ("rows.jsonl.xz", lzma.compress(lines(ROW, ROW))),
    ],
)  # fmt: skip
def test_rows_are_the_files_own_whatever_it_is_called(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert check_file(tmp_path / name, "auto", 10).num_rows == 2
    assert list(samples_of_file(tmp_path / name, "sft")) == [ROW, ROW]


def test_parquet_gives_the_same_rows(tmp_path):
    from datasets import Dataset

    Dataset.from_list([ROW, ROW]).to_parquet(tmp_path / "rows.parquet")
    assert list(samples_of_file(tmp_path / "rows.parquet", "sft")) == [ROW, ROW]
    (tmp_path / "rows.parquet").rename(tmp_path / "rows.jsonl")
    assert check_file(tmp_path / "rows.jsonl", "sft", 10).num_rows == 2
    Dataset.from_dict({"messages": [[{"role": "user", "content": 3}]]}).to_parquet(tmp_path / "bad.parquet")
    assert refusal(tmp_path / "bad.parquet").startswith(
        "bad.parquet, row 1: wrong type: messages, turn 1: content is a number"
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl", b"", "empty; expected rows"),
        ("rows.jsonl", b"\n \n", "holds no samples; every row needs messages"),
        ("rows.json", b"[]", "holds no samples"),
        ("rows.jsonl", b'{"messages": [', "line 1: not JSON: "),
        ("rows.json", json.dumps({"data": [ROW]}, indent=1).encode(), "one JSON object over several lines; expected"),
        ("rows.jsonl", lines(ROW) + b'\n{"messages": []}}\n', "line 3: not JSON: Extra data"),
        ("rows.jsonl", b'{"messages": "\xff"}', "line 1: invalid UTF-8"),
        ("rows.jsonl", b'"text"\n', "line 1: not an object: it is text"),
        ("rows.jsonl", b'{"messages": [], "messages": []}', "line 1: not JSON: the key messages twice in one object"),
        ("rows.jsonl", lines(ROW).decode().encode("utf-16"), "this is UTF-16 text; expected JSON in UTF-8"),
        ("rows.json", json.dumps([ROW]).encode("utf-16-le"), "this is UTF-16 text; expected JSON"),
        ("rows.json", json.dumps([ROW]).encode("utf-32"), "this is UTF-32 text; expected JSON"),
        ("rows.jsonl", b"PK\x03\x04zip", "this is a zip archive; expected JSON"),
        ("rows.jsonl.gz", lines(ROW), "corrupt gzip data"),
        ("rows.jsonl.gz", packed(lines(ROW))[:-9], "corrupt gzip data (ends inside a frame)"),
        ("rows.csv", b"messages\nhello\n", "expected a .json, .jsonl or .parquet file"),
        ("rows.parquet", lines(ROW), "not readable as parquet"),
        ("rows.jsonl", b"PAR1\x15 and no more", "not readable as parquet"),
        ("rows.jsonl", lines({"messages": [{"role": "\ud83d"}]}), "turn 1: role holds half of a surrogate pair"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_says_why(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert words in refusal(tmp_path / name)


def test_a_file_that_is_none_is_one_line(tmp_path):
    assert refusal(tmp_path / "rows.jsonl") == "rows.jsonl: cannot read the rows (No such file or directory)"
    (tmp_path / "folder").mkdir()
    assert refusal(tmp_path / "folder") == "folder: cannot read the rows (Is a directory)"


@pytest.mark.parametrize("number", [1, 4, 5, 100, 1001])
def test_rows_are_spread_over_the_file(number):
    spread = EvenSpread(4)
    for place in range(number):
        spread.offer(place, {})
    places = [place for place, _ in spread.chosen()]
    assert places[0] == 0
    assert len(places) == min(number, 4)
    assert places[-1] >= number // 2
    assert places == sorted(set(places))


def test_a_rare_form_is_rendered_too(tmp_path):
    rows = [{**ROW, "source": "me"}] * 1000
    rows[777] = {**ROW, "tools": [{"name": "f"}]}
    rows[778] = {
        "messages": [{"role": "system", "content": "a"}, *ROW["messages"]],
        "chat_template_kwargs": {},
    }
    (tmp_path / "rows.jsonl").write_bytes(lines(*rows))
    found = check_file(tmp_path / "rows.jsonl", "auto", 5)
    assert {"line 1", "line 778", "line 779"} <= set(found.to_render)
    assert len(found.to_render) <= 5 + 3 * 3
    assert (found.kind, found.num_rows, found.columns) == ("sft", 1000, ("messages", "tools"))
    assert found.not_read == {"source": 998}


def test_files_of_the_same_samples_have_the_same_digests(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(PAIR, {**PAIR, "chosen": PAIR["rejected"]}))
    (tmp_path / "b.json").write_bytes(json.dumps([{**PAIR, "source": "other"}]).encode())
    first, second = (check_file(tmp_path / name, "preference", 5).digests for name in ("a.jsonl", "b.json"))
    assert (len(first), len(second), len(first & second)) == (2, 1, 1)
