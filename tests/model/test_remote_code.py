"""A saved checkpoint carries its code: it loads, trains and saves again where the package is absent."""

import json
import os
import subprocess
import sys

import torch

SCRIPT = """
import sys
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
folder, again = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
assert "modeling_foundry" not in sys.modules and "transformers_modules" in type(model).__module__
tokens = torch.arange(12)[None]
torch.save(model(tokens).logits.detach(), again + ".logits.pt")
base = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
assert torch.equal(base(tokens).last_hidden_state, model.model(tokens).last_hidden_state)
model.train()(tokens, labels=tokens).loss.backward()
model.eval().save_pretrained(again)
loaded = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True).eval()
assert torch.equal(loaded(tokens).logits, model(tokens).logits)
print(type(AutoConfig.from_pretrained(again, trust_remote_code=True)).__name__)
"""


def test_loads_where_the_package_is_absent(build, tmp_path):
    model = build(normalization="layernorm", position_encoding="learned", ffn_type="standard")
    folder, again = tmp_path / "checkpoint", tmp_path / "again"
    model.save_pretrained(folder)
    # -I: neither the working folder nor PYTHONPATH; a finder hides the package where it is installed.
    hide = "import sys; sys.modules['modeling_foundry'] = None; "
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    paths = f"sys.path[:0] = {[p for p in os.environ.get('PYTHONPATH', '').split(os.pathsep) if p]!r}; "
    unhide = "del sys.modules['modeling_foundry']; sys.path[:] = [p for p in sys.path if not PACKAGE(p)]; "
    package = "import os; PACKAGE = lambda p: os.path.isfile(os.path.join(p, 'modeling_foundry', 'configuration_foundry.py')); "
    code = hide + paths + package + unhide + SCRIPT
    result = subprocess.run(
        [sys.executable, "-I", "-c", code, str(folder), str(again)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip().endswith("FoundryConfig")
    logits = torch.load(f"{again}.logits.pt", weights_only=True)
    assert torch.equal(logits, model(torch.arange(12)[None]).logits)


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
            "positions.py",
        }
