"""datatrove's deduplication as stages: exact (three) and MinHash (four), each resumable on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.dedup import (
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.utils.hashing import HashConfig

from ..workers.local_folder import LocalFolder
from ..workers.stages import Counted, RemovedWriter, Stage, TaskWriter

# datatrove's default, xxhash, is called with text, which xxhash 4 refuses.
HASH = HashConfig(precision=64, hash_fc="sha1")


def deduplication_stages(
    kind: str, source: Path, work: Path, documents: Path, removed: Path, language: str
) -> list[Stage]:
    """The stages that read ``source`` and write what is left to ``documents``.

    Args:
        kind: ``exact`` (equal text) or ``minhash`` (Jaccard similarity of word 5-grams of about 0.72 and more,
            datatrove's 14 buckets of 8 hashes).
        source: folder of files written by one stage; each is a task, in the order of their names.
        work: folder for signatures and lists of duplicates.
    """
    num_tasks = len(list(source.glob("*.jsonl.gz")))
    make = {"exact": _exact, "minhash": _minhash}[kind]
    return make(num_tasks, source, work / kind, documents, removed / f"dedup_{kind}", language)


def _read(source: Path) -> Any:
    return JsonlReader(LocalFolder(source), add_file_path=False)


def text_of(document: Document) -> str:
    """What exact duplicates have in common."""
    return document.text


def _exact(
    num_tasks: int, source: Path, work: Path, documents: Path, removed: Path, language: str
) -> list[Stage]:
    config = ExactDedupConfig(content_getter=text_of, hash_config=HASH)
    signatures, duplicates = LocalFolder(work / "signatures"), LocalFolder(work / "duplicates")
    keep = ExactDedupFilter(duplicates, config, RemovedWriter(removed, "duplicate"))
    return [
        Stage("dedup_1_signatures", [_read(source), ExactDedupSignature(signatures, config)], num_tasks),
        Stage("dedup_2_find", [ExactFindDedups(signatures, duplicates, config)], 1),
        Stage(
            "dedup_3_filter", [_read(source), Counted(keep, "dedup_exact"), TaskWriter(documents)], num_tasks
        ),
    ]


def _minhash(
    num_tasks: int, source: Path, work: Path, documents: Path, removed: Path, language: str
) -> list[Stage]:
    config = MinhashConfig(hash_config=HASH)
    signatures, buckets, clusters = (
        LocalFolder(work / name) for name in ("signatures", "buckets", "clusters")
    )
    keep = MinhashDedupFilter(clusters, RemovedWriter(removed, "near_duplicate"))
    return [
        Stage(
            "dedup_1_signatures",
            [_read(source), MinhashDedupSignature(signatures, config, language)],
            num_tasks,
        ),
        Stage(
            "dedup_2_buckets",
            [MinhashDedupBuckets(signatures, buckets, config=config)],
            config.num_buckets,
        ),
        Stage("dedup_3_clusters", [MinhashDedupCluster(buckets, clusters, config)], 1),
        Stage(
            "dedup_4_filter",
            [_read(source), Counted(keep, "dedup_minhash"), TaskWriter(documents)],
            num_tasks,
        ),
    ]
