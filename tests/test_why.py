"""`gradelora plan --why` names the very cause, and the run that follows does what was said.

fetch, validate and encode are the real stages on a loopback Hub and the sample data; what
stands for train and evaluate writes a few bytes that depend on what it was given.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gradelora import child, encode, train
from gradelora.artifacts import Adapter, Artifact, BaseModel, DataFiles, EvalReport, Frozen, Interval, MergedModel
from gradelora.config import FetchConfig, RunConfig, Runtime
from gradelora.config_file import load_config
from gradelora.errors import NotEnoughDisk, NotEnoughMemory
from gradelora.evaluate import evaluate
from gradelora.fetch import fetch
from gradelora.hardware import this_machine
from gradelora.merge import identity_of, merge
from gradelora.merge.journal import Entry, Journal
from gradelora.mirror.remote import Remote
from gradelora.mirror.sealed import push
from gradelora.preflight import check, make_plan
from gradelora.preflight.disk import merged_bytes
from gradelora.preflight.size import size_of
from gradelora.records import collect_data_files
from gradelora.resolve import resolve
from gradelora.sandbox.demo import REPO_ID
from gradelora.sandbox.hub import LoopbackHub
from gradelora.store import Store, key_of, read_receipt
from gradelora.validate import validate
from gradelora.why import Foresight, foresee, sorted_by_age
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
STAGES = ("fetch tokenizer", "fetch everything", "validate", "encode", "train", "evaluate")
CACHED = dict.fromkeys(STAGES, "cached")


def stand_in(stage: Callable[..., Any], config: Frozen, *inputs: Artifact, out: Path, runtime: Runtime) -> Any:
    """An adapter or a report whose bytes follow from config and inputs."""
    (out / "result.txt").write_text(config.model_dump_json() + " ".join(a.digest for a in inputs))
    if stage is train.train:
        facts = {"trainable_parameters": 1, "total_parameters": 2, "steps": 3, "final_loss": 0.5}
        return Adapter.collect(out, repo_id=REPO_ID, commit="c" * 40, **facts)
    none = Interval(value=None, low=None, high=None, reason="a stand-in")
    return EvalReport.collect(out, split="unseen_answers", items=1, base_qwk=none, adapter_qwk=none, qwk_gain=none)


@dataclass
class World:
    """A folder with data, a store and a Hub of its own, and the changes that a test makes."""

    folder: Path
    url: str
    overrides: list[str] = field(default_factory=list)
    train_work: Callable[..., Any] = stand_in

    @property
    def run(self) -> RunConfig:
        places = [
            f"data.files=[{self.folder}/data/*.json]",
            f"store.root={self.folder}/store",
            f"runtime.hub_cache={self.folder}/cache",
            f"runtime.hub_endpoint={self.url}",
        ]
        return load_config(ROOT / "deployments" / "demo.yaml", ["merge.enabled=false", *places, *self.overrides])

    def inputs(self) -> tuple[RunConfig, BaseModel, DataFiles]:
        run = self.run
        return run, resolve(run.base, runtime=run.runtime), collect_data_files(run.data.files)

    def foresee(self) -> Foresight:
        return foresee(*self.inputs())

    def obtain(self) -> dict[str, str]:
        """Run everything as Pipeline does; label to `cached` or `run`, and every digest."""
        run, base, data = self.inputs()
        store, states = Store(run.store.root), {}
        self.digests: dict[str, str] = {}

        def get(stage: Callable[..., Any], config: Frozen, *inputs: Artifact, work: Any = child.here) -> Any:
            done = store.obtain(stage, config, *inputs, runtime=run.runtime, run=work)
            states[done.label] = "cached" if done.cached else "run"
            self.digests[done.label] = done.artifact.digest
            return done.artifact

        tokenizer = get(fetch, FetchConfig(part="tokenizer"), base)
        snapshot = get(fetch, FetchConfig(part="everything"), base)
        records = get(validate, run.validation, data)
        encoded = get(encode.encode, run.encode, records, tokenizer)
        adapter = get(train.train, run.train, snapshot, encoded, work=self.train_work)
        get(evaluate, run.evaluate, snapshot, adapter, encoded, work=stand_in)
        return states

    def holds(self, said: Foresight) -> dict[str, str]:
        """Run, and compare with what was said: cached and run to the letter, follows by what it waits for."""
        done = self.obtain()
        assert list(done) == [f.stage for f in said.stages]
        for foreseen in said.stages:
            if foreseen.state == "follows":
                again = all(self.digests[stage] == digest for stage, digest in foreseen.unless)
                assert done[foreseen.stage] == ("cached" if again else "run"), foreseen
            else:
                assert done[foreseen.stage] == foreseen.state, foreseen
        return done


def states(said: Foresight) -> dict[str, str]:
    return {f.stage: f.state for f in said.stages}


def causes(said: Foresight, stage: str) -> tuple[str, ...]:
    return next(f.causes for f in said.stages if f.stage == stage)


@pytest.fixture(scope="module")
def finished(repositories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which everything has run once, with the repositories that its Hub serves."""
    folder = tmp_path_factory.mktemp("why")
    shutil.copytree(repositories, folder / "hub", ignore=shutil.ignore_patterns(".commits"))
    shutil.copytree(ROOT / "data" / "sample", folder / "data")
    with LoopbackHub(folder / "hub") as hub:
        world = World(folder, hub.url)
        assert {f.causes for f in world.foresee().stages[:1]} == {("the store holds no fetch artifact yet",)}
        assert not (folder / "store").exists(), "looking leaves no trace"
        world.holds(world.foresee())
    return folder


@pytest.fixture
def world(finished: Path, tmp_path: Path) -> Iterator[World]:
    """A copy of it for one test; the snapshot is fetched anew, for its path is part of no digest."""
    shutil.copytree(finished, tmp_path / "w", symlinks=True)
    folder = tmp_path / "w"
    for receipt in folder.glob("store/fetch/*/receipt.json"):
        receipt.write_text(receipt.read_text().replace(str(finished), str(folder)))
    with LoopbackHub(folder / "hub") as hub:
        yield World(folder, hub.url)


def test_nothing_changed_means_nothing_runs(world: World) -> None:
    said = world.foresee()
    assert states(said) == CACHED
    assert world.holds(said) == CACHED


def test_a_data_byte_names_the_file_and_an_equal_result_stops_there(world: World) -> None:
    path = sorted((world.folder / "data").glob("*.json"))[0]
    path.write_bytes(path.read_bytes() + b"\n")
    said = world.foresee()
    assert causes(said, "validate") == (f"data file {path.name}: changed",)
    assert states(said) == {**CACHED, "validate": "run", "encode": "follows", "train": "follows", "evaluate": "follows"}
    done = world.holds(said)
    # A line end changes the records' sources, but not one token.
    assert (done["encode"], done["train"]) == ("run", "cached")


def test_files_that_come_and_go_are_named(world: World) -> None:
    files = sorted((world.folder / "data").glob("*.json"))
    files[0].rename(files[0].with_name("renamed.json"))
    said = world.foresee()
    assert causes(said, "validate") == ("data file renamed.json: new", f"data file {files[0].name}: gone")
    world.holds(said)


def test_a_learning_rate_is_named_with_both_values(world: World) -> None:
    world.overrides = ["train.learning_rate=1e-4"]
    said = world.foresee()
    assert causes(said, "train") == ("train.learning_rate: 0.006 -> 0.0001",)
    assert states(said) == {**CACHED, "train": "run", "evaluate": "follows"}
    assert world.holds(said) == {**CACHED, "train": "run", "evaluate": "run"}


def test_a_model_revision_is_named_by_its_commits(world: World) -> None:
    before = world.inputs()[1].commit
    card = world.folder / "hub" / REPO_ID / "generation_config.json"
    card.write_text(json.dumps({"note": "another commit"}))
    now = world.inputs()[1].commit
    said = world.foresee()
    assert causes(said, "fetch everything") == (f"model revision: commit {before[:12]} -> {now[:12]}",)
    assert causes(said, "fetch tokenizer") == causes(said, "fetch everything")
    assert states(said)["validate"] == "cached"
    assert world.holds(said)["train"] == "run"


def test_a_version_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "VERSION", encode.VERSION + 1)
    said = world.foresee()
    assert causes(said, "encode") == (f"VERSION of encode: {encode.VERSION - 1} -> {encode.VERSION}",)
    # The same tokens come out, so what follows stays.
    assert world.holds(said) == {**CACHED, "encode": "run"}


@pytest.mark.parametrize("stage", ["validate", "encode", "train"])
def test_a_damaged_artifact_is_named_and_runs_alone(world: World, stage: str) -> None:
    (sealed,) = [p for p in (world.folder / "store" / stage).iterdir() if not p.name.startswith(".")]
    files = [p for p in sealed.glob("*") if p.is_file() and p.name != "receipt.json"]
    largest = max(files, key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"?")
    said = world.foresee()
    (cause,) = causes(said, stage)
    assert str(largest) in cause
    assert "contents differ from the receipt" in cause
    assert states(said) == {**CACHED, stage: "run"}
    assert world.holds(said) == {**CACHED, stage: "run"}


def test_several_causes_are_all_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "VERSION", train.VERSION + 1)
    world.overrides = ["train.lora.r=4", "train.seed=7"]
    said = world.foresee()
    assert causes(said, "train") == (
        f"VERSION of train: {train.VERSION - 1} -> {train.VERSION}",
        "train.lora.r: 8 -> 4",
        "train.seed: 0 -> 7",
    )
    world.holds(said)


def test_runtime_settings_are_no_cause(world: World) -> None:
    world.overrides = ["runtime.evaluate_rows=1", "runtime.encode_workers=2"]
    assert states(world.foresee()) == CACHED


def test_an_earlier_run_improves_the_plan(world: World) -> None:
    def times() -> dict[str, Any]:
        run, base, data = world.inputs()
        return {t.stage: t for t in make_plan(run, base, data, world.folder / "cache", this_machine()).times}

    assert {t.source for t in times().values()} == {"sealed in the store"}
    world.overrides = ["validation.long_answer_chars=3999", "train.seed=1"]
    (receipt,) = [read_receipt(p.parent) for p in (world.folder / "store" / "validate").glob("*/receipt.json")]
    now = times()
    assert now["validate"].source == f"measured here by validate/{receipt.key[:12]}"
    assert now["validate"].seconds == pytest.approx(receipt.seconds)
    assert now["encode"].source.startswith("measured here by encode/")
    # The stand-in left no progress to measure by.
    assert now["train"].source.startswith("estimated")
    assert now["train"].low_s < now["train"].seconds < now["train"].high_s


def test_what_lies_there_of_the_merged_model_needs_no_room_again(world: World) -> None:
    world.overrides = ["merge.enabled=true"]
    run, base, _ = world.inputs()
    store, size = Store(run.store.root), size_of(base, run.train.lora)

    def needed() -> int:
        return merged_bytes(world.run, size, world.foresee())

    whole = needed()
    assert whole == size.disk_bytes
    artifacts = world.foresee().artifacts
    inputs = tuple(artifacts[name] for name in ("fetch everything", "train", "evaluate", "encode"))
    identity = identity_of(run.merging, inputs[0].digest, inputs[1].digest)
    # One shard of a merge that was judged otherwise, half of another of this very merge.
    other = store.building("merge", "f" * 64)
    journal = Journal(other, identity)
    (other / "model-1.safetensors").write_bytes(bytes(300_000))
    stat = (other / "model-1.safetensors").stat()
    journal.add(Entry(name="model-1.safetensors", size=300_000, mtime_ns=stat.st_mtime_ns, sha256="0" * 64))
    assert whole - needed() == 300_000
    own = store.building("merge", key_of(merge, run.merging, inputs))
    own.mkdir()
    (own / "model-2.safetensors.part").write_bytes(bytes(2**20))
    assert whole - needed() == 300_000 + 2**20
    world.overrides.append("merge.max_shift=0.2")
    assert whole - needed() == 300_000
    merging = world.run.merging
    store.obtain(merge, merging, *inputs, runtime=run.runtime, run=merge_stand_in)
    assert needed() == 0


def merge_stand_in(stage: Callable[..., Any], *given: Any, out: Path, runtime: Runtime) -> MergedModel:
    """A sealed merge of no weights, as one that a mirror brought back without its journal."""
    return MergedModel.collect(out, repo_id=REPO_ID, commit="c" * 40, merged_tensors=1)


def test_a_sealed_run_needs_no_memory_and_no_disk_and_a_changed_one_does(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1_000_100_000)
    monkeypatch.setattr("gradelora.preflight.disk.shutil.disk_usage", lambda _: usage)
    small = this_machine().model_copy(update={"host_bytes": 1})

    def checked(machine: Any) -> None:
        run, base, data = world.inputs()
        check(run, make_plan(run, base, data, world.folder / "cache", machine))

    checked(small)
    world.overrides = ["train.learning_rate=1e-4"]
    with pytest.raises(NotEnoughMemory, match="training needs on host"):
        checked(small)
    with pytest.raises(NotEnoughDisk, match="adapter"):
        checked(this_machine())


def test_what_only_the_mirror_holds_is_foretold_as_brought_from_there(world: World, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/mirror"
    (sealed,) = [p for p in (world.folder / "store" / "train").iterdir() if not p.name.startswith(".")]
    push(Remote(url), sealed)
    shutil.rmtree(sealed)
    assert states(world.foresee())["train"] == "run"
    world.overrides = [f"store.mirror={url}"]
    said = world.foresee()
    assert states(said) == CACHED
    assert causes(said, "train") == (f"it is brought from {url}",)


def steps_of(tokens: int, seconds: float) -> Callable[..., Any]:
    """A stand-in for training that takes so long, and leaves the progress lines of four steps."""

    def work(stage: Callable[..., Any], config: Frozen, *inputs: Artifact, out: Path, runtime: Runtime) -> Any:
        (out / "aside").mkdir(exist_ok=True)
        with (out / "aside" / "progress.jsonl").open("w") as file:
            for step in range(1, 5):
                time.sleep(seconds / 4)
                pace = {"tokens": tokens // 4, "tokens_per_s": tokens / seconds, "peak_memory_bytes": 1}
                file.write(json.dumps({"step": step, "seconds": step * seconds / 4, "loss": 1.0, **pace}) + "\n")
        return stand_in(stage, config, *inputs, out=out, runtime=runtime)

    return work


def test_after_one_run_a_training_with_another_learning_rate_is_foretold_from_its_receipt(world: World) -> None:
    def planned(*overrides: str) -> Any:
        world.overrides = list(overrides)
        run, base, data = world.inputs()
        found = make_plan(run, base, data, world.folder / "cache", this_machine())
        return next(t for t in found.times if t.stage == "train"), found.work

    rough, work = planned("train.seed=1")
    assert rough.source.startswith("estimated")
    world.train_work = steps_of(work.train_tokens, seconds=1.2)
    world.obtain()
    (receipt,) = [s.receipt for s in sorted_by_age(world.run.store.root, "train")[-1:]]
    again, _ = planned("train.learning_rate=1e-4", "train.seed=1")
    assert again.source == f"measured here by train/{receipt.key[:12]}"
    assert again.seconds == pytest.approx(receipt.seconds, rel=0.05)
    assert again.high_s - again.low_s < (rough.high_s - rough.low_s) / 10
    # Time follows the work, but for what comes before and after all steps.
    twice, _ = planned("train.max_steps=300", "train.seed=1")
    assert twice.seconds == pytest.approx(receipt.seconds + 1.2, rel=0.2)
    # Neither another way of training nor another kind of machine tells anything.
    for way in ("train.gradient_checkpointing=true", "train.answers_per_row=2", "train.micro_batch_rows=1"):
        assert planned(way)[0].source.startswith("estimated"), way
    for sealed in sorted_by_age(world.run.store.root, "train"):
        path = sealed.folder / "receipt.json"
        path.write_text(path.read_text().replace(receipt.machine, "8 x another GPU"))
    assert planned("train.learning_rate=1e-4", "train.seed=1")[0].source.startswith("estimated")


def test_the_command_prints_a_line_a_stage(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    from gradelora.cli import main

    world.overrides = ["train.learning_rate=1e-4"]
    run = world.run
    options = [
        f"data.files=[{world.folder}/data/*.json]",
        f"store.root={run.store.root}",
        f"runtime.hub_cache={run.runtime.hub_cache}",
        f"runtime.hub_endpoint={world.url}",
        "merge.enabled=false",
        *world.overrides,
    ]
    command = ["plan", "--why", "--config", str(ROOT / "deployments" / "demo.yaml")]
    assert main([*command, *(part for option in options for part in ("--set", option))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["fetch", "fetch", "validate", "encode", "train", "evaluate"]
    assert lines[4].split(maxsplit=2) == ["train", "run", "train.learning_rate: 0.006 -> 0.0001"]
