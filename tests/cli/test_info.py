"""`rectiflow info`: how a run stands, in numbers, as a curve and as a picture."""

import io
import json
import math
import shutil

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from rich.console import Console

from rectiflow import workflow
from rectiflow.__main__ import main
from rectiflow.cli.curve import MARK, draw
from rectiflow.cli.info_stages import spoken
from rectiflow.cli.info_view import show_preview
from rectiflow.cli.thumbnail import thumbnail
from rectiflow.training.run import train
from rectiflow.training.status import status_of
from tests.test_workflow import config as latent_config

MARGIN = 11  # numbers and edge, left of a drawing


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from rectiflow.recipes.registry import resolve
    from tests.conftest import SMALL

    folder = tmp_path_factory.mktemp("info") / "run"
    settings = (*SMALL, "every.preview=6", "preview={steps: 2, count: 2}")
    train(resolve("digits", settings=settings), folder, Console(quiet=True))
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A finished run of six steps, to do harm to."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def told(capsys, run, *options):
    assert main(["info", str(run), *options]) == 0
    return capsys.readouterr().out


def facts(capsys, run):
    return json.loads(told(capsys, run, "--json"))


def dots(line):
    """Columns of dots, two in a character, that a line of braille has something in."""
    found = set()
    for place, character in enumerate(line[MARGIN:]):
        cell = ord(character) - 0x2800 if character >= "\u2800" else 0
        found |= {2 * place} if cell & 0x47 else set()
        found |= {2 * place + 1} if cell & 0xB8 else set()
    return found


def test_a_finished_run(run, capsys):
    shown = told(capsys, run)
    assert "finished: step 6 of 6 (100 %)" in shown
    assert "checkpoint: step 6" in shown
    assert "sound (hashes compared)" in shown
    assert "left" not in shown
    for name in ("loss", "held_out_loss", "weight_norm", "utilisation", "memory_mb", "gradient_norm"):
        assert f" {name} " in shown
    assert MARK + " held-out loss" in shown
    assert "preview" not in shown  # no terminal
    assert all(len(line) <= 80 for line in shown.splitlines() if str(run) not in line)


def test_curve_has_its_extremes_in_the_right_columns():
    steps = range(1, 142)
    points = [(step, 1.0) for step in steps]
    points[30], points[100] = (31, 2.0), (101, 0.5)
    width = MARGIN + 70  # 140 dots for 141 steps
    lines = draw(points, width=width, height=14)
    assert {round((31 - 1) / 140 * 139)} == dots(lines[0])
    assert {round((101 - 1) / 140 * 139)} == dots(lines[13])
    assert lines[0].startswith(f"{'2':>10}┤")
    assert lines[13].startswith(f"{'0.5':>10}┤")
    assert lines[14].split() == ["step", "1", "71", "141"]
    assert max(len(line) for line in lines) <= width


def test_curve_marks_and_plain_characters():
    points = [(step, 10.0 - step) for step in range(10)]
    lines = draw(points, [(9, 5.0)], width=MARGIN + 19, height=10, braille=False)
    assert "\n".join(lines).isascii()
    assert lines[0][MARGIN] == "*"
    # From 10 to 1 the upright axis is logarithmic: 5 lies ln 2 of ln 10 from above.
    row = round(math.log(2) / math.log(10) * 9)
    assert [n for n, line in enumerate(lines) if MARK in line[MARGIN:]] == [row]
    assert lines[row].index(MARK) == MARGIN + 18
    assert lines[9][MARGIN + 18] == "*"


def test_axes_are_logarithmic_where_that_shows_more():
    early = draw([(step, 1 / step) for step in range(1, 200)])
    assert early[-1].startswith("step (log)")
    assert float(early[6].split("┤")[0]) == pytest.approx((1 / 199) ** (6 / 13), rel=1e-3)
    even = draw([(step, 2 - step / 200) for step in range(1, 200)])
    assert even[-1].startswith("      step 1")
    below_zero = draw([(1, 5.0), (2, -3.0)])
    assert below_zero[0].startswith("         5┤")
    assert below_zero[-2].startswith("        -3┤")


@pytest.mark.parametrize("points", [[], [(1, math.nan)], [(1, math.inf), (2, -math.inf)]])
def test_nothing_to_draw(points):
    assert draw(points) == []


def test_one_point_and_a_flat_line_lie_in_the_middle():
    for points in ([(5, 3.0)], [(1, 3.0), (9, 3.0)], [(1, 0.0), (9, 0.0)]):
        lines = draw(points, height=9)
        assert [n for n, line in enumerate(lines[:-1]) if dots(line)] == [4]
    assert dots(draw([(1, 3.0), (9, 3.0)], width=MARGIN + 20, height=9)[4]) == set(range(40))


def test_torn_lines_and_odd_values_are_passed_over(run, capsys):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": NaN}\n{"step": 8, "loss": "much", "odd": null}\n[]\n\x00\xff{"step": 9, "lo')
    found = facts(capsys, run)
    assert found["last_metrics"]["step"] == 8
    assert found["last_metrics"]["loss"] is None  # JSON has no NaN
    assert "nan" in told(capsys, run)


def test_whatever_is_missing(run, capsys):
    for name in ("metrics.jsonl", "status.json", "samples", "model", "checkpoints"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        shown = told(capsys, run, "--preview")
        assert str(run) in shown or "run" in shown
    assert "not begun: step 0 of 6 (0 %)" in shown
    assert "checkpoint: none yet" in shown
    assert "no preview yet" in shown
    assert "┤" not in shown


def test_training_stopped_killed_and_failed(run, capsys):
    for path in (run / "checkpoints" / "step-00000006", run / "model"):
        shutil.rmtree(path)
    lock = FileLock(run / ".lock")
    with lock:
        assert facts(capsys, run)["state"]["state"] == "training"
    status = {"state": "training", "step": 6, "steps": 6, "reason": "", "time": 0}
    (run / "status.json").write_text(json.dumps(status))
    assert facts(capsys, run)["state"]["reason"].startswith("its process ended without a word")
    (run / "status.json").write_text(json.dumps(status | {"state": "failed", "reason": "the data are gone"}))
    shown = told(capsys, run)
    assert "failed: step 6 of 6" in shown
    assert "reason: the data are gone" in shown
    assert f"go on: rectiflow train --resume {run}" in shown.replace("\n", "")
    (run / "status.json").write_text("{ torn")
    assert facts(capsys, run)["state"]["state"] == "stopped"


def test_looking_takes_no_lock_and_changes_nothing(run, capsys):
    def stand():
        return {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}

    before = stand()
    told(capsys, run)
    assert stand() == before
    with FileLock(run / ".lock", timeout=0):
        told(capsys, run)
    (run / ".lock").unlink()
    told(capsys, run)
    assert not (run / ".lock").exists()


def test_a_damaged_checkpoint_is_named_and_left_where_it_is(run, capsys):
    path = next((run / "checkpoints" / "step-00000006").glob("*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    shown = " ".join(told(capsys, run).split())
    assert f"damaged: {path.name} is altered" in shown
    assert path.exists()
    (run / "model" / "config.json").write_text("{")
    assert "damaged: " in facts(capsys, run)["model"]


def test_time_left_is_by_its_own_speed(run, capsys):
    for name in ("checkpoints", "status.json"):
        shutil.rmtree(run / name) if name == "checkpoints" else (run / name).unlink()
    former = [{"step": n, "loss": 1.0, "seconds": 100.0 * n} for n in (1, 2, 3)]
    newest = [{"step": n, "loss": 1.0, "seconds": 4.0 * (n - 3)} for n in (4, 5)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in former + newest))
    status = status_of(run)
    assert (status.step, status.state) == (5, "stopped")
    assert status.steps_per_second == pytest.approx(0.25)
    assert status.seconds_left == pytest.approx(4.0)
    assert "about 4 s more at 0.25 steps/s" in told(capsys, run)
    assert [spoken(s) for s in (0.2, 59.6, 61, 3600, 90_000)] == ["0 s", "1 min", "1 min 1 s", "1 h", "1 d 1 h"]


def test_what_a_person_was_told_is_told_again(run, capsys):
    notes = [{"step": n, "time": 0, "words": f"[red]step {n} was not taken"} for n in range(5)]
    (run / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes) + '{"step"')
    shown = told(capsys, run)
    assert "step 4: [red]step 4 was not taken" in shown
    assert "step 1 was" not in shown  # the newest three


def test_thumbnail_keeps_colours_and_places(tmp_path):
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:4, :6], pixels[4:, 6:] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(pixels).resize((48, 32), Image.Resampling.NEAREST).save(tmp_path / "x.png")
    lines = thumbnail(tmp_path / "x.png", 12, 10, colours=True)
    assert [line.plain for line in lines] == ["▀" * 12] * 4
    spans = [[(s.style.color.triplet, s.style.bgcolor.triplet) for s in line.spans] for line in lines]
    assert spans[0][0] == ((255, 0, 0), (255, 0, 0))
    assert spans[3][11] == ((0, 0, 255), (0, 0, 255))
    assert spans[0][11] == spans[3][0] == ((0, 0, 0), (0, 0, 0))
    Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 2, axis=0)).save(tmp_path / "grey.png")
    assert [line.plain for line in thumbnail(tmp_path / "grey.png", 80, 40, colours=False)] == [" @"]
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")
    assert thumbnail(tmp_path / "torn.png", 80, 40, colours=True) == []


def test_preview_in_a_terminal_and_without(run, capsys):
    box = io.StringIO()
    show_preview(run, Console(file=box, force_terminal=True, color_system="truecolor", width=80))
    assert "\x1b[38;2;" in box.getvalue()
    assert "▀" in box.getvalue()
    shown = told(capsys, run, "--preview")
    assert "00000006.png" in shown
    picture = shown.split("00000006.png")[1].strip("\n").splitlines()
    assert len(picture) > 20
    assert {c for line in picture for c in line} <= set(" .:-=+*#%@")
    assert "00000006.png" not in told(capsys, run, "--no-preview")


def test_both_stages_of_a_latent_run_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workflow, "_MOST", 40)
    run = tmp_path / "run"
    workflow.run(latent_config(), run, Console(quiet=True))
    found = {stage["stage"]: stage for stage in facts(capsys, run)["stages"]}
    assert list(found) == ["autoencoder", "latents", "flow", "evaluation"]
    assert {stage["state"] for stage in found.values()} == {"finished"}
    assert found["autoencoder"]["about"] == found["flow"]["about"] == "step 4 of 4"
    assert found["latents"]["about"].endswith("pictures, 3×4×4 each")
    assert "Fréchet distance" in found["evaluation"]["about"]
    shown = told(capsys, run / "autoencoder")
    assert "finished: step 4 of 4" in shown
    assert " loss_square " in shown or " loss_absolute " in shown
    for name, state in (("evaluation", "not begun"), ("latents", "not begun"), ("autoencoder", "not begun")):
        shutil.rmtree(run / name)
        stages = {stage["stage"]: stage["state"] for stage in facts(capsys, run)["stages"]}
        assert stages[name] == state
    (run / "latents").mkdir()
    (run / "latents" / "part").write_text("x")
    assert " not finished " in told(capsys, run)
