import os
import shutil
import stat
from pathlib import Path

import pytest

from gradelora.artifacts import DataFiles, FileEntry
from gradelora.config import LoraSettings, RunConfig
from gradelora.config_file import load_config
from gradelora.errors import BadConfig, MissingTool, NotEnoughDisk, NotEnoughGpus, NotEnoughMemory, UnsupportedModel
from gradelora.hardware import Hardware, driver_version, gpu_bytes, preset, this_machine
from gradelora.preflight import Plan, check, make_plan, preflight
from gradelora.preflight import disk as disk_module
from gradelora.preflight.kept import KeptPlan
from gradelora.preflight.size import size_of
from tests.described import gpt_oss

H200 = Path(__file__).parents[1] / "deployments" / "h200.yaml"
DATA = DataFiles(path=Path(), files=(FileEntry(name="a.json", size=10**6, sha256="0" * 64),))
ROOMY = 10**12


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    places = [f"store.root={tmp_path / 'store'}", f"runtime.hub_cache={tmp_path / 'hub'}"]
    return load_config(H200, [*places, *overrides])


def planned(run: RunConfig, hardware: str = "2xh200") -> Plan:
    assert run.runtime.hub_cache is not None
    return make_plan(run, gpt_oss(), DATA, run.runtime.hub_cache, preset(hardware))


@pytest.fixture(autouse=True)
def roomy_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rented machine's disk, whatever this one has."""
    usage = shutil.disk_usage("/")._replace(free=ROOMY)
    monkeypatch.setattr(disk_module.shutil, "disk_usage", lambda _: usage)


def test_the_headers_of_gpt_oss_120b_give_its_published_sizes() -> None:
    size = size_of(gpt_oss(), LoraSettings())
    assert size.parameters == 116_829_156_672
    assert size.lora_parameters == 5_971_968
    assert round(size.disk_bytes / 1e9, 2) == 65.25
    assert round(size.bf16_bytes / 1e9, 2) == 233.66


def test_packed_with_zero2_fits_two_h200(tmp_path: Path) -> None:
    run = config(tmp_path)
    check(run, planned(run))
    checkpointed = planned(config(tmp_path, "train.gradient_checkpointing=true"))
    assert 65e9 < checkpointed.memory.needed_bytes < 90e9


def test_the_tutorials_own_configuration_is_refused_with_modes_that_fit(tmp_path: Path) -> None:
    run = config(tmp_path, "train.weights=bf16")
    with pytest.raises(NotEnoughMemory) as refusal:
        check(run, planned(run))
    assert "weights 233.7" in str(refusal.value)
    assert "packed + zero2" in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_more_processes_than_gpus_are_refused(tmp_path: Path) -> None:
    run = config(tmp_path, "train.processes=4")
    with pytest.raises(NotEnoughGpus, match=r"asks for 4 GPUs, 2x H200 SXM has 2; add `--set train\.processes=2 "):
        check(run, planned(run))
    with pytest.raises(NotEnoughGpus, match=r"set train\.device=cpu"):
        check(run, planned(run, "cpu"))


@pytest.mark.parametrize("merge", ["true", "false"])
def test_a_small_disk_is_refused_with_each_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merge: str) -> None:
    usage = shutil.disk_usage("/")._replace(free=41 * 10**9)
    monkeypatch.setattr(disk_module.shutil, "disk_usage", lambda _: usage)
    run = config(tmp_path, f"merge.enabled={merge}")
    with pytest.raises(NotEnoughDisk) as refusal:
        check(run, planned(run))
    assert "41.0 GB free" in str(refusal.value)
    assert "65.2 GB weights still to fetch" in str(refusal.value)
    assert ("merged model" in str(refusal.value)) == (merge == "true")
    assert ("merge.enabled=false" in str(refusal.value)) == (merge == "true")


def test_what_the_cache_holds_whole_is_not_needed_again(tmp_path: Path) -> None:
    run, base = config(tmp_path), gpt_oss()
    blob = tmp_path / "hub" / "models--openai--gpt-oss-120b" / "blobs" / ("c" * 64)
    blob.parent.mkdir(parents=True)
    with blob.open("wb") as file:
        os.truncate(file.fileno(), 1000)
    assert disk_module.missing_bytes(base, tmp_path / "hub") == base.remote_files[0].size
    with blob.open("wb") as file:
        os.truncate(file.fileno(), base.remote_files[0].size)
    assert disk_module.missing_bytes(base, tmp_path / "hub") == 0
    check(run, planned(run))


def test_needs_on_one_device_are_added_up(tmp_path: Path) -> None:
    assert len(planned(config(tmp_path)).disk) == 1
    assert len(planned(config(tmp_path, "store.root=/dev/shm/store")).disk) == 2


def test_a_lora_target_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"gate_proj\b.* match no weight"):
        planned(config(tmp_path, "train.lora.target_modules=[q_proj, gate_proj]"))


def test_packed_needs_mxfp4_weights(tmp_path: Path) -> None:
    run = config(tmp_path)
    dense = gpt_oss().model_copy(update={"tensors": gpt_oss().tensors[:3]})
    with pytest.raises(UnsupportedModel, match=r"set train\.weights=bf16"):
        make_plan(run, dense, DATA, tmp_path, preset("2xh200"))


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match=r"g\+\+ not on PATH"):
        preflight(config(tmp_path), gpt_oss(), DATA, tmp_path)


def test_this_machine_is_measured_and_hidden_gpus_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '143771\\n143771\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    two = this_machine()
    assert (two.gpus, two.gpu_bytes) == (2, 143771 * 2**20)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert this_machine().gpus == 1
    assert two.cores == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("visible", "free"),
    [
        ("-1", []),
        ("", []),
        ("1", [30]),
        ("1,0", [30, 20]),
        ("0,7,1", [20]),
        ("GPU-bb", [30]),
        ("GPU-", []),
        ("GPU-bb,GPU-aa", [30, 20]),
    ],
)
def test_the_gpus_that_cuda_shows_are_counted_with_what_is_free_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, free: list[int]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\ncase $1 in *memory.free*) printf '20\\n30\\n';; *memory.total*) printf '99\\n99\\n';;"
        " *uuid*) printf 'GPU-aaaa\\nGPU-bbbb\\n';; esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [size // 2**20 for size in gpu_bytes()] == free


def test_a_driver_that_hangs_is_no_gpu_and_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("gradelora.hardware.DRIVER_TIMEOUT_S", 0.2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (gpu_bytes(), driver_version()) == ([], "")


def test_what_other_programs_hold_of_the_host_is_not_there_for_a_run() -> None:
    import psutil

    here = this_machine().host_bytes
    assert here == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert here < psutil.virtual_memory().total


def test_checkpointing_and_fewer_answers_need_less(tmp_path: Path) -> None:
    plain, checkpointed, small = (
        planned(config(tmp_path, *o)).memory.needed_bytes
        for o in ([], ["train.gradient_checkpointing=true"], ["train.answers_per_row=1"])
    )
    assert checkpointed < plain
    assert small < plain


def test_an_unknown_preset_names_the_known() -> None:
    with pytest.raises(BadConfig, match="2xh200"):
        preset("3xh300")


def test_a_cpu_run_counts_every_rank_against_the_host(tmp_path: Path) -> None:
    run = config(tmp_path, "train.device=cpu", "evaluate.device=cpu")
    tiny = Hardware(name="tiny", gpus=0, gpu_bytes=0, host_bytes=10**9, cores=2)
    plan = make_plan(run, gpt_oss(), DATA, tmp_path, tiny)
    assert plan.memory.processes_per_device == 2
    with pytest.raises(NotEnoughMemory, match="2 x weights"):
        check(run, plan)


def test_a_plan_is_kept_for_its_owner_whether_it_is_refused_or_not(tmp_path: Path) -> None:
    told: list[Plan] = []
    run = config(tmp_path, "train.device=cpu", "evaluate.device=cpu", "train.weights=bf16")
    with pytest.raises(NotEnoughMemory):
        preflight(run, gpt_oss(), DATA, tmp_path / "hub", told.append)
    (path,) = (tmp_path / "store" / "plans").iterdir()
    kept = KeptPlan.model_validate_json(path.read_text())
    assert (kept.run, [kept.plan]) == (run, told)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path, path.parent, tmp_path / "store")] == [0o600, 0o700, 0o700]


def test_a_store_that_cannot_be_written_is_no_reason_to_hide_the_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("gradelora.preflight.keep", full)
    run = config(tmp_path, "train.device=cpu", "evaluate.device=cpu", "train.weights=bf16")
    with pytest.raises(NotEnoughMemory):
        preflight(run, gpt_oss(), DATA, tmp_path / "hub")
