"""Refit Hoffmann's parametric law on Besiroglu's reconstruction of its runs and bootstrap its covariance.

The 245 runs were read off figure 4 of Hoffmann et al. by Besiroglu et al. (arXiv:2404.10102); they publish
standard errors but no covariance, without which no interval of a predicted loss can be computed.  Their
repository (github.com/epoch-research/analyzing-chinchilla, data/svg_extracted_data.csv) carries no licence,
so the data stay there:

    python benchmarks/plan_scaling_law.py --data svg_extracted_data.csv    # --receipt for the receipt and the pages
"""

import argparse
import csv
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import results
from modeling_foundry.run_record import describe_machine, git_commit, package_versions
from modeling_foundry.settings import run

NAMES = ("ln A", "ln B", "ln E", "alpha", "beta")
HOFFMANN_SOURCE = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])
PUBLISHED = {"A": (482.01, 124.58), "B": (2085.43, 1293.23), "E": (1.8172, 0.03)}
PUBLISHED |= {"alpha": (0.3478, 0.02), "beta": (0.3658, 0.02)}
HUBER_DELTA = 1e-3
NUM_OUTLIERS = 5  # runs of the highest loss, left out as in the paper


def read_runs(path: Path) -> np.ndarray:
    """Rows of (ln N, ln D, ln loss), the outliers left out."""
    with open(path, newline="") as file:
        rows = [
            (float(r["Model Size"]), float(r["Training FLOP"]), float(r["loss"]))
            for r in csv.DictReader(file)
        ]
    size, flops, loss = np.array(rows).T
    keep = loss < np.sort(loss)[-NUM_OUTLIERS]
    return np.log(np.stack([size, flops / (6 * size), loss], axis=1)[keep])


def huber(parameters: np.ndarray, runs: np.ndarray) -> tuple[float, np.ndarray]:
    """Summed Huber loss of ln loss, and its gradient."""
    a, b, e, alpha, beta = parameters
    terms = np.stack([a - alpha * runs[:, 0], b - beta * runs[:, 1], np.full(len(runs), e)])
    largest = terms.max(0)
    weights = np.exp(terms - largest)
    total = weights.sum(0)
    error = largest + np.log(total) - runs[:, 2]
    small = np.abs(error) <= HUBER_DELTA
    value = np.where(small, error**2 / 2, HUBER_DELTA * (np.abs(error) - HUBER_DELTA / 2)).sum()
    slope = np.clip(error, -HUBER_DELTA, HUBER_DELTA)
    share = weights / total
    rows = [share[0], share[1], share[2], -share[0] * runs[:, 0], -share[1] * runs[:, 1]]
    return value, np.array([(slope * row).sum() for row in rows])


def fit(runs: np.ndarray, start: np.ndarray) -> np.ndarray:
    result = minimize(lambda p: [1e4 * part for part in huber(p, runs)], start, jac=True, method="BFGS")
    return result.x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bootstraps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--receipt", action="store_true", help=results.HELP)
    arguments = parser.parse_args()
    started = time.time()
    runs = read_runs(arguments.data)
    best = fit(runs, HOFFMANN_SOURCE)
    generator = np.random.default_rng(arguments.seed)
    samples = np.array(
        [fit(runs[generator.integers(len(runs), size=len(runs))], best) for _ in range(arguments.bootstraps)]
    )
    natural = np.concatenate([np.exp(samples[:, :3]), samples[:, 3:]], axis=1)
    errors = dict(zip(("A", "B", "E", "alpha", "beta"), natural.std(0, ddof=1).tolist(), strict=True))
    size, tokens = np.exp(runs[:, 0]), np.exp(runs[:, 1])
    receipt = {
        "what": "covariance of Besiroglu's fit of L = E + A/N^alpha + B/D^beta, by bootstrap over its runs",
        "command": "python benchmarks/plan_scaling_law.py --data svg_extracted_data.csv"
        f" --bootstraps {len(samples)}",
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": package_versions(),
        "seconds": round(time.time() - started, 1),
        "data_sha256": hashlib.sha256(arguments.data.read_bytes()).hexdigest(),
        "num_runs": len(runs),
        "num_bootstraps": len(samples),
        "names": NAMES,
        "refit": best.tolist(),
        "covariance": np.cov(samples.T).tolist(),
        "standard_errors": errors,
        "published": PUBLISHED,
        "fitted_range": {
            "parameters": [size.min(), size.max()],
            "tokens": [tokens.min(), tokens.max()],
            "flops": [float((6 * size * tokens).min()), float((6 * size * tokens).max())],
        },
    }
    print(
        json.dumps(
            {key: receipt[key] for key in ("refit", "standard_errors", "fitted_range", "seconds")}, indent=2
        )
    )
    results.finish("plan_scaling_law", receipt, arguments.receipt)


if __name__ == "__main__":
    run(main)
