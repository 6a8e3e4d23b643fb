"""`rectiflow data` shows what training would see."""

import json
import re
import shlex

import pytest

from rectiflow.__main__ import _parse, main
from rectiflow.cli.asked import asked_run
from rectiflow.data.sets import open_set
from tests.data.test_folder import picture


def test_a_folder_is_shown(tmp_path, capsys):
    for i, size in enumerate([(64, 64), (100, 60), (60, 100), (64, 70)]):
        picture(tmp_path / f"{i}.png", size=size)
    (tmp_path / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{i}.png", "text": f"caption [{i}]"}) + "\n" for i in range(4))
    )
    before = sorted(tmp_path.iterdir())
    settings = ["data.buckets=3", "data.smallest_bucket=1", "data.held_out=0"]
    assert main(["data", str(tmp_path), "--set", *settings]) == 0
    shown = capsys.readouterr().out
    for words in ("bucket 80×48", "bucket 48×80", "cropped away", "4 captions", "caption [3]", "4 to train on"):
        assert words in shown
    assert sorted(tmp_path.iterdir()) == before


def test_a_built_in_set_is_shown(capsys):
    assert main(["data", "digit-scenes"]) == 0
    shown = capsys.readouterr().out
    assert "20,000 to train on, 2,000 held out; 3×32×32" in shown
    assert "a yellow" in shown or "a red" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["digitts"],
            "no folder at digitts; expected one, shards (.tar or .parquet), or a built-in set: digits, digit-scenes",
        ),
        (["digits", "--set", "data.sise=3"], "Did you mean 'size'"),
        (["digits", "--out", "x", "--set", "data.size=8"], "leave out --set"),
    ],
)
def test_what_cannot_be_shown(words, said, capsys):
    assert main(["data", *words]) != 0
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["digits", "digit-scenes", "digit-clips"])
def test_the_command_that_is_told_trains_on_all_that_was_written(tmp_path, capsys, name):
    out = tmp_path / "set"
    assert main(["data", name, "--out", str(out), "--count", "6"]) == 0
    (words,) = re.findall(r"Train: rectiflow (.*)", capsys.readouterr().out)
    command = _parse(shlex.split(words))
    config = asked_run(command.recipe, command.data, "", None, None, command.set)
    data = open_set(config.data.model_copy(update={"workers": 0}))
    assert (len(data.train), len(data.held_out)) == (6, 6)
