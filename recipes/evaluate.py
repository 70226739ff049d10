"""Evaluate every stage of an experiment: lm-eval tasks, paired verdicts, stop rate, and one report.

python recipes/evaluate.py --config recipes/quickstart/evaluate.yaml
"""

from modeling_foundry import settings


def main() -> None:
    from modeling_foundry.evaluation.settings import EvaluationSettings

    (evaluation,) = settings.parse(EvaluationSettings, description=__doc__)

    from rich.console import Console

    from modeling_foundry.evaluation.pipeline import evaluate
    from modeling_foundry.evaluation.report.summary import print_conversation, print_results

    console = Console(highlight=False)
    results = evaluate(evaluation, console)
    print_results(results, console)
    print_conversation(results, console)
    console.print(f"report: {evaluation.output_dir}/report.html", markup=False)


if __name__ == "__main__":
    settings.run(main)
