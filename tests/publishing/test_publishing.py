"""Publishing: a stock folder equal to the trained model, an honest card, nothing secret, nothing twice."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from modeling_foundry.publishing.export import choose_format, publish
from modeling_foundry.publishing.settings import PublishSettings
from modeling_foundry.settings import FoundryError
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "model")


def make_checkpoint(folder, **components):
    import torch

    from modeling_foundry import FoundryConfig, FoundryForCausalLM
    from modeling_foundry.data.tokenizer import train_tokenizer

    torch.manual_seed(0)
    config = FoundryConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True,
        eos_token_id=2, pad_token_id=0, **components,
    )  # fmt: skip
    FoundryForCausalLM(config).save_pretrained(folder)
    train_tokenizer(["def add(left, right): return both\n" * 10], vocab_size=320).save_pretrained(folder)
    return folder


def settings(checkpoint, output, **more):
    return PublishSettings(str(checkpoint), str(output), "Tiny", training_data="Some text.", **more)


def test_a_stock_model_loads_where_the_package_is_not(checkpoint, tmp_path):
    import torch

    from modeling_foundry import FoundryForCausalLM

    out = publish(settings(checkpoint, tmp_path / "out"))
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    assert "auto_map" not in config
    assert not list(out.glob("*.py"))
    code = (
        "import sys, torch; sys.modules['modeling_foundry'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(out)!r})\n"
        f"torch.set_num_threads(1); print(model(torch.arange(12)[None]).logits.double().sum().item())\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    original = FoundryForCausalLM.from_pretrained(checkpoint)
    expected = original(torch.arange(12)[None]).logits.double().sum().item()
    assert float(finished.stdout) == pytest.approx(expected, abs=1e-4)


def test_the_card_says_what_is_known_and_what_is_not(checkpoint, tmp_path):
    evaluation = tmp_path / "eval"
    evaluation.mkdir()
    (evaluation / "results.md").write_text("| task | value |\n|---|---|\n| choice | 0.5 |")
    card = (
        publish(settings(checkpoint, tmp_path / "a", evaluation_dir=str(evaluation))) / "README.md"
    ).read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert "| choice | 0.5 |" in card
    assert "at most 64 tokens" in card
    assert "stock `qwen3` checkpoint" in card
    assert "Some text." in card
    absent = settings(checkpoint, tmp_path / "b", evaluation_dir=str(tmp_path / "none"))
    assert "No evaluation was found" in (publish(absent) / "README.md").read_text()


def test_a_component_that_no_stock_model_has_is_named(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "m", ffn_type="standard", hidden_act="gelu", qk_norm=False)
    out = publish(settings(checkpoint, tmp_path / "out"))
    assert (out / "modeling_foundry.py").is_file()
    card = (out / "README.md").read_text()
    assert "ffn_type=standard" in card
    assert "trust_remote_code=True" in card
    from modeling_foundry import FoundryConfig

    with pytest.raises(FoundryError, match=r"format: llama has no .*ffn_type=standard"):
        choose_format(settings(checkpoint, "x", format="llama"), FoundryConfig.from_pretrained(checkpoint))


def test_published_once_is_published(checkpoint, tmp_path, capsys):
    publish(settings(checkpoint, tmp_path / "out"))
    publish(settings(checkpoint, tmp_path / "out"))
    assert "exported already" in capsys.readouterr().out
    with pytest.raises(FoundryError, match="holds another export"):
        publish(settings(checkpoint, tmp_path / "out", license="apache-2.0"))
    with pytest.raises(FoundryError, match="no model here"):
        publish(settings(tmp_path / "absent", tmp_path / "other"))


def test_an_interrupted_export_leaves_nothing_half_written(checkpoint, tmp_path, monkeypatch):
    from modeling_foundry.publishing import export

    def fail(*arguments):
        raise RuntimeError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(export, "model_card", fail)
        with pytest.raises(RuntimeError):
            publish(settings(checkpoint, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert (publish(settings(checkpoint, tmp_path / "out")) / "README.md").is_file()


def test_pushing_needs_a_name(checkpoint):
    with pytest.raises(ValueError, match="repo_id: missing"):
        settings(checkpoint, "x", push_to_hub=True)
    with pytest.raises(ValueError, match="repo_id: expected"):
        settings(checkpoint, "x", repo_id="nameonly")


@pytest.mark.slow
def test_push_to_a_hub_and_pull_from_it(checkpoint, tmp_path):
    """Against a small stand-in of the Hub on this machine, with the real client."""
    from tests.publishing.hub import StandInHub

    token = "hf_canarycanarycanary"
    with StandInHub() as hub:
        environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
        environment |= {
            "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": token,
        }  # fmt: skip
        command = [
            sys.executable, "recipes/publish.py", f"--model={checkpoint}", f"--output_dir={tmp_path / 'out'}",
            "--name=Tiny", "--push_to_hub=true", "--repo_id=ada/tiny",
        ]  # fmt: skip
        pushed = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
        assert pushed.returncode == 0, pushed.stderr
        assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= hub.files.keys()
        assert "export.json" not in hub.files
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            "print(AutoModelForCausalLM.from_pretrained('ada/tiny').config.model_type)\n"
            "AutoTokenizer.from_pretrained('ada/tiny')"
        )
        pulled = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert pulled.stdout.strip() == "qwen3", pulled.stderr
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes()
    shutil.rmtree(tmp_path / "home")
