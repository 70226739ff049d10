"""Each silent fault between samples, tokenizer and template is made once and must be found."""

import json
import subprocess
import sys
from unittest.mock import patch

import pytest
from tokenizers import processors

from modeling_foundry.data.linting.pipeline import lint_samples, marked
from modeling_foundry.data.linting.template_process import TemplateLimitError, TemplateProcess
from modeling_foundry.data.tokenizer.training import CHAT_TEMPLATE, train_tokenizer
from modeling_foundry.settings import FoundryError
from tests.conftest import REPOSITORY
from tests.data.template_here import Here

TEXTS = ["Say hello to the world.\nHello, world!\n" * 30, "What is one and one? Two.\n" * 30]


def sample(question="Say hello.", answer="Hello, world!"):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def pair(question="Say hello.", chosen="Hello, world!", rejected="What?"):
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


SAMPLES = [sample(), sample("What is one and one?", "Two."), sample("Say hello to the world.", "Hello!")]


@pytest.fixture
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=340)


def lint(samples, tokenizer, **options):
    with patch("modeling_foundry.data.linting.pipeline.TemplateProcess", Here):
        return by_name(samples, tokenizer, **options)


def by_name(samples, tokenizer, **options):
    return {check.name: check for check in lint_samples(samples, tokenizer, **options).checks}


def with_bos(tokenizer):
    """The tokenizer adds <|bos|> to whatever it encodes."""
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", bos)]
    )
    return tokenizer


def test_our_own_template_passes_every_check(tokenizer):
    report = lint_samples(SAMPLES, tokenizer)
    assert {check.status for check in report.checks} == {"PASS"}
    assert not report.failed
    found = {check.name: check.detail for check in report.checks}
    assert found["one BOS policy"] == "no BOS: the tokenizer has none"
    assert found["stop token in the loss"] == "each of 3 answers ends with <|endoftext|> or <|im_end|>"
    assert report.pieces == [
        (False, "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"),
        (True, "Hello, world!<|im_end|>"),
        (False, "\n"),
    ]


def test_trained_tokens_are_those_of_trl(tokenizer, tmp_path):
    """The tokens that the linter counts and the labels that SFTTrainer would learn are the same."""
    tokenizer.save_pretrained(tmp_path)
    expected = tokenizer.apply_chat_template(
        SAMPLES[0]["messages"], return_dict=True, return_assistant_tokens_mask=True
    )
    with TemplateProcess(tmp_path, 10, 1 << 30, 1024) as process:
        process.start()
        (sequence,) = process.render(SAMPLES[0])["sequences"]
    assert sequence["ids"] == expected["input_ids"]
    assert sequence["mask"] == expected["assistant_masks"]


def test_preference_pairs_pass_without_generation_markers(tokenizer):
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    report = lint_samples([pair(), pair("One?", "Two.", "Hello!")], tokenizer)
    assert {check.status for check in report.checks} == {"PASS"}
    assert "{% generation %} in the template" not in {check.name for check in report.checks}
    assert report.pieces[1] == (True, "Hello, world!<|im_end|>\n")


def test_a_missing_template_is_the_only_finding(tokenizer):
    tokenizer.chat_template = None
    (check,) = lint_samples(SAMPLES, tokenizer).checks
    assert (check.name, check.status) == ("chat template", "FAIL")


def test_a_template_without_generation_markers(tokenizer):
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    found = lint(SAMPLES, tokenizer)
    assert found["{% generation %} in the template"].status == "FAIL"
    assert "write {% generation %} before an answer" in found["{% generation %} in the template"].detail
    assert found["trained tokens in every row"].detail == "3 of 3 sequences have none"
    assert found["trained tokens in every row"].status == "FAIL"


def test_an_end_of_turn_outside_the_loss(tokenizer):
    inside = "{{- plain(message['content']) + '<|im_end|>' }}{% endgeneration %}"
    assert inside in CHAT_TEMPLATE
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        inside, "{{- plain(message['content']) }}{% endgeneration %}{{- '<|im_end|>' }}"
    )
    check = lint(SAMPLES, tokenizer)["stop token in the loss"]
    assert check.status == "FAIL"
    assert check.detail == "3 of 3 answers do not end with <|endoftext|> or <|im_end|>"


def test_a_line_end_trained_after_the_stop_is_fine(tokenizer):
    tokenizer.chat_template = CHAT_TEMPLATE.replace("'<|im_end|>' }}{% endgen", "'<|im_end|>\\n' }}{% endgen")
    assert lint(SAMPLES, tokenizer)["stop token in the loss"].status == "PASS"


def test_what_is_trained_after_the_stop_is_not_fine(tokenizer):
    tokenizer.chat_template = CHAT_TEMPLATE.replace("'<|im_end|>' }}{% endgen", "'<|im_end|>!' }}{% endgen")
    check = lint(SAMPLES, tokenizer)["stop token in the loss"]
    assert (check.status, check.detail[:28]) == ("FAIL", "3 of 3 answers do not end wi")


UNMARKED = CHAT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
EACH = "{%- for m in messages %}{% if COND %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{%- endfor %}"  # noqa: E501


@pytest.mark.parametrize(
    ("template", "status", "detail"),
    [
        (CHAT_TEMPLATE, "PASS", "5 answers"),
        ("{% generation %}" + UNMARKED + "{% endgeneration %}", "FAIL", "5 other turns are, too"),
        (EACH.replace("COND", "m.role == 'user'"), "FAIL", "5 other turns are, too"),
        (EACH.replace("COND", "loop.last"), "WARN", "of 5 answers 1 are not, 0 are empty"),
    ],
    ids=["ours", "all", "questions", "last"],
)
def test_a_mask_over_other_turns(tokenizer, template, status, detail):
    tokenizer.chat_template = template
    rows = [*SAMPLES, {"messages": sample()["messages"] + sample("One?", "Two.")["messages"]}]
    check = lint(rows, tokenizer)["answers alone are trained"]
    assert (check.status, check.detail[: len(detail)]) == (status, detail)


def test_an_answer_that_repeats_its_question_is_no_fault(tokenizer):
    assert lint([sample("Two.", "Two.")], tokenizer)["answers alone are trained"].status == "PASS"


def test_empty_answers_are_counted(tokenizer):
    check = lint([*SAMPLES, sample(answer=" ")], tokenizer)["answers alone are trained"]
    assert (check.status, check.detail) == ("WARN", "of 4 answers 0 are not, 1 are empty")


def test_pairs_of_the_same_answer_are_counted(tokenizer):
    same = pair(chosen="Hello!", rejected="Hello!")
    check = lint([pair(), same], tokenizer)["chosen is not rejected"]
    assert (check.status, check.detail[:14]) == ("WARN", "1 of 2 pairs a")
    assert lint([same], tokenizer)["chosen is not rejected"].status == "FAIL"
    assert lint([pair()], tokenizer)["chosen is not rejected"].status == "PASS"


def test_stops_of_the_generation_config_count(tokenizer, tmp_path):
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|stop|>"]}, replace_extra_special_tokens=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE.replace("'<|im_end|>' }}{% endgen", "'<|stop|>' }}{% endgen")
    tokenizer.save_pretrained(tmp_path)
    assert lint(SAMPLES, tmp_path)["stop token in the loss"].status == "FAIL"
    stop = tokenizer.convert_tokens_to_ids("<|stop|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop]}))
    check = lint(SAMPLES, tmp_path)["stop token in the loss"]
    assert (check.status, check.detail[-8:]) == ("PASS", "<|stop|>")


@pytest.mark.parametrize(
    ("adds", "writes", "status", "detail"),
    [
        (False, "", "PASS", "no BOS"),
        (False, "<|bos|>", "PASS", "one <|bos|>, from the template"),
        (True, "", "WARN", "training sees none, but tokenizer(text) adds <|bos|>"),
        (True, "<|bos|>", "FAIL", "double: template and tokenizer both write <|bos|>"),
        (False, "<|bos|><|bos|>", "FAIL", "the template writes 2 <|bos|> at the start"),
    ],
)
def test_bos_policies(tokenizer, adds, writes, status, detail):
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    if adds:
        tokenizer = with_bos(tokenizer)
    tokenizer.chat_template = "{{- '%s' }}%s" % (writes, CHAT_TEMPLATE)  # noqa: UP031
    check = lint(SAMPLES, tokenizer)["one BOS policy"]
    assert (check.status, check.detail[: len(detail)]) == (status, detail)


@pytest.mark.parametrize(
    ("before", "each_question", "status", "detail"),
    [
        ("<|bos|>\\n<|bos|>", "", "FAIL", "more <|bos|> than questions in 3 of 4 sequences"),
        ("Chat: <|bos|>x<|bos|>y<|bos|>", "", "FAIL", "more <|bos|> than questions in 4 of 4 sequences"),
        ("", "<|bos|>", "WARN", "<|bos|> stands inside 1 of 4 sequences, as Llama 2 has it"),
    ],
)
def test_a_bos_further_in_is_found_too(tokenizer, before, each_question, status, detail):
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    tokenizer.chat_template = f"{{{{- '{before}' }}}}" + CHAT_TEMPLATE.replace(
        "{%- for message in messages %}",
        "{%- for message in messages %}{%- if message['role'] == 'user' %}{{- '"
        + each_question
        + "' }}{%- endif %}",
    )
    rows = [*SAMPLES, {"messages": 2 * sample()["messages"]}]
    check = lint(rows, tokenizer)["one BOS policy"]
    assert (check.status, check.detail[: len(detail)]) == (status, detail)


def test_a_bos_that_also_opens_turns_is_one_policy(tokenizer):
    tokenizer.bos_token = "<|im_start|>"  # as SmolLM2 has it
    assert lint(SAMPLES, tokenizer)["one BOS policy"].status == "PASS"


@pytest.mark.slow
def test_templates_by_name_need_a_default(tokenizer):
    tokenizer.chat_template = {"tool_use": CHAT_TEMPLATE}
    (check,) = lint_samples(SAMPLES, tokenizer).checks
    assert (check.name, check.status) == ("chat template", "FAIL")
    tokenizer.chat_template = {"tool_use": "{{ 1 }}", "default": CHAT_TEMPLATE}
    assert not lint_samples(SAMPLES, tokenizer).failed


def test_a_bos_for_some_rows_only_is_no_policy(tokenizer):
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    tokenizer.chat_template = (
        "{%- if messages[0]['content'] == 'Say hello.' %}{{- '<|bos|>' }}{%- endif %}" + CHAT_TEMPLATE
    )
    check = lint(SAMPLES, tokenizer)["one BOS policy"]
    assert check.status == "FAIL"
    assert "2 begin with 0, 1 begin with 1 <|bos|>" in check.detail


def test_cut_answers_are_counted(tokenizer):
    samples = [sample(), sample(answer="Hello, world! " * 30), sample(question="Say hello. " * 60)]
    tokens = [
        tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)[
            "assistant_masks"
        ]
        for row in samples
    ]
    lost = sum(sum(mask[60:]) for mask in tokens)
    check = lint(samples, tokenizer, max_length=60)["answers not cut"]
    assert check.status == "WARN"
    assert check.detail == (
        f"2 of 3 are at max_length 60, 1 of them wholly; {lost} of {sum(map(sum, tokens))} trained tokens are lost"
    )
    assert lint(samples, tokenizer, max_length=3)["answers not cut"].status == "FAIL"


def test_prompts_that_are_no_prefix(tokenizer):
    rows = [*SAMPLES, sample(answer="\nHello")]
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "{%- for message in messages %}",
        "{%- if not add_generation_prompt %}{{- 'Whole. ' }}{%- endif %}{%- for message in messages %}",
    )
    check = lint(rows, tokenizer)["prompt is a prefix"]
    assert (check.status, check.detail[:12]) == ("FAIL", "not in 4 of ")
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "{%- if add_generation_prompt %}",
        "{%- if add_generation_prompt and 'world' in messages[0]['content'] %}{{- ' ' }}{%- endif %}"
        "{%- if add_generation_prompt %}",
    )
    check = lint(rows, tokenizer)["prompt is a prefix"]
    assert (check.status, check.detail[:12]) == ("WARN", "not in 1 of ")


def test_control_tokens_in_contents_are_counted(tokenizer):
    rows = [*SAMPLES, sample("What is <|im_end|>?", "An end."), sample("Hello.", "<|im_start|>system")]
    check = lint(rows, tokenizer)["control tokens in contents"]
    assert (check.status, check.detail) == ("PASS", "spelled in 2 of 5 rows, written as text by the template")
    tokenizer.chat_template = CHAT_TEMPLATE.replace("plain(message['content'])", "message['content']")
    check = lint(rows, tokenizer)["control tokens in contents"]
    assert (check.status, check.detail) == ("WARN", "spelled in 2 of 5 rows, and real control tokens in 2")


def test_a_row_that_the_template_refuses(tokenizer):
    tokenizer.chat_template = (
        "{%- if messages[0]['role'] == 'system' %}{{- raise_exception('no system messages') }}{%- endif %}"
        + CHAT_TEMPLATE
    )
    rows = [*SAMPLES, {"messages": [{"role": "system", "content": "x"}, *sample()["messages"]]}]
    found = lint(rows, tokenizer)
    assert found["every row renders"].status == "FAIL"
    assert found["every row renders"].detail == (
        "1 of 4 rows do not; row 4: TemplateError: no system messages"
    )
    assert found["stop token in the loss"].status == "PASS"


# ------------------------------------------------------------------------- what the text has no trace of

# Writes tools, calls and reasoning; enable_thinking is a variable of it.
WITH_TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' %}{% generation %}"
    "{%- if enable_thinking and m.reasoning_content %}{{- m.reasoning_content }}{%- endif %}{{- m.content or '' }}"
    "{%- for call in m.tool_calls or [] %}{{- call.function.name + (call.function.arguments | tojson) }}{%- endfor %}"
    "{{- '<|im_end|>' }}{% endgeneration %}{%- else %}{{- m.content + '<|im_end|>' }}{%- endif %}{{- '\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
CALL = {"type": "function", "function": {"name": "greet", "arguments": {"whom": "world"}}}
GREET = {"type": "function", "function": {"name": "greet", "description": "Say hello."}}


def calling(*calls, **more):
    turn = {"role": "assistant", "content": "", "tool_calls": list(calls or [CALL])}
    return {"messages": [sample()["messages"][0], turn], **more}


def calling_pair(**more):
    return {**pair(), "chosen": calling()["messages"][1:], **more}


@pytest.mark.parametrize(
    ("row", "cut", "lost"),
    [
        (calling(), None, None),
        (calling(CALL, {**CALL, "function": {"name": "bow", "arguments": {}}}, tools=[GREET]), None, None),
        (calling_pair(tools=[GREET]), None, None),
        (calling(), "{%- for call", "row 1: turn 2, tool_calls, call 1"),
        (calling_pair(), "{%- for call", "row 1: turn 2, tool_calls, call 1"),
        (calling(), "(call.function.arguments", "row 1: turn 2, arguments of call 1"),
        (calling(CALL, CALL), "or []", "row 1: turn 2, tool_calls, call 2"),
        (sample() | {"tools": [GREET]}, "for tool", "row 1: tools, tool 1"),
        (pair() | {"tools": [GREET]}, "for tool", "row 1: tools, tool 1"),
        (sample() | {"tools": [GREET, GREET]}, "in tools", "row 1: tools, tool 2"),
    ],
)  # fmt: skip
def test_calls_and_tools_without_a_trace_in_the_text_fail(tokenizer, row, cut, lost):
    changed = {
        "{%- for call": ("in m.tool_calls or []", "in []"),
        "(call.function.arguments": ("(call.function.arguments | tojson)", "'()'"),
        "or []": ("m.tool_calls or []", "(m.tool_calls or [])[:1]"),
        "for tool": ("{{- tool | tojson }}", ""),
        "in tools": ("for tool in tools", "for tool in tools[:1]"),
    }
    tokenizer.chat_template = WITH_TOOLS.replace(*changed[cut]) if cut else WITH_TOOLS
    check = lint([row, row], tokenizer)["turns, calls and tools in the text"]
    assert (check.status, lost is None) == ("PASS" if lost is None else "FAIL", lost is None)
    if lost:
        assert (
            f"2 of 2 rows have some of which the template writes nothing, first {lost}; give" in check.detail
        )


def dialogue(*roles):
    return [{"role": role, "content": f"{role} says {place}"} for place, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("roles", "rule", "lost"),
    [
        (("system", "user", "assistant"), None, None),
        (("user", "assistant", "tool", "assistant"), None, None),
        (("system", "user", "assistant"), "m.role != 'system'", "turn 1, the content of system"),
        (("user", "assistant", "tool", "assistant"), "m.role != 'tool'", "turn 3, the content of tool"),
        (("user", "assistant", "user", "assistant"), "not loop.first", "turn 1, the content of user"),
        (("user", "assistant", "user", "assistant"), "loop.index != 2", "turn 2, the content of assistant"),
    ],
)
def test_a_turn_without_a_trace_in_the_text_fails(tokenizer, roles, rule, lost):
    """The heading that the template writes over it is none, and neither are the same words in another turn."""
    content = "m.content | trim | upper"
    said = content if rule is None else f"({content} if {rule} else '')"
    tokenizer.chat_template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
        "{%- generation %}{{- " + said + " + '<|im_end|>' }}{%- endgeneration %}{{- '\n' }}{%- endfor %}"
    )
    row, name = dialogue(*roles), "turns, calls and tools in the text"
    rows = [{"messages": row}], [{"prompt": row[:-1], "chosen": row[-1:], "rejected": dialogue("assistant")}]
    for check in (lint(samples, tokenizer)[name] for samples in rows):
        assert check.status == ("FAIL" if lost else "PASS")
        assert lost is None or f"first row 1: {lost}; give a template that reads every role" in check.detail


def test_what_a_template_makes_of_a_content_is_a_trace(tokenizer):
    """What it cuts from it or says only where it is short is its own affair, and so is a word that it refuses."""
    cut = CHAT_TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1]")
    refuses = (
        "{%- if messages[0].content != 'Say hello.' %}{{ raise_exception('no') }}{%- endif %}" + CHAT_TEMPLATE
    )
    for template in (cut, refuses):
        tokenizer.chat_template = template
        row = sample(answer="<think>Well</think>Hello, world!")
        assert lint([row], tokenizer)["turns, calls and tools in the text"].status == "PASS"


def test_our_own_template_refuses_calls_and_tools(tokenizer):
    """It writes contents alone: a turn of calls would be learned as an empty answer."""
    assert lint([calling()], tokenizer)["turns, calls and tools in the text"].status == "FAIL"
    assert (
        lint([sample() | {"tools": [GREET]}], tokenizer)["turns, calls and tools in the text"].status
        == "FAIL"
    )
    nothing = calling()
    nothing["messages"][1]["content"] = None
    assert "a content is not text" in lint([nothing], tokenizer)["every row renders"].detail


def test_keys_that_the_template_does_not_read_are_named(tokenizer):
    thinking = sample()
    thinking["messages"][1]["reasoning_content"] = "They want a greeting."
    rows = [thinking, sample(), {**thinking, "chat_template_kwargs": {"enable_thinking": True}}]
    check = lint(rows, tokenizer)["keys that are read"]
    assert check.status == "WARN"
    assert check.detail == (
        "the template writes nothing of reasoning_content (of 2 rows), chat_template_kwargs.enable_thinking "
        "(of 1 rows): it is not learned"
    )
    tokenizer.chat_template = WITH_TOOLS
    check = lint(rows, tokenizer)["keys that are read"]
    assert (check.status, "reasoning_content (of 1 rows)" in check.detail) == ("WARN", True)
    assert lint(rows[1:], tokenizer)["keys that are read"].status == "PASS"


def test_tools_and_variables_reach_the_tokens(tokenizer):
    tokenizer.chat_template = WITH_TOOLS
    row = calling(tools=[GREET], chat_template_kwargs={"enable_thinking": True})
    row["messages"][1]["reasoning_content"] = "Hm."
    text = "".join(text for _, text in lint_samples([row], tokenizer).pieces)
    assert text == tokenizer.apply_chat_template(
        row["messages"], tools=[GREET], enable_thinking=True, tokenize=False
    )
    assert "Hm." in text
    assert "Say hello." in text


@pytest.mark.parametrize(
    ("mode", "max_length", "status", "detail"),
    [
        ("keep_start", 60, "FAIL", "2 of 2 are at max_length 60, 2 of them wholly"),
        ("keep_end", 60, "PASS", "none at max_length 60, keep_end"),
        ("keep_end", 3, "WARN", "2 of 2 are at max_length 3, keep_end, 0 of them wholly"),
        ("keep_start", None, "PASS", "none without max_length"),
    ],
)
def test_what_is_cut_depends_on_the_end_that_is_kept(tokenizer, mode, max_length, status, detail):
    rows = [sample(question="Say hello. " * 60), sample(question="Say hello to the world. " * 60)]
    check = lint(rows, tokenizer, max_length=max_length, truncation_mode=mode)["answers not cut"]
    assert (check.status, check.detail[: len(detail)]) == (status, detail)


@pytest.mark.parametrize(
    ("chosen", "rejected", "mode", "max_length", "status"),
    [
        ("Hello, world! One.", "Hello, world! Two.", "keep_start", 1024, "PASS"),
        ("Hello, world! One.", "Hello, world! Two.", "keep_start", 22, "FAIL"),
        ("One. Hello, world!", "Two. Hello, world!", "keep_end", 5, "FAIL"),
        ("One. Hello, world!", "Two. Hello, world!", "keep_start", 40, "PASS"),
        ("Hello, world! One.", "Hello, world! Two.", "keep_end", 5, "PASS"),
        ("Hello, world!", "Hello, world!", "keep_start", None, "FAIL"),
    ],
)
def test_pairs_are_compared_as_they_are_cut(tokenizer, chosen, rejected, mode, max_length, status):
    rows = [pair(chosen=chosen, rejected=rejected)]
    check = lint(rows, tokenizer, max_length=max_length, truncation_mode=mode)["chosen is not rejected"]
    assert check.status == status, check.detail
    if status == "FAIL" and max_length:
        assert f"1 of them only when cut at max_length {max_length}" in check.detail


# ---------------------------------------------------------------------------------------- hostile templates

NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set s = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set s.x = s.x + s.x %}{% endfor %}{{ s.x }}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "detail"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError: Range too big"),
        (NESTED, "takes longer than 2 s"),
        ("{{ 'a' * 10**9 }}", "takes more than 512 MiB"),
        ("{{ 'a' * 10**7 }}", "TooLargeError: renders 10,000,000 characters; expected at most 4,000,000"),
        (DOUBLING, "takes more than 512 MiB"),
        (
            "{{ ''.__class__.__mro__ }}",
            "SecurityError: access to attribute '__class__' of 'str' object is unsafe.",
        ),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError: "),
        ("{{ 10 ** (10 ** 10) }}", "takes longer than 2 s"),
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "RecursionError: "),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "SecurityError: "),
        ("{{ messages.append({'role': 'user'}) }}", "SecurityError: "),
    ],
    ids=[
        "range",
        "nested",
        "long",
        "large",
        "doubling",
        "attribute",
        "escape",
        "power",
        "macro",
        "globals",
        "change",
    ],
)
def test_a_hostile_template_is_one_line(tokenizer, template, detail):
    tokenizer.chat_template = template
    limit = 2 if "2 s" in detail else 1000  # a busy machine may take long for what another limit ends
    report = lint_samples(SAMPLES, tokenizer, time_limit_s=limit, memory_limit_mb=512)
    assert report.failed
    check = report.checks[-1]
    assert (check.name, check.status) == ("template within limits", "FAIL")
    assert check.detail.startswith(f"row 1: {detail}")
    assert "\n" not in check.detail


def test_a_forbidden_attribute_is_nothing(tokenizer):
    tokenizer.chat_template = "{{ ''.__class__ }}|{{ messages.__class__ }}|{{ raise_exception.__globals__ }}"
    assert lint_samples(SAMPLES, tokenizer).pieces == [(False, "||")]


def test_the_template_never_runs_in_this_process(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "apply_chat_template", lambda *_, **__: pytest.fail("it ran here"))
    assert not lint_samples(SAMPLES, tokenizer).failed


@pytest.mark.parametrize(
    "template",
    ["{% import 'os' as os %}{{ os.listdir() }}", "{% include '/etc/hostname' %}", "{% extends 'x' %}"],
)
def test_a_template_reads_no_other_file(tokenizer, template):
    tokenizer.chat_template = template
    check = lint(SAMPLES, tokenizer)["every row renders"]
    assert check.detail.startswith("3 of 3 rows do not; row 1: TypeError: no loader")


def test_a_template_that_is_no_jinja_is_said(tokenizer):
    tokenizer.chat_template = "{% for %}"
    found = lint(SAMPLES, tokenizer)
    assert found["every row renders"].detail.startswith("3 of 3 rows do not; row 1: TemplateSyntaxError: ")


def test_a_killed_child_is_said(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    with TemplateProcess(tmp_path, 10, 1 << 30, 1024) as process:
        process.start()
        process.process.kill()
        process.process.wait()
        with pytest.raises(TemplateLimitError, match=r"ended its process \(exit code -9"):
            process.render(SAMPLES[0])


# ------------------------------------------------------------------------------------------------ command


def run(*arguments):
    command = [sys.executable, "recipes/prepare_data.py", "lint", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_the_command(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = [f"--file={write(tmp_path / 'rows.jsonl', SAMPLES)}", f"--tokenizer={tmp_path / 'tokenizer'}"]
    finished = run(*options, "--max_length=64")
    assert finished.returncode == 0, finished.stderr
    assert "«Hello, world!<|im_end|>»" in finished.stdout
    assert "FAIL" not in finished.stdout
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}")
    finished = run(*options)
    assert finished.returncode == 1, finished.stderr
    assert "FAIL" in finished.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "rows.jsonl: empty; expected rows"),
        ("[" * 100_000, "rows.jsonl: not JSON"),
        (
            '{"text": "a"}\n',
            "rows.jsonl, line 1: missing key: messages, or prompt, chosen and rejected; the row has text",
        ),
    ],
)
def test_bad_samples_are_one_line(content, message, tmp_path):
    (tmp_path / "rows.jsonl").write_text(content)
    finished = run(f"--file={tmp_path / 'rows.jsonl'}", f"--tokenizer={tmp_path}")
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: {tmp_path}/{message}"), finished.stderr
    assert finished.stderr.count("\n") == 1


def test_the_folder_of_a_model_will_do(tokenizer, tmp_path):
    """The child knows neither our configuration class nor its custom code, and must not ask for either."""
    from modeling_foundry import FoundryConfig

    FoundryConfig(vocab_size=512, hidden_size=64, num_hidden_layers=1).save_pretrained(tmp_path)
    assert "auto_map" in json.loads((tmp_path / "config.json").read_text())
    tokenizer.save_pretrained(tmp_path)
    assert not lint_samples(SAMPLES, tmp_path).failed


def test_a_folder_without_tokenizer_is_one_line(tmp_path):
    with pytest.raises(FoundryError, match=f"{tmp_path}: no tokenizer that AutoTokenizer loads") as raised:
        lint_samples(SAMPLES, tmp_path)
    assert "\n" not in str(raised.value)
    with pytest.raises(FoundryError, match="no samples to check"):
        lint_samples([], tmp_path)


def test_marks():
    pieces = [(False, "[a]"), (True, "b")]
    assert marked(pieces, coloured=False).plain == "[a]«b»"
    assert marked(pieces, coloured=True).plain == "[a]b"
    assert any("green" in str(span.style) for span in marked(pieces, coloured=True).spans)
