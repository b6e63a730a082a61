"""Files are whole or absent, and locks die with their holders."""

import os
import signal
import subprocess
import sys

import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import exclusive, is_locked, read_json, replace_folder, write_json

HOLDER = """
import sys, time
from pathlib import Path
from collapse_lib.experiment.files import exclusive
with exclusive(Path(sys.argv[1]), "The thing"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    place = tmp_path / "pipe"
    os.mkfifo(place)
    reading = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    write_json(place, {"a": 1})
    assert os.read(reading, 100) == b'{\n "a": 1\n}\n' and place.is_fifo()
    os.close(reading)


def test_json_is_written_whole_and_leaves_nothing_beside_it(tmp_path):
    write_json(tmp_path / "deep" / "value.json", {"a": [1, 2.5, "ä"]})
    assert read_json(tmp_path / "deep" / "value.json") == {"a": [1, 2.5, "ä"]}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["value.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "value.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "value.json", object())
    assert read_json(tmp_path / "value.json", list) == [1]


def test_reading_absent_and_broken_json(tmp_path):
    assert read_json(tmp_path / "absent.json") is None
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"broken\.json is not valid JSON"):
        read_json(tmp_path / "broken.json")


def test_a_folder_takes_the_place_of_a_left_over_one(tmp_path):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(name)
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["new.txt"]


def test_a_lock_is_refused_while_held_and_free_after_its_holder_was_killed(tmp_path):
    lock = tmp_path / "a.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert is_locked(lock)
    with pytest.raises(UserError, match=rf"The thing is in use by another process \(pid {holder.pid}\)"), exclusive(lock, "The thing"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with exclusive(lock, "The thing", patience=5):
        assert is_locked(lock)
    assert not is_locked(lock)
