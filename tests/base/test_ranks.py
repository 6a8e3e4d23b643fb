"""Which process of a job says what went wrong; what they have in common is a store."""

import threading
import time

import pytest

from rectiflow.base import ranks
from rectiflow.base.errors import InputError


class Counter:
    """A store of one number."""

    def __init__(self):
        self.number = 0

    def add(self, name, more):
        self.number += more
        return self.number


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(ranks, "_PATIENCE", 0.0)
    monkeypatch.setattr(ranks, "_LONGEST", 0.3)
    return Counter()


def fail(store, error):
    with ranks._one_voice(store):
        raise error


def refused(elsewhere):
    error = InputError("no such data")
    error.said_elsewhere = elsewhere
    return error


def test_the_first_to_fail_speaks(store):
    with pytest.raises(InputError) as said:
        fail(store, refused(False))
    assert said.value.speaks_for_all
    for error in (refused(False), refused(True), OSError("disk")):
        with pytest.raises(SystemExit):
            fail(store, error)


def test_who_knows_it_from_another_waits_until_that_one_speaks(store):
    """Which may have to put things right first."""
    late = threading.Timer(0.15, lambda: store.add("failed", 1))
    late.start()
    began = time.monotonic()
    with pytest.raises(SystemExit):
        fail(store, refused(True))
    assert time.monotonic() - began >= 0.1
    late.join()


def test_who_speaks_may_be_gone_with_the_store_that_was_its_own(store, monkeypatch):
    def gone(name, more):
        raise RuntimeError("Broken pipe")

    monkeypatch.setattr(store, "add", gone)
    with pytest.raises(SystemExit):
        fail(store, refused(True))
    with pytest.raises(InputError) as said:  # a failure of its own is better said twice than not at all
        fail(store, refused(False))
    assert said.value.speaks_for_all


def test_where_nobody_speaks_it_says_so_itself(store):
    with pytest.raises(InputError, match="no such data") as said:
        fail(store, refused(True))
    assert said.value.speaks_for_all


def test_a_fault_of_ours_is_told_by_its_traceback_alone(store):
    with pytest.raises(RuntimeError, match="shape"):
        fail(store, RuntimeError("shape '[2, 3]' is invalid"))
    with pytest.raises(SystemExit):
        fail(store, refused(True))
