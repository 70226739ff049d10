"""The program of a child process that alone ever runs a chat template; ``template_process`` starts it.

Reads one JSON object a line, answers with one.  The first names the tokenizer's folder and the limits; each
further one is a sample.  It imports nothing of this package, so that it can be run as a plain file.
"""

import json
import os
import re
import resource
import sys
from itertools import groupby, takewhile

START_OF_TURN, END_OF_TURN = "<|im_start|>", "<|im_end|>"
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def main():
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not look like an answer

    def answer(content):
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    order = json.loads(sys.stdin.readline())
    try:
        tokenizer = load(order["folder"])
        answer(facts_of(tokenizer, order["folder"]))
    except Exception as error:  # whatever it is, it is the parent that says so
        answer({"failed": in_one_line(error)})
        return
    limit_memory(order["memory_bytes"])
    for line in sys.stdin:
        answer(attempt(tokenizer, json.loads(line), order))


def load(folder):
    """The tokenizer, its threads and buffers made before memory is limited."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer(["a", "b"])
    return tokenizer


def limit_memory(num_bytes):
    """Let the process grow by so much and no more (Linux; macOS keeps no such limit)."""
    try:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (used + num_bytes, used + num_bytes))


def facts_of(tokenizer, folder):
    """What the checks must know of tokenizer and template; nothing is rendered."""
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name
        template = template.get("default")
    line_end = tokenizer("\n", add_special_tokens=False)["input_ids"]
    bos, stops = tokenizer.bos_token_id, stop_ids(tokenizer, folder)
    return {
        "template": bool(template),
        "generation": bool(template and GENERATION.search(template)),
        "bos": bos,
        "bos_token": tokenizer.bos_token,
        "adds_bos": bos is not None and tokenizer("a")["input_ids"][:1] == [bos],
        # Some tokenizers have one token for BOS and for the end of text or the start of a turn.
        "bos_has_another_use": bos in stops or tokenizer.bos_token == START_OF_TURN,
        "line_ends": sorted(set(tokenizer("\n\n", add_special_tokens=False)["input_ids"] + line_end)),
        "stops": {id: tokenizer.convert_ids_to_tokens(id) for id in sorted(stops)},
        "control_tokens": control_tokens(tokenizer),
    }


def stop_ids(tokenizer, folder):
    """Ids that generation stops at: end of text, end of turn, and what ``generation_config.json`` adds."""
    ids = {tokenizer.eos_token_id, tokenizer.get_vocab().get(END_OF_TURN)}
    path = os.path.join(folder, "generation_config.json")
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            ends = json.load(file).get("eos_token_id")
        ids |= set(ends) if isinstance(ends, list) else {ends}
    return ids - {None}


def control_tokens(tokenizer):
    """The spelling of each special token."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def attempt(tokenizer, request, order):
    """The answer to one sample; ``fatal`` where the template itself is at fault, ``error`` where it refuses."""
    from jinja2.exceptions import SecurityError

    try:
        return render(tokenizer, request, order)
    except MemoryError:
        return {"fatal": f"takes more than {order['memory_bytes'] >> 20:,} MiB"}
    except (SecurityError, OverflowError, RecursionError, TooLargeError) as error:
        return {"fatal": in_one_line(error)}
    except Exception as error:  # a template may raise anything
        return {"error": in_one_line(error)}


class TooLargeError(Exception):
    """The rendered text passes the limit."""


def render(tokenizer, request, order):
    """Token ids and trained tokens of each sequence of a sample, as TRL will see them."""
    sample = request["sample"]
    limit = order["max_characters"]
    template = Template(tokenizer, sample)
    if "messages" in sample:
        sequences = [trained_by_mask(template, sample["messages"], limit)]
        conversations = [sample["messages"]]
    else:
        conversations = [sample["prompt"] + sample[side] for side in ("chosen", "rejected")]
        sequences = pair_after_prompt(template, sample["prompt"], conversations, limit)
    for messages, sequence in zip(conversations, sequences, strict=True):
        sequence["questions"] = sum(message["role"] == "user" for message in messages)
    answer = {"sequences": sequences, **spelled_control_tokens(template, conversations, sequences)}
    if request["decode"]:
        answer["pieces"] = pieces(tokenizer, sequences[0], order["max_length"])
    return answer | traces(template, conversations)


class Template:
    """A tokenizer's chat template with the tools and variables of one sample."""

    def __init__(self, tokenizer, sample):
        self.tokenizer, self.tools = tokenizer, sample.get("tools")
        self.variables = sample.get("chat_template_kwargs") or {}

    def apply(self, messages, **options):
        """What ``apply_chat_template`` gives, called as TRL calls it."""
        options = {"tools": self.tools, **self.variables, **options}
        return self.tokenizer.apply_chat_template(messages, **options)

    def ids(self, messages, **options):
        """Token ids alone."""
        return self.apply(messages, return_dict=True, **options)["input_ids"]

    def text(self, messages, **options):
        """The rendered text; with other tools or variables, too."""
        return self.apply(messages, tokenize=False, **options)


def trained_by_mask(template, messages, limit):
    """A conversation of SFT: the tokens inside ``{% generation %}`` are trained."""
    num_characters = checked_length(template, messages, limit)
    output = template.apply(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids = output["input_ids"]
    prompt = template.ids(messages[:-1], add_generation_prompt=True) if messages[:-1] else []
    sequence = {"ids": ids, "mask": output["assistant_masks"], "prefix": prompt == ids[: len(prompt)]}
    turns = trained_turns(template.tokenizer, messages, sequence)
    return {**sequence, "characters": num_characters, "turns": turns}


def trained_turns(tokenizer, messages, sequence):
    """Which turns the mask trains, by their text: one that the template rewrote stands nowhere and is not judged."""
    runs = pieces(tokenizer, sequence, None)
    sides = [[text for trained, text in runs if trained is wanted] for wanted in (False, True)]

    def only_in(text, is_trained):
        return any(text in run for run in sides[is_trained]) and not any(
            text in run for run in sides[not is_trained]
        )

    spoken = [(message, (message.get("content") or "").strip()) for message in messages]
    answers = [text for message, text in spoken if message["role"] == "assistant"]
    others = [text for message, text in spoken if message["role"] != "assistant"]
    calling = sum(not text and bool(message.get("tool_calls")) for message, text in spoken)
    return {
        "answers": len(answers),
        "blank": answers.count("") - calling,
        "not_trained": sum(bool(text) and only_in(text, False) for text in answers),
        "others_trained": sum(bool(text) and only_in(text, True) for text in others),
    }


def pair_after_prompt(template, prompt, conversations, limit):
    """Both sides of a preference pair: what follows the prompt's tokens is compared.

    Where one side departs from the prompt's tokens earlier, TRL takes what both share for the prompt.
    """
    lengths = [checked_length(template, whole, limit) for whole in conversations]
    prompt_ids = template.ids(prompt, add_generation_prompt=True)
    sides = [template.ids(whole) for whole in conversations]
    shared = [
        len(list(takewhile(lambda two: two[0] == two[1], zip(prompt_ids, ids, strict=False))))
        for ids in sides
    ]
    start = min(shared)
    return [
        {
            "ids": ids, "mask": [int(place >= start) for place in range(len(ids))],
            "prefix": same == len(prompt_ids), "characters": length,
        }
        for ids, same, length in zip(sides, shared, lengths, strict=True)
    ]  # fmt: skip


def checked_length(template, messages, limit):
    """Characters of the rendered text, known before it is tokenized."""
    num_characters = len(template.text(messages))
    if num_characters > limit:
        raise TooLargeError(f"renders {num_characters:,} characters; expected at most {limit:,}")
    return num_characters


# --------------------------------------------------------------------------- what leaves no trace in the text


def traces(template, conversations):
    """``lost``: turns, calls and tools of which the text holds nothing; ``unread``: other keys, of which it is true."""
    lost, unread = [], set(unread_variables(template))
    for messages in conversations:
        lost += unwritten_turns(template, messages)
        keys = {key for message in messages for key in message} - {"role", "content", "tool_calls"}
        calls = any(message.get("tool_calls") for message in messages)
        if not (keys or calls or template.tools):
            continue
        whole = template.text(messages)
        for name, changed, options in without_each(template, messages, keys):
            if not leaves_trace(template, whole, changed, options):
                unread.add(name) if name in keys else lost.append(name)
    return {"lost": list(dict.fromkeys(lost)), "unread": sorted(unread)}


def unwritten_turns(template, messages):
    """Turns whose content another one of the same role could stand for: the text holds nothing of it.

    One render with a word of its own in each turn; a template that refuses such words has read them.
    """
    words = {place: f"q{place}q" for place, message in enumerate(messages) if _says(message)}
    asked = [
        {**message, "content": words[place]} if place in words else message
        for place, message in enumerate(messages)
    ]
    try:
        text = template.text(asked).lower()
    except Exception:  # a template may raise anything
        return []
    return [
        f"turn {place + 1}, the content of {messages[place]['role']}"
        for place, word in words.items()
        if word not in text
    ]


def _says(message):
    return bool((message.get("content") or "").strip())


def without_each(template, messages, keys):
    """Name, messages and options of the same conversation without a key, or with one call or tool that says nothing."""
    for key in sorted(keys):
        yield key, [{k: v for k, v in message.items() if k != key} for message in messages], {}
    tools = template.tools or []
    for place in range(len(tools)):
        yield f"tools, tool {place + 1}", messages, {"tools": replaced(tools, place, blank(tools[place]))}
    for turn, message in enumerate(messages):
        for name, calls in quieter_calls(message.get("tool_calls") or []):
            changed = {**message, "tool_calls": calls}
            yield f"turn {turn + 1}, {name}", replaced(messages, turn, changed), {}


def quieter_calls(calls):
    """The calls with one of them blank, and with its arguments empty."""
    for place, call in enumerate(calls):
        yield f"tool_calls, call {place + 1}", replaced(calls, place, blank(call))
        function = call.get("function", call)
        if arguments := function.get("arguments"):
            empty = {**function, "arguments": type(arguments)()}
            changed = {**call, "function": empty} if "function" in call else empty
            yield f"arguments of call {place + 1}", replaced(calls, place, changed)


def replaced(values, place, value):
    """The list with another value there."""
    return [*values[:place], value, *values[place + 1 :]]


def blank(value):
    """A value of the same structure that says nothing: a heading that the template writes over it is no trace."""
    if isinstance(value, dict):
        return {key: blank(inner) for key, inner in value.items()}
    return [blank(inner) for inner in value] if isinstance(value, list) else type(value)()


def leaves_trace(template, whole, messages, options):
    """Whether the text becomes another one; a template that refuses what is left has read it."""
    try:
        return template.text(messages, **options) != whole
    except Exception:  # a template may raise anything
        return True


def unread_variables(template):
    """Variables of the sample that the template's source does not name."""
    source = template.tokenizer.get_chat_template(tools=template.tools) if template.variables else ""
    return [
        f"chat_template_kwargs.{name}"
        for name in template.variables
        if not re.search(rf"\b{re.escape(name)}\b", source)
    ]


def spelled_control_tokens(template, conversations, sequences):
    """Whether contents spell control tokens, and whether the spelling came out as the real token.

    The same conversations with the spelling broken by a space say how many the template itself writes.
    """
    tokens = control_tokens(template.tokenizer)
    contents = [message.get("content") or "" for messages in conversations for message in messages]
    if not any(token in content for token in tokens for content in contents):
        return {"spelled": False, "obeyed": False}

    def broken(text):
        for token in tokens:
            text = text.replace(token, f"{token[:1]} {token[1:]}")
        return text

    control = set(template.tokenizer.convert_tokens_to_ids(tokens))
    for messages, sequence in zip(conversations, sequences, strict=True):
        plain = [
            {**message, "content": broken(message["content"])} if message.get("content") else message
            for message in messages
        ]
        written = sum(id in control for id in template.ids(plain))
        if sum(id in control for id in sequence["ids"]) > written:
            return {"spelled": True, "obeyed": True}
    return {"spelled": True, "obeyed": False}


def pieces(tokenizer, sequence, max_length):
    """The text of the first tokens (None: of all), cut where training begins or ends: ``[trained, text]``."""
    tokens = zip(sequence["mask"][:max_length], sequence["ids"][:max_length], strict=True)
    runs = groupby(tokens, key=lambda token: bool(token[0]))
    return [[trained, tokenizer.decode([id for _, id in run])] for trained, run in runs]


def in_one_line(error):
    """``TypeName: message``."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    # A tokenizer needs no torch, and without it the start takes half the time.
    sys.modules["torch"] = None  # type: ignore[assignment]
    main()
