"""Regenerate every receipt that needs no GPU: ``make bench``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# By hand: attention_backends.py, pretrain_speed.py, float8_parity.py and optimizers.py need a GPU, plan_scaling_law.py a
# file of measured runs that is not ours to ship, quickstart.py a finished `make quickstart`, tokenization_speed.py and
# corpus_tokenization.py a tokenizer.
SCRIPTS: dict[str, list[str]] = {
    "plan_memory.py": [],
    "plan_examples.py": ["--write"],
    "data_loading.py": [],
}


def main() -> int:
    failed = []
    for name, arguments in SCRIPTS.items():
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(HERE / name), *arguments]).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
