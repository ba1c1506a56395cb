"""`gradelora doctor --gpu`, on the cores of this machine: what it measures, says, keeps, and what plans make of it."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from gradelora import calibration, hardware
from gradelora.artifacts import EncodedDataset
from gradelora.calibration import Calibration, read_calibration, write_calibration
from gradelora.cli import main
from gradelora.config import RunConfig
from gradelora.config_file import build_config
from gradelora.doctor import Finding, gpu, probe
from gradelora.doctor.disks import disk_rates
from gradelora.doctor.judging import probe_findings, step_findings
from gradelora.doctor.network import network_bytes_per_s
from gradelora.doctor.probe import Probed, ProbeRequest, compare_layer
from gradelora.doctor.step import Stepped, fitted
from gradelora.doctor.synthetic import REPO_ID, save_answers, save_model
from gradelora.hardware import ROOFLINES, this_machine
from gradelora.preflight.calibrated import training_operations, training_s
from gradelora.preflight.estimate import Job, estimates
from gradelora.preflight.size import size_of
from gradelora.preflight.workload import workload_of
from gradelora.sandbox.hub import LoopbackHub

RATES = Calibration(
    machine=hardware.machine_kind(), device="cpu", precision="fp32", made_at="now", versions={}, ranks=2,
    unpacked_per_s=1e8, step_operations_per_s=5e10, layer_s=0.002, starting_s=10, cache_read_per_s=1e9,
    store_written_per_s=1e9, hashed_per_s=5e8, network_bytes_per_s=1e8,
)  # fmt: skip


def config(folder: Path, **train: Any) -> RunConfig:
    values = {
        "name": "d",
        "base": {"repo_id": REPO_ID},
        "data": {"files": ["none"]},
        "encode": {"layout": "harmony"},
        "train": {"device": "cpu", "precision": "fp32", "answers_per_row": 4} | train,
        "evaluate": {"device": "cpu", "precision": "fp32"},
        "store": {"root": str(folder)},
    }
    return build_config(values)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, EncodedDataset]:
    folder = tmp_path_factory.mktemp("synthetic")
    base, _ = save_model(folder / "hub" / REPO_ID, "cpu")
    return folder, base, save_answers(folder / "data", "cpu", questions=10)


def job(synthetic: tuple[Path, Any, EncodedDataset], root: Path, here: bool = True, **train: Any) -> Job:
    run, base, data = config(root, **train), synthetic[1], synthetic[2]
    work = workload_of(run, None, data)
    return Job(run, base, size_of(base, run.train.lora), work, this_machine(), fetch_bytes=10**8, here=here)


def test_a_calibration_is_kept_for_its_owner_and_read_on_its_kind_of_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_calibration(RATES, tmp_path / "store")
    assert read_calibration(tmp_path / "store", "cpu") == RATES
    assert read_calibration(tmp_path / "store", "cuda") is None
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path, path.parent, tmp_path / "store")] == [0o600, 0o700, 0o700]
    kept = path.read_text()
    path.write_text(kept.replace(RATES.machine, "8 x another GPU"))
    assert read_calibration(tmp_path / "store", "cpu") is None, "copied from elsewhere"
    path.write_text(kept[:-20])
    assert read_calibration(tmp_path / "store", "cpu") is None, "cut off"
    path.write_text(kept)
    monkeypatch.setattr(calibration, "machine_kind", lambda: "2 x H200, 64 cores")
    assert read_calibration(tmp_path / "store", "cpu") is None


def test_plans_take_their_rates_from_it_with_a_narrower_interval(synthetic: Any, tmp_path: Path) -> None:
    rough = estimates(job(synthetic, tmp_path))
    assert rough["train"].source.startswith("estimated")
    write_calibration(RATES, tmp_path)
    sure = estimates(job(synthetic, tmp_path))
    for stage in ("train", "merge", "fetch everything"):
        assert sure[stage].source == "calibrated by doctor"
        low, usual, high = sure[stage].seconds
        assert low < usual < high
        assert high / low < rough[stage].seconds[2] / rough[stage].seconds[0]
    assert estimates(job(synthetic, tmp_path, here=False))["train"] == rough["train"], "another machine is planned for"
    other = job(synthetic, tmp_path, precision="bf16")
    assert estimates(other)["train"].source.startswith("estimated"), "bf16 is as fast as nobody measured"


def test_the_rates_of_two_kinds_of_steps_are_found_again(synthetic: Any, tmp_path: Path) -> None:
    """What training_s makes of a step's rates is what fitted makes the rates of."""
    whole = job(synthetic, tmp_path)

    def step_s(tokens: int) -> float:
        one = whole.work.model_copy(
            update={"micro_steps": 1, "train_tokens": tokens * 2, "row_tokens": tokens, "steps": 1}
        )
        rates = RATES.model_copy(update={"starting_s": 0.0, "cache_read_per_s": None})
        seconds = training_s(rates, whole.run.train, whole.size, one)
        assert seconds is not None
        return seconds

    found = fitted(whole.run, whole.size, (step_s(96), step_s(640)), (96, 640), RATES.unpacked_per_s)
    assert found == (pytest.approx(5e10), pytest.approx(0.002))
    assert fitted(whole.run, whole.size, (1.0, 0.9), (96, 640), None) is None
    operations = training_operations(whole.run.train, whole.size, 640, 1280)
    assert step_s(640) > operations / 5e10


@pytest.mark.slow
def test_an_expert_layer_is_compared_bit_for_bit_and_a_swapped_nibble_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "HIDDEN", 64)
    monkeypatch.setattr(probe, "INTERMEDIATE", 64)
    request = ProbeRequest(device="cpu", precision="fp32", experts=2, answer=tmp_path)
    differs, compared, seconds = compare_layer(request)
    assert not differs
    assert compared == 2 * 48 * 64 + 2 * (64 * 128 + 64 * 64)
    assert seconds > 0
    import gradelora.model.packed as packed

    right = packed.dequantize
    monkeypatch.setattr(packed, "dequantize", lambda b, s, d: right((b >> 4) | (b << 4), s, d))
    assert compare_layer(request)[0] == ("its output", "its gradient of its input")


def test_what_is_not_ok_has_its_remedy() -> None:
    probed = Probed(
        gpu="NVIDIA H200", differs=("down_proj",), compared=1, layer_s=1, unpacked_per_s=1e9,
        product_operations_per_s=1e14, memory_bytes_per_s=4e12,
    )  # fmt: skip
    layer, product, memory, _ = probe_findings(probed, ROOFLINES["H200"])
    assert not layer.ok
    assert layer.found == "packed differs from dequantised: down_proj"
    assert "train.weights=bf16" in layer.remedy
    assert (product.ok, product.found) == (False, "100.00 TFLOP/s, 10% of the data sheet")
    assert memory.ok
    stepped = Stepped(
        planned_bytes=100, peak_bytes=150, planned_s=(1, 2, 3), seconds=4, ended=True, short_s=1, long_s=2,
        short_tokens=1, long_tokens=2, starting_s=1, operations_per_s=1e9, layer_s=0,
    )  # fmt: skip
    step_memory, step = step_findings(stepped, "cpu")
    assert "keep 50% more free" in step_memory.remedy
    assert not step.ok


def test_a_machine_without_a_gpu_is_told_what_it_can_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["doctor", "--gpu"]) == 1
    assert "-> use --device cpu" in capsys.readouterr().out


def test_a_disk_is_measured_and_leaves_no_file(tmp_path: Path) -> None:
    assert min(disk_rates(tmp_path)) > 1e6
    assert not list(tmp_path.iterdir())


def test_the_network_is_measured_at_a_hub_over_several_connections(synthetic: Any, tmp_path: Path) -> None:
    with LoopbackHub(synthetic[0] / "hub") as hub:
        run = config(tmp_path).model_copy(update={"runtime": config(tmp_path).runtime.model_copy(
            update={"hub_endpoint": hub.url, "hub_cache": tmp_path / "cache"})})  # fmt: skip
        rate, size = network_bytes_per_s(run)
    (file,) = (synthetic[0] / "hub" / REPO_ID).glob("*.safetensors")
    assert size == file.stat().st_size
    assert rate > 1e6
    kept = sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*") if p.is_file())
    assert kept < size / 100, "what is measured is thrown away"


@pytest.mark.slow
def test_everything_is_measured_and_later_plans_use_it(
    synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # What is left out for want of time depends on what else this machine does.
    for limit, seconds in (("WHOLE_S", 500.0), ("PROBE_S", 200.0), ("RANKS_S", 150.0)):
        monkeypatch.setattr(gpu, limit, seconds)
    main(["doctor", "--gpu", "--device", "cpu", "--json"])
    findings = {f.check: f for f in map(Finding.model_validate, json.loads(capsys.readouterr().out))}
    assert list(findings) == [
        "store disk", "cache disk", "network", "layer", "matrix product", "memory", "unpacking", "all-reduce",
        "step memory", "training step", "calibration",
    ]  # fmt: skip
    assert "49,766,400 values" in findings["layer"].found or "equal bit for bit" in findings["layer"].found
    # Whatever else this machine does meanwhile, memory and bits are what they are.
    assert all(findings[check].ok for check in ("layer", "all-reduce", "step memory")), findings
    root = tmp_path / ".gradelora" / "store"
    kept = read_calibration(root, "cpu")
    assert kept is not None
    assert kept.ranks == 2
    assert kept.starting_s
    assert kept.all_reduce_bytes_per_s
    assert not list(root.glob(".doctor-*")), "what it trained is gone"
    if kept.step_operations_per_s:
        assert estimates(job(synthetic, root))["train"].source == "calibrated by doctor"
