"""The model that ships with the package."""

import json

from rectiflow.__main__ import main
from rectiflow.data.grammar import parse_caption
from rectiflow.evaluation.adherence import adherence
from rectiflow.evaluation.judge import judge
from rectiflow.models.folder import SHIPPED
from rectiflow.pipeline import Pipeline
from rectiflow.request import Request

PROMPTS = ["a red 7 in the top left", "a blue 0 in the middle and a white 5 in the bottom right"]


def test_it_is_small_and_says_where_it_comes_from():
    folder = SHIPPED / "scenes"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000_000
    assert "rectiflow train scenes" in (folder / "README.md").read_text()


def test_it_puts_what_is_asked_for_where_it_is_asked_for():
    asked = Request(prompts=PROMPTS, count=8, steps=20, solver="ab2", guidance=3.0)
    pixels = Pipeline.load("scenes").sample(asked).pixels
    found = adherence(judge(), pixels, [parse_caption(prompt) for prompt in PROMPTS for _ in range(8)]).seen
    assert found.place.value > 0.95
    assert found.colour.value > 0.95
    assert found.digit.value > 0.6


def test_by_its_name_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "scenes", "--prompt", PROMPTS[0], "--steps", "4", "--out", "x.png"]) == 0
    assert (tmp_path / "x.png").is_file()
    assert main(["info", "scenes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])["recipe"] == "scenes"
    assert main(["sample", "scenes", "--prompt", "", "--steps", "2", "--out", "y.png"]) == 0
