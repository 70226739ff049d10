"""transformers' own model tests, run on this model where a checkout of transformers is at hand.

Set TRANSFORMERS_CHECKOUT to the root of a transformers checkout of the installed version; what its tests
import, such as ``parameterized``, must be installed.  The checkout is not part of this repository.
"""

import os
import re
import subprocess
import sys

import pytest

CHECKOUT = os.environ.get("TRANSFORMERS_CHECKOUT")
SUITE = """
import unittest
from transformers.models.auto import modeling_auto
from modeling_foundry import FoundryConfig, FoundryForCausalLM, FoundryModel
from tests.causal_lm_tester import CausalLMModelTest, CausalLMModelTester

# The suite decides by these static tables which class computes a loss.
modeling_auto.MODEL_MAPPING_NAMES["foundry"] = "FoundryModel"
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["foundry"] = "FoundryForCausalLM"


class FoundryModelTester(CausalLMModelTester):
    config_class, base_model_class, causal_lm_class = FoundryConfig, FoundryModel, FoundryForCausalLM

    def __init__(self, parent):
        super().__init__(parent=parent, hidden_act=None)
        self.attention_probs_dropout_prob = 0.0
        for name, value in {components}.items():
            setattr(self, name, value)


class FoundryModelTest(CausalLMModelTest, unittest.TestCase):
    model_tester_class = FoundryModelTester
"""
COMPONENTS = {
    "qwen3": {},
    "llama, tied": {"qk_norm": False, "tie_word_embeddings": True},
    "layernorm, standard FFN, biases, MQA": {
        "normalization": "layernorm",
        "ffn_type": "standard",
        "attention_bias": True,
        "mlp_bias": True,
        "num_key_value_heads": 1,
    },
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not CHECKOUT, reason="TRANSFORMERS_CHECKOUT does not name a transformers checkout")
@pytest.mark.parametrize("components", COMPONENTS.values(), ids=COMPONENTS)
def test_transformers_own_model_tests_pass(tmp_path, components):
    suite = tmp_path / "test_foundry_in_transformers_suite.py"
    suite.write_text(SUITE.replace("{components}", repr(components)))
    paths = [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            str(suite),
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore::pytest.PytestUnknownMarkWarning",
            "--tb=short",
            "--rootdir",
            str(tmp_path),
        ],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    passed = re.search(r"(\d+) passed", result.stdout)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert passed
    assert int(passed.group(1)) > 100
