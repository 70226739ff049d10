"""The worked examples and pictures of docs/plan.md.

python benchmarks/plan_examples.py           # every console block must equal what its command prints
python benchmarks/plan_examples.py --write   # print them anew, draw the pictures, write the receipt
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks import results  # noqa: E402
from modeling_foundry.files import write_atomically  # noqa: E402
from modeling_foundry.run_record import describe_machine, git_commit, package_versions  # noqa: E402
from modeling_foundry.settings import run as run_program  # noqa: E402

PAGE = REPOSITORY / "docs" / "plan.md"
IMAGES = "docs/images"
BLOCK = re.compile(r"```console\n\$ python (recipes/plan\.py [^\n]*)\n(.*?)```", re.DOTALL)
PICTURES = (
    "recipes/plan.py model --model recipes/qwen3_1.8b/pretrain.yaml",
    "recipes/plan.py fit --model recipes/qwen3_1.8b/pretrain.yaml",
    "recipes/plan.py budget --model benchmarks/plan_models/llama_7b.json"
    " --gpu H100 --num_gpus 8 --hours 720 --mfu 0.45",
)


def run(command: str) -> tuple[str, float]:
    """Output of a command at 100 columns, and the seconds it took, imports included."""
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "PYTHONPATH": str(REPOSITORY)}
    start = time.perf_counter()
    answer = subprocess.run(
        [sys.executable, *command.split()], capture_output=True, text=True, cwd=REPOSITORY, env=environment
    )
    if answer.returncode:
        raise SystemExit(f"{command}: {answer.stderr.strip()}")
    lines = [line.rstrip() for line in answer.stdout.strip().splitlines()]
    return "\n".join(lines) + "\n", time.perf_counter() - start


def draw_peaks(path: Path) -> None:
    """Forecast against measured peaks, from the receipt of plan_memory.py."""
    from matplotlib import pyplot as plt

    from modeling_foundry.planning.display.figures import COLOURS, STYLE, save

    rows = json.loads((results.RECEIPTS / "plan_memory.json").read_text())["rows"]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 6.2), layout="constrained")
        places = range(len(rows))
        axes.barh(places, [row["forecast_gib"] for row in rows], 0.65, color=COLOURS[4], label="forecast")
        measured = [row["measured_gib"] for row in rows]
        axes.plot(measured, places, "|", color="black", markersize=13, mew=2, label="measured")
        for place, row in zip(places, rows, strict=True):
            axes.annotate(
                f"{100 * row['error']:+.1f}%".replace("-", "−"), (row["measured_gib"], place), (6, 0), textcoords="offset points",
                fontsize=8, va="center",
            )  # fmt: skip
        axes.set_yticks(list(places), [row["run"] for row in rows], fontsize=8)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)
        axes.set_xlabel("peak of one rank, GiB")
        axes.set_title("Memory forecast against H200")
        axes.legend(loc="lower center", bbox_to_anchor=(0.35, -0.18), ncols=2)
    save(figure, str(path.parent), path.stem)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    page, examples = PAGE.read_text(), []
    for command, shown in BLOCK.findall(page):
        output, seconds = run(command)
        same = output == shown
        print(f"{'same ' if same else 'DIFFERS'} {seconds:5.2f} s  {command}")
        digest = hashlib.sha256(output.encode()).hexdigest()
        examples.append(
            {"command": f"python {command}", "seconds": round(seconds, 2), "output_sha256": digest}
        )
        if not same and not arguments.write:
            raise SystemExit(f"docs/plan.md: {command}: prints something else; run with --write")
        page = page.replace(f"$ python {command}\n{shown}```", f"$ python {command}\n{output}```")
    if not arguments.write:
        return
    write_atomically(PAGE, page)
    for command in PICTURES:
        run(f"{command} --plot={IMAGES}")
    draw_peaks(REPOSITORY / IMAGES / "plan_peaks.png")
    receipt = {
        "what": "every worked example of docs/plan.md; its pictures come from the same commands with --plot",
        "command": "python benchmarks/plan_examples.py --write",
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": package_versions(),
        "examples": examples,
        "pictures": [f"python {command} --plot={IMAGES}" for command in PICTURES],
    }
    results.finish("plan_examples", receipt, receipt=True)


if __name__ == "__main__":
    run_program(main)
