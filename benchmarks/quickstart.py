"""Receipt of a finished quickstart, and the README's section made from it.

    git clone … && cd llm-foundry && make quickstart && .venv/bin/python benchmarks/quickstart.py --receipt
    python benchmarks/quickstart.py --draw   # only the picture, anew from the receipt

Reads runs/quickstart and writes runs/benchmarks/quickstart.json; with ``--receipt`` the receipt of that name, from it
alone docs/images/quickstart.png, and the README's section.  Nothing is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import results  # noqa: E402
from modeling_foundry.files import write_atomically  # noqa: E402
from modeling_foundry.settings import FoundryError, run  # noqa: E402

RUNS = ROOT / "runs" / "quickstart"
PICTURE = ROOT / "docs" / "images" / "quickstart.png"
STAGE_NAMES = ("random", "base", "sft", "dpo")
STAGES = ("pretrain", "sft", "dpo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="only the picture, anew from the receipt")
    parser.add_argument("--receipt", action="store_true", help=results.HELP)
    arguments = parser.parse_args()
    if not arguments.draw:
        results.finish("quickstart", result_of_run(), arguments.receipt)
    if arguments.draw or arguments.receipt:
        receipt = json.loads((results.RECEIPTS / "quickstart.json").read_text())
        write_atomically(PICTURE, picture_of(receipt))


def result_of_run() -> dict[str, Any]:
    """The finished run's figures, from its files.

    Raises:
        FoundryError: it is not finished.
    """
    if not (RUNS / "eval" / "results.json").is_file():
        raise FoundryError(f"{RUNS / 'eval' / 'results.json'}: missing; run make quickstart first")
    evaluation = json.loads((RUNS / "eval" / "results.json").read_text())
    run = json.loads((RUNS / "pretrain" / "run.json").read_text())
    return {
        "command": "make quickstart",
        **{key: run[key] for key in ("commit", "machine", "versions")},
        "data": json.loads((RUNS / "data" / "data.json").read_text())["statistics"],
        "stages": {stage: stage_record(RUNS / stage) for stage in STAGES},
        "minutes_after_install": round(minutes(), 1),
        "scores": evaluation["scores"],
        "comparisons": evaluation["comparisons"],
        "compression": evaluation["compression"],
    }


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


def picture_of(receipt: dict[str, Any]) -> bytes:
    """PNG of the report's loss curves and scores, one above the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import image
    from matplotlib import pyplot as plt

    from modeling_foundry.evaluation.report.figures import draw_figures
    from modeling_foundry.evaluation.stages import Stage

    stages = [Stage(name, log=tuple(receipt["stages"][name]["samples"])) for name in STAGES]
    drawn = draw_figures(
        receipt | {"models": model_names(receipt), "settings": {"untrained": ["random"]}}, stages
    )
    pictures = [image.imread(BytesIO(drawn[f"{name}.png"])) for name in ("loss", "scores")]
    heights = [picture.shape[0] / picture.shape[1] for picture in pictures]
    figure, axes = plt.subplots(2, 1, figsize=(10, 10 * sum(heights) + 0.2), height_ratios=heights)
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(picture)
        axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1, 0, 0.04)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()


def model_names(receipt: dict[str, Any]) -> list[str]:
    """The models of the scores, in the order of training."""
    names = {name for score in receipt["scores"].values() for name in score["models"]}
    return [name for name in STAGE_NAMES if name in names]


def readme_section(receipt: dict[str, Any]) -> str:
    """What stands between the README's markers; ``quoted_numbers.py`` puts it there and a test compares it."""
    from modeling_foundry.evaluation.report.summary import build_markdown

    table = build_markdown(receipt | {"models": model_names(receipt)}).strip()
    scores, _, verdicts = table.partition("\n| | stages | verdict |")
    machine = receipt["machine"]
    return (
        f"A real run: {receipt['minutes_after_install']} minutes for all stages after the install on "
        f"{machine['cores']} cores ({machine['processor']}), held-out scores with their standard errors\n"
        f"([receipt](benchmarks/receipts/quickstart.json), commit `{receipt['commit'][:10]}`):\n\n{scores.strip()}\n\n"
        "<details><summary>Did each stage help? Paired differences and verdicts</summary>\n\n"
        f"| | stages | verdict |{verdicts}\n\n</details>"
    )


if __name__ == "__main__":
    run(main)
