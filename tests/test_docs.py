"""Every command on every page is run as it is printed, made small only by settings added at its end.

The commands of ``docs/plan.md`` are compared with what they print in ``tests/planning/test_docs.py``, and
``lm_eval run`` with our own evaluation in ``tests/evaluation/test_pipeline.py``.
"""

import functools
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests import warm_start
from tests.conftest import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
# What stands behind a word, so that it can start warm; bin/accelerate calls this module's main.
PROGRAM = {
    "python": [sys.executable],
    "accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli"],
}
PROGRAMS = ("make", "python", "accelerate", "hf", "git", ".venv/bin/")
# What one machine without GPU, Hub or a copy of this repository elsewhere cannot do.
ELSEWHERE = (
    "git clone",
    "hf auth login",
    "--push_to_hub=true",
    ".venv/bin/pre-commit",
    "accelerate_configs/zero1",
)
BATCH = "--per_device_train_batch_size=4 --per_device_eval_batch_size=4"
SIZES = f"""{BATCH} --num_hidden_layers=1 --hidden_size=32 --intermediate_size=64 --num_attention_heads=2
--num_key_value_heads=1 --head_dim=16"""
SMALL = {
    "recipes/plan.py": "",
    "recipes/prepare_data.py": "",
    "recipes/pretrain.py": f"{SIZES} --eval_steps=4 --save_steps=4 --logging_steps=2 --max_eval_sequences=4",
    "recipes/sft.py": f"{BATCH} --max_steps=4 --eval_steps=4 --save_steps=4 --max_eval_samples=4",
    "recipes/dpo.py": f"{BATCH} --eval_steps=4 --save_steps=4 --max_eval_samples=4",
    "recipes/evaluate.py": "--max_text_bytes=3000 --num_stop_prompts=4 --max_new_tokens=4 "
    "--limits '{stdlib_summary_choice: 4, stdlib_summary_preference: 4, stdlib_summary_generate: 4}'",
    "recipes/publish.py": "",
}
QUICK = "runs/quickstart/"
STEPS = "--max_steps=4 --warmup_steps=1"
LIFE = ["plan.py", "prepare_data.py", "pretrain.py", "sft.py", "dpo.py", "evaluate.py", "publish.py"]


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands_of(page: Path) -> list[str]:
    """The shell commands in the fenced blocks of a page, continued lines joined, comments cut off."""
    blocks = [text for language, text in blocks_of(page) if language not in ("console", "python", "json")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.join(shlex.split(line, comments=True)) for line in lines if line.startswith(PROGRAMS)]
    return [command for command in found if not any(text in command for text in ELSEWHERE)]


def typed_on(page: Path) -> list[str]:
    """The lines after ``$`` in the console blocks of a page, continued lines joined."""
    text = "\n".join(text for language, text in blocks_of(page) if language == "console")
    return re.findall(r"^\$ (.+)$", text.replace("\\\n", " "), re.MULTILINE)


TYPED = sorted({command for page in PAGES for command in typed_on(page)})
ALL = sorted({command for page in PAGES for command in commands_of(page)})
MAKE = [command for command in ALL if command.startswith("make")]
FROM_THE_HUB = [command for command in ALL if "prepare_data.py chat " in command]
TRAIN_ON_A_FILE = [command for command in ALL if "--text_file" in command]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder with this repository's files in it, so that the printed paths can be used as they stand."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in (
        "recipes",
        "accelerate_configs",
        "eval_tasks",
        "app",
        "benchmarks",
        "modeling_foundry",
        "Makefile",
    ):
        (folder / name).symlink_to(REPOSITORY / name)
    words = " ".join(f"word{index * 7919 % 997}" for index in range(30_000))
    (folder / "input.txt").write_text(words)
    return folder


def run(command: str, checkout: Path, added: str = "") -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    first, *words = [*shlex.split(command), *shlex.split(added)]
    done = warm_start.run([*PROGRAM.get(first, [first]), *words], cwd=checkout, env=environment)
    assert done.returncode == 0, f"{command} {added}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def script_of(command: str) -> str:
    return next((word for word in shlex.split(command) if word.endswith(".py")), "")


def test_there_are_commands():
    assert len(MAKE) >= 8
    assert TRAIN_ON_A_FILE
    assert FROM_THE_HUB
    assert {Path(script_of(command)).name for command in ALL} >= set(LIFE)


@pytest.mark.parametrize("command", MAKE)
def test_a_make_command_has_its_targets(command, checkout):
    """make -n: every target and file it needs exists; what the targets run is run below."""
    assert run(f"{command} -n", REPOSITORY)


@pytest.mark.slow
def test_the_commands_of_a_whole_life(checkout):
    for script in LIFE:
        stage = [command for command in ALL if Path(script_of(command)).name == script]
        stage = [command for command in stage if "quickstart" in command and "my_corpus" not in command]
        assert stage, script
        steps = STEPS if script in ("pretrain.py", "dpo.py") else ""
        for command in sorted(stage, key=lambda command: " plot " in command):  # a picture of what has run
            run(command, checkout, "" if " plot " in command else f"{SMALL[script_of(command)]} {steps}")
    for command in TYPED:  # on the run that is there, which is four steps long
        if " replay " in command or " plot " in command:
            for shown, here in (
                ("--step 12", "--step 2"),
                ("-100", "-4"),
                ("runs/a/", QUICK),
                ("runs/b/", QUICK),
            ):
                command = command.replace(shown, here)
            run(command, checkout)
    assert (checkout / "runs/quickstart/eval/report.html").stat().st_size > 10_000
    assert (checkout / "runs/quickstart/publish/model/README.md").exists()
    for command in ALL:
        if script_of(command) == "app/app.py":
            answer_of_the_app(command, checkout)


@pytest.mark.slow
def test_the_commands_of_cleaning(checkout):
    """On the corpus that the page's own lines write, against the prepared data of the page's own command."""
    page = REPOSITORY / "docs" / "data.md"
    (lines,) = (text for language, text in blocks_of(page) if language == "python" and "corpus/" in text)
    run(shlex.join([sys.executable, "-c", lines]), checkout)
    commands = commands_of(page)
    (cleaning,) = (command for command in commands if " clean " in command and "--config" in command)
    for command in commands[: commands.index(cleaning) + 1]:
        if "--config" in command and "my_corpus" not in command:
            printed = run(command, checkout)
    assert "stdlib_bits_per_byte: " in printed
    receipt = json.loads((REPOSITORY / "benchmarks/receipts/data_examples.json").read_text())
    if receipt["versions"]["python"] == platform.python_version():  # another library is another corpus
        (shown,) = (text for _, text in blocks_of(page) if text.startswith("runs/clean/data\n"))
        assert [line.rstrip() for line in printed.splitlines()] == shown.splitlines()
    books = json.loads((checkout / "runs/clean/data/clean.json").read_text())
    assert 0 < books["summary"]["left"]["documents"] < books["summary"]["rows"]
    assert books["decontamination"]["stdlib_bits_per_byte"]["matched"] > 5


def answer_of_the_app(command: str, checkout: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = [sys.executable, *shlex.split(command)[1:], "--port", str(port)]
    with subprocess.Popen(
        words, cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            while server.poll() is None:
                try:
                    health = urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=600)
                    assert health.status == 200
                    return
                except OSError:
                    time.sleep(0.5)
            raise AssertionError(f"{command}: no answer, exit code {server.poll()}")
        finally:
            server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAIN_ON_A_FILE)
def test_the_commands_on_a_text_file(command, checkout):
    script = script_of(command)
    output = "" if "--output_dir" in command else f"--output_dir=runs/{Path(script).stem}"
    small = SIZES if script.endswith("pretrain.py") else ""
    run(command, checkout, f"{small} {output}")


@pytest.mark.slow
def test_the_commands_on_a_folder_of_files(checkout):
    """In the page's order: manifest, tokenize, verify, inspect, pretrain."""
    from modeling_foundry.data.tokenizer.training import train_tokenizer

    texts = [f"document {number}: " + f"{number * 7919 % 997} words. " * 200 for number in range(60)]
    (checkout / "my_texts").mkdir()
    for part in range(3):
        rows = [json.dumps({"text": text}) + "\n" for text in texts[part::3]]
        (checkout / "my_texts" / f"part_{part}.jsonl").write_text("".join(rows))
    tokenizer = checkout / "runs/quickstart/data/tokenizer"
    if not tokenizer.exists():
        train_tokenizer(texts, 400).save_pretrained(tokenizer)
    commands = [command for command in commands_of(REPOSITORY / "docs/data.md") if "my_corpus" in command]
    assert [script_of(command) for command in commands] == ["recipes/prepare_data.py"] * 4 + [
        "recipes/pretrain.py"
    ]
    printed = [run(command, checkout) for command in commands[:-1]]
    run(commands[-1], checkout, SIZES)
    assert "are as they were written" in printed[2]
    assert (checkout / "runs/my_corpus/plots/document_lengths.png").stat().st_size > 5_000
    assert (checkout / "runs/my_corpus/pretrain/model/model.safetensors").exists()


@pytest.mark.parametrize("command", FROM_THE_HUB)
def test_the_commands_on_a_dataset_of_the_hub(command, checkout):
    """The same command with a local file in the Hub's place."""
    assert "--dataset alpaca " in command
    rows = [{"instruction": f"Say {i}.", "input": "", "output": str(i)} for i in range(20)]
    (checkout / "alpaca.json").write_text(json.dumps(rows))
    assert "held out" in run(command, checkout, "--file=alpaca.json")


@functools.cache
def help_of(words: tuple[str, ...]) -> str:
    """What ``--help`` prints; ``launch/`` hands its settings to pretrain.py."""
    script = "recipes/pretrain.py" if words[0].startswith("launch/") else words[0]
    command = [sys.executable, script, *words[1:], "--help"]
    done = warm_start.run(command, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", TYPED)
def test_the_settings_of_a_typed_command_exist(command):
    """Of what needs GPUs, a cluster or a run that is there: scripts and settings, not what they do."""
    words = shlex.split(command)
    scripts = [word for word in words if re.match(r"(recipes|benchmarks|app)/\w+\.py$|launch/", word)]
    if not scripts:
        return  # python -c and kill: nothing of ours
    script, rest = scripts[0], words[words.index(scripts[0]) + 1 :]
    has_command = script == "recipes/plan.py" or rest[:1] in (["plot"], ["replay"])
    printed = help_of((script, *rest[:has_command]))
    for word in rest:
        if word.startswith("--") and word != "--env":
            assert f"{word.partition('=')[0]} " in printed, word


def test_the_commands_that_need_gpus_name_files_that_exist():
    for page in PAGES:
        for path in re.findall(
            r"(?:recipes|accelerate_configs|benchmarks|app|eval_tasks)/[\w./]+\.\w+", page.read_text()
        ):
            assert (REPOSITORY / path.rstrip(".")).exists(), f"{page.name}: {path}"


def anchors_of(page: Path) -> list[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_tests_named_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if not target.startswith("http"):
            other = page.parent / path if path else page
            assert other.exists(), target
            assert not anchor or anchor in anchors_of(other), target
    for test in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (REPOSITORY / test).exists(), test


def test_the_readme_names_every_room_and_module():
    readme = (REPOSITORY / "README.md").read_text()
    modules = [path.name for path in (REPOSITORY / "modeling_foundry").glob("*.py")]
    rooms = [path.parent.name for path in (REPOSITORY / "modeling_foundry").glob("*/__init__.py")]
    tops = {
        path.parts[0]
        for path in map(Path, tracked_files())
        if len(path.parts) > 1 and path.parts[0][0] != "."
    }
    for name in [
        *(name for name in modules if name != "__init__.py"),
        *(f"{top}/" for top in rooms + sorted(tops)),
    ]:
        assert name in readme, name


def tracked_files() -> list[str]:
    return subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
