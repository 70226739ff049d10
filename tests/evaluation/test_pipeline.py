"""The real thing, small: two models through lm-eval's command line to the report, once for this file."""

import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from rich.console import Console

from modeling_foundry.evaluation import harness
from modeling_foundry.evaluation.outcomes import read_outcomes
from modeling_foundry.evaluation.pipeline import evaluate
from modeling_foundry.evaluation.settings import EvaluationSettings
from modeling_foundry.settings import FoundryError
from tests import warm_start
from tests.conftest import REPOSITORY, closed_files

pytestmark = pytest.mark.slow
BITS = "stdlib_bits_per_byte/bits_per_byte"


def run(settings: EvaluationSettings) -> tuple[dict, str]:
    """Results and what was printed."""
    console = Console(record=True, width=200)
    results = evaluate(settings, console)
    return results, console.export_text()


@pytest.fixture(scope="module", autouse=True)
def warm_jobs():
    """The jobs of :mod:`harness` start warm; ``lm_eval run`` by its own name below starts cold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness.subprocess, "Popen", warm_start.Popen)
        yield


@pytest.fixture(scope="module")
def settings(data_dir, build_checkpoint, tmp_path_factory):
    """Two models of different weights."""
    folders = {name: build_checkpoint(name, seed=seed) for seed, name in enumerate(("base", "sft"))}
    return EvaluationSettings(
        models=[f"{name}={folder}" for name, folder in folders.items()],
        data_dir=str(data_dir),
        output_dir=str(tmp_path_factory.mktemp("run") / "eval"),
        task_dir=str(REPOSITORY / "eval_tasks"),
        untrained=[],
        limits={"stdlib_summary_choice": 4, "stdlib_summary_preference": 4, "stdlib_summary_generate": 2},
        max_text_bytes=2000,
        num_stop_prompts=3,
        max_new_tokens=8,
        batch_size=4,
        device="cpu",
    )


@pytest.fixture(scope="module")
def first_run(settings):
    return run(settings)


@pytest.fixture(scope="module")
def results(first_run):
    return first_run[0]


def test_every_model_is_measured_on_its_tasks(results):
    assert list(results["models"]) == ["base", "sft"]
    for metric in (
        BITS,
        "stdlib_summary_choice/acc",
        "stdlib_summary_preference/acc_norm",
        "stop_rate/ended",
    ):
        assert set(results["scores"][metric]["models"]) == {"base", "sft"}
    assert results["scores"]["stdlib_summary_generate/token_f1"]["models"]["sft"]["num_items"] == 2
    assert len(results["answers"]) == 3
    assert results["models"]["base"]["num_parameters"] > 10_000


def test_bits_per_byte_are_the_models_own(settings, results, data_dir):
    """lm-eval's rolling log-likelihood against a plain forward pass over each window."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import modeling_foundry  # noqa: F401

    folder = settings.model_folders()["base"]
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    window = model.config.max_position_embeddings
    texts = [json.loads(line)["text"] for line in (data_dir / "heldout.jsonl").read_text().splitlines()]
    bits, size = 0.0, 0
    for index in results["items"]["stdlib_bits_per_byte"]:
        tokens = [tokenizer.convert_tokens_to_ids("<|endoftext|>"), *tokenizer(texts[index]).input_ids]
        for start in range(1, len(tokens), window):
            targets = tokens[start : start + window]
            first = max(0, start + len(targets) - window - 1)  # the last window is filled up from the left
            context = tokens[first : start + len(targets) - 1]
            with torch.no_grad():
                scores = model(torch.tensor([context])).logits[0, -len(targets) :].log_softmax(-1)
            bits -= scores.gather(1, torch.tensor(targets)[:, None]).sum().item() / math.log(2)
        size += len(texts[index].encode())
    assert results["scores"][BITS]["models"]["base"]["value"] == pytest.approx(bits / size, rel=1e-5)
    assert results["compression"]["num_bytes"] == size


def test_lm_evals_own_command_line_agrees(settings, results, tmp_path):
    """The literal ``lm_eval run``, where our package is not imported: our checkpoint's own code loads it."""
    folder = settings.model_folders()["base"]
    command = [
        str(Path(sysconfig.get_path("scripts")) / "lm_eval"), "run", "--model", "hf", "--model_args",
        f"pretrained={folder},dtype=float32,trust_remote_code=True", "--include_path", settings.task_dir,
        "--tasks", "stdlib", "--samples", json.dumps(results["items"]), "--apply_chat_template",
        "--batch_size", "4", "--device", "cpu", "--output_path", str(tmp_path), "--log_samples",
    ]  # fmt: skip
    environment = {**os.environ, "FOUNDRY_DATA_DIR": settings.data_dir, "HF_HOME": str(tmp_path / "hf")}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-3000:]
    theirs = read_outcomes(tmp_path)
    ours = read_outcomes(Path(settings.output_dir) / "lm_eval" / "base")
    assert set(theirs) == set(ours)
    for metric in ours:
        assert theirs[metric].totals == pytest.approx(ours[metric].totals, rel=1e-5), metric
        assert theirs[metric].documents == ours[metric].documents


def test_report_and_pictures_are_written(settings, results):
    folder = Path(settings.output_dir)
    assert not closed_files(folder)
    for name in ("report.html", "results.md", "results.json", "run.json", "scores.png", "bits_per_byte.png"):
        assert (folder / name).stat().st_size > 0
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))


def test_complete_says_so_and_does_nothing(settings, first_run):
    before = {path: path.stat().st_mtime_ns for path in Path(settings.output_dir).rglob("*")}
    results, printed = run(settings)
    assert "complete already" in printed
    assert {path: path.stat().st_mtime_ns for path in Path(settings.output_dir).rglob("*")} == before
    assert results["scores"] == json.loads(json.dumps(first_run[0]["scores"]))


def test_interrupted_goes_on_with_what_is_missing(settings, results, tmp_path):
    copy = EvaluationSettings(**{**vars(settings), "output_dir": str(tmp_path / "eval")})
    shutil.copytree(settings.output_dir, copy.output_dir)
    for name in ("results.json", "answers/base.json"):
        (tmp_path / "eval" / name).unlink()
    (tmp_path / "eval" / "lm_eval" / "sft" / "receipt.json").write_text('{"identity": {"mod')  # torn
    again, printed = run(copy)
    assert "lm_eval base: measured already" in printed
    assert "answers sft: measured already" in printed
    assert "lm_eval sft: measured already" not in printed
    assert "answers base: measured already" not in printed
    assert again["scores"] == results["scores"]


def test_other_weights_are_measured_again(settings, results):
    from modeling_foundry.evaluation.identity import complete_results, describe_model

    identity = json.loads(json.dumps(results["identity"]))
    assert complete_results(Path(settings.output_dir), identity) is not None
    identity["models"]["base"] = describe_model(settings.model_folders()["sft"])
    assert complete_results(Path(settings.output_dir), identity) is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: _cut(next(folder.rglob("results_*.json"))), "not valid JSON"),
        (lambda folder: _cut(next(folder.rglob("samples_stdlib_bits*.jsonl"))), "not valid JSON"),
        (lambda folder: next(folder.rglob("samples_stdlib_bits*.jsonl")).unlink(), "expected one samples_"),
        (
            lambda folder: next(folder.rglob("samples_stdlib_bits*")).write_text('{"a": 1}\n'),
            "not what lm_eval",
        ),
    ],
)
def test_spoiled_results_are_one_clear_line(settings, results, tmp_path, spoil, message):
    folder = tmp_path / "base"
    shutil.copytree(Path(settings.output_dir) / "lm_eval" / "base", folder)
    spoil(folder)
    with pytest.raises(FoundryError, match=message) as error:
        read_outcomes(folder)
    assert "\n" not in str(error.value)
    assert "run again" in str(error.value)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_failing_task_is_one_line_and_keeps_the_log(settings, tmp_path):
    broken = EvaluationSettings(
        **{**vars(settings), "output_dir": str(tmp_path / "eval"), "task_dir": str(tmp_path), "limits": {}}
    )
    broken.tasks, broken.untrained_tasks, broken.models = ["fails"], [], settings.models[:1]
    broken.num_stop_prompts = 0
    (tmp_path / "own.py").write_text(
        "from datasets import Dataset, DatasetDict\n"
        "def load(**_):\n    return DatasetDict({'test': Dataset.from_list([{'q': 'a', 'a': 'b'}] * 3)})\n"
        "def score(document, results):\n    raise ArithmeticError('no score of a sheep')\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "task: fails\ncustom_dataset: !function own.load\noutput_type: generate_until\ntest_split: test\n"
        "doc_to_text: q\ndoc_to_target: a\ngeneration_kwargs: {max_gen_toks: 2, until: [x]}\n"
        "process_results: !function own.score\nmetric_list: [{metric: m, aggregation: mean, higher_is_better: true}]\n"
    )
    with pytest.raises(FoundryError, match="base: lm_eval ended with .*no score of a sheep") as error:
        run(broken)
    assert "\n" not in str(error.value)
    assert "no score of a sheep" in (tmp_path / "eval" / "lm_eval" / "base.failed.log").read_text()


def test_a_missing_model_is_one_line_and_exit_code_2(settings, tmp_path):
    command = [sys.executable, "recipes/evaluate.py", "--models", f"[base={tmp_path}]"]
    answer = subprocess.run(
        [*command, "--data_dir", settings.data_dir], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"error: {tmp_path}: no checkpoint here")
    assert answer.stderr.count("\n") == 1
