"""The README's code runs, its tables are those of the results, its links exist."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from rectiflow.__main__ import _parse
from rectiflow.cli.asked import asked_run
from rectiflow.cli.train import Train

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_example_learns_a_circle():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict = {}
    torch.manual_seed(0)
    exec(code, names)
    radius = names["points"].norm(dim=1)
    assert abs(float(radius.mean()) - 1) < 0.1
    assert float(radius.std()) < 0.25
    assert torch.isfinite(names["estimate"].score).all()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tables_are_made_from_the_results(page, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from tables import filled

    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, "run: python benchmarks/tables.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_are_understood(page):
    """Those of fenced blocks; what stands for words of the reader's own is left to them."""
    for block in re.findall(r"^```\w*\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words or not words[0].endswith("rectiflow") or re.search(r"[…|]|[^.]\.\.\.[^.]", line):
                continue
            command = _parse(words[1:])
            if isinstance(command, Train) and command.resume is None:
                asked = (command.recipe, command.data, command.autoencoder, command.source, None, command.set)
                asked_run(*asked)
