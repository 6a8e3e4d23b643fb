"""`rectiflow serve` as a program: what it prints, answers and does when told to stop."""

import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from rectiflow.__main__ import main
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve") / "run"
    assert main(["train", "digits", "--run", str(folder), "--set", *SMALL]) == 0
    return folder


def _command(run, grace):
    options = ["--port", "0", "--max-steps", "100000", "--grace", grace]
    return [sys.executable, "-m", "rectiflow", "serve", str(run), *options]


def test_a_server_begins_answers_and_ends_well(run):
    with subprocess.Popen(
        _command(run, "20"), stdout=subprocess.PIPE, text=True, env={**os.environ, "RECTIFLOW_TOKEN": "t"}
    ) as server:
        try:
            line = server.stdout.readline()
            assert line.startswith("run at http://127.0.0.1:")
            client = httpx.Client(base_url=line.split()[-1], headers={"authorization": "Bearer t"}, timeout=60)
            assert client.get("/v1/models").json()["data"][0]["id"] == "run"
            answers = []
            body = {"prompt": "3", "steps": 400}
            asking = threading.Thread(target=lambda: answers.append(client.post("/v1/images/generations", json=body)))
            asking.start()
            while "rectiflow_pictures_in_flight 1" not in client.get("/metrics").text and asking.is_alive():
                time.sleep(0.01)
            server.send_signal(signal.SIGTERM)
            asking.join()
            assert answers[0].status_code == 200
            assert server.wait(20) == 0
        finally:
            server.kill()


def test_those_whose_pictures_are_given_up_are_told(run):
    with subprocess.Popen(_command(run, "1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            client = httpx.Client(base_url=server.stdout.readline().split()[-1], timeout=60)
            answers = []
            body = {"prompt": "3", "steps": 900, "n": 10, "size": "16x16"}
            ask = lambda extra: answers.append(client.post("/v1/images/generations", json=body | extra))  # noqa: E731
            asking = [threading.Thread(target=ask, args=({"stream": stream},)) for stream in (True, False)]
            for thread in asking:
                thread.start()
            while "rectiflow_pictures_in_flight 80" not in client.get("/metrics").text:
                time.sleep(0.01)
            server.send_signal(signal.SIGTERM)
            for thread in asking:
                thread.join()
            assert [answer.status_code for answer in answers] == [503, 503]
            assert {answer.json()["error"]["code"] for answer in answers} == {"shutting_down"}
            assert {answer.headers["retry-after"] for answer in answers} == {"10"}
            assert server.wait(20) == 0
            assert "Traceback" not in server.stderr.read()
        finally:
            server.kill()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--solver", "huen"], "Did you mean 'heun'"),
        (["--steps", "300"], "steps: expected 1 to 250"),
        (["--max-slots", "5"], "hold no request of 10"),
        (["--max-queue", "0"], "queue must be positive"),
        (["--guidance", "-1"], "guidance: expected 0 to 100"),
        (["--port", "99999"], "cannot be had"),
        (["--grace", "-1"], "--grace -1.0: expected seconds from 0"),
        (["--grace", "nan"], "--grace nan: expected seconds from 0"),
        (["--host", "no.such.host.invalid"], "cannot be had"),
    ],
)
def test_bad_options_are_one_line(run, capsys, monkeypatch, options, words):
    monkeypatch.setenv("RECTIFLOW_TOKEN", "t")
    assert main(["serve", str(run), *options]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("rectiflow: ")
    assert words in line


def test_no_model_and_no_token(run, tmp_path, capsys):
    assert main(["serve", str(tmp_path / "nowhere")]) == 2
    (tmp_path / "token").write_text(" \n")
    assert main(["serve", str(run), "--token-file", str(tmp_path / "token")]) == 2
    assert "is empty; write the token into it" in capsys.readouterr().err


@pytest.mark.parametrize("token", [b"\xff\xfe\x00", "tök".encode(), b"two words", b"two\nlines"])
def test_tokens_that_no_header_carries(run, tmp_path, capsys, token):
    (tmp_path / "token").write_bytes(token)
    assert main(["serve", str(run), "--token-file", str(tmp_path / "token")]) == 2
    assert "expected a token of letters, digits and signs of ASCII" in capsys.readouterr().err
