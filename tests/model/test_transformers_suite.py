"""transformers' own model tests, run on this model where a checkout of transformers' tests is at hand.

Set TRANSFORMERS_TESTS to the ``tests`` folder of a transformers checkout of the installed version (what its
tests import, such as ``parameterized``, must be installed).  The folder is not part of this repository.
"""

import importlib
import os
import sys
from pathlib import Path

import pytest

TESTS = os.environ.get("TRANSFORMERS_TESTS")
if not TESTS:
    pytest.skip(
        "TRANSFORMERS_TESTS does not name the tests folder of a transformers checkout",
        allow_module_level=True,
    )

import unittest  # noqa: E402

from transformers.models.auto import modeling_auto  # noqa: E402

from modeling_foundry import FoundryConfig, FoundryForCausalLM, FoundryModel  # noqa: E402

sys.path.insert(0, str(Path(TESTS).parent))
suite = importlib.import_module(f"{Path(TESTS).name}.causal_lm_tester")
# The suite decides by these static tables which class computes a loss.
modeling_auto.MODEL_MAPPING_NAMES["foundry"] = "FoundryModel"
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["foundry"] = "FoundryForCausalLM"


class FoundryModelTester(suite.CausalLMModelTester):
    config_class = FoundryConfig
    base_model_class = FoundryModel
    causal_lm_class = FoundryForCausalLM

    def __init__(self, parent):
        super().__init__(parent=parent, hidden_act=None)
        self.attention_probs_dropout_prob = 0.0


class FoundryModelTest(suite.CausalLMModelTest, unittest.TestCase):
    model_tester_class = FoundryModelTester
