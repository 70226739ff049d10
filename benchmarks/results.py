"""Where a benchmark's result goes: one's own into runs/benchmarks/, into the receipts that the pages quote when asked for.

    python benchmarks/results.py runs/benchmarks/pretrain_speed.json    # a result, of this machine or another, as receipt

A benchmark asked with ``--receipt`` does the same at its end.  A receipt is replaced whole, and README.md and docs/ with
it: a result that lacks a part of the receipt it would replace, or in which more failed, is refused, and where a page
cannot be filled from it everything stays as it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modeling_foundry.files import write_atomically  # noqa: E402
from modeling_foundry.settings import FoundryError, run  # noqa: E402

RECEIPTS = ROOT / "benchmarks" / "receipts"
OWN_RESULTS = ROOT / "runs" / "benchmarks"
HELP = "replace the receipt in benchmarks/receipts/, and the numbers of the pages with it"
# Of a row that failed; the same row measured has other keys.
FAILURE = ("failure", "stderr")


def own_result(name: str) -> Path:
    """Where a result of this name is written: ``$OUT``, as machines that are lent have it, or runs/benchmarks/."""
    return Path(os.environ.get("OUT") or OWN_RESULTS) / f"{name}.json"


def save_result(name: str, content: dict[str, Any]) -> Path:
    """Write a result, as far as it is; never into the receipts."""
    path = own_result(name)
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def finish(name: str, content: dict[str, Any], receipt: bool) -> None:
    """Write a whole result, and put it in the place of the receipt where that was asked for.

    Raises:
        FoundryError: it was asked for, and is not whole.
    """
    path = save_result(name, content)
    if receipt:
        replace_receipt(path)
    else:
        print(
            f"result: {path} (python benchmarks/results.py {path} makes it the receipt that the pages quote)"
        )


def replace_receipt(path: Path) -> None:
    """Make a result the receipt of its name, and fill the pages from it.

    Raises:
        FoundryError: it lacks what the receipt has, or a page cannot be filled from it; nothing is changed then.
    """
    receipt = RECEIPTS / path.name
    try:
        content = path.read_text(encoding="utf-8")
        result = json.loads(content)
    except (OSError, ValueError) as error:
        raise FoundryError(f"{path}: not a result of a benchmark ({error})") from error
    old = receipt.read_text(encoding="utf-8") if receipt.is_file() else None
    lacking = list(lacks(json.loads(old), result)) if old is not None else []
    if lacking:
        raise FoundryError(
            f"{path}: not whole: {lacking[0]}" + f" and {len(lacking) - 1} more" * (len(lacking) > 1)
            + f"; {receipt} stays (remove it first where its form has changed)"
        )  # fmt: skip
    _fill_pages_with(receipt, content, old)
    print(f"receipt: {receipt}")


def _fill_pages_with(receipt: Path, content: str, old: str | None) -> None:
    from benchmarks import quoted_numbers

    write_atomically(receipt, content)
    try:
        pages = quoted_numbers.filled_pages()
    except (SystemExit, Exception) as error:  # whatever a table makes of numbers that it was not written for
        if old is None:
            receipt.unlink()
        else:
            write_atomically(receipt, old)
        raise FoundryError(
            f"{receipt}: stays; a page cannot be filled from the result ({error!r})"
        ) from error
    for page, text in pages.items():
        if text != page.read_text(encoding="utf-8"):
            write_atomically(page, text)
            print(f"written {page}")


def lacks(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """What a receipt has and a result has not: keys, rows, and rows that did not fail."""
    if isinstance(old, dict) and isinstance(new, dict):
        if "failure" in new and "failure" not in old:
            yield f"{name}: failed ({new['failure']})"
            return
        for key, value in old.items():
            place = f"{name}.{key}".lstrip(".")
            if key in new:
                yield from lacks(value, new[key], place)
            elif key not in FAILURE:
                yield f"{place} is missing"
    elif isinstance(old, list) and isinstance(new, list) and old and isinstance(old[0], dict):
        if len(new) < len(old):
            yield f"{name} has {len(new)} rows, the receipt {len(old)}"
        for number, (before, after) in enumerate(zip(old, new, strict=False)):
            yield from lacks(before, after, f"{name}[{number}]")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results", nargs="+", type=Path, help="files that benchmarks wrote, by their receipts' names"
    )
    for path in parser.parse_args().results:
        replace_receipt(path)


if __name__ == "__main__":
    run(main)
