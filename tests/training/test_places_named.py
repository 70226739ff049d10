"""A relative path that is not there is named as it was looked for, and from which folder."""

import re
from pathlib import Path

import pytest

from modeling_foundry.alignment.samples import hash_of_samples
from modeling_foundry.data.preparation.text_file import read_text_file
from modeling_foundry.data.tokens.prepared import load_prepared
from modeling_foundry.evaluation.identity import describe_model
from modeling_foundry.files import model_hash
from modeling_foundry.pretraining import commands
from modeling_foundry.saved_model import require_checkpoint
from modeling_foundry.settings import FoundryError, read_yaml, sought


@pytest.mark.parametrize(
    "open_place",
    [
        load_prepared, read_yaml, hash_of_samples, model_hash, lambda name: read_text_file(name, 0.1),
        lambda name: require_checkpoint(Path(name)), lambda name: describe_model(Path(name)),
    ],
)  # fmt: skip
def test_a_relative_path_is_named_as_it_was_looked_for(open_place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = re.escape(f"runs/x ({tmp_path}/runs/x, as this was started in {tmp_path}): ")
    with pytest.raises(FoundryError, match=f"^{where}") as error:
        open_place("runs/x")
    assert "\n" not in str(error.value)
    assert sought("/runs/x") == "/runs/x"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "max_steps: missing; give max_steps or max_tokens, or --config FILE of a recipe"),
        (["--learning_rate=1e-3"], "max_steps: missing; give max_steps or max_tokens, or --config FILE"),
        (["--max_steps=-1"], "max_steps: missing; give max_steps or max_tokens, or --config FILE"),
    ],
)
def test_a_recipe_without_its_file_is_told_of_it(argv, line, tmp_path):
    with pytest.raises(FoundryError, match=f"^{line}"):
        commands.main([*argv, "--use_cpu=true", f"--output_dir={tmp_path}"])


def test_an_alignment_without_its_file_is_told_of_it():
    from modeling_foundry.alignment.pipeline import AlignmentSettings
    from modeling_foundry.settings import parse

    line = "command line: model: missing; expected text, or --config FILE of a recipe"
    with pytest.raises(FoundryError, match=f"^{line}"):
        parse(AlignmentSettings, argv=[])
