"""What stages print is shown letter for letter, whatever brackets a name holds."""

import pytest

from modeling_foundry.terminal import console


@pytest.mark.parametrize("name", ["rows[1].jsonl", "[/INST]", "[bold] x", "a[/b]c[", "\\[x]"])
def test_a_name_is_shown_as_it_is(name, capsys):
    console.print(f"sft: complete already, runs/{name} (nothing to do)")
    assert capsys.readouterr().out == f"sft: complete already, runs/{name} (nothing to do)\n"
