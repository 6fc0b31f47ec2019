"""The launch files for clusters, as far as they can be checked without one: syntax, and that what they start takes their flags."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "recipes" / "cluster"
SLURM, KUBERNETES = FOLDER / "slurm.sbatch", FOLDER / "kubernetes.yaml"
PAGE = Path(__file__).parents[1] / "docs" / "launching.md"

# in the place of Slurm's own: srun writes down what it is to start, and starts nothing
SRUN = '#!/bin/bash\nprintf "%s\\n" "$@" > "$WRITTEN"\nexec sleep "${SRUN_SECONDS:-0}"\n'
SCONTROL = '#!/bin/bash\n[ "$1" = show ] && printf "node7\\nnode8\\n" || echo "$@" >> "$WRITTEN.scontrol"\n'


@pytest.fixture
def slurm(tmp_path):
    """Return a function: words after the script's name -> what it gives to srun, with two nodes of four GPUs."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "WRITTEN": str(tmp_path / "written"), "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[7-8]",
    }  # fmt: skip

    def run(*words: str) -> list[str]:
        subprocess.run(["bash", str(SLURM), *words], env=environment, check=True, timeout=60)
        return (tmp_path / "written").read_text().splitlines()

    run.environment, run.folder = environment, tmp_path
    return run


def torchrun(words: list[str]):
    """Return what torchrun makes of its arguments."""
    from torch.distributed.run import get_args_parser

    assert words[0] == "torchrun"
    return get_args_parser().parse_args(words[1:])


def assert_unmask_takes(words: list[str]) -> None:
    """Check that a verb exists and has the options, by its own help."""
    from unmask.cli import VERBS

    assert words[0] in VERBS
    shown = subprocess.run([sys.executable, "-m", "unmask", words[0], "--help"], capture_output=True, text=True, check=True).stdout
    for option in (word for word in words if word.startswith("-")):
        assert option in shown, option


def test_slurm_s_script_is_bash():
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    lines = SLURM.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = [line for line in lines if line.startswith("#SBATCH")]
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(lines.index(line) < first_command for line in directives)  # Slurm reads no further than to the first command


def test_slurm_starts_a_run_and_goes_on_with_one(slurm):
    run = slurm.folder / "run with a space"
    words = slurm("recipes/base-gpu.toml", str(run), "--data", "corpus", "--set", "data.max_length=128")
    asked = torchrun(words)
    assert (asked.nnodes, asked.nproc_per_node, asked.rdzv_backend, asked.rdzv_endpoint) == ("2", "4", "c10d", "node7:29500")
    assert (asked.module, asked.training_script, asked.max_restarts, asked.rdzv_id) == (True, "unmask", 3, "77-0")
    expected = ["pretrain", "recipes/base-gpu.toml", "--output", str(run), "--data", "corpus", "--set", "data.max_length=128"]
    assert asked.training_script_args == expected
    assert_unmask_takes(expected)
    run.mkdir()
    (run / "config.toml").touch()
    assert torchrun(slurm("recipes/base-gpu.toml", str(run), "--data", "corpus")).training_script_args == ["resume", str(run)]


def test_slurm_s_warning_reaches_the_run_and_the_job_is_queued_again(slurm):
    environment = {**slurm.environment, "SRUN_SECONDS": "60"}
    with subprocess.Popen(["bash", str(SLURM), "recipe.toml", str(slurm.folder / "run")], env=environment) as script:
        while not (slurm.folder / "written").exists():
            assert script.poll() is None
        script.terminate()
        assert script.wait(timeout=60) == 0
    assert (slurm.folder / "written.scontrol").read_text() == "requeue 77\n"


def test_slurm_s_script_says_what_it_lacks(slurm):
    done = subprocess.run(["bash", str(SLURM), "recipe.toml"], env=slurm.environment, capture_output=True, text=True, check=False)
    assert done.returncode and "the folder of the run is missing" in done.stderr


def test_kubernetes_pods_find_each_other():
    service, job = yaml.safe_load_all(KUBERNETES.read_text(encoding="utf-8"))
    assert (service["kind"], job["kind"], job["apiVersion"]) == ("Service", "Job", "batch/v1")
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy allows no other
    (container,) = pod["containers"]
    mounted, volumes = {one["name"] for one in container["volumeMounts"]}, {one["name"] for one in pod["volumes"]}
    assert mounted == volumes
    shell, option, script = container["command"]
    assert (shell, option) == ("bash", "-c")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    command = script[script.index("torchrun") :].replace("\\\n", " ")
    asked = torchrun(shlex.split(command))
    assert int(asked.nnodes) == spec["completions"]
    assert int(asked.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    host, port = asked.rdzv_endpoint.split(":")
    assert host == f"{name}-0.{service['metadata']['name']}"  # an Indexed Job's first pod, by its Service
    assert int(port) == service["spec"]["ports"][0]["port"]
    grace = int(next(one["value"] for one in container["env"] if one["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"))
    assert grace < pod["terminationGracePeriodSeconds"]
    for line in script.splitlines():
        if "work=(" in line:
            words = shlex.split(line.strip().removeprefix("work=(").removesuffix(")"))
            assert_unmask_takes(words)


def test_the_page_names_the_files_there_are():
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"recipes/cluster/{path.name}" in page for path in FOLDER.iterdir())
