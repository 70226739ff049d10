"""The printed examples of docs/data.md: each block is what its command prints, progress bars left out.

    python benchmarks/data_examples.py           # every block must equal what its command prints, about two minutes
    python benchmarks/data_examples.py --write   # print them anew, and write receipts/data_examples.json

The texts are the running Python's standard library, so another Python prints other numbers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import results  # noqa: E402
from modeling_foundry.files import write_atomically  # noqa: E402
from modeling_foundry.run_record import describe_machine, git_commit, package_versions  # noqa: E402
from modeling_foundry.settings import run as run_program  # noqa: E402

PAGE = ROOT / "docs" / "data.md"
MODULES_PER_FILE, NUM_FILES = 20, 7
BROKEN_ROWS = ('{"text": "broken\n', '{"title": "no text"}\n')
# First line of a printed block -> the commands of the page to run, the last of which prints it.
EXAMPLES = {
    "runs/quickstart/data": ("--config recipes/quickstart/data.yaml",),
    "runs/my_corpus/data": (
        "manifest --source my_texts",
        "tokenize --manifest runs/my_corpus/manifest.jsonl",
    ),
    "runs/clean/data": ("clean --config recipes/clean/clean.yaml",),
}


def block_pattern(first_line: str) -> re.Pattern[str]:
    return re.compile(rf"(```(?:console)?\n)({re.escape(first_line)}\n.*?)(```)", re.DOTALL)


def prepare_folder(folder: Path, page: str) -> None:
    """The repository's files, the page's own corpus, and files of whole modules with two broken rows in the last."""
    for name in ("recipes", "eval_tasks", "modeling_foundry"):
        (folder / name).symlink_to(ROOT / name)
    (snippet,) = re.findall(r"```python\n(import ast.*?)```", page, re.DOTALL)
    subprocess.run([sys.executable, "-c", snippet], cwd=folder, check=True)
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[: MODULES_PER_FILE * NUM_FILES]
    (folder / "my_texts").mkdir()
    for part in range(NUM_FILES):
        chosen = modules[part * MODULES_PER_FILE : (part + 1) * MODULES_PER_FILE]
        rows = [json.dumps({"text": path.read_bytes().decode()}) + "\n" for path in chosen]
        (folder / "my_texts" / f"part_{part}.jsonl").write_text(
            "".join(rows + list(BROKEN_ROWS) * (part == NUM_FILES - 1))
        )


def printed(page: str, folder: Path) -> Iterator[tuple[str, str, str]]:
    """(first line of the block, its command, what it prints) of each example, in the order they need each other."""
    for first_line, starts in EXAMPLES.items():
        for start in starts:
            (command,) = sorted(
                set(re.findall(rf"^python (recipes/prepare_data\.py {start}.*)$", page, re.MULTILINE))
            )
            print(f"running python {command}", flush=True)
            output = run(command, folder)
        yield first_line, command, output


def run(command: str, folder: Path) -> str:
    settings = {"COLUMNS": "80", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [sys.executable, *command.split()],
        cwd=folder,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    if answer.returncode:
        raise SystemExit(f"{command}: {answer.stderr.strip()[-2000:]}")
    return "".join(line.rstrip() + "\n" for line in answer.stdout.strip().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="change the page and write the receipt")
    write = parser.parse_args().write
    page, examples = PAGE.read_text(), []
    with tempfile.TemporaryDirectory() as folder:
        prepare_folder(Path(folder), page)
        for first_line, command, output in printed(page, Path(folder)):
            found = block_pattern(first_line).search(page)
            if found is None:
                raise SystemExit(f"docs/data.md: has no block that begins with {first_line}")
            print("same   " if found[2] == output else "DIFFERS", first_line)
            if found[2] != output and not write:
                raise SystemExit(f"docs/data.md: {command}: prints something else here; run with --write")
            page = page[: found.start(2)] + output + page[found.end(2) :]
            digest = hashlib.sha256(output.encode()).hexdigest()
            examples.append(
                {"first_line": first_line, "command": f"python {command}", "output_sha256": digest}
            )
    if write:
        receipt = {
            "what": "every printed example of docs/data.md",
            "command": "python benchmarks/data_examples.py --write",
            "commit": git_commit(),
            "machine": describe_machine(),
            "versions": package_versions(),
            "examples": examples,
        }
        write_atomically(PAGE, page)
        results.finish("data_examples", receipt, receipt=True)


if __name__ == "__main__":
    run_program(main)
