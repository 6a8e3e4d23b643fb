"""What a run keeps of how it stands and how it ended."""

import json

import pytest
from rich.console import Console

from rectiflow.base.errors import InputError
from rectiflow.training.log import NOTES_NAME, STATUS_NAME, RunLog
from rectiflow.training.sinks import read_records

QUIET = Console(quiet=True)


def status(folder):
    return json.loads((folder / STATUS_NAME).read_text())


def test_a_run_says_that_it_trains_and_that_it_is_finished(tmp_path):
    with RunLog(tmp_path, 0, 10, QUIET) as log:
        assert status(tmp_path)["state"] == "training"
        log.write(10, {"loss": 1.0})
    found = status(tmp_path)
    assert (found["state"], found["step"], found["steps"], found["reason"]) == ("finished", 10, 10, "")


def test_a_run_that_stops_says_why_if_it_was_told(tmp_path):
    with RunLog(tmp_path, 4, 10, QUIET) as log:
        log.write(6, {"loss": 1.0})
        log.reason = "SIGTERM"
    assert (status(tmp_path)["state"], status(tmp_path)["reason"]) == ("stopped", "SIGTERM")
    with pytest.raises(KeyboardInterrupt), RunLog(tmp_path, 6, 10, QUIET):
        raise KeyboardInterrupt
    assert (status(tmp_path)["state"], status(tmp_path)["step"]) == ("stopped", 6)


def test_a_run_that_fails_keeps_the_reason_in_one_line(tmp_path):
    log = RunLog(tmp_path, 0, 10, QUIET)
    log.write(3, {"loss": 1.0})
    with pytest.raises(InputError), log:
        raise InputError("the pictures\nare gone")
    found = status(tmp_path)
    assert (found["state"], found["reason"], found["step"]) == ("failed", "the pictures are gone", 3)


def test_what_was_said_is_kept_through_attempts(tmp_path):
    for words in ("step 3 was not taken", "back to step 0"):
        with RunLog(tmp_path, 0, 10, QUIET) as log:
            log.write(3, {"loss": 1.0})
            log.tell(words)
    notes = [json.loads(line) for line in (tmp_path / NOTES_NAME).read_text().splitlines()]
    assert [(note["step"], note["words"]) for note in notes] == [(3, "step 3 was not taken"), (3, "back to step 0")]


def test_a_disk_that_takes_nothing_stops_no_run(tmp_path, capsys):
    console = Console(force_terminal=False, width=200)
    with RunLog(tmp_path, 0, 4, console) as log:
        (tmp_path / "metrics.jsonl").rename(tmp_path / "aside")
        (tmp_path / "metrics.jsonl").mkdir()
        log.write(1, {"loss": 1.0})
        log.write(2, {"loss": 1.0})
        (tmp_path / "metrics.jsonl").rmdir()
        log.write(3, {"loss": 1.0})
    assert capsys.readouterr().out.count("held back until the disk takes them") == 1
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rectiflow.base.ranks.rank", lambda: 1)
    with RunLog(tmp_path, 0, 1, Console(force_terminal=False)) as log:
        log.write(1, {"loss": 1.0})
        log.show(1)
        log.tell("something")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
    assert log.latest["loss"] == 1.0
