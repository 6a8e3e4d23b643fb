"""The command line, in process; what a user sees and gets."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rectiflow.__main__ import main
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "digits", "--run", str(folder), "--set", *SMALL]) == 0
    return folder


def test_help_is_light():
    code = (
        "import sys; import rectiflow; from rectiflow.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'sklearn', 'rich.progress') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "train" in done.stdout


def test_npz(run, tmp_path, capsys):
    out = tmp_path / "x.npz"
    arguments = ["--classes", "3", "7", "--count", "4", "--steps", "3", "--guidance", "1", "--seed", "5"]
    assert main(["sample", str(run), "--out", str(out), *arguments]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    with np.load(out) as archive:
        assert archive["arr_0"].shape == (8, 8, 8, 1)
        assert archive["arr_0"].dtype == np.uint8
        assert archive["arr_1"].tolist() == [3, 3, 3, 3, 7, 7, 7, 7]


def test_grid_carries_its_facts(run, tmp_path):
    out = tmp_path / "x.png"
    assert main(["sample", str(run), "--out", str(out), "--count", "2", "--steps", "2", "--solver", "heun"]) == 0
    image = Image.open(out)
    assert image.size == ((2 * 9 + 1) * 4, (10 * 9 + 1) * 4)
    facts = {name: image.text[name] for name in ("model", "solver", "steps", "guidance", "seed", "step")}
    assert facts == {"model": str(run), "solver": "heun", "steps": "2", "guidance": "0.0", "seed": "0", "step": "6"}
    assert json.loads(image.text["classes"]) == list("0123456789")


def test_grid_and_interval_are_told(run, tmp_path):
    out = tmp_path / "x.png"
    options = ["--grid", "1,0.8,0.5,0", "--interval", "0.1", "0.7", "--guidance", "1", "--solver", "dpm++2m"]
    assert main(["sample", str(run), "--out", str(out), *options]) == 0
    text = Image.open(out).text
    assert (text["grid"], text["steps"], text["interval"], text["solver"]) == (
        "1,0.8,0.5,0", "3", "[0.1, 0.7]", "dpm++2m"
    )  # fmt: skip


def test_folder(run, tmp_path):
    out = tmp_path / "out"
    assert main(["sample", str(run), "--out", str(out), "--classes", "9", "1", "--steps", "2"]) == 0
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [(line["file_name"], line["class"]) for line in lines] == [("00000.png", "9"), ("00001.png", "1")]
    assert Image.open(out / "00001.png").text["class"] == "1"


def test_filmstrip(run, tmp_path):
    out = tmp_path / "film.png"
    assert main(["sample", str(run), "--out", str(out), "--classes", "9", "1", "--steps", "6", "--filmstrip", "4"]) == 0
    assert Image.open(out).size == ((4 * 9 + 1) * 4, (2 * 9 + 1) * 4)


def test_info(run, capsys):
    assert main(["info", str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["recipe"], facts["checkpoint_step"], facts["model_step"], facts["steps"]) == ("digits", 6, 6, 6)
    assert set(facts["last_metrics"]) >= {"loss", "held_out_loss", "step"}
    assert facts["conventions"]["guidance"].startswith("v = (1+w)")
    assert facts["network"]["patch"] == 4
    assert facts["log_snr_weight"]["6"] == pytest.approx(0.049787, abs=1e-6)  # e^(−λ/2) of the textbook's loss
    assert main(["info", str(run / "model")]) == 0
    shown = capsys.readouterr().out
    assert "digits" in shown
    assert "run.yaml" not in shown


def test_what_processes_do_not_share_the_first_does_alone(run, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["info", str(run)]) == 0
    assert not capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "1")  # whatever a RANK that is left over says
    assert main(["info", str(run)]) == 0
    assert capsys.readouterr().out


def test_a_job_that_is_no_number_is_told(run, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    for command in (["train", "--resume", str(run)], ["sample", str(run), "--out", str(run / "x.png")]):
        assert main(command) == 2
        assert "WORLD_SIZE='two' in the environment is no number of processes" in capsys.readouterr().err


def test_train_again_and_resume(run, capsys):
    assert main(["train", "digits", "--run", str(run), "--set", *SMALL]) == 0
    assert "already trained (6 steps)" in capsys.readouterr().out
    assert main(["train", "--resume", str(run)]) == 0
    assert "already trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["unknown command 'trian'", "Did you mean 'train'"]),
        (["train"], ["expected a recipe (digits, ddpm, folder"]),
        (["train", "digit"], ["unknown recipe", "Did you mean 'digits'"]),
        (["train", "digits", "--set", "batch"], ["expected a setting like"]),
        (["train", "digits", "--stes", "3"], ["unknown option '--stes'", "Did you mean '--set'"]),
        (["train", "digits", "--resume", "runs/x"], ["--resume takes everything"]),
        (["train", "--resume", "nowhere"], ["nowhere is not a run"]),
        (["train", "digits", "--config", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (["sample"], ["RUN", "rectiflow sample --help"]),
        (["sample", "nowhere"], ["no run or model at nowhere"]),
        (["sample", "RUN", "--count", "two"], ["--count", "'two'"]),
        (["sample", "RUN", "--solvr", "heun"], ["unknown option '--solvr'", "Did you mean '--solver'"]),
        (["sample", "RUN", "--solver", "huen"], ["Did you mean 'heun'"]),
        (["sample", "RUN", "--solver", "ddpm:eta=2"], ["ddpm:eta must be from 0 to 1, received 2"]),
        (
            ["sample", "RUN", "--solver", "sde:epsilon=one"],
            ["unknown epsilon", "Expected one of: t, sbdm, constant, sin2"],
        ),
        (["sample", "RUN", "--steps", "0"], ["steps must be at least 1, received 0"]),
        (["sample", "RUN", "--grid", "logsnr"], ["unknown grid 'logsnr'", "Did you mean 'log-snr'"]),
        (["sample", "RUN", "--grid", "1,0.5,0.6,0"], ["must fall"]),
        (["sample", "RUN", "--interval", "0.9", "0.1"], ["0 ≤ low ≤ high ≤ 1", "(0.9, 0.1)"]),
        (["train", "digits", "--set", "weight.kind=sigmod"], ["weight.kind", "Did you mean 'sigmoid'"]),
        (["train", "digits", "--set", "flow.schedule=vp-liner"], ["flow.schedule", "Did you mean 'vp-linear'"]),
        (["sample", "RUN", "--classes", "ten"], ["unknown class 'ten'", "0, 1, 2"]),
        (["sample", "RUN", "--guidance", "-1"], ["must be finite and ≥ 0", "received -1.0"]),
        (["sample", "RUN", "--size", "9", "8"], ["patch of 4 does not divide 9×8", "nearest size is 8×8"]),
        (["sample", "RUN", "--out", "x.jpeg"], ["x.jpeg", ".png, .npz, .mp4 or .gif"]),
        (["sample", "RUN", "--out", "x.npz", "--filmstrip", "4"], ["--filmstrip"]),
        (["sample", "RUN", "--device", "cud"], ["unknown device 'cud'", "Did you mean 'cuda'"]),
        (["average", "RUN", "--length", "0.1", "--out", "x"], ["no snapshots of power averages", "ema.kind=power"]),
        (["average", "RUN", "--length", "0.1"], ["--out", "rectiflow average --help"]),
        (["info", "nowhere"], ["no run or model at nowhere"]),
    ],
)
def test_bad_input_is_one_clear_line(run, capsys, arguments, words):
    status = main([str(run) if argument == "RUN" else argument for argument in arguments])
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("rectiflow: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def test_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rectiflow 0.")
