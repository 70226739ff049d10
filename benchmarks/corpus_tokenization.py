"""Megabytes of text a second of the whole tokenize command, and what SlimPajama-627B would take at that rate.

    python benchmarks/corpus_tokenization.py --tokenizer=FOLDER      # with Qwen3's: about three minutes

Zstandard-packed JSON lines of the running Python's standard library, tests included, several copies of it; two
workers read, hash, unpack, parse, tokenize, check samples against the tokenizers library, write, sync and index.
A small and a large corpus are tokenized in turn: the rate is the difference of bytes over the difference of times, so
the start of the processes and the proof, which a long run does not feel, drop out.  The cost is a forecast from that
rate for 627B tokens of text with as many bytes a token as given.  The result goes to
runs/benchmarks/corpus_tokenization.json.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import results  # noqa: E402
from modeling_foundry.data.preparation.standard_library import read_standard_library  # noqa: E402
from modeling_foundry.files import sha256_of_file  # noqa: E402
from modeling_foundry.run_record import describe_machine, git_commit, package_versions  # noqa: E402
from modeling_foundry.settings import parse, run  # noqa: E402

COPIES = {"small": 2, "large": 12}
FILES_PER_COPY = 4
WORKERS = 2
SLIMPAJAMA_TOKENS = 627e9


@dataclass
class Settings:
    """What to run."""

    tokenizer: str = field(metadata={"help": "folder of the tokenizer, with tokenizer.json"})
    rounds: int = field(default=3, metadata={"help": "how often each corpus is tokenized, taking turns"})
    bytes_per_token: float = field(default=4.2, metadata={"help": "of English web text, for the forecast"})
    receipt: bool = field(default=False, metadata={"help": results.HELP})


def main() -> None:
    (settings,) = parse(Settings, description=__doc__.splitlines()[0])
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in COPIES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for corpus, copies in COPIES.items():
            make_files(folder / corpus, copies)
            command("manifest", f"--source={folder / corpus}", f"--output={folder / corpus}.jsonl")
        tokenize(settings, folder, "small")  # fills the page cache
        for _ in range(settings.rounds):
            for corpus in COPIES:
                samples[corpus].append(tokenize(settings, folder, corpus))
    rates = [
        (large["text_bytes"] - small["text_bytes"]) / (large["seconds"] - small["seconds"]) / 1e6
        for small, large in zip(samples["small"], samples["large"], strict=True)
    ]
    rate = statistics.median(rates)
    text_megabytes = SLIMPAJAMA_TOKENS * settings.bytes_per_token / 1e6
    receipt = {
        "command": "python benchmarks/corpus_tokenization.py --tokenizer=FOLDER", "commit": git_commit(),
        "machine": describe_machine(), "versions": package_versions(), "workers": WORKERS,
        "tokenizer_sha256": sha256_of_file(Path(settings.tokenizer) / "tokenizer.json"), "samples": samples,
        "megabytes_per_second": rates, "median_megabytes_per_second": rate,
        "megabytes_per_second_per_core": rate / WORKERS,
        "forecast": {
            "tokens": SLIMPAJAMA_TOKENS, "bytes_per_token": settings.bytes_per_token,
            "core_hours": text_megabytes / (rate / WORKERS) / 3600,
        },
    }  # fmt: skip
    results.save_result("corpus_tokenization", receipt)
    print_table(receipt)
    results.finish("corpus_tokenization", receipt, settings.receipt)


def make_files(folder: Path, copies: int) -> None:
    """The corpus as JSON lines; copies differ in their first line, so that nothing is the same document twice."""
    modules, _ = read_standard_library(include_tests=True)
    folder.mkdir()
    for copy in range(copies):
        for part in range(FILES_PER_COPY):
            rows = [{"text": f"# copy {copy}\n{module.text}"} for module in modules[part::FILES_PER_COPY]]
            lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
            (folder / f"{copy:02d}_{part}.jsonl.zst").write_bytes(zstandard.compress(lines))


def tokenize(settings: Settings, folder: Path, corpus: str) -> dict[str, float]:
    """Seconds of the whole command into an empty folder, and bytes and tokens made."""
    output = folder / f"{corpus}_data"
    start = time.perf_counter()
    command(
        "tokenize", f"--manifest={folder / corpus}.jsonl", f"--tokenizer={settings.tokenizer}",
        f"--output_dir={output}", f"--workers={WORKERS}",
    )  # fmt: skip
    seconds = time.perf_counter() - start
    counts = json.loads((output / "corpus.json").read_text())["counts"]["train"]
    shutil.rmtree(output)
    return {"seconds": seconds, "text_bytes": counts["text_bytes"], "tokens": counts["tokens"]}


def command(*words: str) -> None:
    subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "prepare_data.py"), *words], check=True, capture_output=True
    )


def print_table(receipt: dict[str, Any]) -> None:
    rates = receipt["megabytes_per_second"]
    print(
        f"{receipt['median_megabytes_per_second']:.1f} MB of text a second on {WORKERS} cores "
        f"({min(rates):.1f} to {max(rates):.1f})"
    )
    hours = receipt["forecast"]["core_hours"]
    print(f"forecast for SlimPajama-627B: {hours:,.0f} core-hours")
    for cores in (2, 16, 64, 256, 1024):
        print(f"  {cores:5,} cores: {hours / cores:8.1f} hours")


if __name__ == "__main__":
    run(main)
