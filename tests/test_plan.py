"""`gradelora plan` as a user runs it: without a network, without weights, without a GPU."""

import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from gradelora.artifacts import EncodedDataset
from gradelora.cli import main
from gradelora.config import RunConfig
from gradelora.config_file import load_config
from gradelora.errors import NotEnoughGpus, NotEnoughMemory, UnsupportedModel
from gradelora.hardware import Hardware, preset
from gradelora.preflight import Plan, check, make_plan
from gradelora.preflight.disk import adapter_bytes, plan_disk
from gradelora.preflight.known import KNOWN, describe
from gradelora.preflight.size import size_of
from gradelora.preflight.workload import count_answers, read_items, workload_of
from gradelora.records import collect_data_files
from gradelora.why import Foresight
from tests.conftest import ROOT
from tests.described import LLAMA, QWEN, gpt_oss

H200 = ROOT / "deployments" / "h200.yaml"
LAPTOP = ROOT / "deployments" / "laptop.yaml"
TUTORIAL = ("--hardware", "2xh200", "--set", "train.weights=bf16", "--set", "train.parallel=zero2")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Hub that nobody serves: a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{probe.getsockname()[1]}")
    monkeypatch.chdir(tmp_path)


def plan(*options: str, config: Path = H200) -> int:
    return main(["plan", "--config", str(config), *options])


def planned(*overrides: str, config: Path = H200, hardware: str = "2xh200", base: Any = None) -> Plan:
    run = load_config(config, ["store.root=store", "runtime.hub_cache=hub", *overrides])
    return make_plan(run, base or gpt_oss(), None, Path("hub").absolute(), preset(hardware), elsewhere=True)


def test_the_tutorials_own_configuration_is_refused_and_each_named_way_out_passes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    started = time.monotonic()
    assert plan(*TUTORIAL) == 2
    assert time.monotonic() - started < 10
    told = capsys.readouterr()
    assert "233.66 GB in bf16" in told.out
    assert "65.25 GB on disk" in told.out
    assert "116,829,156,672 parameters" in told.out
    assert re.search(r"needs on each GPU 2\d\d\.\d of 150\.8 GB \(weights 233\.7", told.err)
    ways = re.findall(r"`([^`]+)`", told.err)
    assert len(ways) >= 2
    assert ways[0] == "--set train.weights=packed"
    for way in ways:
        assert plan(*TUTORIAL, *way.split()) == 0, way


def test_packed_with_zero2_passes_without_network_data_and_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--hardware", "2xh200") == 0
    told = capsys.readouterr().out
    assert "planned from the description of openai/gpt-oss-120b that ships with gradelora" in told
    assert "planned without data, from encode.max_length" in told
    assert not list(Path().iterdir()), "a plan leaves no trace"


def test_the_plan_is_one_json_object_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--hardware", "2xh200", "--json") == 0
    found = Plan.model_validate_json(capsys.readouterr().out)
    assert found.memory.mode == "packed + zero2"
    assert {stage.mode for stage in found.later} == {"loading", "evaluation", "host beside the GPUs"}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_shipped_description_plans(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config, weights = (H200, "packed") if "gpt-oss" in name else (LAPTOP, "bf16")
    changes = [f"base.repo_id={name}", f"train.weights={weights}", f"evaluate.weights={weights}"]
    options = [part for change in changes for part in ("--set", change)]
    assert plan(*options, *(["--hardware", "2xh200"] if config == H200 else []), config=config) == 0
    assert "parameters" in capsys.readouterr().out


def test_an_evaluation_that_cannot_fit_refuses_the_run_and_names_the_way_out() -> None:
    run = load_config(H200, ["evaluate.weights=bf16"])
    with pytest.raises(NotEnoughMemory, match=r"its evaluation needs on one GPU 2\d\d") as refusal:
        check(run, planned("evaluate.weights=bf16"))
    assert "`--set evaluate.weights=packed`" in str(refusal.value)
    every = planned("evaluate.weights=bf16").alternatives
    assert all("evaluate.weights=packed" in mode.changes for mode in every if mode.fits)
    assert any(mode.stages[0].fits and not mode.fits for mode in every)


@pytest.mark.parametrize(
    ("hardware", "changes"),
    [
        ("2xh200", ["train.weights=bf16"]),
        ("2xh200", ["evaluate.weights=bf16", "merge.enabled=true"]),
        ("2xh200", ["train.tokens_per_row=8192", "train.answers_per_row=16", "train.micro_batch_rows=2"]),
        ("8xh100", ["train.processes=8"]),
        ("1xh100", ["train.processes=1"]),
        ("2xa100", ["train.weights=bf16", "train.parallel=zero3"]),
    ],
)
def test_a_way_out_fits_exactly_where_its_own_plan_passes(hardware: str, changes: list[str]) -> None:
    ways = planned(*changes, hardware=hardware).alternatives
    assert ways
    for way in ways:
        overrides = [*changes, *way.changes]
        own = planned(*overrides, hardware=hardware)
        try:
            check(load_config(H200, overrides), own)
        except NotEnoughMemory:
            assert not way.fits, way
        else:
            assert way.fits, way
        assert own.memory.needed_bytes == way.stages[0].needed_bytes, way


def test_a_host_too_small_for_the_merge_is_refused(tmp_path: Path) -> None:
    run = load_config(H200, ["merge.enabled=true", f"store.root={tmp_path}"])
    small = preset("2xh200").model_copy(update={"host_bytes": 5 * 10**7})
    with pytest.raises(NotEnoughMemory, match="its merge needs on host"):
        check(run, make_plan(run, gpt_oss(), None, tmp_path, small, elsewhere=True))


def test_a_merged_model_that_cannot_be_loaded_to_be_verified_is_refused_and_its_way_out_passes(tmp_path: Path) -> None:
    wide = ["merge.enabled=true", "merge.dtype=bf16", "train.processes=1", f"store.root={tmp_path}"]
    small = preset("1xh200").model_copy(update={"host_bytes": 10**11})

    def checked(*changes: str) -> None:
        run = load_config(H200, [*wide, *changes])
        check(run, make_plan(run, gpt_oss(), None, tmp_path, small, elsewhere=True))

    with pytest.raises(NotEnoughMemory, match=r"its verification of the merge needs on GPUs and host 249.* of 213"):
        checked()
    checked("merge.verify_items=0")
    checked("merge.dtype=base")


@pytest.mark.parametrize("shape", [LLAMA, QWEN], ids=["llama", "qwen"])
def test_dense_models_plan_and_are_never_offered_packed_weights(shape: dict[str, Any]) -> None:
    base = describe("owner/dense", shape)
    found = planned("train.weights=bf16", "evaluate.weights=bf16", base=base)
    assert found.memory.fits
    assert not any("packed" in option for mode in found.alternatives for option in mode.changes)
    with pytest.raises(UnsupportedModel, match=r"set evaluate\.weights=bf16"):
        planned("train.weights=bf16", base=base)


def test_an_unknown_architecture_gets_a_bound_that_says_so_and_is_no_smaller() -> None:
    known = describe("owner/dense", QWEN)
    missing = ("num_attention_heads", "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "head_dim")
    config = {name: value for name, value in QWEN.items() if name not in missing}
    unknown = known.model_copy(update={"config_json": json.dumps(config | {"architectures": ["NovelForCausalLM"]})})
    bf16 = ("train.weights=bf16", "evaluate.weights=bf16")
    sure, bound = planned(*bf16, base=known), planned(*bf16, base=unknown)
    assert not sure.notes
    assert "NovelForCausalLM: config.json does not say all that memory follows from; an upper bound" in bound.notes[0]
    assert bound.size.parameters == sure.size.parameters
    assert sure.memory.needed_bytes <= bound.memory.needed_bytes < 3 * sure.memory.needed_bytes


def test_a_tokens_limit_bounds_the_row() -> None:
    limited = planned("train.answers_per_row=8", "train.tokens_per_row=1024")
    assert limited.work is not None
    assert limited.work.row_tokens == 1024
    assert (
        limited.memory.needed_bytes
        < planned("train.answers_per_row=8", "train.tokens_per_row=4096").memory.needed_bytes
    )


def test_answers_are_counted_in_the_files_where_nothing_is_encoded() -> None:
    data = collect_data_files((str(ROOT / "data/sample/*.json"),))
    truth = sum(len(r["rubric_alignment"]) for f in data.files for r in json.loads((data.path / f.name).read_text()))
    assert sum(count_answers(data.path / f.name) for f in data.files) == truth
    work = workload_of(load_config(H200), data, None)
    assert not work.exact
    assert work.items is not None
    assert 0 < work.items < truth


def test_a_count_is_not_fooled_by_text_and_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradelora.preflight import workload

    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"answer": 'he wrote "answer": 3', "question": "answer"}] * 50))
    for size in (2**22, 70, 7):
        monkeypatch.setattr(workload, "CHUNK_BYTES", size)
        assert count_answers(path) == 50


@pytest.mark.slow
def test_encoded_data_gives_the_very_rows_and_steps_of_training(tmp_path: Path) -> None:
    from gradelora.rows import Items
    from tests.tiny_data import save_encoded

    encoded: EncodedDataset = save_encoded(tmp_path)
    ours, theirs = read_items(tmp_path / "train"), Items.read(tmp_path / "train")
    assert [ours.tokens(i) for i in range(len(ours))] == [theirs.tokens(i) for i in range(len(theirs))]
    assert ours.questions == theirs.questions
    work = workload_of(load_config(H200, ["train.answers_per_row=4", "train.epochs=4"]), None, encoded)
    # 4 questions x 9 answers are 3 rows each; 4 epochs of 12 rows in steps of 2 ranks x 4.
    assert work.exact
    assert work.steps == 6
    assert work.row_tokens < 4 * encoded.longest


def test_checkpoints_and_the_merged_model_never_lie_side_by_side(tmp_path: Path) -> None:
    run: RunConfig = load_config(H200, [f"store.root={tmp_path / 'store'}", "merge.enabled=true"])
    size, base = size_of(gpt_oss(), run.train.lora), gpt_oss()
    (disk,) = plan_disk(run, base, size, tmp_path / "hub", workload_of(run, None, None), 0, Foresight((), {}))
    assert disk.moment == "when all is done"
    assert "checkpoints" not in {need.what for need in disk.needs}
    apart = run.model_copy(update={"merge": run.merge.model_copy(update={"enabled": False})})
    (training,) = plan_disk(apart, base, size, tmp_path / "hub", workload_of(run, None, None), 0, Foresight((), {}))
    assert training.moment == "while training"
    assert 2 * size.lora_parameters < adapter_bytes(run.train, size, base, 0) < 2.02 * size.lora_parameters


def test_time_and_cost_stand_with_their_source_and_interval(capsys: pytest.CaptureFixture[str]) -> None:
    data = f"data.files=[{ROOT}/data/sample/*.json]"
    assert plan("--hardware", "2xh200", "--set", data, "--set", "runtime.price_per_hour=7.5") == 0
    lines = capsys.readouterr().out.splitlines()
    (training,) = [line for line in lines if line.startswith("  train ")]
    assert re.search(
        r"\d+ (s|min|h) +\S+ \S+ to \S+ \S+ +\d+\.\d\d +\d+\.\d\d to \d+\.\d\d +estimated: .*H200", training
    )


def test_a_gpu_that_is_not_known_is_planned_as_the_slowest() -> None:
    from gradelora.hardware import ROOFLINES
    from gradelora.preflight.estimate import roofline

    assert roofline(preset("2xh200")) is ROOFLINES["H200"]
    novel = Hardware(name="x", gpus=1, gpu_bytes=10**11, host_bytes=10**11, cores=8, gpu="NVIDIA Q900")
    assert roofline(novel).operations == min(line.operations for line in ROOFLINES.values())


def test_every_process_that_evaluates_on_a_cpu_holds_a_model_in_the_hosts_memory() -> None:
    cpu = ("train.device=cpu", "evaluate.device=cpu", "train.precision=fp32", "evaluate.precision=fp32")
    one, three = (planned(*cpu, f"runtime.evaluate_processes={n}") for n in (1, 3))
    first, more = (next(s for s in p.later if s.mode == "evaluation") for p in (one, three))
    assert more.needed_bytes == 3 * first.needed_bytes
    gpus = planned("runtime.evaluate_processes=2")
    assert next(s for s in gpus.later if s.mode == "evaluation").processes_per_device == 1


def test_several_nodes_share_the_ranks_and_each_host_its_own() -> None:
    together = ("train.processes=4", "runtime.nodes=2", "runtime.rendezvous=a")
    run, found = load_config(H200, [*together]), planned(*together)
    check(run, found)
    host = next(s for s in found.later if s.mode == "host beside the GPUs")
    assert host.processes_per_device == 2
    eight = ("train.processes=8", *together[1:])
    run, found = load_config(H200, [*eight]), planned(*eight)
    with pytest.raises(NotEnoughGpus, match=r"set train\.processes=4"):
        check(run, found)


def test_scoring_between_the_steps_has_a_row_of_its_own_with_the_optimizer() -> None:
    rows = {s.mode: s.needed_bytes for s in planned("train.best=validation_qwk", "train.lora.r=64").later}
    assert rows["scoring between steps"] > rows["evaluation"]
    assert "scoring between steps" not in {s.mode for s in planned().later}
