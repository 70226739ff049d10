"""What TRL, PEFT, Trainer, DDP and transformers' parallel plans expect of the model."""

import re

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from modeling_foundry import FoundryForCausalLM

COMPONENTS = [
    {},
    {"qk_norm": False, "ffn_type": "standard", "normalization": "layernorm", "position_encoding": "learned"},
]


@pytest.mark.parametrize("overrides", COMPONENTS)
def test_tensor_parallel_plan_names_exactly_the_modules_there_are(build, overrides):
    model = build(**overrides)
    names = {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    planned = set()
    for pattern in model.tp_plan:
        expression = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        matched = {name for name in names if expression.fullmatch(name)}
        assert matched, f"{pattern} names no module"
        planned |= matched
    whole = {name for name in names - planned if "norm" not in name and "embed" not in name}
    assert whole == set()


@pytest.mark.parametrize("overrides", COMPONENTS)
def test_pipeline_plan_names_modules(build, overrides):
    model = build(**overrides)
    assert {"lm_head", "model.embed_tokens", "model.layers", "model.norm"} == set(model._pp_plan)
    assert all(model.get_submodule(name) for name in model._pp_plan)


def test_trainer_passes_the_batch_count_and_asks_for_no_other_label(build):
    from transformers import Trainer, TrainingArguments
    from transformers.utils.generic import find_labels

    assert find_labels(FoundryForCausalLM) == ["labels"]
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none")
    assert Trainer(model=build(), args=arguments).model_accepts_loss_kwargs


def test_trl_fused_head_gives_the_same_loss(build, tokens):
    trl = pytest.importorskip("trl.trainer.utils")
    if not hasattr(trl, "add_fused_lm_head"):
        pytest.skip("this TRL has no fused head")
    model = build().train()
    expected = model(tokens, labels=tokens).loss
    trl.add_fused_lm_head(model)
    fused = model(input_ids=tokens, labels=tokens, fused_lm_head=True)
    torch.testing.assert_close(fused.loss, expected, rtol=1e-5, atol=0)
    assert torch.equal(model(input_ids=tokens, labels=tokens).loss, expected)


def test_lora_trains_the_adapters_only(build, tokens):
    peft = pytest.importorskip("peft")
    base = build().train()
    expected = base(tokens, labels=tokens).loss
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config).train()
    outputs = model(input_ids=tokens, labels=tokens)
    torch.testing.assert_close(outputs.loss, expected, rtol=1e-5, atol=0)
    assert outputs.logits is None
    outputs.loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)


@pytest.fixture
def one_rank(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("tied", [True, False])
def test_ddp(build, tokens, one_rank, tied):
    model = build(tie_word_embeddings=tied).train()
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    wrapped = DistributedDataParallel(model)
    wrapped(input_ids=tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("separate_head", [True, False])
def test_fsdp2(build, tokens, one_rank, separate_head):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = build(loss_chunk_tokens=9).train()
    model(tokens, labels=tokens).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if separate_head:
        fully_shard(model.lm_head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    outputs = model(input_ids=tokens, labels=tokens)
    assert outputs.logits is None
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), expected[name], rtol=1e-5, atol=1e-7)
