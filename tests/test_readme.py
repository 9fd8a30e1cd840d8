"""The README's example runs as written, and its commands are the ones that CI reads."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    exec(compile(example, "README.md", "exec"), {})
    bound, accuracy, _ = capsys.readouterr().out.split(" ", 2)
    assert 0 < float(bound) <= 1 + 1e-6
    assert 0 <= float(accuracy) <= 1


def test_two_commands_set_up_a_fresh_machine():
    commands = re.findall(r"```bash\n(.*?)```", README, flags=re.S)[:2]
    assert all(
        command.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install") for command in commands
    )
    assert commands[0].strip().endswith("fastlip train")
    assert commands[1].strip().endswith("pytest")
    assert f"<!-- tests -->\n```bash\n{commands[1]}```" in README
