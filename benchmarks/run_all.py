"""Regenerate every receipt that needs no GPU: ``make bench``."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# By hand: attention_backends.py, pretrain_speed.py, float8_parity.py and optimizers.py need a GPU, plan_scaling_law.py a
# file of measured runs that is not ours to ship, quickstart.py a finished `make quickstart`, tokenization_speed.py and
# corpus_tokenization.py Qwen3's tokenizer.
SCRIPTS: dict[str, list[str]] = {
    "plan_memory.py": ["--receipt"],
    "plan_examples.py": ["--write"],
    "data_examples.py": ["--write"],
    "data_loading.py": ["--receipt=true"],
    "quoted_numbers.py": ["--write"],  # last: the pages' numbers from all receipts
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scripts", nargs="*", help=f"some of {', '.join(SCRIPTS)}; default all")
    chosen = parser.parse_args().scripts
    if unknown := sorted(set(chosen) - set(SCRIPTS)):
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(SCRIPTS)}")
    failed = []
    for name, arguments in SCRIPTS.items():
        if chosen and name not in chosen:
            continue
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(HERE / name), *arguments]).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
