"""A saved checkpoint carries its code: it loads, trains and saves again where the package is absent."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

# The package may be installed where the tests run: no import of it may succeed.
WITHOUT_PACKAGE = """
import sys
class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "modeling_foundry":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent)
"""
SCRIPT = """
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
folder, again = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
assert "modeling_foundry" not in sys.modules and "transformers_modules" in type(model).__module__
tokens = torch.arange(12)[None]
save_file({"logits": model(tokens).logits.detach()}, again + ".logits")
base = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
assert torch.equal(base(tokens).last_hidden_state, model.model(tokens).last_hidden_state)
model.train()(tokens, labels=tokens).loss.backward()
model.eval().save_pretrained(again)
loaded = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True).eval()
assert torch.equal(loaded(tokens).logits, model(tokens).logits)
print(type(AutoConfig.from_pretrained(again, trust_remote_code=True)).__name__)
"""


@pytest.mark.slow
def test_loads_where_the_package_is_absent(build, tmp_path):
    model = build(normalization="layernorm", position_encoding="learned", ffn_type="standard")
    folder, again = tmp_path / "checkpoint", tmp_path / "again"
    model.save_pretrained(folder)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE + SCRIPT, str(folder), str(again)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip().endswith("FoundryConfig")
    assert torch.equal(load_file(f"{again}.logits")["logits"], model(torch.arange(12)[None]).logits)


def test_every_way_of_saving_names_the_code(build, tiny, tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "causal")
    model.model.save_pretrained(tmp_path / "base")
    tiny().save_pretrained(tmp_path / "config")
    for folder in ("causal", "base", "config"):
        auto_map = json.loads((tmp_path / folder / "config.json").read_text())["auto_map"]
        assert auto_map == {
            "AutoConfig": "configuration_foundry.FoundryConfig",
            "AutoModel": "modeling_foundry.FoundryModel",
            "AutoModelForCausalLM": "modeling_foundry.FoundryForCausalLM",
        }
    for folder in ("causal", "base"):
        assert {path.name for path in (tmp_path / folder).glob("*.py")} == {
            "configuration_foundry.py",
            "modeling_foundry.py",
            "attention_backends.py",
            "losses.py",
            "softmax_kernels.py",
            "positions.py",
        }
