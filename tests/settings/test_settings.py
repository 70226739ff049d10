"""The settings loader: what was written is what is used, and a mistake is one line that names it."""

import enum
import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry import settings
from modeling_foundry.settings import SettingsError


@dataclass
class Example:
    name: str = "x"
    steps: int = 1
    rate: float = 1e-3
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    names: list[str] = field(default_factory=list)
    limit: int | None = 3
    options: dict | None = None
    mixed: str | list[str] | None = None


@dataclass
class Required:
    path: str


@pytest.fixture
def read(tmp_path):
    def parse(text: str = "", *argv: str, kinds=(Example,)):
        path = tmp_path / "experiment.yaml"
        path.write_text(text)
        return settings.parse(*kinds, argv=["--config", str(path), *argv])[0]

    return parse


def test_scalars_keep_the_text_they_were_written_as(read):
    parsed = read("name: 007\nsteps: 012\nrate: 1e-4\nflag: yes\nkind: b\nlimit: null")
    assert (parsed.name, parsed.steps, parsed.rate, parsed.flag) == ("007", 12, 1e-4, True)
    assert (parsed.kind, parsed.limit) == ("b", None)
    assert read("name: no").name == "no"


def test_nested_values_have_yaml_types(read):
    parsed = read("options: {min_lr_rate: 1e-1, deep: {on: [1, two]}}\nnames: [a, '7']\nmixed: none")
    assert parsed.options == {"min_lr_rate": 0.1, "deep": {"on": [1, "two"]}}
    assert parsed.names == ["a", "7"]
    assert parsed.mixed is None


def test_command_line_wins_over_the_file(read):
    parsed = read("steps: 5\nname: file", "--steps=7", "--flag", "--names", "a", "b", "--options", '{"k": 1}')
    assert (parsed.steps, parsed.name, parsed.flag) == (7, "file", True)
    assert parsed.names == ["a", "b"]
    assert parsed.options == {"k": 1}
    assert read("", "--options", "{k: [1, two]}").options == {"k": [1, "two"]}
    assert read("options: {day: 2020-13-45}").options == {"day": "2020-13-45"}
    assert read("", "--names", "one").names == ["one"]
    assert read("", "--steps=-1", "--rate", "-0.5").rate == -0.5


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("steps: 1.5", [], "experiment.yaml:1: steps: expected a whole number, found '1.5'"),
        ("a: 1\nsteps: [1]", [], "experiment.yaml:1: a: unknown key"),
        ("steps: [1]", [], "experiment.yaml:1: steps: expected a whole number, found a list"),
        ("name: [one]", [], "experiment.yaml:1: name: expected text, found a list"),
        ("names: one", [], "names: expected a list (text), found 'one'"),
        ("kind: c", [], "kind: expected one of a, b, found 'c'"),
        ("stps: 3", [], "stps: unknown key; did you mean steps?"),
        ("steps: 1\nname: y\nsteps: 2", [], "experiment.yaml:3: steps: given twice (first in line 1)"),
        ("options: {a: 1, a: 2}", [], "a: given twice"),
        ("flag: maybe", [], "flag: expected true or false"),
        ("rate: nan", [], "rate: expected a number, found 'nan'"),
        ("rate: .inf", [], "rate: expected a number"),
        ("steps:", [], "steps: expected a whole number, found ''"),
        ("env: {A: b}", [], "env: unknown key"),
        ("- a", [], "expected `key: value` lines, found a sequence"),
        ("a: [", [], "not valid YAML"),
        ("options: &x {b: *x}", [], "experiment.yaml:1: an alias is not accepted; write the value"),
        ("name: !!int 7", [], "experiment.yaml:1: a tag is not accepted; write the value"),
        ("options: {a: .nan}", [], "experiment.yaml:1: expected a finite number, found '.nan'"),
        ("options: {a: 1e999}", [], "experiment.yaml:1: expected a finite number, found '1e999'"),
        ("options: " + "[" * 5000 + "]" * 5000, [], "nested too deeply"),
        ("", ["--options={a: 1"], "command line:1: not valid YAML"),
        ("", ["--options={a: 1, a: 2}"], "command line:1: a: given twice"),
        ("", ["--names=[a"], "command line:1: not valid YAML"),
        ("", ["--steps"], "command line: steps: expected a whole number, found nothing"),
        ("", ["--name"], "command line: name: expected text, found nothing"),
        ("", ["--names"], "command line: names: expected a list (text), found nothing"),
        ("", ["--limit"], "command line: limit: expected a whole number or null, found nothing"),
        ("", ["--steps=1", "--steps=2"], "command line: steps: given twice"),
        ("", ["--stps=1"], "command line: --stps: unknown key; did you mean steps?"),
        ("", ["steps=1"], "command line: steps=1: needs two dashes before it: --steps=1"),
        ("", ["-steps=1"], "command line: -steps=1: needs two dashes before it: --steps=1"),
        ("", ["stps=1"], "command line: stps: unknown key; did you mean steps?"),
        ("", ["--ste=1"], "command line: --ste: unknown key"),
        ("", ["stray"], "command line: stray: unknown key"),
    ],
)
def test_a_mistake_is_one_line_with_file_line_and_key(read, text, argv, message):
    with pytest.raises(SettingsError) as error:
        read(text, *argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_key_and_missing_file_are_named(read, tmp_path):
    with pytest.raises(SettingsError, match="path: missing; expected text"):
        read("", kinds=(Required,))
    with pytest.raises(SettingsError, match="command line: config: expected a file, found ''"):
        settings.parse(Example, argv=["--config", ""])  # --config "$UNSET"
    with pytest.raises(SettingsError, match="absent.yaml: cannot read"):
        settings.parse(Example, argv=["--config", str(tmp_path / "absent.yaml")])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="not UTF-8"):
        settings.parse(Example, argv=["--config", str(tmp_path / "binary.yaml")])


def test_errors_of_the_dataclass_itself_are_one_line(read):
    from transformers import TrainingArguments

    with pytest.raises(SettingsError, match="Got warmup_steps = -1.0, Expected value") as error:
        read("warmup_steps: -1\nuse_cpu: true", kinds=(TrainingArguments,))
    assert "experiment.yaml" in str(error.value)


class Colour(enum.Enum):
    RED, GREEN = "red", "green"


@dataclass
class Named:
    colour: Colour | str = "red"
    shape: str = field(default="round", metadata={"choices": ["round", "square"]})
    edge: str | None = field(default=None, metadata={"choices": {"sharp": 1, "blunt": 2}.keys()})
    parts: list[Literal["wheel", "spoke"]] = field(default_factory=list)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("colour: gren", "1: colour: expected one of red, green, found 'gren'; did you mean green or red?"),
        ("shape: squar", "1: shape: expected one of round, square, found 'squar'; did you mean square?"),
        ("edge: x", "1: edge: expected one of sharp, blunt or null, found 'x'"),
        (
            "parts: [spoke, weel]",
            r"1: parts: expected a list \(one of wheel, spoke\), found .*; did you mean wheel?",
        ),
    ],
)
def test_a_name_that_a_library_keeps_in_its_metadata_is_checked_where_it_is_written(text, line, read):
    """transformers and TRL write their names beside ``str`` and find a wrong one after everything is loaded."""
    with pytest.raises(SettingsError, match=line.replace("?", r"\?")):
        read(text, kinds=(Named,))
    named = read("colour: green\nshape: square\nedge: blunt\nparts: [wheel]", kinds=(Named,))
    assert (named.colour, named.shape, named.edge, named.parts) == (
        Colour.GREEN,
        "square",
        "blunt",
        ["wheel"],
    )


def test_two_dataclasses_may_not_share_a_key():
    with pytest.raises(TypeError, match="both define `name`"):
        settings.parse(Example, Example, argv=[])


@given(
    st.builds(
        Example,
        name=st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1),
        steps=st.integers(-(10**12), 10**12),
        rate=st.floats(allow_nan=False, allow_infinity=False),
        flag=st.booleans(),
        kind=st.sampled_from(["a", "b"]),
        names=st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)),
        limit=st.none() | st.integers(0, 10**6),
    )
)
def test_what_yaml_writes_is_read_back(tmp_path_factory, example):
    path = tmp_path_factory.mktemp("yaml") / "x.yaml"
    content = {key: value for key, value in vars(example).items() if value is not None or key == "limit"}
    path.write_text(yaml.safe_dump(content, allow_unicode=True))
    assert settings.parse(Example, argv=["--config", str(path)])[0] == example


@given(st.text())
def test_no_text_crashes_the_loader(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("fuzz") / "x.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        settings.parse(Example, argv=["--config", str(path)])
    except SettingsError as error:
        assert "\n" not in str(error)


def test_sub_commands():
    commands = {"fit": (Example, "largest batch"), "model": (Required, "count")}
    assert settings.parse_command(commands, ["model", "--path=x"]) == ("model", Required("x"))
    with pytest.raises(SettingsError, match="modl: no such command; did you mean model"):
        settings.parse_command(commands, ["modl"])


def test_run_exits_with_2_and_one_line(tmp_path, repository):
    script = tmp_path / "script.py"
    script.write_text(
        "from dataclasses import dataclass\n"
        "from modeling_foundry import settings\n"
        "@dataclass\nclass S:\n    steps: int = 1\n"
        "settings.run(lambda: print(settings.parse(S)[0].steps))\n"
    )
    good = subprocess.run([sys.executable, script, "--steps=4"], capture_output=True, text=True)
    assert (good.returncode, good.stdout.strip()) == (0, "4")
    bad = subprocess.run([sys.executable, script, "--steps=x"], capture_output=True, text=True)
    assert bad.returncode == 2
    assert bad.stderr == "error: command line: steps: expected a whole number, found 'x'\n"


def test_the_loader_imports_neither_torch_nor_transformers():
    code = "import sys, modeling_foundry.settings; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", "import json;" + code], capture_output=True, text=True)
    assert not {"torch", "transformers", "datasets"} & set(json.loads(answer.stdout))
