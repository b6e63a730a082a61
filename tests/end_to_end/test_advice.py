"""Whatever is damaged: following the advice that the program gives, to the letter, ends with a finished run and the same numbers."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest
from command import collapse

from .test_smoke import measured

DAMAGED = [
    "generation-00/corpus/train/shard-00000.arrow",
    "generation-00/corpus/validation/corpus.json",
    "generation-00/corpus/words.txt",
    "tokenizer/tokenizer.json",
    "generation-01/model/model.safetensors",
    "generation-01/model/config.json",
    "generation-01/corpus/shard-00001.arrow",
    "generation-01/corpus/corpus.json",
    "generation-01/completions.jsonl",
    "generation-01/metrics/train.json",
    "generation-01/manifests/perplexity.json",
    "generation-02/sample.ipynb",
]


def advised(said: str) -> list[list[str]]:
    """The commands in backquotes in what the program said."""
    return [shlex.split(command)[1:] for command in re.findall(r"`(collapse [^`]+)`", said)]


def follow(runs, command: list[str], most: int = 12):
    """Call a command, then whatever is advised, until all went well."""
    calls = [command]
    for _ in range(most):
        done = collapse(*calls.pop(0), runs=runs)
        if done.returncode:
            assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
            calls = advised(done.stderr)
            assert calls, done.stderr
        if not calls:
            return
    raise AssertionError(f"still not well after {most} commands: {done.stderr}")


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
def test_everything_damaged_at_once(finished_runs, tmp_path):
    shutil.copytree(finished_runs / "smoke", tmp_path / "smoke")
    for name in DAMAGED:
        flip(tmp_path / "smoke" / name)
    follow(tmp_path, ["run", "smoke"])
    assert measured(tmp_path / "smoke") == measured(finished_runs / "smoke")
    assert "Everything is as it was recorded." in collapse("repair", "smoke", runs=tmp_path).stdout
    assert "0 steps" in collapse("run", "smoke", runs=tmp_path).stdout


@pytest.mark.slow
def test_models_and_corpora_that_were_not_kept_are_made_again_when_they_are_needed(finished_runs, tmp_path):
    shutil.copytree(finished_runs / "smoke", tmp_path / "smoke", ignore=shutil.ignore_patterns("model", "corpus", "tokenizer"))
    shutil.rmtree(tmp_path / "smoke" / "generation-02")
    follow(tmp_path, ["run", "smoke"])
    assert measured(tmp_path / "smoke") == measured(finished_runs / "smoke")
