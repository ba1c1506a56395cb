"""The templates for systemd, Docker, Kubernetes and Slurm say what the program understands."""

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from gradelora.config_file import load_config
from gradelora.nodes import Place
from tests.conftest import ROOT

DEPLOYMENTS = ROOT / "deployments"
UNITS = sorted((DEPLOYMENTS / "systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    copy = tmp_path / unit.name
    # The program is not installed where the unit expects it; everything else is judged as it stands.
    copy.write_text(unit.read_text().replace("/opt/gradelora/.venv/bin/python", "/usr/bin/env"))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert "gradelora" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_the_server_has_no_token_and_no_unit_holds_a_secret() -> None:
    for path in [*UNITS, *DEPLOYMENTS.glob("*/*")]:
        settings = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        assert not re.search(r"(TOKEN|SECRET|PASSWORD|AUTH_STRING)\w*\s*[=:]\s*\S", "\n".join(settings)), path


def test_every_variable_of_the_work_pool_is_declared_and_a_run_gets_two_gpus() -> None:
    template = json.loads((DEPLOYMENTS / "kubernetes" / "base-job-template.json").read_text())
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    assert template["variables"]["properties"]["gpus"]["default"] == 2


def test_the_nodes_of_a_kubernetes_job_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    service, job = yaml.safe_load_all((DEPLOYMENTS / "kubernetes" / "nodes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    changes = [a.removeprefix("--set=") for a in container["args"] if a.startswith("--set=")]
    run = load_config(ROOT / "deployments" / "h200.yaml", changes)
    assert run.runtime.nodes == job["spec"]["completions"] == job["spec"]["parallelism"]
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    place = Place.of(run.runtime)
    assert (place.rank, place.host) == (1, f"{job['metadata']['name']}-0.{service['metadata']['name']}")
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert place.local_processes(run.train) == container["resources"]["limits"]["nvidia.com/gpu"]


def test_the_slurm_script_gives_every_node_its_place(tmp_path: Path) -> None:
    """Run with stand-ins for srun and scontrol, which are not here: what each task would be called with."""
    for name, text in {
        "srun": '#!/bin/sh\nshift; shift\nprintf "%s\\n" "$@"\n',
        "scontrol": "#!/bin/sh\nprintf 'gpu07\\ngpu08\\n'\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NODELIST": "gpu[07-08]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "2",
    }
    command = ["bash", str(DEPLOYMENTS / "slurm" / "train.sbatch"), "deployments/h200.yaml", "--set", "train.seed=1"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    words = done.stdout.split()
    assert words[:2] == ["-m", "gradelora.cli"]
    changes = [after for before, after in itertools.pairwise(words) if before == "--set"]
    run = load_config(ROOT / "deployments" / "h200.yaml", changes)
    assert (run.runtime.nodes, run.runtime.rendezvous, run.train.processes, run.train.seed) == (2, "gpu07:29500", 4, 1)


def test_the_image_has_what_is_tested_and_runs_as_nobody_special() -> None:
    text = (DEPLOYMENTS / "docker" / "Dockerfile").read_text()
    assert "requirements.lock" in text
    assert text.index("USER 1000") < text.index("pip install")
    assert "python3.11" in text
