"""`gradelora doctor --gpu`: run first on a rented machine; in two minutes it knows what the plan can rely on.

Each measurement is a process of its own with a deadline; what it finds is a line, ok or the
remedy, and a rate that later plans reckon with.
"""

import importlib.metadata
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gradelora import launch
from gradelora.calibration import Calibration, Device, write_calibration
from gradelora.config import RunConfig, Runtime, TrainConfig
from gradelora.doctor import Finding
from gradelora.doctor.disks import disk_rates, hashed_per_s
from gradelora.doctor.judging import probe_findings, step_findings
from gradelora.doctor.probe import Probed, ProbeRequest
from gradelora.doctor.step import measure_step
from gradelora.errors import ChildFailed, GradeloraError
from gradelora.hardware import Hardware, known_roofline, machine_kind, this_machine
from gradelora.hub import HubClient
from gradelora.preflight.disk import nearest_existing
from gradelora.preflight.table import amount
from gradelora.store import PACKAGES, Store

CPU_RANKS = 2
EXPERTS = {"cuda": 4, "cpu": 2}
# Seconds: of all, and what one measurement may take of them.
WHOLE_S, PROBE_S, RANKS_S, LEAST_STEP_S = 115.0, 35.0, 25.0, 30.0
# Of the data sheet; below that something is wrong with the machine, not with the program.
LEAST_LINK = 0.2
LEAST_DISK, LEAST_NETWORK = 100e6, 30e6


def measure(
    run: RunConfig | None, runtime: Runtime, root: Path, device: Device, on_finding: Callable[[Finding], None]
) -> None:
    """Measure all, tell every finding as it is found, and keep the rates, where anything can be measured."""
    machine = this_machine()
    if device == "cuda" and machine.gpus == 0:
        remedy = "use --device cpu to measure this machine's cores, or look at `nvidia-smi`"
        on_finding(Finding(check="gpu", ok=False, found="no CUDA GPU on this machine", remedy=remedy))
        return
    examination = Examination(run, runtime, root, device, machine)
    for finding in examination.findings():
        on_finding(finding)
    path = write_calibration(examination.calibration(), root)
    on_finding(Finding(check="calibration", ok=True, found=f"kept in {path}: plans on this kind of machine use it"))


class Examination:
    """One walk through all measurements; `rates` are fields of Calibration."""

    def __init__(self, run: RunConfig | None, runtime: Runtime, root: Path, device: Device, machine: Hardware) -> None:
        self.run, self.runtime, self.root, self.device = run, runtime, root, device
        self.ranks = machine.gpus if device == "cuda" else CPU_RANKS
        self.precision = run.train.precision if run else ("bf16" if device == "cuda" else "fp32")
        self.rates: dict[str, float | None] = {}
        self.started = time.monotonic()
        self.sheet = known_roofline(machine.gpu) if device == "cuda" else None

    def findings(self) -> Iterator[Finding]:
        """In an order in which the cheap and telling ones come first."""
        with tempfile.TemporaryDirectory(dir=Store(self.root).root, prefix=".doctor-") as folder:
            yield from self._disks()
            yield from self._network()
            yield from self._guarded("layer", lambda: self._probe(Path(folder)))
            yield from self._guarded("all-reduce", lambda: self._all_reduce(Path(folder)))
            yield from self._guarded("training step", lambda: self._step(Path(folder)))

    def calibration(self) -> Calibration:
        """What was measured, as it is kept."""
        return Calibration(
            machine=machine_kind(),
            device=self.device,
            precision=self.precision,
            made_at=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            versions={package: importlib.metadata.version(package) for package in PACKAGES},
            ranks=self.ranks,
            **self.rates,
        )

    def _guarded(self, check: str, measure: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
        """A measurement that fails is a finding; the others go on."""
        try:
            yield from measure()
        except (GradeloraError, OSError) as error:
            told = str(error).strip().splitlines()
            remedy = (
                "read what it printed last: " + " | ".join(told[-3:]) if len(told) > 1 else "see `gradelora doctor`"
            )
            yield Finding(check=check, ok=False, found=told[0], remedy=remedy)

    def _disks(self) -> Iterator[Finding]:
        self.rates["hashed_per_s"] = hashed_per_s()
        for name, where in (("store", self.root), ("cache", HubClient(self.runtime).cache)):
            yield from self._guarded(f"{name} disk", lambda name=name, where=where: self._disk(name, where))  # type: ignore[misc]

    def _disk(self, name: str, where: Path) -> Iterator[Finding]:
        folder = nearest_existing(where)
        written, read = disk_rates(folder)
        self.rates |= {f"{name}_written_per_s": written, f"{name}_read_per_s": read}
        setting = {"store": "store.root", "cache": "runtime.hub_cache"}[name]
        yield Finding(
            check=f"{name} disk",
            ok=min(written, read) >= LEAST_DISK,
            found=f"{folder}: {amount(int(written))}/s written and flushed, {amount(int(read))}/s read",
            remedy=f"65 GB take {65e9 / min(written, read) / 60:.0f} min: set {setting} to a faster disk",
        )

    def _network(self) -> Iterator[Finding]:
        from gradelora.doctor.network import network_bytes_per_s

        if self.run is None:
            yield Finding(check="network", ok=True, found="not measured: no --config names a model")
            return
        try:
            rate, size = network_bytes_per_s(self.run)
        except (GradeloraError, OSError) as error:
            yield Finding(check="network", ok=True, found=f"not measured: {error}")
            return
        # A tiny file says how long an answer takes, not how fast a large one comes.
        if size >= 10**7:
            self.rates["network_bytes_per_s"] = rate
        remedy = f"65 GB take {65e9 / rate / 3600:.1f} h: raise runtime.fetch_connections, or use a mirror near by"
        found = f"{amount(int(rate))}/s of {self.run.base.repo_id}, {amount(size)} received"
        yield Finding(check="network", ok=size < 10**7 or rate >= LEAST_NETWORK, found=found, remedy=remedy)

    def _probe(self, folder: Path) -> Iterator[Finding]:
        answer = folder / "probe.answer"
        request = ProbeRequest(
            device=self.device, precision=self.precision, experts=EXPERTS[self.device], answer=answer
        )
        (folder / "probe.json").write_text(request.model_dump_json())
        self._child(folder, PROBE_S, "-m", "gradelora.doctor.probe", str(folder / "probe.json"))
        found = Probed.model_validate_json(answer.read_text())
        self.rates |= {
            "product_operations_per_s": found.product_operations_per_s,
            "memory_bytes_per_s": found.memory_bytes_per_s,
            "unpacked_per_s": found.unpacked_per_s,
        }
        yield from probe_findings(found, self.sheet)

    def _all_reduce(self, folder: Path) -> Iterator[Finding]:
        check = "all-reduce"
        if self.ranks == 1:
            yield Finding(check=check, ok=True, found="one GPU: nothing is exchanged")
            return
        answer = folder / "ranks.answer"
        torchrun = ("-m", "torch.distributed.run", "--log-dir", os.devnull, "--standalone")
        each = ("--nproc_per_node", str(self.ranks))
        self._child(folder, RANKS_S, *torchrun, *each, "-m", "gradelora.doctor.ranks", self.device, str(answer))
        text = answer.read_text()
        if not text[0].isdigit():
            yield Finding(check=check, ok=False, found=text, remedy="set NCCL_DEBUG=INFO and run it again")
            return
        rate = self.rates["all_reduce_bytes_per_s"] = float(text)
        least = LEAST_LINK * self.sheet.link_bytes if self.sheet else 0.0
        backend = "NCCL" if self.device == "cuda" else "gloo"
        remedy = "look at `nvidia-smi topo -m`; without NVLink keep train.parallel=zero2, not zero3"
        found = f"{amount(int(rate))}/s of bus bandwidth between {self.ranks} ranks, {backend}"
        yield Finding(check=check, ok=rate >= least, found=found, remedy=remedy)

    def _step(self, folder: Path) -> Iterator[Finding]:
        unpacked = self.rates.get("unpacked_per_s")
        left_s = max(LEAST_STEP_S, WHOLE_S - (time.monotonic() - self.started))
        found = measure_step(folder / "step", self.device, self.precision, self.ranks, unpacked, left_s)
        self.rates |= {
            "step_operations_per_s": found.operations_per_s,
            "layer_s": found.layer_s,
            "starting_s": found.starting_s,
            "step_memory_ratio": found.peak_bytes / found.planned_bytes,
        }
        yield from step_findings(found, self.device)

    def _child(self, folder: Path, deadline_s: float, *arguments: str) -> None:
        from gradelora.train.launching import environment

        # With the threads of one rank among as many.
        env = environment(TrainConfig(device=self.device, processes=self.ranks), self.runtime)
        try:
            launch.run(launch.python(*arguments), log=folder / "log.txt", env=env, deadline_s=deadline_s)
        except ChildFailed as error:
            raise ChildFailed(str(error).replace(f"; log: {folder / 'log.txt'}", "")) from error
