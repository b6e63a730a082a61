"""Every command that the README shows works: as it stands, or in a shorter form given here with the reason."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT, copy_checkout

from collapse_lib.cli import _parser

BRIEF = "--set completions.every=null --set classification.tasks=[] --generations 1"
DEMO = "the demo takes minutes: its smallest form takes its place, under its name"
SHORTER = {
    "make book": ("make -n book", "installs an environment and runs the demo; what it calls is below"),
    "make test": ("make -n test", "these are the tests"),
    "collapse run demo": ("collapse run smoke --name demo", DEMO),
    "collapse run demo --name warm --set sampling.temperature=1.2 --generations 20": (
        f"collapse run smoke --name warm --set sampling.temperature=1.2 {BRIEF}",
        DEMO,
    ),
    "collapse run tinystories-small --name mine --set corpus.source=stories.txt --set corpus.stories=null"
    " --set corpus.validation_source=null --set 'classification.tasks=[]'": (
        f"collapse run smoke --name mine --set corpus.source=stories.txt --set corpus.stories=null {BRIEF}",
        "takes an hour: its smallest form takes its place",
    ),
    "collapse plan paper-33m": ("collapse plan paper-33m --machine machine.json", "measures for half a minute and needs memory for a large model"),
    "collapse run paper-33m": ("collapse plan paper-33m --machine machine.json --json", "needs the hub, and weeks"),
    "collapse run paper-33m --processes 0": ("collapse run warm --processes 0", "needs the hub, weeks and GPUs"),
    "collapse run demo --name lean --set retention.drop='[corpus,model]'": (
        f"collapse run smoke --name lean --set retention.drop='[corpus,model]' {BRIEF}",
        DEMO,
    ),
    "collapse twins demo": (f"collapse twins smoke --name pair {BRIEF}", DEMO),
    "collapse bench sampling --config 1m": ("collapse bench sampling --config demo --device cpu --rounds 1 --length 4", "takes minutes"),
    "collapse rm warm": ("collapse rm warm --yes", "nobody is there to answer"),
    "collapse run demo --set gpt_eval.judge=MODEL": ("collapse judge estimate demo --set gpt_eval.judge=MODEL", "needs a key"),
    "collapse judge serve --weights judge.gguf": ("collapse judge serve --help", "wants a model's weights, and serves until it is stopped"),
    "make judge && collapse judge serve": ("make -n judge && collapse judge serve --help", "fetches a model, and serves until it is stopped"),
}
BY_HAND = re.compile("-p preset demo")  # the notebooks' own demo: its smallest form again


def commands(page: Path, language: str) -> list[str]:
    """The lines of a page's blocks in one language, without their comments."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_what_is_shortened_is_in_the_readme():
    assert set(SHORTER) <= set(commands(ROOT / "README.md", "sh"))


@pytest.mark.parametrize(("page", "language", "fewest"), [("README.md", "sh", 10), ("book/rerun.md", "bash", 10), ("book/cluster.md", "bash", 4)])
def test_every_collapse_command_can_be_parsed(page, language, fewest):
    found = [line for line in commands(ROOT / page, language) if line.startswith(("collapse ", "python -m collapse_lib"))]
    assert len(found) >= fewest
    for line in found:
        words = shlex.split(line)
        _parser().parse_args(words[1:] if words[0] == "collapse" else words[3:])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A new user's checkout with the commands that `make` would install."""
    place = copy_checkout(tmp_path_factory.mktemp("user") / "checkout")
    (place / ".venv" / "bin").mkdir(parents=True)
    for name, module in (("collapse", "collapse_lib"), ("papermill", "papermill")):
        script = place / ".venv" / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        script.chmod(0o755)
    stories = [f"Tom had a {thing}. He took the {thing} to the {where}." for thing in ("kite", "ball", "hat") for where in ("park", "sea", "wood")]
    (place / "stories.txt").write_text("\n<|endoftext|>\n".join(stories * 20))
    return place


def run(command: str, checkout: Path) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name not in ("COLLAPSE_RUNS", "OPENAI_API_KEY", "OPENAI_BASE_URL", "MAKEFLAGS")}
    path = f"{checkout / '.venv' / 'bin'}:{os.environ['PATH']}"
    variables |= {"PATH": path, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(["bash", "-c", command], cwd=checkout, env=variables, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


@pytest.mark.slow
def test_every_command_of_the_readme_works_in_its_order(checkout):
    measured = run("collapse plan smoke --record machine.json", checkout)
    assert measured.returncode == 0, measured.stderr
    for command in commands(ROOT / "README.md", "sh"):
        shorter, _ = SHORTER.get(command, (command, ""))
        ended = run(BY_HAND.sub("-p preset smoke", shorter), checkout)
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    assert (checkout / "demo.parquet").is_file() and (checkout / "book" / "_build" / "html" / "index.html").is_file()
    assert not (checkout / "papermill_runs" / "warm").exists() and (checkout / "papermill_runs" / "by-hand" / "generation-01" / "model").is_dir()
