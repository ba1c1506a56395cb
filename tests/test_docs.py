"""The documentation is a contract: what it names exists, and what exists is named."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gradelora.cli import main
from gradelora.reference import reference
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = (
    "plan",
    "fetch",
    "validate",
    "encode",
    "train",
    "evaluate",
    "merge",
    "gate",
    "score",
    "push",
    "rollback",
    "verify",
    "cache",
    "mirror",
    "doctor",
)


def test_the_configuration_page_is_what_the_configuration_says() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == reference(), "run python -m gradelora.reference"


def test_the_readme_names_every_command_deployment_and_make_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    offered = set(re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.M))
    assert offered == set(COMMANDS)
    assert all(re.search(rf"\b{name}\b", README) for name in COMMANDS)
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    configured = [d["parameters"]["config"] for d in deployments if "config" in d["parameters"]]
    assert all((ROOT / config).is_file() for config in configured)
    assert all(re.search(rf"\b{d['name']}\b", README) for d in deployments)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^make (\w+)", README, re.M)) <= targets
    assert {"setup", "demo", "check", "test", "bench"} <= targets


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"], ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_gradelora_never_imports_prefect_flows_or_tasks() -> None:
    for path in (ROOT / "gradelora").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (prefect|flows|tasks)\b", path.read_text(), re.M), path


def test_a_stage_does_not_import_another_stage() -> None:
    stages = ("fetch", "validate", "encode", "train", "evaluate", "merge")
    for stage in stages:
        others = "|".join(s for s in stages if s != stage)
        for path in (ROOT / "gradelora" / stage).rglob("*.py"):
            assert not re.search(rf"^\s*(from|import) gradelora\.({others})\b", path.read_text(), re.M), path


def test_what_an_all_cached_run_imports_is_light() -> None:
    """The flow, the tasks and the command line: nothing of them needs a tensor."""
    heavy = "{'torch', 'transformers', 'peft', 'deepspeed', 'datasets', 'great_expectations', 'pandas'}"
    script = f"import sys, flows.finetune, gradelora.cli, gradelora.pipeline; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
