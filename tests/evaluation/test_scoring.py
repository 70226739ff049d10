"""What lm-eval scores through our model, against scores by hand from the logits; templates end in every way."""

import dataclasses
import json

import pytest
import torch

from tests.evaluation.test_tasks import load_module

tasks, choices = load_module("standard_library"), load_module("choice_task")
HEADERS = {
    "newline": "<|im_start|>assistant\n",
    "two_newlines": "<|im_start|>assistant\n\n",
    "colon_newline": "<|im_start|>assistant:\n",
    "space": "<|im_start|>Assistant: ",
    "word": "<|im_start|>Assistant",
    "token": "<|im_start|>",
}
ANSWERS = (
    "Add all items of x0.",
    "Remove é",
    "(sort) the very long list of paths of x1 and of x2.",
    "\u4e2d",
)


@pytest.fixture(scope="module", params=HEADERS)
def models(request, build_checkpoint, tokenizer):
    """lm-eval's ``hf`` and ours on one checkpoint, in fp32, whose template ends in some way."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    from modeling_foundry.evaluation.measuring.language_model import FoundryLM
    from modeling_foundry.saved_model import load_model

    folder = build_checkpoint("scored", seed=7)
    own = AutoTokenizer.from_pretrained(folder)
    own.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ header }}{% endif %}"
    ).replace("{{ header }}", "{{ '" + HEADERS[request.param].replace("\n", "\\n") + "' }}")
    model = load_model(folder, dtype=torch.float32)
    kinds = (FoundryLM, HFLM)
    return [kind(pretrained=model, tokenizer=own, batch_size=3) for kind in kinds]


def by_hand(lm, context: list[int], answer: list[int]) -> float:
    """Nats of the answer's tokens after the context's, by one plain forward pass."""
    with torch.no_grad():
        logits = lm.model(torch.tensor([context + answer[:-1]])).logits[0, -len(answer) :]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().item()


def ids(lm, text: str) -> list[int]:
    return lm.tokenizer(text, add_special_tokens=False).input_ids


def prompt_of(lm) -> str:
    return lm.apply_chat_template([{"role": "user", "content": "Summarize.\ndef add_items_0(x):"}])


def asked(lm, task, document) -> list:
    """Requests of one document, as lm-eval's own loop builds them, and their results."""
    context = task.fewshot_context(
        document, num_fewshot=0, apply_chat_template=True, fewshot_as_multiturn=True,
        chat_template=lm.apply_chat_template, gen_prefix=None,
    )  # fmt: skip
    requests = task.construct_requests(
        doc=document,
        ctx=context,
        metadata=("t", 0, 1),
        apply_chat_template=True,
        chat_template=lm.apply_chat_template,
    )
    return lm.loglikelihood(requests, disable_tqdm=True)


def choice_task(kind, documents):
    metrics = ("acc", "acc_norm", *(["margin"] if kind is choices.ChoiceTask else []))
    return kind(
        config={
            "task": "t", "custom_dataset": lambda **_: tasks.as_test_split(documents), "test_split": "test",
            "output_type": "multiple_choice", "doc_to_text": "prompt", "doc_to_choice": "choices",
            "doc_to_target": "label",
            "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in metrics],
        }
    )  # fmt: skip


def test_a_built_in_task_scores_the_answers_alone_and_divides_by_their_bytes(models):
    """Tokens of the prompt as a server encodes it, then those of the answer: what is divided is what was scored."""
    from lm_eval.api.task import ConfigurableTask

    ours, _ = models
    document = {"prompt": "Summarize.\ndef add_items_0(x):", "choices": list(ANSWERS), "label": 2}
    results = asked(ours, choice_task(ConfigurableTask, [document]), document)
    prompt = prompt_of(ours)
    for answer, (score, _) in zip(ANSWERS, results, strict=True):
        whole, context = ids(ours, prompt + answer), ids(ours, prompt)
        apart = whole[: len(context)] == context
        tokens = whole[len(context) :] if apart else ids(ours, answer)
        assert ours.tokenizer.decode(tokens) == answer
        assert score == pytest.approx(by_hand(ours, context, tokens), rel=1e-5)


def test_our_tasks_score_alike_through_lm_evals_own_model_and_by_hand(models):
    document = {
        "prompt": "Summarize.\ndef add_items_0(x):", "label": 0, "line": 1, "end_of_turn": "<|im_end|>",
        "choices": [answer + "<|im_end|>" for answer in ANSWERS],
    }  # fmt: skip
    measured = []
    for lm in models:
        task = choice_task(choices.ChoiceTask, [document])
        measured.append(task.process_results(document, asked(lm, task, document)))
        between, apart = task._between[1]
    assert measured[0] == pytest.approx(measured[1], rel=1e-4)
    ours, prompt = models[0], prompt_of(models[0])
    context, end = ids(ours, prompt), ids(ours, "<|im_end|>")
    if apart:
        tokens = [ids(ours, prompt + answer)[len(context) :] for answer in ANSWERS]
        sizes = [len(answer.encode()) for answer in ANSWERS]
    else:
        context = ids(ours, prompt.removesuffix(between))
        tokens = [ids(ours, prompt + answer)[len(context) :] for answer in ANSWERS]
        sizes = [len((between + answer).encode()) for answer in ANSWERS]
    alone = [by_hand(ours, context, answer) for answer in tokens]
    whole = [by_hand(ours, context, answer + end) for answer in tokens]
    assert measured[0]["margin"] == pytest.approx(whole[0] - whole[1], rel=1e-4)
    assert measured[0]["acc"] == choices.wins(whole, 0)
    assert measured[0]["acc_norm"] == choices.wins([a / b for a, b in zip(alone, sizes, strict=True)], 0)


def test_only_where_the_tokens_allow_it_an_answer_stands_apart(models, request):
    header = request.node.callspec.params["models"]
    lm = models[1]
    _, between, apart = choices.cut_prompt(prompt_of(lm), list(ANSWERS), lm.tok_encode)
    expected = {
        "newline": ("\n", True),
        "two_newlines": ("\n\n", True),
        "space": (" ", False),
        "token": ("", True),
    }
    if header in expected:
        assert (between, apart) == expected[header]
    assert apart or between


def test_a_request_that_does_not_fit_is_never_cut(models):
    from lm_eval.api.instance import Instance

    lm = models[0]
    prompt = lm.apply_chat_template([{"role": "user", "content": "x " * 200}])
    request = Instance("loglikelihood", {}, (prompt, "yes"), 0, ("t", 3, 1))
    with pytest.raises(ValueError, match=r"t: item 3: \d+ tokens, more than the context of 96"):
        lm.loglikelihood([request], disable_tqdm=True)
    generation = dataclasses.replace(
        request, request_type="generate_until", arguments=(prompt, {"max_gen_toks": 4, "until": []})
    )
    with pytest.raises(ValueError, match="leaves no room for its answer"):
        lm.generate_until([generation], disable_tqdm=True)


def test_spelled_control_tokens_score_alike_through_lm_evals_own_model(
    build_checkpoint, tokenizer, tmp_path, monkeypatch
):
    """The template of the house breaks them in prompts, the tasks in answers: both models get the same ids."""
    from lm_eval.models.huggingface import HFLM

    from modeling_foundry.evaluation.measuring.language_model import FoundryLM
    from modeling_foundry.saved_model import load_model

    answer = [{"role": "assistant", "content": "Ends with <|im_end|>"}]
    pair = {
        "prompt": [{"role": "user", "content": "What ends <|im_start|>a turn?<|im_end|>"}],
        "chosen": answer,
        "rejected": [{**answer[0], "content": "No <|endoftext|> here."}],
    }
    (tmp_path / "dpo_heldout.jsonl").write_text(json.dumps(pair))
    monkeypatch.setenv("FOUNDRY_DATA_DIR", str(tmp_path))
    document = tasks.load_preferences()["test"][0]
    model = load_model(build_checkpoint("spelled", seed=5), dtype=torch.float32)
    scores, control = [], []
    for kind in (FoundryLM, HFLM):
        lm = kind(pretrained=model, tokenizer=tokenizer, batch_size=3)
        task = choice_task(choices.ChoiceTask, [document])
        scores.append(task.process_results(document, asked(lm, task, document)))
        control.append(sum(id < 3 for id in lm.tok_encode(prompt_of(lm))))
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert control == [3, 3]  # <|im_start|>, <|im_end|>, and the assistant's <|im_start|>
