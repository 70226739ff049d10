"""Corpora that are no plain folder: URLs of fsspec, a web server, the Hub's cache with its links to blobs."""

import hashlib
import json
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
import zstandard

from modeling_foundry.data.inspection.settings import VerifySettings
from modeling_foundry.data.inspection.verify import verify
from modeling_foundry.data.sources.documents import read_documents
from modeling_foundry.data.sources.manifest import read_manifest
from modeling_foundry.data.sources.scan import make_manifest, scan
from modeling_foundry.data.sources.settings import ManifestSettings
from modeling_foundry.data.tokenization.pipeline import tokenize
from modeling_foundry.data.tokenization.settings import TokenizeSettings
from modeling_foundry.data.tokenizer.training import train_tokenizer
from modeling_foundry.data.tokens.corpus import TokenCorpus
from modeling_foundry.settings import FoundryError

FILES = {"train/p 1#%20.jsonl.zst": "one", "train/p2.jsonl": "two", "validation/p3.jsonl.zst": "three"}


def content_of(name, word):
    rows = "".join(json.dumps({"text": f"{word} {number}"}) + "\n" for number in range(5)).encode()
    return zstandard.compress(rows) if name.endswith(".zst") else rows


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["one two three"] * 3, 270).save_pretrained(folder)
    return folder


@pytest.fixture
def source(tmp_path):
    for name, word in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_of(name, word))
    return tmp_path / "source"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(source):
    """Address of a web server over the folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(source)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def in_memory():
    """The root of fsspec's memory, which holds the files in a bucket."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()  # one for the whole process: another test may have left files in it
    for name, word in FILES.items():
        memory.pipe(f"/bucket/{name}", content_of(name, word))
    yield "memory://"
    memory.store.clear()


def made(root, tokenizer, tmp_path, **changes):
    """The manifest of a place, and the corpus made of it."""
    manifest, folder = tmp_path / "manifest.jsonl", tmp_path / "data"
    make_manifest(ManifestSettings(**{"source": root, "output": str(manifest), "sha256": True, **changes}))
    tokenize(
        TokenizeSettings(
            manifest=str(manifest), tokenizer=str(tokenizer), output_dir=str(folder), workers=1, engine="reference"
        )
    )  # fmt: skip
    return read_manifest(manifest), TokenCorpus.open(folder)


PLACES = ["{folder}", "{folder}/", "file://{folder}", "file://{folder}/", "local://{folder}", "{http}", "{http}/",
          "{memory}", "{memory}bucket", "{memory}bucket/"]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_every_place_gives_the_same_corpus(place, source, served, in_memory, tokenizer, tmp_path):
    root = place.format(folder=source, http=served, memory=in_memory)
    manifest, corpus = made(root, tokenizer, tmp_path)
    found = {(file.split, file.num_bytes, file.sha256, file.estimated_rows) for file in manifest.files}
    contents = {name: content_of(name, word) for name, word in FILES.items()}
    assert found == {
        (name.split("/")[0], len(data), hashlib.sha256(data).hexdigest(), 5)
        for name, data in contents.items()
    }
    counts = corpus.content["counts"]
    assert {split: count["documents"] for split, count in counts.items()} == {"train": 10, "validation": 5}
    assert not any(count["bad_rows"] for count in counts.values())


def test_a_file_that_left_the_server_is_named(source, served, tokenizer, tmp_path):
    make_manifest(ManifestSettings(source=served, output=str(tmp_path / "m.jsonl")))
    (source / "train" / "p2.jsonl").unlink()
    with pytest.raises(FoundryError, match=r"1 of 3 files .*p2\.jsonl: .*cannot be read"):
        tokenize(
            TokenizeSettings(
                manifest=str(tmp_path / "m.jsonl"), tokenizer=str(tokenizer), output_dir=str(tmp_path / "data"),
                workers=1, engine="reference",
            )
        )  # fmt: skip


def test_a_server_that_does_not_say_sizes_is_refused(served, monkeypatch, tmp_path):
    system = fsspec.url_to_fs(served)[0]  # kept by fsspec for the next who asks
    monkeypatch.setattr(system, "info", lambda name: {"name": name, "size": None})
    with pytest.raises(FoundryError, match="does not say how large it is"):
        make_manifest(ManifestSettings(source=served, output=str(tmp_path / "m.jsonl")))


def test_a_chain_of_urls_is_refused(tmp_path):
    with pytest.raises(FoundryError, match="chain of URLs"):
        make_manifest(
            ManifestSettings(source=f"zip://::file://{tmp_path}/z.zip", output=str(tmp_path / "m.jsonl"))
        )


ODD_NAMES = [
    "std::vector", "a[1]", "a*b?", "a#b%20c", "hf:", "s3:x::y", "-leading", " spaces in ", "line\nbreak", "{a,b}", "~",
    "[bold]", "ünï\u2028",
]  # fmt: skip


def test_local_paths_are_paths(tokenizer, tmp_path, capsys):
    """fsspec reads ``a::b`` as a chain of URLs: ``std::vector.jsonl`` was a traceback."""
    for number, name in enumerate(ODD_NAMES):
        folder = tmp_path / "in" / "train" / name
        folder.mkdir(parents=True)
        (folder / f"{name}.jsonl").write_bytes(content_of("x.jsonl", f"word {number}"))
        (folder / f"{name}.jsonl.zst").write_bytes(content_of("x.zst", f"packed {number}"))
    manifest, corpus = made(str(tmp_path / "in"), tokenizer, tmp_path)
    assert {file.path for file in manifest.files} == {
        f"train/{name}/{name}.jsonl{suffix}" for name in ODD_NAMES for suffix in ("", ".zst")
    }
    assert corpus.content["counts"]["train"]["documents"] == 10 * len(ODD_NAMES)


@pytest.mark.parametrize("name", ["std::vector", "a[1]*", "[bold] x"])
def test_folders_are_paths_too(name, source, tokenizer, tmp_path, capsys):
    """Of the input, of the output; and what is said of them is no markup."""
    place = tmp_path / name
    place.mkdir()
    source.rename(place / "in")
    manifest, corpus = made(str(place / "in"), tokenizer, place, sample_files=3)
    assert manifest.root == str(place / "in")
    assert corpus.content["counts"]["train"]["documents"] == 10
    verify(VerifySettings(data_dir=str(corpus.folder), workers=1))
    assert capsys.readouterr().out.count(str(place)) == 3  # manifest, tokenize, verify


def test_a_name_in_a_bucket_may_hold_what_chains_urls(in_memory):
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/train/std::vector.jsonl", content_of("x.jsonl", "word"))
    files, _ = scan("memory://bucket", include="*std*")
    assert list(read_documents("memory://bucket", files[0], "text", Counter())) == [
        f"word {n}" for n in range(5)
    ]


# ------------------------------------------------------------------------------------------ the Hub's cache


def cache(root):
    """A dataset as huggingface_hub keeps it: large files by SHA-256, small ones by their git hash."""
    repository = root / "datasets--me--corpus"
    snapshot = repository / "snapshots" / ("a" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "blobs").mkdir()
    for name, word in FILES.items():
        data = content_of(name, word)
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        blob = git if name.endswith("p2.jsonl") else hashlib.sha256(data).hexdigest()
        (repository / "blobs" / blob).write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(f"../../../blobs/{blob}")
    return snapshot


@pytest.mark.parametrize("by_name", [True, False])
def test_a_snapshot_of_links_is_read_through_them(by_name, tokenizer, tmp_path, monkeypatch):
    snapshot = cache(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    place = {"hub_name": "me/corpus", "source": None} if by_name else {}
    manifest, corpus = made(str(snapshot), tokenizer, tmp_path, **place, sha256=False)
    known = {file.path: file.sha256 for file in manifest.files}
    assert known == {
        name: None if name.endswith("p2.jsonl") else hashlib.sha256(content_of(name, word)).hexdigest()
        for name, word in FILES.items()
    }
    sizes = {file.path: file.num_bytes for file in manifest.files}
    assert sizes == {name: len(content_of(name, word)) for name, word in FILES.items()}
    assert corpus.content["counts"]["train"]["documents"] == 10


def test_a_blob_that_is_not_what_its_name_says_is_refused(tokenizer, tmp_path):
    """The manifest takes the name for the hash; the bytes are looked at when they are read."""
    snapshot = cache(tmp_path / "hub")
    blob = (snapshot / "validation" / "p3.jsonl.zst").resolve()
    blob.write_bytes(content_of("p3.jsonl.zst", "THREE"))
    with pytest.raises(FoundryError, match=r"p3\.jsonl\.zst: not the file of the manifest \(SHA-256"):
        made(str(snapshot), tokenizer, tmp_path)
