"""The list of files a corpus is made of: what is found, and that no line can change unseen."""

import gzip
import json
import os
from dataclasses import replace

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_foundry.data.sources.manifest import (
    Manifest,
    SourceFile,
    read_manifest,
    write_manifest,
)
from modeling_foundry.data.sources.scan import make_manifest, scan
from modeling_foundry.data.sources.settings import ManifestSettings
from modeling_foundry.settings import FoundryError


def files(number=6):
    return tuple(
        SourceFile(
            "train", f"chunk1/{i}.jsonl.zst", 1000 + i, "jsonl", "zstd", i * 7, "a" * 64 if i % 2 else None
        )
        for i in range(number)
    )


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, Manifest("/corpora/ünï", files()))
    return path


def test_it_comes_back_as_it_was_written(written):
    assert read_manifest(written) == Manifest("/corpora/ünï", files())


def test_the_root_may_move_and_the_files_may_not(written):
    manifest = read_manifest(written)
    assert Manifest("s3://elsewhere", manifest.files).fingerprint == manifest.fingerprint
    assert Manifest(manifest.root, manifest.files[::-1]).fingerprint != manifest.fingerprint


def test_cut_anywhere_it_is_refused(written):
    content = written.read_bytes()
    for end in range(0, len(content), 7):
        written.write_bytes(content[:end])
        with pytest.raises(FoundryError) as error:
            read_manifest(written)
        assert str(error.value).startswith(str(written))
        assert "\n" not in str(error.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(min_value=0), st.integers(0, 255))
def test_any_changed_byte_is_refused(written, position, byte):
    content = bytearray(written.read_bytes())
    position %= len(content)
    if content[position] == byte:
        return
    original = read_manifest(written)
    content[position] = byte
    altered = written.with_name("altered.jsonl")
    altered.write_bytes(bytes(content))
    try:
        found = read_manifest(altered)
    except FoundryError as error:
        assert str(error).startswith(f"{altered}: ")
        return
    assert found == original  # white space


@pytest.mark.parametrize("change", ["edit", "remove", "swap", "add"])
def test_an_edited_line_is_named(written, change):
    lines = written.read_text().splitlines(keepends=True)
    if change == "edit":
        lines[3] = lines[3].replace("1002", "1003")
    elif change == "remove":
        del lines[3]
    elif change == "swap":
        lines[3], lines[4] = lines[4], lines[3]
    else:
        lines.insert(3, lines[3])
    written.write_text("".join(lines))
    with pytest.raises(FoundryError, match=r"manifest\.jsonl: line [45]: not as it was written"):
        read_manifest(written)


@pytest.mark.parametrize(("old", "new"), [("/corpora/", "/elsewhere/"), ('"num_files": 6', '"num_files": 5')])
def test_an_edited_header_is_refused(written, old, new):
    """The root was not under the check: an edited one led to other files."""
    content = written.read_text()
    assert old in content
    lines = content.replace(old, new).splitlines(keepends=True)
    written.write_text("".join(lines if "corpora" in old else lines[:-1]))
    with pytest.raises(FoundryError, match=r"line 1: not as it was written .*scan the folder again"):
        read_manifest(written)


@pytest.mark.parametrize(
    "changes",
    [
        {"split": "../../evil"}, {"split": ""}, {"path": "../outside.jsonl"}, {"path": "/etc/passwd"}, {"path": ""},
        {"num_bytes": -1}, {"estimated_rows": -1}, {"sha256": "../etc"}, {"sha256": "A" * 64}, {"format": "csv"},
    ],
)  # fmt: skip
def test_a_line_that_leads_elsewhere_is_refused(tmp_path, changes):
    """Its check may be right: shards are written under the name of the split."""
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, Manifest("/corpora", (replace(files()[0], **changes), *files()[1:])))
    with pytest.raises(FoundryError, match="line 2: not as it was written"):
        read_manifest(path)


def rows(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "corpus"
    for name in ("train/chunk1", "train/chunk2", "validation/chunk1", ".hidden"):
        (root / name).mkdir(parents=True)
    for number in (1, 2, 10):
        path = root / "train" / "chunk1" / f"example_train_{number}.jsonl.zst"
        path.write_bytes(zstandard.compress(rows("a", "b", "c")))
    (root / "train" / "chunk2" / "x.json.gz").write_bytes(gzip.compress(rows("a")))
    (root / "validation" / "chunk1" / "y.jsonl").write_bytes(rows("a", "b"))
    (root / "notes-test.txt").write_text("one document")
    (root / "README.md").write_text("not data")
    (root / "dataset_infos.json").write_text("{}")
    (root / ".hidden" / "z.jsonl").write_bytes(rows("a"))
    return root


def test_files_are_found_in_natural_order_with_their_splits(corpus):
    found, left_out = scan(str(corpus))
    assert [(file.split, file.path, file.format, file.compression) for file in found] == [
        ("test", "notes-test.txt", "text", "none"),
        ("train", "train/chunk1/example_train_1.jsonl.zst", "jsonl", "zstd"),
        ("train", "train/chunk1/example_train_2.jsonl.zst", "jsonl", "zstd"),
        ("train", "train/chunk1/example_train_10.jsonl.zst", "jsonl", "zstd"),
        ("train", "train/chunk2/x.json.gz", "jsonl", "gzip"),
        ("validation", "validation/chunk1/y.jsonl", "jsonl", "none"),
    ]
    assert left_out == {"hidden": 1, ".md": 1, ".json": 1}


def test_a_pattern_chooses_the_files(corpus):
    found, left_out = scan(str(corpus), include="train/chunk1/*_1*")
    assert [file.path[-7:] for file in found] == ["1.jsonl.zst"[-7:]] * 2
    assert left_out["not included"] == 6


def test_made_once_and_then_complete(corpus, tmp_path, capsys):
    output = tmp_path / "manifest.jsonl"
    wanted = ManifestSettings(source=str(corpus), output=str(output), sha256=True)
    manifest = make_manifest(wanted)
    assert manifest.totals()["train"] == {
        "files": 4,
        "bytes": manifest.totals()["train"]["bytes"],
        "rows": 10,
    }
    assert all(len(file.sha256) == 64 for file in manifest.files)
    assert make_manifest(wanted) == read_manifest(output)
    assert "nothing to do" in capsys.readouterr().out
    (corpus / "train" / "more.jsonl").write_bytes(rows("new"))
    with pytest.raises(FoundryError, match="holds another manifest"):
        make_manifest(wanted)
    wanted.overwrite = True
    assert len(make_manifest(wanted).files) == 7


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_manifest_inside_the_folder_is_not_part_of_it(scheme, corpus, capsys):
    wanted = ManifestSettings(source=f"{scheme}{corpus}", output=str(corpus / "train" / "manifest.jsonl"))
    assert make_manifest(wanted) == make_manifest(wanted)
    assert "nothing to do" in capsys.readouterr().out


def test_files_are_held_out_by_their_name(corpus, tmp_path):
    wanted = ManifestSettings(source=str(corpus), output=str(tmp_path / "m.jsonl"), held_out_files=2)
    splits = {file.path: file.split for file in make_manifest(wanted).files}
    assert sorted(splits.values()) == ["test", "train", "train", "validation", "validation", "validation"]
    wanted.held_out_files = 4
    with pytest.raises(FoundryError, match="held_out_files: expected fewer than the 4 train files"):
        make_manifest(wanted)


def test_a_url_is_scanned_as_a_folder_is():
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/train/a.jsonl", rows("a", "b"))
    found, _ = scan("memory://corpus")
    assert [(file.split, file.path, file.num_bytes) for file in found] == [("train", "train/a.jsonl", 28)]


def test_the_snapshot_that_main_points_to_is_taken(tmp_path, monkeypatch):
    """And a blob of the Hub's cache is named by its SHA-256 already."""
    hub = tmp_path / "hub" / "datasets--org--corpus"
    digest = "ab" * 32
    for revision in ("f" * 40, "0" * 40):
        (hub / "snapshots" / revision / "train").mkdir(parents=True)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("0" * 40)
    (hub / "blobs").mkdir()
    (hub / "blobs" / digest).write_bytes(rows("a"))
    (hub / "snapshots" / ("0" * 40) / "train" / "a.jsonl").symlink_to(hub / "blobs" / digest)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    manifest = make_manifest(ManifestSettings(hub_name="org/corpus", output=str(tmp_path / "m.jsonl")))
    assert manifest.root.endswith("0" * 40)
    assert [(file.path, file.num_bytes, file.sha256) for file in manifest.files] == [
        ("train/a.jsonl", 14, digest)
    ]
    with pytest.raises(FoundryError, match="org/other is not in the local Hub cache"):
        make_manifest(ManifestSettings(hub_name="org/other", output=str(tmp_path / "n.jsonl")))


@pytest.mark.parametrize(
    ("source", "message"),
    [("/nonexistent-folder", "no such folder"), ("nonsense://x", "cannot be listed")],
)
def test_what_holds_nothing_is_refused(source, message, tmp_path):
    with pytest.raises(FoundryError, match=message):
        make_manifest(ManifestSettings(source=source, output=str(tmp_path / "m.jsonl")))


def test_a_link_to_nothing_is_refused_and_a_linked_folder_is_said(tmp_path, capsys):
    """The first was a file of no bytes, and tokenize fell over it; the second was "1 no suffix"."""
    root, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    for folder in (root, elsewhere):
        folder.mkdir()
        (folder / "a.jsonl").write_bytes(rows("text"))
    (root / "linked").symlink_to(elsewhere)
    (root / "b.jsonl").symlink_to(elsewhere / "a.jsonl")
    made = make_manifest(ManifestSettings(source=str(root), output=str(tmp_path / "m.jsonl")))
    assert [file.path for file in made.files] == ["a.jsonl", "b.jsonl"]
    assert "left out: 1 link to a folder" in capsys.readouterr().out
    (root / "c.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    with pytest.raises(FoundryError, match=r"c\.jsonl: a link to nothing"):
        scan(str(root))


def test_a_name_that_is_not_utf_8_is_refused_by_name(tmp_path):
    """It was a UnicodeEncodeError of the writer."""
    (tmp_path / os.fsdecode(b"na\xefve.jsonl")).write_bytes(rows("text"))
    with pytest.raises(FoundryError, match=r"na\\udcefve\.jsonl': its name is not UTF-8"):
        scan(str(tmp_path))


def test_a_text_file_is_one_row(tmp_path):
    for number, size in enumerate((1, 10, 1000, 10, 10)):
        (tmp_path / f"{number}.txt").write_text("x" * size)
    made = make_manifest(
        ManifestSettings(source=str(tmp_path), output=str(tmp_path / "out" / "m.jsonl"), sample_files=1)
    )
    assert [file.estimated_rows for file in made.files] == [1] * 5


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(rows("text"))
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "m.jsonl", tmp_path):
        with pytest.raises(FoundryError, match=r"cannot (write|read) the manifest"):
            make_manifest(ManifestSettings(source=str(tmp_path), output=str(output)))


def test_a_split_is_a_plain_name():
    with pytest.raises(ValueError, match=r"split: expected letters, digits, - or _, found '\.\./evil'"):
        ManifestSettings(source="x", split="../evil")
