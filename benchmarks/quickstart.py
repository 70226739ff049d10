"""Receipt of a finished quickstart, and the README's section written from it.

    git clone … && cd llm-foundry && make quickstart && .venv/bin/python benchmarks/quickstart.py

Reads runs/quickstart, writes benchmarks/receipts/quickstart.json and docs/images/quickstart.png, and replaces
what stands between the two markers of README.md.  Nothing is typed by hand.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from modeling_foundry.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "quickstart"
RECEIPT = ROOT / "benchmarks" / "receipts" / "quickstart.json"
MARKERS = ("<!-- quickstart -->", "<!-- /quickstart -->")
STAGES = ("pretrain", "sft", "dpo")


def main() -> None:
    results = json.loads((RUNS / "eval" / "results.json").read_text())
    run = json.loads((RUNS / "pretrain" / "run.json").read_text())
    receipt = {
        "command": "make quickstart",
        **{key: run[key] for key in ("commit", "machine", "versions")},
        "data": json.loads((RUNS / "data" / "data.json").read_text())["statistics"],
        "stages": {stage: stage_record(RUNS / stage) for stage in STAGES},
        "minutes_after_install": round(minutes(), 1),
        "scores": results["scores"],
        "comparisons": results["comparisons"],
        "compression": results["compression"],
    }
    write_atomically(RECEIPT, json.dumps(receipt, indent=1, ensure_ascii=False) + "\n")
    draw(ROOT / "docs" / "images" / "quickstart.png")
    write_readme(receipt)


def stage_record(folder: Path) -> dict[str, Any]:
    """Steps, training seconds and the logged samples of one stage."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        **json.loads((folder / "complete.json").read_text()),
        "samples": [line for line in lines if line.get("event") in ("train", "evaluation")],
    }


def minutes() -> float:
    """From the end of the install to the report; only an uninterrupted run in a fresh clone says it."""
    installed = (ROOT / ".venv" / ".installed").stat().st_mtime
    first = min(path.stat().st_mtime for path in (RUNS / "data").rglob("*") if path.is_file())
    if not 0 < first - installed < 60:
        raise SystemExit(
            f"{RUNS}: the first stage did not follow the install; run make quickstart in a fresh clone"
        )
    return ((RUNS / "eval" / "report.html").stat().st_mtime - installed) / 60


def draw(path: Path) -> None:
    """The report's loss curve and scores, one above the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import image
    from matplotlib import pyplot as plt

    pictures = [image.imread(RUNS / "eval" / f"{name}.png") for name in ("loss", "scores")]
    heights = [picture.shape[0] / picture.shape[1] for picture in pictures]
    figure, axes = plt.subplots(2, 1, figsize=(10, 10 * sum(heights) + 0.2), height_ratios=heights)
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(picture)
        axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1, 0, 0.04)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def write_readme(receipt: dict[str, Any]) -> None:
    machine, table = receipt["machine"], (RUNS / "eval" / "results.md").read_text().strip()
    text = (
        f"A real run: {receipt['minutes_after_install']} minutes for all stages after the install on "
        f"{machine['cores']} cores ({machine['processor']}), held-out scores with their standard errors "
        f"([receipt](benchmarks/receipts/quickstart.json), commit `{(receipt['commit'] or '')[:10]}`, "
        f"{datetime.now():%Y-%m-%d}):\n\n{table}"
    )
    readme = ROOT / "README.md"
    pattern = re.compile(f"{re.escape(MARKERS[0])}.*?{re.escape(MARKERS[1])}", re.DOTALL)
    old = readme.read_text()
    if not pattern.search(old):
        raise SystemExit(f"README.md: the markers {' '.join(MARKERS)} are missing")
    write_atomically(readme, pattern.sub(lambda _: f"{MARKERS[0]}\n{text}\n{MARKERS[1]}", old))


if __name__ == "__main__":
    main()
