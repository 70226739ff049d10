"""Ended or cut, on models whose answers are known."""

import json

import pytest

from modeling_foundry.evaluation.items.prompts import prompt_of
from modeling_foundry.evaluation.measuring.stopping import (
    answer_prompts,
    outcomes_of,
    read_answer,
    stop_token_ids,
)
from modeling_foundry.settings import FoundryError


@pytest.fixture(scope="module")
def prompts(data_dir):
    path = data_dir / "sft_heldout.jsonl"
    return [prompt_of(json.loads(line), "a file") for line in path.read_text().splitlines()[:10]]


def token_id(tokenizer, text):
    return tokenizer.convert_tokens_to_ids(text)


def test_a_model_that_always_ends_its_turn(always_says, prompts, tokenizer):
    folder = always_says("ends", token_id(tokenizer, "<|im_end|>"))
    answers = answer_prompts(folder, prompts, max_new_tokens=6, batch_size=4, device="cpu")
    assert all(answer.ended and answer.num_tokens == 1 and answer.text == "" for answer in answers)
    assert outcomes_of(prompts, answers).totals.mean() == 1


def test_a_model_that_never_ends_is_cut(always_says, prompts, tokenizer):
    folder = always_says("babbles", token_id(tokenizer, "a"))
    answers = answer_prompts(folder, prompts, max_new_tokens=6, batch_size=4, device="cpu")
    assert all(not answer.ended and answer.num_tokens == 6 for answer in answers)
    assert {answer.text for answer in answers} == {"aaaaaa"}


def test_end_of_text_counts_as_an_end_of_its_own(always_says, prompts, tokenizer):
    folder = always_says("ends_text", token_id(tokenizer, "<|endoftext|>"))
    assert all(answer.ended for answer in answer_prompts(folder, prompts, 6, 4, "cpu"))


@pytest.mark.parametrize(
    ("row", "ended", "num_tokens"),
    [
        ([5, 6, 2, 0, 0], True, 3),  # ended, then padding
        ([5, 6, 7, 8, 2], True, 5),  # ended with the very last token it had
        ([5, 6, 7, 8, 9], False, 5),  # one token more might have been the end: it was cut
        ([2, 0, 0, 0, 0], True, 1),
    ],
)
def test_ended_is_read_from_tokens_not_from_length(tokenizer, row, ended, num_tokens):
    answer = read_answer(row, stops=[2], tokenizer=tokenizer)
    assert (answer.ended, answer.num_tokens) == (ended, num_tokens)


def test_padding_and_batches_do_not_change_an_answer(build_checkpoint, prompts):
    folder = build_checkpoint("random_words", seed=3)
    alone = answer_prompts(folder, prompts, max_new_tokens=8, batch_size=1, device="cpu")
    together = answer_prompts(folder, prompts, max_new_tokens=8, batch_size=10, device="cpu")
    assert together == alone
    assert len({answer.text for answer in alone}) > 1


class WithoutTurns:
    """A tokenizer of a model that ends its turns otherwise."""

    def get_vocab(self):
        return {"a": 0}


@pytest.mark.parametrize(
    ("configuration", "generation", "expected"),
    [
        ({"eos_token_id": 7}, None, [7]),
        ({"eos_token_id": 7}, {"eos_token_id": [9, 8]}, [8, 9]),
        ({"eos_token_id": None}, {"eos_token_id": None}, None),
    ],
)
def test_any_model_ends_its_answers_by_what_it_names(
    build_checkpoint, tmp_path, configuration, generation, expected
):
    content = json.loads((build_checkpoint("any") / "config.json").read_text()) | configuration
    (tmp_path / "config.json").write_text(json.dumps(content))
    if generation:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    if expected:
        assert stop_token_ids(tmp_path, WithoutTurns()) == expected
    else:
        with pytest.raises(FoundryError, match="nothing ends an answer"):
            stop_token_ids(tmp_path, WithoutTurns())
