"""docs/cluster.md and the files it names: torchrun and we understand their commands, and the files do as they say."""

import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from rectiflow.__main__ import _parse
from rectiflow.cli.asked import asked_run
from rectiflow.cli.encode import Encode
from rectiflow.cli.evaluate import Evaluate
from rectiflow.cli.sample import Sample
from rectiflow.cli.train import Train
from rectiflow.plan.probe import training_stages
from rectiflow.training.run_folder import HOW

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "cluster.md").read_text(encoding="utf-8")
SLURM = DOCS / "launch" / "slurm.sh"
LINES = [line for block in re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]


def torchrun(words):
    """What torchrun makes of a command line: its own options, and a command of ours, parsed."""
    assert words[0] == "torchrun"
    options = get_args_parser().parse_args(words[1:])
    assert options.module
    assert options.training_script == "rectiflow"
    return options, ours(options.training_script_args)


def ours(words):
    """A command, whose settings are those of its recipe."""
    command = _parse(words)
    if isinstance(command, Train):
        run_of(command)
    return command


def run_of(command):
    return asked_run(command.recipe, command.data, command.autoencoder, command.source, command.config, command.set)


def has_samples_for(command, processes):
    """Whether every stage that a command trains has one for each part of a batch."""
    return all(stage.batch >= processes * stage.accumulate for stage in training_stages(run_of(command)))


@pytest.mark.parametrize("line", LINES)
def test_commands_are_understood(line):
    words = shlex.split(line)
    if words[0] == "rectiflow":
        assert isinstance(ours(words[1:]), Train)
        return
    options, command = torchrun(words)
    assert isinstance(command, Train | Sample | Evaluate | Encode)
    assert int(options.nproc_per_node) == 8
    if isinstance(command, Train):
        assert has_samples_for(command, int(options.nnodes.split(":")[-1]) * 8)
    many = options.nnodes != "1:1"
    assert many == (options.rdzv_backend == "c10d")
    if many:
        assert options.rdzv_endpoint
        assert options.rdzv_id != "none"


def test_the_page_has_each_command_that_is_shared():
    found = {type(torchrun(shlex.split(line))[1]) for line in LINES if line.startswith("torchrun")}
    assert found == {Train, Sample, Evaluate, Encode}


def test_without_the_dashes_torchrun_takes_our_option_for_its_own(capsys):
    with pytest.raises(SystemExit):
        torchrun(shlex.split("torchrun --nproc-per-node=2 -m rectiflow train digits --run runs/x"))
    assert "--run could match --run-path" in capsys.readouterr().err


def test_the_page_says_what_is_so():
    told = re.search(r"may change then, for that start .*?: (.*?), and the same of", PAGE, flags=re.DOTALL)
    assert set(re.findall(r"`([\w.]+)`", told[1])) == set(HOW)
    tests = (DOCS.parent / "tests" / "training" / "test_parallel.py").read_text(encoding="utf-8")
    for tolerance, row in (("1e-4", "losses and held-out"), ("1e-3", "weights after"), ("2e-3", "an autoencoder")):
        (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {row}")]
        assert f"to {tolerance} " in line
        assert f"rtol={tolerance}" in tests


SRUN = """#!/bin/bash
trap 'echo told to stop >> "$SAID"; sleep 0.3; echo saved >> "$SAID"; exit 1' TERM
printf '%s\\n' "$@" > "$ASKED"
if [ -n "${LONG:-}" ]; then for _ in $(seq 200); do sleep 0.1; done; fi
exit "${STATUS:-0}"
"""
SCONTROL = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then echo node7; sleep 0.1; echo node8; else echo "scontrol $*" >> "$SAID"; fi
"""


@pytest.fixture
def slurm(tmp_path):
    """Starts the script as sbatch would on the first of two machines, with stand-ins for Slurm's own commands."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("activate", "")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "said").touch()
    job = {"SLURM_JOB_ID": "11", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    node = {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32"}
    place = {"DATA": "/shared/pictures of mine", "RUN": "/shared/run", "VENV": str(tmp_path), "HOME": str(tmp_path)}
    files = {"SAID": str(tmp_path / "said"), "ASKED": str(tmp_path / "asked")}
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"

    def start(*words, **more):
        return subprocess.Popen(
            ["bash", str(SLURM), *words], env={**job, **node, **place, **files, **more, "PATH": path}
        )

    return start


def test_slurm_starts_one_torchrun_on_each_machine(slurm, tmp_path):
    assert slurm(STATUS="3").wait(30) == 3
    assert (tmp_path / "said").read_text() == ""  # what fails by itself is not tried again
    step, *words = (tmp_path / "asked").read_text().splitlines()
    assert step == "--kill-on-bad-exit=1"
    options, command = torchrun(words)
    assert (options.nnodes, options.nproc_per_node, options.max_restarts) == ("2", "4", 3)
    assert (options.rdzv_backend, options.rdzv_endpoint, options.rdzv_id) == ("c10d", "node7:29400", "11-0")
    assert (command.data, command.run) == (Path("/shared/pictures of mine"), Path("/shared/run"))
    assert command.recipe == "latent-256"
    assert has_samples_for(command, 2 * 8)


def test_slurm_is_told_another_recipe_and_its_settings(slurm, tmp_path):
    (told,) = re.findall(r"RECIPE=(\w+) .*?\n#\s+(\S.*)\n", SLURM.read_text())
    assert slurm(*told[1].split(), RECIPE=told[0]).wait(30) == 0
    _, command = torchrun((tmp_path / "asked").read_text().splitlines()[1:])
    assert command.recipe == told[0] == "video"
    assert run_of(command).data.frames == 33
    assert run_of(command).compile
    assert has_samples_for(command, 2 * 8)


def test_slurm_stopped_waits_for_the_run_to_save_and_queues_again(slurm, tmp_path):
    job = slurm(LONG="1")
    deadline = time.monotonic() + 30
    while not (tmp_path / "asked").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) != 0
    assert (tmp_path / "said").read_text().splitlines() == ["told to stop", "saved", "scontrol requeue 11"]


def test_slurm_has_time_to_save():
    text = SLURM.read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, flags=re.MULTILINE))
    assert {"requeue", "nodes", "gpus-per-node", "open-mode", "time"} <= asked.keys()
    assert asked["ntasks-per-node"] == "1"
    told, before = re.fullmatch(r"B:(TERM)@(\d+)", asked["signal"]).groups()
    assert f"' {told}\n" in text
    assert int(re.search(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", text)[1]) < int(before)


def test_kubernetes_starts_one_torchrun_in_each_pod(monkeypatch):
    volume, job = yaml.safe_load_all((DOCS / "launch" / "kubernetes.yaml").read_text(encoding="utf-8"))
    assert (volume["apiVersion"], volume["kind"]) == ("v1", "PersistentVolumeClaim")
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", each["metadata"]["name"]) for each in (volume, job))
    policy, replicas = job["spec"]["elasticPolicy"], job["spec"]["pytorchReplicaSpecs"]
    assert replicas.keys() == {"Worker"}  # an elastic job has no master
    worker = replicas["Worker"]
    assert policy["minReplicas"] <= worker["replicas"] <= policy["maxReplicas"]
    assert worker["restartPolicy"] in ("OnFailure", "ExitCode", "Always")
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert mounts.keys() == volumes.keys()
    claim = volumes["shared"]["persistentVolumeClaim"]["claimName"]
    assert claim == volume["metadata"]["name"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert all(isinstance(value, str) for value in environment.values())  # Kubernetes takes no numbers there
    assert int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
    # As the operator tells torchrun.
    monkeypatch.setenv("PET_NNODES", f"{policy['minReplicas']}:{policy['maxReplicas']}")
    monkeypatch.setenv("PET_RDZV_BACKEND", policy["rdzvBackend"])
    monkeypatch.setenv("PET_RDZV_ENDPOINT", f"{job['metadata']['name']}-worker-0:23456")
    monkeypatch.setenv("PET_MAX_RESTARTS", str(policy["maxRestarts"]))
    options, command = torchrun(container["command"])
    assert (options.nnodes, options.rdzv_backend, int(options.max_restarts)) == ("1:2", "c10d", policy["maxRestarts"])
    assert int(options.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert has_samples_for(command, policy["maxReplicas"] * int(options.nproc_per_node))
    for folder in (command.data, command.run):
        assert str(folder).startswith(f"{mounts['shared']}/")
