"""A fine-tune of others' weights is published under its base's licence and name, or not at all."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from modeling_foundry.data.tokenizer.training import train_tokenizer
from modeling_foundry.files import model_hash
from modeling_foundry.model.conversion import export_stock, import_stock
from modeling_foundry.publishing.lineage import terms_of
from modeling_foundry.publishing.pipeline import publish
from modeling_foundry.publishing.settings import PublishSettings
from modeling_foundry.settings import FoundryError

SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip
CARD = "---\nlicense: apache-2.0\nlanguage: [en]\n---\n# Base\n"
CLASSES = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["def add(left, right): return both\n" * 10], vocab_size=320)


@pytest.fixture
def stock(tmp_path, tokenizer):
    """A stock folder as `hf download` leaves it; its card as asked."""

    def save(name="base", family="qwen3", card=CARD, **more):
        torch.manual_seed(0)
        config, model = CLASSES[family]
        folder = tmp_path / name
        model(config(**SIZES, **more)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if card is not None:
            (folder / "README.md").write_text(card)
        return folder

    return save


def trained_from(base, run, stage="alignment", **settings):
    """What a stage leaves: other weights in model/, and a record of where it began."""
    source = {"alignment": {"model": str(base)}, "data": {}}[stage]
    shutil.copytree(base, run / "model", ignore=shutil.ignore_patterns("README.md", "run.json"))
    weights = load_file(run / "model" / "model.safetensors")
    save_file(
        {name: 1.5 * weight for name, weight in weights.items()},
        run / "model" / "model.safetensors",
        {"format": "pt"},
    )
    record = {"settings": {stage: source | settings, "training": {}}, "inputs": {"model": model_hash(base)}}
    (run / "run.json").write_text(json.dumps(record))
    return run / "model"


def settings(model, output="x", **more):
    return PublishSettings(str(model), str(output), "Tuned", **more)


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_fine_tune_of_a_stock_model_is_published_as_one(stock, tmp_path, family):
    base = stock(family=family, tie_word_embeddings=family == "qwen3")
    tuned = trained_from(base, tmp_path / "sft")
    tuned = trained_from(tuned, tmp_path / "dpo")
    folder = publish(settings(tuned, tmp_path / "out", base_model="Qwen/Qwen3-0.6B"))
    metadata, card = front_matter(folder), (folder / "README.md").read_text()
    assert (metadata["license"], metadata["base_model"]) == ("apache-2.0", "Qwen/Qwen3-0.6B")
    assert (
        "fine-tuned from [Qwen/Qwen3-0.6B](https://huggingface.co/Qwen/Qwen3-0.6B), whose licence is `apache"
        in card
    )
    assert f"stock `{family}` checkpoint" in card
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert f"| parameters | {model.num_parameters():,} |" in card
    assert f"| normalization | rmsnorm{', QK-norm' if family == 'qwen3' else ''} |" in card
    written, ours = load_file(folder / "model.safetensors"), load_file(tuned / "model.safetensors")
    assert written.keys() == ours.keys()
    assert all(torch.equal(written[name], ours[name]) for name in ours)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["verification"]["model_class"] == CLASSES[family][1].__name__
    assert json.loads((folder / "config.json").read_text())["rope_theta"] == 10_000.0


@pytest.mark.slow
@pytest.mark.parametrize("imported", [False, True])
def test_the_stages_own_records_lead_to_the_base(stock, tmp_path, imported):
    from modeling_foundry.alignment import pipeline as alignment

    base = stock()
    if imported:
        import_stock(base, tmp_path / "imported")
    rows = [
        {"messages": [{"role": "user", "content": f"add {i}"}, {"role": "assistant", "content": "both"}]}
        for i in range(8)
    ]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = alignment.AlignmentSettings(
        model=str(tmp_path / "imported" if imported else base), train_file=str(tmp_path / "sft.jsonl")
    )
    arguments = alignment.SFTArguments(
        str(tmp_path / "sft"), use_cpu=True, bf16=False, max_length=64, max_steps=1, report_to="none"
    )
    tuned = alignment.sft(asked, arguments)
    terms = terms_of(settings(tuned, base_model="Qwen/Qwen3-0.6B"))
    assert (terms.license, terms.base_model, terms.base_license) == (
        "apache-2.0",
        "Qwen/Qwen3-0.6B",
        "apache-2.0",
    )
    with pytest.raises(FoundryError, match=r"base_model: missing; .*was fine-tuned from .*base"):
        terms_of(settings(tuned))


def test_an_import_tells_where_its_weights_are_from(stock, tmp_path):
    base = stock()
    import_stock(base, tmp_path / "foundry")
    terms = terms_of(settings(trained_from(tmp_path / "foundry", tmp_path / "sft"), base_model="unpublished"))
    assert (terms.license, terms.base_model) == ("apache-2.0", None)
    assert "not on the Hub" in terms.base_words
    terms = terms_of(settings(tmp_path / "foundry", base_model="Qwen/Qwen3-0.6B"))
    assert (terms.license, terms.base_model) == ("apache-2.0", "Qwen/Qwen3-0.6B")


def test_the_hubs_cache_names_the_base(stock, tmp_path):
    base = stock("models--Qwen--Qwen3-0.6B/snapshots/abc")
    terms = terms_of(settings(trained_from(base, tmp_path / "sft")))
    assert (terms.license, terms.base_model) == ("apache-2.0", "Qwen/Qwen3-0.6B")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (None, r"license: missing; .*base was not trained here, and no card \(README.md\) there names one"),
        ("# Base\nMIT\n", "license: missing"),
        ("---\nlanguage: en\n---\n", "license: missing"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "license: missing"),
        (
            "---\nlicense: Apache 2.0\n---\n",
            r"README.md: license: 'Apache 2.0' is no .*did you mean apache-2.0",
        ),
        ("---\nlicense: {\n---\n", r"README.md: its metadata is not YAML"),
        ("words\n---\nlicense: mit\n---\n", "license: missing"),
    ],
)
def test_a_licence_is_never_assumed(stock, tmp_path, card, message):
    tuned = trained_from(stock(card=card), tmp_path / "sft")
    with pytest.raises(FoundryError, match=message) as error:
        publish(settings(tuned, tmp_path / "out", base_model="Qwen/Qwen3-0.6B"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_another_licence_than_the_bases_stands_beside_it(stock, tmp_path):
    card = "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: https://example.org/l\n---\n"
    tuned = trained_from(stock(card=card), tmp_path / "sft")
    terms = terms_of(settings(tuned, base_model="Qwen/Qwen2.5-3B"))
    assert terms.license == "other"
    assert terms.extra == {"license_name": "qwen-research", "license_link": "https://example.org/l"}
    terms = terms_of(settings(tuned, base_model="Qwen/Qwen2.5-3B", license="mit"))
    assert (terms.license, terms.base_license, terms.extra) == ("mit", "other", {})


def test_from_scratch_is_ours(stock, tmp_path, tokenizer):
    import_stock(stock(), tmp_path / "some")
    pretrained = trained_from(tmp_path / "some", tmp_path / "pretrain", stage="data")
    tuned = trained_from(pretrained, tmp_path / "sft")
    terms = terms_of(settings(tuned))
    assert (terms.license, terms.base_model, terms.base_words) == ("mit", None, None)


def test_an_export_of_ours_is_a_base_by_the_name_it_was_pushed_under(stock, tmp_path):
    import_stock(stock(), tmp_path / "some")
    pretrained = trained_from(tmp_path / "some", tmp_path / "pretrain", stage="data")
    (tmp_path / "out").mkdir()
    exported = shutil.copytree(tmp_path / "base", tmp_path / "out" / "model")
    for pushed, name in ((True, "ada/tiny"), (False, None)):
        published = {"model": str(pretrained), "repo_id": "ada/tiny", "push_to_hub": pushed}
        (tmp_path / "out" / "run.json").write_text(json.dumps({"settings": {"publish": published}}))
        terms = terms_of(settings(trained_from(exported, tmp_path / f"sft{pushed}")))
        assert (terms.license, terms.base_model) == ("apache-2.0", name)


def test_a_broken_way_back_is_said(stock, tmp_path):
    base = stock()
    tuned = trained_from(base, tmp_path / "sft")
    (base / "model.safetensors").write_bytes((tuned / "model.safetensors").read_bytes())
    with pytest.raises(
        FoundryError, match=r"license: missing; .*base holds other weights than .*run.json started"
    ):
        terms_of(settings(tuned, base_model="Qwen/Qwen3-0.6B"))
    shutil.rmtree(base)
    with pytest.raises(
        FoundryError, match=r"license: missing; .*run.json says it started from .*where no model is"
    ):
        terms_of(settings(tuned, base_model="Qwen/Qwen3-0.6B"))
    terms = terms_of(settings(tuned, base_model="Qwen/Qwen3-0.6B", license="apache-2.0"))
    assert (terms.license, terms.base_license) == ("apache-2.0", None)


def test_a_record_that_names_its_own_model_ends(stock, tmp_path):
    tuned = trained_from(stock(), tmp_path / "sft")
    record = {"settings": {"alignment": {"model": str(tuned)}}}
    (tmp_path / "sft" / "run.json").write_text(json.dumps(record))
    with pytest.raises(FoundryError, match="where no model is"):
        terms_of(settings(tuned))


def test_a_relative_name_is_found_above_the_record(stock, tmp_path, monkeypatch):
    base = stock("work/runs/base")
    tuned = trained_from(base, tmp_path / "work/runs/sft")
    record = json.loads((tmp_path / "work/runs/sft/run.json").read_text())
    record["settings"]["alignment"]["model"] = "runs/base"
    (tmp_path / "work/runs/sft/run.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    assert terms_of(settings(tuned, base_model="Qwen/Qwen3-0.6B")).license == "apache-2.0"


def test_weights_of_ours_without_a_record_need_a_licence_only(stock, tmp_path):
    import_stock(stock(), tmp_path / "foundry")
    (tmp_path / "foundry" / "run.json").unlink()
    with pytest.raises(
        FoundryError, match=r"license: missing; .*foundry has no run.json of the run that made it"
    ):
        terms_of(settings(tmp_path / "foundry"))
    assert terms_of(settings(tmp_path / "foundry", license="mit")).base_model is None


def test_a_fine_tune_of_elsewhere_is_what_its_own_card_says(stock):
    card = "---\nlicense: llama3.2\nbase_model: meta-llama/Llama-3.2-1B\n---\n"
    terms = terms_of(settings(stock(family="llama", card=card)))
    assert (terms.license, terms.base_model) == ("llama3.2", "meta-llama/Llama-3.2-1B")


@pytest.mark.parametrize("format", ["llama", "foundry"])
def test_a_stock_model_is_published_as_what_it_is(stock, tmp_path, format):
    wanted = settings(stock(), tmp_path / "out", base_model="Qwen/Qwen3-0.6B", format=format)
    with pytest.raises(
        FoundryError, match=f"format: {format}, and .*base is a stock qwen3 checkpoint; use auto"
    ):
        publish(wanted)


def test_what_is_no_model_of_these_kinds_is_one_line(stock, tmp_path):
    folder = stock()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mistral"}))
    with pytest.raises(
        FoundryError, match=r"config.json: model_type is 'mistral'; expected foundry, qwen3 or llama"
    ):
        publish(settings(folder, tmp_path / "out"))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(FoundryError, match="a LoRA adapter, not a model; merge it"):
        publish(settings(folder, tmp_path / "out"))


def test_a_window_of_a_stock_model_is_kept(stock, tmp_path):
    """Foundry has none, so converting there and back was refused; as it is, it is exported."""
    export_stock(stock(use_sliding_window=True, sliding_window=16, max_window_layers=0), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["use_sliding_window"], config["sliding_window"]) == (True, 16)
