"""docs/plan.md says what the commands print, and its pictures exist; its numbers: tests/test_quoted_numbers.py."""

import re

import pytest

from modeling_foundry.planning.commands import COMMANDS, main
from modeling_foundry.planning.formulas.scaling import LAWS
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs/plan.md").read_text()
BLOCKS = re.findall(r"```console\n\$ python recipes/plan\.py ([^\n]*)\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(
    ("command", "shown"), BLOCKS, ids=[command.split()[0] + str(i) for i, (command, _) in enumerate(BLOCKS)]
)
def test_a_console_block_is_what_its_command_prints(command, shown, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    main(command.split())
    printed = [line.rstrip() for line in capsys.readouterr().out.strip().splitlines()]
    assert printed == shown.splitlines(), "run benchmarks/plan_examples.py --write"


def test_every_command_has_an_example():
    assert {command.split()[0] for command, _ in BLOCKS} == set(COMMANDS)


def test_pictures_and_links_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", PAGE)
    local = [target for target in targets if not target.startswith("http")]
    assert len([target for target in local if target.endswith(".png")]) == 5
    for target in local:
        assert (REPOSITORY / "docs" / target).resolve().exists(), target
    for test in re.findall(r"`(tests/planning/[a-z_]+\.py)`", PAGE):
        assert (REPOSITORY / test).exists(), test


def test_laws_quoted_are_the_code_s():
    for name, law in LAWS.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {name}"))
        quoted = [float(re.match(r"[0-9.]+", cell.strip()).group()) for cell in row.split("|")[2:7]]
        assert quoted == pytest.approx([law.E, law.A, law.B, law.alpha, law.beta], rel=2e-4)
