"""A stand-in for the linter's child process, which takes seconds to start."""

import json

from modeling_foundry.data.linting import template_renderer


class Here:
    """The renderer's own functions in this process: a child for each template here would cost two seconds."""

    slowest_s, time_limit_s = 0.0, 10.0

    def __init__(self, folder, time_limit_s, memory_bytes, max_length):
        self.folder, self.tokenizer = str(folder), template_renderer.load(folder)
        self.order = {"memory_bytes": memory_bytes, "max_characters": 10**6, "max_length": max_length}

    __enter__ = __exit__ = lambda self, *_: None

    def start(self):
        return json.loads(json.dumps(template_renderer.facts_of(self.tokenizer, self.folder)))

    def render(self, sample, decode=False):
        return template_renderer.attempt(self.tokenizer, {"sample": sample, "decode": decode}, self.order)
