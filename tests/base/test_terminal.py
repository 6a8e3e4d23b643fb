import pytest

from rectiflow.__main__ import main
from tests.conftest import SMALL


@pytest.mark.parametrize("name", ["x[/red]", "[bold]x", ":smile:"])
def test_brackets_and_colons_in_the_name_of_a_folder_are_its_name(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["train", "digits", "--run", name, "--set", *SMALL]) == 0
    assert f"{name}/model" in capsys.readouterr().out
    assert main(["info", name]) == 0
    assert name in capsys.readouterr().out
