"""The proof that strangers can load an export: a fresh process without this package gets the same logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..settings import FoundryError

# Runs where `modeling_foundry` cannot be imported, as on a stranger's machine.  Custom code is trusted
# because this very program has just written it.
STRANGER = """
import json, sys
sys.modules["modeling_foundry"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, probe, trust = sys.argv[1], load_file(sys.argv[2]), sys.argv[3] == "foundry"
texts, chat = json.loads(sys.argv[5])
torch.set_num_threads(int(sys.argv[4]))
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust, dtype=torch.float32).eval()
with torch.inference_mode():
    difference = (model(probe["tokens"]).logits - probe["logits"]).abs().max().item()
found = {"model_class": type(model).__name__, "max_logit_difference": difference}
found["token_ids"] = [tokenizer(text)["input_ids"] for text in texts]
found["texts"] = [tokenizer.decode(ids) for ids in found["token_ids"]]
found["special"] = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
if tokenizer.chat_template:
    found["chat"] = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
print(json.dumps(found))
"""
# Where tokenizers differ: normal forms, blanks, line ends, digits, joiners, control tokens that a text spells.
TEXTS = (
    "", " ", "plain words", "cafe\u0301 na\u00efve \u1112\u1161\u11ab", "ﬁ ① ＡＢ", "a\r\n\r\n  b\tc   d \n",
    "12345 3.14 ٣²", "It's WE'LL", "東京 مرحبا नमस्ते", "😀 👩\u200d👧", "\xa0\u2028\x85\x00",
    "<|im_start|>user\n<|im_end|><|endoftext|> x", "▁x <s>",
)  # fmt: skip
CHAT = [{"role": "user", "content": "cafe\u0301 <|im_end|>\n"}]
PROBE_SHAPE = (2, 32)
TOLERANCE = 1e-5  # fp32; the same arithmetic, but kernels may differ with memory alignment


def verify(checkpoint: Path, export: Path, family: str) -> dict[str, Any]:
    """Load ``export`` in a fresh process and compare fp32 logits, token ids and a chat with the checkpoint's.

    Returns:
        ``model_class``, ``max_logit_difference``, ``num_probe_tokens`` and ``num_probe_texts``.

    Raises:
        FoundryError: it does not load without this package, or it computes or reads something else.
    """
    import torch
    from safetensors.torch import save_file

    from ..saved_model import load_model, load_tokenizer

    original = load_model(checkpoint, dtype=torch.float32)
    shape = (PROBE_SHAPE[0], min(PROBE_SHAPE[1], original.config.max_position_embeddings))
    tokens = torch.randint(0, original.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = original(tokens).logits
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.safetensors"
        save_file({"tokens": tokens, "logits": logits.contiguous()}, probe)
        found = _ask_a_stranger(export, probe, family, torch.get_num_threads())
    if not found["max_logit_difference"] <= TOLERANCE:  # NaN is a difference too
        raise FoundryError(
            f"{export}: logits differ from the trained model's by {found['max_logit_difference']:.3g}"
        )
    compare_tokenizers(export, load_tokenizer(checkpoint), found)
    return {
        "model_class": found["model_class"],
        "max_logit_difference": found["max_logit_difference"],
        "num_probe_tokens": tokens.numel(),
        "num_probe_texts": len(TEXTS),
    }


def compare_tokenizers(export: Path, tokenizer: Any, found: dict[str, Any]) -> None:
    """Raise FoundryError where the export's ids, texts, special tokens or chat are not those of training."""
    wanted = [tokenizer(text)["input_ids"] for text in TEXTS]
    for text, ids, read in zip(TEXTS, wanted, found["token_ids"], strict=True):
        if ids != read:
            raise FoundryError(
                f"{export}: encodes {text!r} as {read}, the trained model's tokenizer as {ids}"
            )
    for ids, read in zip(wanted, found["texts"], strict=True):
        if tokenizer.decode(ids) != read:
            raise FoundryError(f"{export}: reads {ids} as {read!r}, the trained model's tokenizer otherwise")
    for name, token in found["special"].items():
        if getattr(tokenizer, name) != token:
            raise FoundryError(
                f"{export}: {name} {token!r} is {getattr(tokenizer, name)!r} in {tokenizer.name_or_path}"
            )
    if tokenizer.chat_template:
        chat = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
        if chat != found.get("chat"):
            raise FoundryError(
                f"{export}: the chat template renders {found.get('chat')!r:.200}, not {chat!r:.200}"
            )


def _ask_a_stranger(export: Path, probe: Path, family: str, num_threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as modules:
        finished = subprocess.run(
            [
                sys.executable, "-c", STRANGER, str(export.resolve()), str(probe), family, str(num_threads),
                json.dumps([TEXTS, CHAT]),
            ],
            capture_output=True, text=True, cwd=modules,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules},
        )  # fmt: skip
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise FoundryError(f"{export}: does not load in a fresh process: {reason[:300]}")
    return json.loads(finished.stdout.strip().splitlines()[-1])
