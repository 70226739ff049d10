"""Publishing: a stock folder equal to the trained model, an honest card, nothing secret, nothing twice."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from modeling_foundry.publishing import pipeline as export
from modeling_foundry.publishing import space, verification
from modeling_foundry.publishing.card import model_card
from modeling_foundry.publishing.lineage import terms_of
from modeling_foundry.publishing.pipeline import choose_format, publish
from modeling_foundry.publishing.push import push_folder, refuse_secrets
from modeling_foundry.publishing.settings import PublishSettings
from modeling_foundry.publishing.space import write_space
from modeling_foundry.settings import FoundryError, SettingsError, parse
from tests.conftest import REPOSITORY, closed_files
from tests.publishing.hub import COMMIT, StandInHub

OF_TRAINING = ("optimizer-00001.safetensors", "random_state-00000.safetensors", "optimizer.json")
TOKEN = "hf_canarycanarycanary"


def make_checkpoint(folder, **components):
    import torch

    from modeling_foundry import FoundryConfig, FoundryForCausalLM
    from modeling_foundry.data.tokenizer.training import train_tokenizer

    torch.manual_seed(0)
    config = FoundryConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True,
        eos_token_id=2, pad_token_id=0, **components,
    )  # fmt: skip
    FoundryForCausalLM(config).save_pretrained(folder)
    train_tokenizer(["def add(left, right): return both\n" * 10], vocab_size=320).save_pretrained(folder)
    for name in ("training_args.bin", ".env", "notes.txt", "optimizer.json"):
        (folder / name).write_text("not for others")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("published") / "publish"
    assert publish(settings(checkpoint, output)) == output / "model"
    return output


def settings(checkpoint, output, **more):
    more = {"training_data": "Some text.", "license": "mit", **more}
    return PublishSettings(str(checkpoint), str(output), "Tiny", **more)


@pytest.mark.slow
def test_a_stock_model_loads_where_the_package_is_not(exported):
    """The export itself starts such a process; its finding stands in the record."""
    folder = exported / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    assert "auto_map" not in config
    assert (config["rope_theta"], config["torch_dtype"]) == (1e6, "float32")
    assert not closed_files(exported), "the weights, too: safetensors leaves them to their owner"
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "README.md",
    }  # fmt: skip
    record = json.loads((exported / "run.json").read_text())
    found = record["verification"]
    assert found["model_class"] == "Qwen3ForCausalLM"
    assert found["max_logit_difference"] <= verification.TOLERANCE
    assert (found["num_probe_tokens"], found["num_probe_texts"]) == (64, len(verification.TEXTS))


@pytest.mark.slow
def test_a_component_that_no_stock_model_has_is_named_and_its_code_shipped(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "m", ffn_type="standard", hidden_act="gelu", qk_norm=False)
    for name in OF_TRAINING:  # as a checkpoint-N has them
        if name.endswith(".safetensors"):
            shutil.copyfile(checkpoint / "model.safetensors", checkpoint / name)
    folder = publish(settings(checkpoint, tmp_path / "out"))
    names = {path.name for path in folder.iterdir()}
    assert "modeling_foundry.py" in names
    assert not closed_files(folder)
    read = json.loads((folder / "tokenizer_config.json").read_text())
    assert (read["tokenizer_class"], read["model_max_length"]) == ("PreTrainedTokenizerFast", 64)
    assert "{% generation %}" not in read["chat_template"]
    assert not names & {"training_args.bin", ".env", "notes.txt", *OF_TRAINING}
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["verification"]["model_class"] == "FoundryForCausalLM"
    card = (folder / "README.md").read_text()
    assert "ffn_type=standard" in card
    assert card.count("trust_remote_code=True") == 2
    from modeling_foundry import FoundryConfig

    with pytest.raises(FoundryError, match=r"format: llama has no .*ffn_type=standard"):
        choose_format(settings(checkpoint, "x", format="llama"), FoundryConfig.from_pretrained(checkpoint))


@pytest.mark.parametrize("difference", [1e-3, float("nan")])
def test_another_logit_is_no_export(checkpoint, tmp_path, monkeypatch, difference):
    found = {"model_class": "Qwen3ForCausalLM", "max_logit_difference": difference}
    monkeypatch.setattr(verification, "_ask_a_stranger", lambda *arguments: found)
    with pytest.raises(FoundryError, match="logits differ"):
        publish(settings(checkpoint, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_interrupted_export_leaves_nothing_half_written(checkpoint, tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export, "verify", fail)
        with pytest.raises(KeyboardInterrupt):
            publish(settings(checkpoint, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(
        export, "verify", lambda *arguments: {"model_class": "x", "max_logit_difference": 0.0}
    )
    assert (publish(settings(checkpoint, tmp_path / "out")) / "README.md").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "what the interrupted one left is gone"


@pytest.mark.parametrize("format", ["auto", "foundry"])
def test_weights_that_lack_a_tensor_are_no_export(format, checkpoint, tmp_path):
    """Loaded twice, a norm that is missing is twice the same: equal logits of a model that nobody trained."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(FoundryError, match=r"missing keys: model\.norm\.weight"):
        publish(settings(folder, tmp_path / "publish", format=format))
    assert not (tmp_path / "publish").exists()


def test_a_model_without_its_tokenizer_is_not_published(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FoundryError, match=r"no tokenizer here \(tokenizer\.json\)"):
        publish(settings(folder, tmp_path / "publish"))


def test_published_once_is_published(checkpoint, exported, tmp_path, capsys):
    before = (exported / "model" / "model.safetensors").stat().st_mtime_ns
    publish(settings(checkpoint, exported))
    assert "complete already" in capsys.readouterr().out
    publish(settings(checkpoint, exported, license="apache-2.0"))
    assert "the model card was written anew" in capsys.readouterr().out
    assert "license: apache-2.0" in (exported / "model" / "README.md").read_text()
    publish(settings(checkpoint, exported))
    assert (exported / "model" / "model.safetensors").stat().st_mtime_ns == before
    other = make_checkpoint(tmp_path / "other", initializer_range=0.5)
    with pytest.raises(FoundryError, match="holds something else"):
        publish(settings(other, exported))
    with pytest.raises(FoundryError, match="no checkpoint here"):
        publish(settings(tmp_path / "absent", tmp_path / "x"))


def test_a_changed_export_is_not_called_complete(checkpoint, exported, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    weights = bytearray((copy / "model" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model" / "model.safetensors").write_bytes(weights)
    with pytest.raises(FoundryError, match=r"model\.safetensors: missing or changed since the export"):
        publish(settings(checkpoint, copy))


@pytest.mark.parametrize(
    ("name", "content"),
    [("chat_template.jinja", "{{ messages }}"), ("generation_config.json", '{"eos_token_id": 0}')],
)
def test_another_template_is_another_export(checkpoint, exported, tmp_path, name, content):
    """The same weights would be called complete with the files of before."""
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / name).write_text(content)
    with pytest.raises(FoundryError, match="holds something else, or this model as an earlier release"):
        publish(settings(folder, exported))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("token_ids", [[1]] * len(verification.TEXTS), r"encodes '' as \[1\]"),
        ("special", {"eos_token": "</s>"}, "eos_token '</s>' is '<|endoftext|>'"),
        ("chat", "other", "the chat template renders 'other'"),
        ("texts", ["?"] * len(verification.TEXTS), r"reads \[\] as '\?'"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_reads_something_else_is_no_export(checkpoint, tmp_path, key, value, message):
    from modeling_foundry.saved_model import load_tokenizer

    ours = load_tokenizer(checkpoint)
    ids = [ours(text)["input_ids"] for text in verification.TEXTS]
    found = {
        "token_ids": ids,
        "texts": [ours.decode(row) for row in ids],
        "special": {"eos_token": ours.eos_token},
    }
    found["chat"] = ours.apply_chat_template(verification.CHAT, add_generation_prompt=True, tokenize=False)
    verification.compare_tokenizers(tmp_path, ours, found)
    with pytest.raises(FoundryError, match=message.replace("|", r"\|")):
        verification.compare_tokenizers(tmp_path, ours, found | {key: value})


def evaluation_of(checkpoint, folder):
    """An evaluation folder as recipes/evaluate.py leaves it, cut down to one metric."""
    from modeling_foundry.evaluation.identity import describe_model

    score = {"value": 0.5, "standard_error": 0.01, "low": 0.48, "high": 0.52, "num_items": 9, "num_groups": 3}
    results = {
        "models": {"dpo": describe_model(checkpoint)},
        "scores": {
            "stdlib_summary_choice/acc": {
                "higher_is_better": True,
                "is_share": True,
                "models": {"dpo": score},
            }
        },
        "comparisons": [],
        "versions": {"lm_eval": "0.4", "transformers": "5"},
    }
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    return str(folder)


def card_of(checkpoint, **more):
    from modeling_foundry import FoundryConfig

    config = FoundryConfig.from_pretrained(checkpoint)
    chosen = settings(checkpoint, "x", **more)
    return model_card(chosen, config, *choose_format(chosen, config), terms_of(chosen))


def test_the_card_says_what_is_known(checkpoint, tmp_path):
    card = card_of(
        checkpoint, evaluation_dir=evaluation_of(checkpoint, tmp_path / "eval"), languages=["en"],
        limitations="Toy.", example='Say "yes".', repo_id="ada/tiny",
    )  # fmt: skip
    _, front, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata == {
        "license": "mit", "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["llm-foundry"], "language": ["en"],
    }  # fmt: skip
    for words in (
        "| parameters | 28,896 |", "2 query, 1 key/value, 16 each", "Some text.", "Toy.", "at most 64 tokens",
        "stock `qwen3` checkpoint", "This model is `dpo`", "50.0 ± 1.0", "under `mit`",
    ):  # fmt: skip
        assert words in body, words
    program = body.split("```python\n")[1].split("```")[0]
    compile(program, "card", "exec")
    assert '"ada/tiny"' in program
    assert '"Say \\"yes\\"."' in program


def test_the_card_says_what_is_not_known(checkpoint, tmp_path):
    assert "No evaluation was given" in card_of(checkpoint)
    assert "No evaluation was found" in card_of(checkpoint, evaluation_dir=str(tmp_path / "none"))
    other = make_checkpoint(tmp_path / "other", initializer_range=0.5)
    folder = evaluation_of(other, tmp_path / "eval")
    card = card_of(checkpoint, evaluation_dir=folder)
    assert "of other weights" in card
    assert "50.0" not in card
    (tmp_path / "eval" / "results.json").write_text('{"models": 3}')
    with pytest.raises(FoundryError, match="not the results of an evaluation"):
        card_of(checkpoint, evaluation_dir=folder)


def test_the_parameters_on_the_card_are_the_models(checkpoint):
    from modeling_foundry import FoundryForCausalLM

    count = FoundryForCausalLM.from_pretrained(checkpoint).num_parameters()
    assert f"| parameters | {count:,} |" in card_of(checkpoint)


def test_bad_names_and_secrets_in_settings_are_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="repo_id: missing"):
        settings(checkpoint, "x", push_to_hub=True)
    with pytest.raises(ValueError, match="repo_id: missing"):
        settings(checkpoint, "x", space_repo_id="ada/chat")
    with pytest.raises(ValueError, match="repo_id: expected"):
        settings(checkpoint, "x", repo_id="nameonly")
    recipe = tmp_path / "publish.yaml"
    required = "model: m\noutput_dir: o\nname: n\n"
    for line in (f"hub_token: {TOKEN}", f"description: use {TOKEN}", f"languages: [{TOKEN}]"):
        recipe.write_text(f"{required}{line}\n")
        with pytest.raises(SettingsError) as error:
            parse(PublishSettings, argv=["--config", str(recipe)])
        assert TOKEN not in str(error.value), "a refusal does not print the secret"


def test_a_secret_in_the_folder_is_not_pushed(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "another-canary-of-this-login")
    for content in (f"token: {TOKEN}", "another-canary-of-this-login"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(FoundryError, match="holds a Hub token"):
            push_folder(tmp_path, "ada/tiny", False, "message")
    refuse_secrets(exported / "model")


def test_without_a_login_nothing_is_pushed(exported, monkeypatch):
    monkeypatch.setattr("modeling_foundry.publishing.push.get_token", lambda: None)
    with pytest.raises(FoundryError, match="not logged in; run `hf auth login`"):
        push_folder(exported / "model", "ada/tiny", False, "message")


def test_without_a_login_nothing_is_exported_for_a_push(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_foundry.publishing.push.get_token", lambda: None)
    with pytest.raises(FoundryError, match="push to ada/tiny: not logged in"):
        publish(settings(checkpoint, tmp_path / "out", repo_id="ada/tiny", push_to_hub=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_push_to_a_hub_and_pull_from_it(checkpoint, exported, tmp_path):
    """Against a small stand-in of the Hub on this machine, with the real client."""
    output = tmp_path / "publish"
    shutil.copytree(exported, output)
    with StandInHub() as hub:
        environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
        environment |= {
            "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": TOKEN,
        }  # fmt: skip
        command = [
            sys.executable, "recipes/publish.py", f"--model={checkpoint}", f"--output_dir={output}", "--name=Tiny",
            "--training_data=Some text.", "--license=mit", "--push_to_hub", "--repo_id=ada/tiny",
            "--space_repo_id=ada/chat", "--private",
        ]  # fmt: skip
        pushed = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
        assert pushed.returncode == 0, pushed.stderr
        model, space = hub.repositories["models/ada/tiny"], hub.repositories["spaces/ada/chat"]
        assert set(model) == {path.name for path in (output / "model").iterdir()}
        assert {"app.py", "README.md", "requirements.txt", "space.json", "chat_model.py"} <= set(space)
        assert json.loads(space["space.json"])["revision"] == COMMIT
        assert [made.get("type", "model") for made in hub.created] == ["model", "space"]
        assert all(made.get("private") or made.get("visibility") == "private" for made in hub.created)
        assert hub.created[1]["sdk"] == "gradio"
        assert hub.tokens == {f"Bearer {TOKEN}"}
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            "print(AutoModelForCausalLM.from_pretrained('ada/tiny').config.model_type)\n"
            "assert AutoTokenizer.from_pretrained('ada/tiny').chat_template"
        )
        pulled = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert pulled.stdout.strip() == "qwen3", pulled.stderr
        written = [pushed.stdout.encode(), pushed.stderr.encode(), *model.values(), *space.values()]
    written += [path.read_bytes() for path in output.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in content for content in written)


def test_a_space_is_the_app_and_where_its_model_is(checkpoint, tmp_path):
    wanted = settings(checkpoint, "x", repo_id="ada/tiny", space_repo_id="ada/chat")
    write_space(wanted, tmp_path / "space", "qwen3", "apache-2.0", "b" * 40)
    assert not closed_files(tmp_path / "space")
    front = yaml.safe_load((tmp_path / "space" / "README.md").read_text().split("---\n")[1])
    assert front["python_version"] == ".".join(platform.python_version_tuple()[:2]), (
        "a text, also where it is 3.10"
    )
    assert front["sdk_version"] == importlib.metadata.version("gradio")
    assert front["license"] == "apache-2.0"
    assert front["sdk"] == "gradio"
    assert front["app_file"] == "app.py"
    assert front["models"] == ["ada/tiny"]
    requirements = (tmp_path / "space" / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in requirements] == list(space.REQUIRED)
    assert not [line for line in requirements if "+" in line], "an index has no local versions"
    for name in space.REQUIRED:  # they install on that Python: it is the one they are installed on
        needed = importlib.metadata.metadata(name)["Requires-Python"]
        assert SpecifierSet(needed).contains(front["python_version"] + ".99"), name
    code = (
        "import app; a = app.parse_arguments([]); "
        "print(a.model, a.revision[:2], a.host, a.trust_remote_code, app.find_credentials(a.host))"
    )
    environment = {**os.environ, "SPACE_ID": "ada/chat", "PYTHONPATH": ""}
    environment.pop("CHECKPOINT", None)
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path / "space", env=environment
    )
    assert finished.stdout.split() == ["ada/tiny", "bb", "0.0.0.0", "False", "None"], finished.stderr


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, r"gradio is not installed here, .*install '.\[app\]'"), ("7.0.0.dev3", r"gradio 7.0.0.dev3 is on no")],
)  # fmt: skip
def test_a_space_of_a_version_that_cannot_be_had_is_refused_before_the_export(
    checkpoint, tmp_path, monkeypatch, version, message
):
    real = importlib.metadata.version

    def found(name):
        if name == "gradio" and version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version if name == "gradio" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", found)
    with pytest.raises(FoundryError, match=f"space_repo_id: {message}"):
        publish(settings(checkpoint, tmp_path / "out", repo_id="ada/tiny", space_repo_id="ada/chat"))
    assert not (tmp_path / "out").exists()


def test_the_app_imports_nothing_that_a_space_lacks():
    """Its own neighbours, the standard library, and what requirements.txt names."""
    import ast

    folder = REPOSITORY / "app"
    neighbours = {path.stem for path in folder.glob("*.py")}
    allowed = neighbours | set(sys.stdlib_module_names)
    allowed |= {
        "torch",
        "transformers",
        "safetensors",
        "gradio",
        "fastapi",
        "starlette",
        "pydantic",
        "uvicorn",
        "h11",  # uvicorn stands on it
    }
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            foreign = {name.split(".")[0] for name in names} - allowed
            # The one exception is tried and explained: a Foundry checkpoint needs the package or trust.
            assert foreign <= ({"modeling_foundry"} if path.name == "chat_model.py" else set()), path


def test_a_record_that_is_none_and_a_file_for_a_folder_are_told_apart(tmp_path):
    from modeling_foundry.publishing.pipeline import _is_complete

    for content in ("[]", "3", "{}", '{"content": {}}', "{"):
        (tmp_path / "run.json").write_text(content)
        assert not _is_complete(tmp_path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(FoundryError, match="output_dir: .*file is a file; give a folder"):
        _is_complete(tmp_path / "file", {})


def test_files_in_folders_of_an_export_are_under_its_seal(tmp_path):
    from modeling_foundry.publishing.pipeline import _hashes, _is_complete

    folder = tmp_path / "model" / "additional_chat_templates"
    folder.mkdir(parents=True)
    (folder / "tool_use.jinja").write_text("a")
    (tmp_path / "model" / "config.json").write_text("{}")
    files = _hashes(tmp_path / "model", "**/*.*")
    assert set(files) == {"config.json", "additional_chat_templates/tool_use.jinja"}
    (tmp_path / "run.json").write_text(json.dumps({"content": {}, "files": files}))
    assert _is_complete(tmp_path, {})
    (folder / "tool_use.jinja").write_text("b")
    with pytest.raises(FoundryError, match="tool_use.jinja: missing or changed since the export"):
        _is_complete(tmp_path, {})
