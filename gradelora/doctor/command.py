"""`gradelora doctor`: a line a check on stdout, or one JSON list."""

import argparse
import json

from gradelora.calibration import Device
from gradelora.config import RunConfig, Runtime, StoreConfig
from gradelora.doctor import DEFAULT_STORE, Finding, examine


def doctor_command(arguments: argparse.Namespace, run: RunConfig | None) -> int:
    """Look, or measure with --gpu: then 1 where anything is not ok."""
    runtime = run.runtime if run else Runtime.model_validate({})
    store = run.store if run else StoreConfig(root=DEFAULT_STORE)
    if not arguments.gpu:
        findings = examine(runtime, store, run)
        if arguments.json:
            _print_json(findings)
        else:
            for finding in findings:
                _print(finding)
        return 0
    from gradelora.doctor.gpu import measure

    device: Device = arguments.device or (run.train.device if run else "cuda")
    found: list[Finding] = []

    def tell(finding: Finding) -> None:
        found.append(finding)
        if not arguments.json:
            _print(finding)

    measure(run, runtime, store.root, device, tell)
    if arguments.json:
        _print_json(found)
    return 0 if all(finding.ok for finding in found) else 1


def _print(finding: Finding) -> None:
    mark = "ok  " if finding.ok else "look"
    print(f"{mark} {finding.check:20} {finding.found}" + ("" if finding.ok else f"  -> {finding.remedy}"), flush=True)


def _print_json(findings: list[Finding]) -> None:
    print(json.dumps([finding.model_dump() for finding in findings]))
