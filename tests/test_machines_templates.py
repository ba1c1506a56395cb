"""The templates for systemd, Docker, Kubernetes and Slurm say what the program understands."""

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.utils.build import exclude_paths
from prefect.utilities.schema_tools.validation import validate
from prefect.utilities.templating import apply_values

from gradelora.config_file import load_config
from gradelora.nodes import Place
from tests.conftest import ROOT

DEPLOYMENTS = ROOT / "deployments"
UNITS = sorted((DEPLOYMENTS / "systemd").glob("*.service"))
KUBERNETES = "1.30.0", "1.37.0"


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


def test_the_worker_registers_what_it_will_run_and_the_server_reads_lines_that_systemd_takes() -> None:
    worker = (DEPLOYMENTS / "systemd" / "gradelora-worker.service").read_text()
    python = "/opt/gradelora/.venv/bin/python"
    assert re.search(
        rf"^ExecStartPre={python} -m deployments\.registration\nExecStart={python} -m prefect", worker, re.M
    )
    lines = (DEPLOYMENTS / "systemd" / "server.env.example").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"#.*|[A-Z][A-Z_]*=\S+", line)] == []
    server = (DEPLOYMENTS / "systemd" / "gradelora-server.service").read_text()
    for setting in ("SERVICES_DB_VACUUM_ENABLED=events,flow_runs", "SERVICES_LATE_RUNS_AFTER_SECONDS=600"):
        assert f"PREFECT_SERVER_{setting}" in server
        assert f"PREFECT_SERVER_{setting}" in lines


def test_every_variable_of_the_work_pool_is_declared_and_a_run_gets_two_gpus() -> None:
    template = json.loads((DEPLOYMENTS / "kubernetes" / "base-job-template.json").read_text())
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    assert template["variables"]["properties"]["gpus"]["default"] == 2


def jobs_of_the_pool() -> dict[str, Any]:
    """By deployment: the job that the pool's template makes of what prefect.yaml gives it, as Prefect fills it in."""
    template = json.loads((DEPLOYMENTS / "kubernetes" / "base-job-template.json").read_text())
    schema, jobs = template["variables"], {}
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        given = deployment["work_pool"].get("job_variables", {})
        # What the server asks of a run when it is made.
        assert validate(given, schema, raise_on_error=False, ignore_required=False) == [], deployment["name"]
        defaults = {name: p["default"] for name, p in schema["properties"].items() if "default" in p}
        values: dict[str, Any] = defaults | given | {"name": "amber-owl", "labels": {"prefect.io/flow-run-name": "owl"}}
        # The worker's own steps: names and values, the command of a flow run.
        values["env"] = [{"name": name, "value": value} for name, value in given.get("env", {}).items()]
        jobs[deployment["name"]] = apply_values(template["job_configuration"], values)["job_manifest"]
    return jobs


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_schemas_hold_of_every_manifest(version: str) -> None:
    """In strict mode, in which an unknown field is an error; a misspelled one shows that it is."""
    import kubernetes_validate

    manifests = [
        m for path in (DEPLOYMENTS / "kubernetes").glob("*.yaml") for m in yaml.safe_load_all(path.read_text())
    ]
    assert {m["kind"] for m in manifests} == {"Job", "Service", "PersistentVolumeClaim"}
    for job in jobs_of_the_pool().values():
        # Prefect's worker refuses a template without them here, where Kubernetes ignores them.
        assert [job["spec"]["template"]["spec"].pop(name) for name in ("parallelism", "completions")] == [1, 1]
        manifests.append(job)
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)
    manifest["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="resource"):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_pod_that_only_looks_takes_no_gpu_from_a_training() -> None:
    asked = {}
    for name, job in jobs_of_the_pool().items():
        (container,) = job["spec"]["template"]["spec"]["containers"]
        asked[name] = container["resources"]["limits"]["nvidia.com/gpu"]
    assert {asked.pop("watch"), asked.pop("crashed")} == {0}
    assert set(asked.values()) == {2}


def test_every_pod_finds_claim_secret_and_image_by_one_name() -> None:
    """In the pool's jobs and in nodes.yaml: what another one mounts is not this one's store and not its Hub cache."""
    claim = yaml.safe_load((DEPLOYMENTS / "kubernetes" / "claim.yaml").read_text())
    _, nodes = yaml.safe_load_all((DEPLOYMENTS / "kubernetes" / "nodes.yaml").read_text())
    for job in (nodes, *jobs_of_the_pool().values()):
        spec = job["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        assert container["image"] == "gradelora"
        assert container["envFrom"] == [{"secretRef": {"name": "gradelora"}}]
        (mounted,) = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if v["name"] == "work"]
        assert (mounted, job["metadata"]["namespace"]) == (claim["metadata"]["name"], claim["metadata"]["namespace"])
        (place,) = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == "work"]
        assert place == "/opt/gradelora/.gradelora"


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
    # Below the volume, as the store is: else every container fetches the weights anew.
    assert "HF_HOME=/opt/gradelora/.gradelora/hub" in text


def test_no_token_and_no_answer_gets_into_an_image_or_a_commit(tmp_path: Path) -> None:
    """By the rules of Docker and of git themselves, on a checkout as operators leave it."""
    parts = ("gradelora", "flows", "tasks", "deployments", "data/sample")
    paths = [path for part in parts for path in (ROOT / part).rglob("*") if path.is_file()]
    program = {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}
    program |= {"prefect.yaml", "pyproject.toml", "requirements.lock", "data/schema.json"}
    private = {
        *("worker.env", "deployments/systemd/server.env", "deployments/.env.local", "gradelora/.env"),
        *("data/train_2026.json", "data/train_2026.jsonl.gz", "data/class_b/answers.json"),
    }
    lying_about = {".gradelora/worker.env", ".gradelora/store/x.json", "new.json", "scores/scores.csv"}
    for name in (*program, *private, *lying_about):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    lines = (DEPLOYMENTS / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    context = {name for name in exclude_paths(str(tmp_path), rules) if (tmp_path / name).is_file()}
    assert context == program
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    staged = subprocess.run(["git", "ls-files"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not {*staged.stdout.split()} & private
    assert {*staged.stdout.split()} >= program
