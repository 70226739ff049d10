"""The loss a Trainer gets: labels, accumulation, checkpointing, packing, precision."""

import pytest
import torch
from transformers import DynamicCache
from transformers.loss.loss_utils import ForCausalLMLoss

from modeling_foundry.model.modeling_foundry import FoundryHead

PACKED = torch.cat([torch.arange(6), torch.arange(11)]).expand(3, -1)


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def train_step(model, **inputs):
    model.zero_grad()
    outputs = model(**inputs)
    outputs.loss.backward()
    return outputs, gradients(model)


def assert_close(ours, theirs, tolerance=2e-6):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert (ours[name] - theirs[name]).norm() <= tolerance * theirs[name].norm(), name


@pytest.mark.parametrize("tied", [True, False])
def test_skipping_the_logits_changes_nothing(build, tokens, tied):
    model = build(tie_word_embeddings=tied, loss_chunk_tokens=7, z_loss_weight=1e-3).train()
    skipped, ours = train_step(model, input_ids=tokens, labels=tokens)
    whole, theirs = train_step(model, input_ids=tokens, labels=tokens, skip_logits=False)
    assert skipped.logits is None
    assert whole.logits.shape == (3, 17, 97)
    torch.testing.assert_close(skipped.loss, whole.loss, rtol=1e-6, atol=0)
    assert_close(ours, theirs)


def test_when_logits_are_skipped(build, tokens):
    model = build()
    for training, labels, skip, present in (
        (True, tokens, None, False),
        (True, tokens, False, True),
        (True, None, None, True),
        (True, None, True, True),
        (False, tokens, None, True),
        (False, tokens, True, False),
        (False, None, None, True),
    ):
        outputs = model.train(training)(input_ids=tokens, labels=labels, skip_logits=skip)
        assert (outputs.logits is not None) == present
        assert (outputs.loss is not None) == (labels is not None)


def test_evaluation_loss_is_transformers_and_has_no_z_loss(build, tokens):
    model = build(z_loss_weight=1e-2)
    labels = tokens.clone()
    labels[1, 4:9] = -100
    outputs = model(tokens, labels=labels)
    expected = ForCausalLMLoss(outputs.logits, labels, 97)
    torch.testing.assert_close(outputs.loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        model(tokens, labels=labels, skip_logits=True).loss, expected, rtol=1e-6, atol=0
    )
    assert model.train()(tokens, labels=labels).loss > expected


def test_labels_that_are_already_shifted(build, tokens):
    model = build().train()
    shifted = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    expected = model(tokens, labels=tokens).loss
    assert torch.equal(model(tokens, shift_labels=shifted).loss, expected)
    assert torch.equal(model(tokens, labels=tokens, shift_labels=shifted).loss, expected)


@pytest.mark.parametrize("skip_logits", [True, False])
def test_labels_with_another_ignored_number(build, tokens, skip_logits):
    model, labels = build().train(), tokens.clone()
    labels[1, 4:9] = -100
    expected = model(tokens, labels=labels, skip_logits=skip_logits).loss
    labels[1, 4:9] = 0
    assert torch.equal(model(tokens, labels=labels, ignore_index=0, skip_logits=skip_logits).loss, expected)


def test_accumulated_steps_equal_one_step(build, tokens):
    model = build().train()
    labels = tokens.clone()
    labels[0, :9] = -100
    labels[2, 3:] = -100
    num_items = (labels[:, 1:] != -100).sum()
    _, whole = train_step(model, input_ids=tokens, labels=labels, num_items_in_batch=num_items)
    model.zero_grad()
    for row in range(3):
        inputs = {"input_ids": tokens[row : row + 1], "labels": labels[row : row + 1]}
        model(**inputs, num_items_in_batch=num_items).loss.backward()
    assert_close(gradients(model), whole, 1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(build, tokens, reentrant):
    model = build(attention_dropout=0.0).train()
    _, plain = train_step(model, input_ids=tokens, labels=tokens)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    recomputed, ours = train_step(model, input_ids=tokens, labels=tokens)
    assert recomputed.past_key_values is None
    assert_close(ours, plain, 1e-7)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mask", [None, "ones"])
def test_packed_documents_do_not_see_each_other_with_default_settings(build, tokens, backend, training, mask):
    model = build().train(training)
    model.set_attn_implementation(backend)
    mask = torch.ones_like(tokens) if mask else None
    changed = tokens.clone()
    changed[:, :6] = (changed[:, :6] + 11) % 97
    inputs = {"position_ids": PACKED, "attention_mask": mask}
    before, after = model(tokens, **inputs).logits, model(changed, **inputs).logits
    assert torch.equal(before[:, 6:], after[:, 6:])
    assert not torch.equal(before[:, :6], after[:, :6])
    alone = model(tokens[:, 6:]).logits
    torch.testing.assert_close(before[:, 6:], alone, rtol=1e-4, atol=1e-4)


def test_packing_with_a_cache_or_padding_is_refused(build, tokens):
    model = build()
    with pytest.raises(ValueError, match=r"packed documents.*past_key_values"):
        model(tokens, position_ids=PACKED, past_key_values=DynamicCache(config=model.config))
    padded = torch.ones_like(tokens)
    padded[:, -1] = 0
    with pytest.raises(ValueError, match=r"packed documents.*attention_mask"):
        model(tokens, position_ids=PACKED, attention_mask=padded)


def test_no_cache_is_made_in_training_or_for_a_loss(build, tokens):
    model = build()
    assert model(tokens).past_key_values is not None
    assert model(tokens, labels=tokens).past_key_values is None
    assert model.train()(tokens).past_key_values is None


def test_the_separators_embedding_learns(build, tokens):
    model = build(pad_token_id=5, eos_token_id=5, tie_word_embeddings=False).train()
    tokens[:, 3] = 5
    _, grads = train_step(model, input_ids=tokens, labels=tokens)
    assert grads["model.embed_tokens.weight"][5].norm() > 0


def test_autocast_trains_fp32_weights(build, tokens):
    model = build().train()
    exact, _ = train_step(model, input_ids=tokens, labels=tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(input_ids=tokens, labels=tokens)
    outputs.loss.backward()
    assert outputs.loss.dtype == torch.float32
    assert abs(outputs.loss - exact.loss) < 0.05 * exact.loss
    assert all(gradient.dtype == torch.float32 for gradient in gradients(model).values())


def test_a_replaced_head_still_gives_the_loss(build, tokens):
    model = build().train()
    expected = model(tokens, labels=tokens).loss

    class Wrapper(torch.nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head = head

        def forward(self, hidden_states):
            return self.head(hidden_states)

    model.lm_head = Wrapper(model.lm_head)
    outputs = model(tokens, labels=tokens)
    assert outputs.logits is not None
    torch.testing.assert_close(outputs.loss, expected, rtol=1e-6, atol=0)


def test_the_loss_goes_through_the_heads_hooks(build, tokens):
    model = build().train()
    called = []
    handle = model.lm_head.register_forward_pre_hook(lambda *_: called.append(True))
    model(tokens, labels=tokens)
    handle.remove()
    assert isinstance(model.lm_head, FoundryHead)
    assert called == [True]


def test_logits_to_keep(build, tokens):
    model = build()
    logits = model(tokens).logits
    rows = torch.tensor([[0, 3], [1, 2], [5, 16]])
    mask = torch.zeros(3, 17, dtype=torch.bool)
    mask[0, 2] = mask[2, 5] = True
    for keep, expected in (
        (1, logits[:, -1:]),
        (0, logits),
        (torch.tensor([2, 7]), logits[:, [2, 7]]),
        (rows, torch.stack([logits[i, rows[i]] for i in range(3)])),
        (mask, logits[mask]),
    ):
        torch.testing.assert_close(model(tokens, logits_to_keep=keep).logits, expected, rtol=1e-5, atol=1e-6)


def test_exactly_one_kind_of_input(build, tokens):
    model = build()
    embeddings = model.get_input_embeddings()(tokens)
    assert torch.equal(model(inputs_embeds=embeddings).logits, model(tokens).logits)
    for inputs in ({}, {"input_ids": tokens, "inputs_embeds": embeddings}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**inputs)


def test_left_padding_gives_the_same_as_no_padding(build, tokens):
    model = build()
    padded = torch.nn.functional.pad(tokens[:1], (4, 0), value=1)
    mask = torch.nn.functional.pad(torch.ones_like(tokens[:1]), (4, 0))
    prompt = {"max_new_tokens": 6, "do_sample": False}
    alone = model.generate(tokens[:1], **prompt)[:, 17:]
    with_padding = model.generate(padded, attention_mask=mask, **prompt)[:, 21:]
    assert torch.equal(alone, with_padding)
