"""How soon a run stands at step 1,000,000 of a 627B-token corpus, and what one loader worker then delivers.

    python benchmarks/data_loading.py

The corpus has SlimPajama-627B's size: 59,166 shards whose token files are sparse (2.5 TB that occupy nothing), with
real headers and the real index.  Start: a fresh process opens the index, makes the dataset, and reads one batch of
step 1,000,000 in shuffled order.  Delivery: shuffled blocks of a corpus of random ids that the page cache holds,
alone and from a DataLoader worker.  The table comes last; the result goes to runs/benchmarks/data_loading.json.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import results  # noqa: E402
from benchmarks.pretrain_speed import rates  # noqa: E402
from benchmarks.pretrain_table import SHIPPED, measured_row  # noqa: E402
from modeling_foundry.files import sha256_of_file, write_atomically  # noqa: E402
from modeling_foundry.run_record import describe_machine, git_commit, package_versions  # noqa: E402
from modeling_foundry.settings import FoundryError, parse, run  # noqa: E402

NUM_SHARDS, NUM_TOKENS, TOKENS_PER_DOCUMENT = 59_166, 627_000_000_000, 1_063
STEP, BATCH_SEQUENCES, SEQUENCE_LENGTH = 1_000_000, 256, 2_048
DELIVERY_SHARDS, DELIVERY_TOKENS = 64, 2_000_000
VARIANTS = ("start", "dataset", "dataset_masked", "worker", "worker_masked")


@dataclass
class Settings:
    """What to run."""

    rounds: int = field(default=5, metadata={"help": "how often each variant runs, taking turns"})
    limit_seconds: int = field(default=120, metadata={"help": "time one process may take"})
    receipt: bool = field(default=False, metadata={"help": results.HELP})
    measure: str = field(default="", metadata={"help": "used by the script itself: the one variant to run"})
    folder: str = field(default="", metadata={"help": "used by the script itself: where the corpora are"})


def main() -> None:
    (settings,) = parse(Settings, description=__doc__.splitlines()[0])
    if settings.measure:
        print(json.dumps(measure(settings.measure, Path(settings.folder))))
        return
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        make_sparse_corpus(Path(folder) / "huge")
        make_random_corpus(Path(folder) / "real")
        print(f"made both corpora in {time.perf_counter() - start:.0f} s")
        for _ in range(settings.rounds):
            for name in VARIANTS:
                samples[name].append(in_process(name, folder, settings.limit_seconds))
    receipt = {
        "command": "python benchmarks/data_loading.py", "commit": git_commit(), "machine": describe_machine(),
        "versions": package_versions(), "shards": NUM_SHARDS, "tokens": NUM_TOKENS, "step": STEP,
        "batch_sequences": BATCH_SEQUENCES, "sequence_length": SEQUENCE_LENGTH, "samples": samples,
        "medians": {
            name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            for name, rows in samples.items()
        },
    }  # fmt: skip
    results.save_result("data_loading", receipt)
    print_table(receipt["medians"])
    results.finish("data_loading", receipt, settings.receipt)


def make_sparse_corpus(folder: Path) -> None:
    """An index and headers of full size; the token files are holes, which read as zeros."""
    from modeling_foundry.data.tokens.corpus import write_corpus
    from modeling_foundry.data.tokens.shards import ShardHeader, header_path, index_path

    (folder / "train").mkdir(parents=True)
    digest = write_tokenizer(folder)
    shards, done = [], 0
    for number in range(NUM_SHARDS):
        end = NUM_TOKENS * (number + 1) // NUM_SHARDS
        name, num_tokens = f"train/{number:06d}.ds", end - done
        header = ShardHeader(
            1,
            "uint32",
            151_669,
            151_643,
            digest,
            num_tokens // TOKENS_PER_DOCUMENT,
            num_tokens,
            f"{number:064x}",
            "",
        )
        done = end
        for path, size in (
            (folder / name, num_tokens * 4), (index_path(folder / name), header.num_documents * 8),
        ):  # fmt: skip
            with open(path, "wb") as file:
                file.truncate(size)
        header_path(folder / name).write_text(json.dumps(asdict(header)))
        shards.append((name, header))
    write_corpus(folder, {"train": shards}, {})


def make_random_corpus(folder: Path) -> None:
    """Real shards of random ids, small enough for the page cache."""
    import numpy as np

    from modeling_foundry.data.tokens.corpus import write_corpus
    from modeling_foundry.data.tokens.shards import write_shard

    digest, generator = write_tokenizer(folder), np.random.default_rng(0)
    shards = []
    for number in range(DELIVERY_SHARDS):
        lengths = generator.integers(20, 2 * TOKENS_PER_DOCUMENT, DELIVERY_TOKENS // TOKENS_PER_DOCUMENT)
        documents = (generator.integers(0, 151_643, length, dtype=np.uint32) for length in lengths)
        name = f"train/{number:06d}.ds"
        shards.append((name, write_shard(folder / name, documents, 151_669, 151_643, digest)))
    write_corpus(folder, {"train": shards}, {})


def write_tokenizer(folder: Path) -> str:
    path = folder / "tokenizer" / "tokenizer.json"
    write_atomically(path, "{}")
    return sha256_of_file(path)


def in_process(name: str, folder: str, limit_seconds: int) -> dict[str, float]:
    """One variant in a process of its own.

    Raises:
        FoundryError: it failed or took too long.
    """
    command = [sys.executable, __file__, f"--measure={name}", f"--folder={folder}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_seconds, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise FoundryError(f"{name}: {error} {(error.stderr or '')[-500:]}") from error
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, folder: Path) -> dict[str, float]:
    """Seconds to the first batch of step 1,000,000, or tokens a second."""
    import torch

    from modeling_foundry.data.sequences.packing import PackedDataset
    from modeling_foundry.data.tokens.corpus import TokenCorpus

    torch.set_num_threads(1)
    first = STEP * BATCH_SEQUENCES if name == "start" else 0
    count = BATCH_SEQUENCES if name == "start" else 24_000
    start = time.perf_counter()
    train = TokenCorpus.open(folder / ("huge" if name == "start" else "real")).split("train")
    opened = time.perf_counter() - start
    data = PackedDataset(
        train, SEQUENCE_LENGTH, num_samples=first + count, seed=1, document_mask=name.endswith("masked")
    )
    if name == "start":
        torch.stack([data[first + number]["input_ids"] for number in range(BATCH_SEQUENCES)])
        return {"seconds": time.perf_counter() - start, "open_seconds": opened}
    warm = range(2_000)  # the page cache and the open files
    rows: Any = (data[number] for number in range(count))
    if name.startswith("worker"):
        loader = torch.utils.data.DataLoader(data, batch_size=16, num_workers=1, prefetch_factor=4)
        rows = (row for batch in loader for row in batch["input_ids"])
    for _ in warm:
        next(rows)
    start = time.perf_counter()
    delivered = sum(1 for _ in rows)
    return {"tokens_per_second": delivered * SEQUENCE_LENGTH / (time.perf_counter() - start)}


def print_table(medians: dict[str, dict[str, float]]) -> None:
    start = medians["start"]
    h200 = rates(measured_row(json.loads((results.RECEIPTS / "pretrain_speed.json").read_text()), SHIPPED))[0]
    print(
        f"step {STEP:,} of {NUM_TOKENS / 1e9:.0f}B tokens: {start['seconds']:.2f} s to its first batch of "
        f"{BATCH_SEQUENCES} sequences, {start['open_seconds']:.2f} s of it to open {NUM_SHARDS:,} shards"
    )
    for name, row in medians.items():
        if name != "start":
            rate = row["tokens_per_second"]
            print(f"{name:<16} {rate / 1e6:8.1f}M tokens/s   {rate / h200:6.0f} x one H200")


if __name__ == "__main__":
    run(main)
