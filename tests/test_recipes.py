"""Every YAML of the repository is parsed by the script that reads it; every recipe explains itself."""

import ast
import sys

import pytest
import yaml

from modeling_foundry import settings
from tests import warm_start
from tests.conftest import REPOSITORY

EXPERIMENTS = sorted(path.name for path in (REPOSITORY / "recipes").iterdir() if path.is_dir())
# recipes/<experiment>/<file>.yaml -> the command of prepare_data.py that reads it
DATA_COMMANDS = {"data": "prepare", "manifest": "manifest", "tokenize": "tokenize", "clean": "clean"}
RECIPES = sorted((REPOSITORY / "recipes").glob("*.py"))
YAMLS = sorted((REPOSITORY / "recipes").rglob("*.yaml"))


def dataclasses_of(stage: str) -> tuple[type, ...]:
    """The dataclasses that recipes/<stage>.py parses."""
    if stage == "pretrain":
        from modeling_foundry.pretraining.model_settings import ModelSettings
        from modeling_foundry.pretraining.pipeline import PretrainArguments, PretrainDataSettings

        return ModelSettings, PretrainDataSettings, PretrainArguments
    if stage in ("sft", "dpo"):
        from modeling_foundry.alignment.pipeline import (
            AlignmentSettings,
            DPOArguments,
            SFTArguments,
        )

        return AlignmentSettings, SFTArguments if stage == "sft" else DPOArguments
    if stage in DATA_COMMANDS:
        from modeling_foundry.data.commands import COMMANDS

        return (COMMANDS[DATA_COMMANDS[stage]].settings,)
    if stage == "evaluate":
        from modeling_foundry.evaluation.settings import EvaluationSettings

        return (EvaluationSettings,)
    if stage == "publish":
        from modeling_foundry.publishing.settings import PublishSettings

        return (PublishSettings,)
    raise AssertionError(f"no script reads {stage}.yaml")


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_yaml_parses_with_its_script(path, tmp_path):
    # A GPU recipe asks for bf16, which TrainingArguments refuses on a machine without one.
    on_cpu = (
        ["--use_cpu=true"]
        if "use_cpu" not in path.read_text() and path.stem in ("pretrain", "sft", "dpo")
        else []
    )
    parsed = settings.parse(*dataclasses_of(path.stem), argv=["--config", str(path), *on_cpu])
    assert len(parsed) == len(dataclasses_of(path.stem))


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_misspelt_key_is_one_line_and_exit_code_2(path, tmp_path):
    broken = tmp_path / path.name
    broken.write_text(path.read_text() + "\nlearning_rat: 3\n")
    with pytest.raises(settings.SettingsError) as error:
        settings.parse(*dataclasses_of(path.stem), argv=["--config", str(broken)])
    assert "learning_rat: unknown key" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "accelerate_configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_accelerate_config_is_accepted_by_accelerate(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    content = yaml.safe_load(path.read_text())
    assert config.num_processes == content["num_processes"]
    # Topology only: batch, learning rate and clipping belong to the recipe.
    deepspeed = content.get("deepspeed_config", {})
    assert deepspeed.get("gradient_clipping", "auto") == "auto"
    assert deepspeed.get("gradient_accumulation_steps", "auto") == "auto"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_prints_its_help(path):
    answer = warm_start.run([sys.executable, str(path), "--help"], cwd=REPOSITORY)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(f"usage: {path.name} ")
    assert "[--config FILE] [--key=value ...]\n" in answer.stdout.splitlines(keepends=True)[0]
    printed = {line.strip() for line in answer.stdout.splitlines()}
    lines = ast.get_docstring(ast.parse(path.read_text())).splitlines()
    assert {line.strip() for line in lines} <= printed, "the docstring keeps its lines"
    assert "; default None]" not in " ".join(answer.stdout.split()), (
        "a default is shown as YAML would have it"
    )
    assert len(path.read_text().splitlines()) <= 60


def test_flagship_batch_is_the_declared_one():
    content = yaml.safe_load((REPOSITORY / "recipes/qwen3_1.8b/pretrain.yaml").read_text())
    sequences = content["per_device_train_batch_size"] * content["gradient_accumulation_steps"] * 8
    assert sequences * content["sequence_length"] == 4_194_304
