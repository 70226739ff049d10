"""``import modeling_foundry`` is cheap, and the Auto classes know the model whatever is imported first."""

import subprocess
import sys
import textwrap

import pytest

PROBE = """
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
config = AutoConfig.for_model("foundry", vocab_size=64, hidden_size=32, intermediate_size=32,
                              num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
print(type(AutoModel.from_config(config)).__name__, type(AutoModelForCausalLM.from_config(config)).__name__)
"""
BEGINNINGS = {
    "package first": "import modeling_foundry",
    "transformers first": "from transformers import AutoModel\nimport modeling_foundry",
    "model first": "import modeling_foundry.model.modeling_foundry",
    "through a module that loads the Auto classes half-way": (
        "import modeling_foundry\nimport transformers.modeling_layers"
    ),
}


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
def test_auto_classes_know_the_model(beginning):
    assert python(beginning + PROBE) == "FoundryModel FoundryForCausalLM"


def test_importing_the_package_loads_neither_torch_nor_transformers():
    loaded = python(
        """
        import sys, time
        start = time.process_time()
        import modeling_foundry, modeling_foundry.settings
        seconds = time.process_time() - start
        heavy = {"torch", "transformers", "numpy", "datasets"} & sys.modules.keys()
        print(sorted(heavy), seconds < 1.0)
        """
    )
    assert loaded == "[] True"


def test_public_names_and_no_others():
    import modeling_foundry

    assert modeling_foundry.FoundryForCausalLM.__name__ == "FoundryForCausalLM"
    assert set(modeling_foundry.__all__) <= set(dir(modeling_foundry))
    with pytest.raises(AttributeError, match="FoundryForDancing"):
        _ = modeling_foundry.FoundryForDancing
