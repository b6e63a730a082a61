"""Shells complete the command: asked as they ask."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_runs import write_run

from collapse_lib import cli

ROOT = Path(__file__).resolve().parents[2]
ASK = """
eval "$(collapse completion bash)"
COMP_WORDS=($LINE) COMP_LINE=$LINE COMP_POINT=${#LINE} COMP_TYPE=9 COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_python_argcomplete collapse
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """One with ``collapse`` on its path and the runs ``alpha`` and ``beta``."""
    command = tmp_path / "bin" / "collapse"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m collapse_lib "$@"\n')
    command.chmod(0o755)
    for name in ("alpha", "beta"):
        write_run(tmp_path / "runs", name, 1)
    path = {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "COLLAPSE_RUNS": str(tmp_path / "runs")}
    return os.environ | path


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("collapse sta", "status"),
        ("collapse status al", "alpha"),
        ("collapse run smo", "smoke"),
        ("collapse run be", "beta"),
        ("collapse rm be", "beta"),
        ("collapse judge est", "estimate"),
        ("collapse run demo --dev", "--device"),
        ("collapse run demo --set sampling.temp", "sampling.temperature="),
        ("collapse results alpha --format c", "csv"),
    ],
)
def test_bash_is_offered_what_fits(environment, line, offered):
    done = subprocess.run(["bash", "-c", ASK], env=environment | {"LINE": line}, capture_output=True, text=True, check=False)
    assert [word.strip() for word in done.stdout.splitlines()] == [offered], done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_of_its_language(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "collapse" in script and {"bash": "complete -o", "zsh": "#compdef collapse", "fish": "complete --command collapse"}[shell] in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, check=False).returncode == 0
