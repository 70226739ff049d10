"""Megabytes of text a second that become ids: DocumentEncoder beside datatrove's own tokenizer step.

    python benchmarks/tokenization_speed.py --tokenizer=FOLDER      # with Qwen3's: about four minutes

Every variant is datatrove's local executor with two workers, its reader and its file format over the standard
library of the running Python, tests included; only what turns text into ids differs.  Each is a process of its own
with a time limit, the variants take turns, and every document's ids are compared, of 2,000 awkward short texts too.  The rate is over the step's own
clock (ids and writing, the mean of the workers), and beside it over the whole process with its start.  bpe-qwen is
measured where it is installed.  The table comes last; the result goes to runs/benchmarks/tokenization_speed.json.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import results  # noqa: E402
from modeling_foundry.data.preparation.standard_library import corpus_sha256, read_standard_library  # noqa: E402
from modeling_foundry.files import sha256_of_file  # noqa: E402
from modeling_foundry.run_record import describe_machine, git_commit, package_versions  # noqa: E402
from modeling_foundry.settings import FoundryError, parse, run  # noqa: E402

WORKERS = 2
REFERENCE = "datatrove"
NUM_AWKWARD = 1000  # a worker
AWKWARD = [
    " ", "  ", "\n", "\r\n", "\t", "\x0b", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "\ufeff", "\u200d", "a", "Z", ".", "^", "_",
    "é", "e\u0301", "\u0898", "\u212b", "\u1100\u1161", "'s", "'LL", "'ſ", "1", "٣", "中", "한", "😀", "👩‍👩‍👧", "👍🏽",
]  # fmt: skip
VARIANTS = (REFERENCE, "DocumentEncoder", "bpe-qwen")


@dataclass
class Settings:
    """What to run."""

    tokenizer: str = field(metadata={"help": "folder of the tokenizer, with tokenizer.json"})
    rounds: int = field(default=3, metadata={"help": "how often each variant runs, taking turns"})
    limit_seconds: int = field(default=200, metadata={"help": "time one process may take"})
    receipt: bool = field(default=False, metadata={"help": results.HELP})
    measure: str = field(default="", metadata={"help": "used by the script itself: the one variant to run"})
    folder: str = field(default="", metadata={"help": "used by the script itself: where texts and ids are"})


def main() -> int:
    (settings,) = parse(Settings, description=__doc__.splitlines()[0])
    if settings.measure:
        measure(settings)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        receipt = prepare(settings, Path(folder))
        for _ in range(settings.rounds):
            for name in list(receipt["variants"]):
                receipt["variants"][name].append(measure_in_process(name, settings, folder))
        compare_ids(receipt)
    summarize(receipt)
    results.save_result("tokenization_speed", receipt)
    print_table(receipt)
    results.finish("tokenization_speed", receipt, settings.receipt)
    whole = (receipt["corpus"]["documents"], receipt["corpus"]["awkward_texts"])
    same = (
        receipt["identical_documents"]["DocumentEncoder"],
        receipt["identical_awkward_texts"]["DocumentEncoder"],
    )
    return 0 if same == whole else 1


# ---------------------------------------------------------------------------------------------- setting up


def prepare(settings: Settings, folder: Path) -> dict[str, Any]:
    """Texts as JSON lines, one file a worker and about as many bytes in each; the head of the receipt."""
    modules, _ = read_standard_library(include_tests=True)
    shares: list[list[str]] = [[] for _ in range(WORKERS)]
    for module in modules:
        min(shares, key=lambda share: sum(map(len, share))).append(module.text)
    (folder / "texts").mkdir()
    for number, share in enumerate(shares):
        rows = [{"text": text, "id": "module"} for text in share]
        rows += [{"text": text, "id": "awkward"} for text in awkward_texts(seed=number)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "texts" / f"{number}.jsonl").write_text(lines)
    path = Path(settings.tokenizer, "tokenizer.json")
    if not path.is_file():
        raise FoundryError(f"{path}: tokenizer: no such file; give a folder with tokenizer.json")
    names = [
        name for name in VARIANTS if name != "bpe-qwen" or make_bpe_qwen_folder(path, folder / "bpe-qwen")
    ]
    return {
        "command": "python benchmarks/tokenization_speed.py --tokenizer=FOLDER",
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": package_versions() | versions_of("datatrove", "tiktoken", "bpe-qwen"),
        "tokenizer": {"name": Path(settings.tokenizer).resolve().name, "sha256": sha256_of_file(path)},
        "corpus": {
            "documents": len(modules), "bytes": sum(len(module.text.encode()) for module in modules),
            "sha256": corpus_sha256(modules), "awkward_texts": WORKERS * NUM_AWKWARD,
        },
        "workers": WORKERS,
        "proof_seconds": prove(settings.tokenizer, folder / "cache"),
        "variants": {name: [] for name in names},
    }  # fmt: skip


def awkward_texts(seed: int) -> list[str]:
    """Short texts of what tokenizers stumble over; they weigh nothing beside the corpus.

    No spelled control tokens: datatrove's step would obey them.
    """
    draw = random.Random(seed)
    return ["".join(draw.choices(AWKWARD, k=draw.randint(1, 25))) + "." for _ in range(NUM_AWKWARD)]


def versions_of(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def prove(tokenizer: str, cache: Path) -> float:
    """The proof is made once for a tokenizer and machine; every worker then reads it."""
    from modeling_foundry.data.tokenizer.document_encoder import DocumentEncoder

    started = time.perf_counter()
    DocumentEncoder.load(tokenizer, "tiktoken", cache)
    return round(time.perf_counter() - started, 1)


def make_bpe_qwen_folder(path: Path, folder: Path) -> bool:
    """What bpe-qwen reads, from the same tokenizer.json; False where it is not installed."""
    if not versions_of("bpe-qwen"):
        return False
    folder.mkdir()
    shutil.copy(path, folder)
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return True


# ----------------------------------------------------------------------------------------------- measuring


def measure_in_process(name: str, settings: Settings, folder: str) -> dict[str, Any]:
    print(f"measuring {name} …", flush=True)
    command = [
        sys.executable, __file__, f"--measure={name}", f"--folder={folder}", f"--tokenizer={settings.tokenizer}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=settings.limit_seconds
    )
    if process.returncode:
        raise RuntimeError(f"{name}: {process.stderr[-3000:]}")
    sample: dict[str, Any] = json.loads(Path(folder, "sample.json").read_text())
    return sample


def measure(settings: Settings) -> None:
    """One variant through datatrove's executor; seconds and a hash of each document's ids to ``sample.json``."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader

    output = Path(settings.folder, "ids")
    shutil.rmtree(output, ignore_errors=True)
    step = make_step(settings, output)
    texts = JsonlReader(f"{settings.folder}/texts")
    logs = f"{settings.folder}/logs"
    shutil.rmtree(logs, ignore_errors=True)
    started = time.perf_counter()
    executor = LocalPipelineExecutor([texts, step], tasks=WORKERS, workers=WORKERS, logging_dir=logs)
    executor.run()
    seconds = time.perf_counter() - started
    sample = {
        "step_seconds": step_seconds(Path(logs)),
        "process_seconds": seconds,
        "digests": [document_digests(path) for path in sorted(output.glob("*.ds"))],
    }
    Path(settings.folder, "sample.json").write_text(json.dumps(sample))


def make_step(settings: Settings, output: Path) -> Any:
    """datatrove's DocumentTokenizer, or the same with another call in the place of its ``encode_batch``."""
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.utils.batching import batched

    name, folder, path = settings.measure, settings.folder, settings.tokenizer

    class OtherEncoder(DocumentTokenizer):
        def write_unshuffled(self, data: Any, filename: str) -> Any:
            from datatrove.pipeline.tokens.tokenizer import TokenizedFile

            encode, dtype = encode_call(name, path, folder), f"<u{self.token_size}"
            file = TokenizedFile(self.output_folder, filename, token_size=self.token_size)
            for batch in batched(data, self.batch_size):
                with self.track_time(unit="batch"):
                    for ids in encode([document.text for document in batch]):
                        file.write_bytes(ids.astype(dtype).tobytes())
            file.close()
            return file

    kind = DocumentTokenizer if name == REFERENCE else OtherEncoder
    return kind(str(output), str(Path(path, "tokenizer.json")), shuffle_documents=False)


def encode_call(name: str, tokenizer: str, folder: str) -> Any:
    """Texts to arrays of ids, one for each."""
    if name == "bpe-qwen":
        import numpy as np
        from bpe_qwen import QwenTokenizer

        encoder = QwenTokenizer(f"{folder}/bpe-qwen")
        return lambda texts: [np.array(encoder.encode(text), dtype=np.uint32) for text in texts]
    from modeling_foundry.data.tokenizer.document_encoder import DocumentEncoder

    return DocumentEncoder.load(tokenizer, "tiktoken", f"{folder}/cache").encode


def step_seconds(logs: Path) -> list[float]:
    """Seconds each worker spent in the step, by datatrove's own count; the tokenizer's loading is not in it."""
    steps = [json.loads(path.read_text())[1] for path in sorted((logs / "stats").glob("*.json"))]
    return [step["time_stats"]["total"] for step in steps]


def document_digests(path: Path) -> list[str]:
    """A hash of each document's ids."""
    import numpy as np

    ends = np.fromfile(f"{path}.index", dtype="<u8").astype(int)
    content, size = path.read_bytes(), path.stat().st_size // int(ends[-1])
    starts = [0, *ends[:-1]]
    spans = zip(starts, ends, strict=True)
    return [hashlib.sha256(content[start * size : end * size]).hexdigest()[:16] for start, end in spans]


# ---------------------------------------------------------------------------------------------- what it says


def compare_ids(receipt: dict[str, Any]) -> None:
    """Documents of each variant whose ids are the reference's in every round; the hashes themselves go.

    The last ones of each worker are the awkward texts.
    """
    expected = receipt["variants"][REFERENCE][0]["digests"]
    for key, part in (
        ("identical_documents", slice(None, -NUM_AWKWARD)),
        ("identical_awkward_texts", slice(-NUM_AWKWARD, None)),
    ):
        receipt[key] = {
            name: min(num_equal(sample["digests"], expected, part) for sample in rounds)
            for name, rounds in receipt["variants"].items()
        }
    for rounds in receipt["variants"].values():
        for sample in rounds:
            del sample["digests"]


def num_equal(digests: list[list[str]], expected: list[list[str]], part: slice) -> int:
    return sum(
        found == wanted
        for mine, theirs in zip(digests, expected, strict=True)
        for found, wanted in zip(mine[part], theirs[part], strict=True)
    )


def summarize(receipt: dict[str, Any]) -> None:
    """Medians, and the ratio to the reference of the same round."""
    samples, num_bytes = receipt["variants"], receipt["corpus"]["bytes"]
    receipt["medians"] = {}
    for name, rounds in samples.items():
        row = {}
        for key, of in (
            ("step", lambda s: statistics.mean(s["step_seconds"])),
            ("process", lambda s: s["process_seconds"]),
        ):
            seconds = [of(sample) for sample in rounds]
            ratios = [of(other) / own for other, own in zip(samples[REFERENCE], seconds, strict=True)]
            row[f"{key}_megabytes_per_second"] = round(num_bytes / 1e6 / statistics.median(seconds), 2)
            row[f"{key}_ratio"] = round(statistics.median(ratios), 2)
            row[f"{key}_ratio_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
        receipt["medians"][name] = row


def print_table(receipt: dict[str, Any]) -> None:
    corpus = receipt["corpus"]
    print(
        f"\n{corpus['bytes'] / 1e6:.1f} MB, {corpus['documents']} documents, {WORKERS} workers; MB a second, and times {REFERENCE}'s"
    )
    print(f"{'':18} {'step':>7} {'ratio':>22} {'with start':>11} {'ratio':>7}   {'identical':>9}")
    for name, row in receipt["medians"].items():
        low, high = row["step_ratio_range"]
        ratio = f"{row['step_ratio']:.1f} ({low:.1f} to {high:.1f})"
        print(
            f"{name:18} {row['step_megabytes_per_second']:7.1f} {ratio:>22} {row['process_megabytes_per_second']:11.1f}"
            f" {row['process_ratio']:7.1f}   {receipt['identical_documents'][name]:9}"
            f" {receipt['identical_awkward_texts'][name]:8}"
        )


if __name__ == "__main__":
    run(main)
