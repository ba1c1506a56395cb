"""`gradelora mirror`, the doctor's line, and the champion that machines share."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradelora import child, mirror
from gradelora.artifacts import Adapter, EncodedDataset, EvalReport, Interval, SplitCounts
from gradelora.champion import champion_of, promote, read_champions, refuse, rollback
from gradelora.cli import main
from gradelora.config import Runtime, StoreConfig
from gradelora.doctor import examine
from gradelora.errors import RankLost
from gradelora.mirror import champion_shared, uploads, uploads_finished
from gradelora.store import Store
from tests import toy, toy_training
from tests.toy import ToyConfig
from tests.toy_training import CountConfig, count

NAME = "demo"
INTERVAL = Interval(value=0.5, low=0.4, high=0.6)


@pytest.fixture(autouse=True)
def a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_opened", {})
    monkeypatch.setattr(uploads, "POLL_S", 0.02)
    toy_training.DIES_AT.clear()


class Machine:
    """A store with a mirror, as a run uses them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.config = StoreConfig(root=folder / "store", mirror=url)
        self.root = self.config.root
        self.said: list[str] = []

    def promote(self, word: str) -> Adapter:
        """What the gate does with an adapter that is better."""
        with uploads_finished(self.config, self.said.append):
            store = Store.of(self.config, self.said.append)
            made = store.obtain(adapter, ToyConfig(word=word), runtime=Runtime(), run=child.here).artifact
            report = store.obtain(evaluation, ToyConfig(word=word), runtime=Runtime(), run=child.here).artifact
            data = store.obtain(encode, ToyConfig(word=word), runtime=Runtime(), run=child.here).artifact
            with champion_shared(self.config, NAME):
                told = {"data_digest": data.digest, "data_key": data.path.name, "reason": "better"}
                promote(self.root, NAME, adapter=made, report=report, **told)
        return made

    def look(self) -> Any:
        """A run that finds nothing better."""
        with uploads_finished(self.config, self.said.append), champion_shared(self.config, NAME):
            return champion_of(self.root, NAME)

    def config_file(self) -> Path:
        values = yaml.safe_load(Path("deployments/demo.yaml").read_text())
        values["store"] = {"root": str(self.root), "mirror": self.config.mirror}
        path = self.root.parent / "demo.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values))
        return path

    def command(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
        code = main(["mirror", *arguments, "--config", str(self.config_file()), "--json"])
        return code, json.loads(capsys.readouterr().out or "[]")


VERSION = 1


def adapter(config: ToyConfig, *, out: Path, runtime: Runtime) -> Adapter:
    (out / "adapter_model.safetensors").write_text(config.word)
    return Adapter.collect(
        out, repo_id="a/b", commit="c", trainable_parameters=1, total_parameters=2, steps=1, final_loss=0.5
    )


def evaluation(config: ToyConfig, *, out: Path, runtime: Runtime) -> EvalReport:
    (out / "predictions.jsonl").write_text(config.word)
    return EvalReport.collect(
        out, split="unseen_answers", items=1, base_qwk=INTERVAL, adapter_qwk=INTERVAL, qwk_gain=INTERVAL
    )


def encode(config: ToyConfig, *, out: Path, runtime: Runtime) -> EncodedDataset:
    (out / "candidates.json").write_text(config.word)
    splits = SplitCounts(train=1, validation=0, unseen_answers=0, unseen_questions=0)
    return EncodedDataset.collect(out, layout="harmony", splits=splits, tokens=1, longest=1, pad_token_id=0)


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Machine, Machine]:
    url = f"file://{tmp_path}/mirror"
    return Machine(tmp_path / "a", url), Machine(tmp_path / "b", url)


def test_another_machine_has_the_champion_with_its_artifacts(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    a, b = machines
    made = a.promote("one")
    record = (tmp_path / "mirror" / "champions" / f"{NAME}.json").read_text()
    assert str(tmp_path) not in record, "the record names no place of one machine"
    champion = b.look()
    assert champion.adapter.digest == made.digest
    assert champion.adapter.path == b.root / "adapter" / made.path.name
    assert (champion.adapter.path / "adapter_model.safetensors").read_text() == "one"
    assert (champion.report.path / "predictions.jsonl").read_text() == "one"
    # What it was trained on comes along: how its prompts are made, which scores it knows.
    assert (b.root / "encode" / champion.data_key / "candidates.json").read_text() == "one"


def test_promotions_on_two_machines_in_turn_make_one_record(machines: tuple[Machine, Machine]) -> None:
    a, b = machines
    a.promote("one")
    second = b.promote("two")
    assert a.look().adapter.digest == second.digest
    third = a.promote("three")
    assert b.look().adapter.digest == third.digest
    assert [event.what for event in read_champions(b.root, NAME).log] == ["promoted"] * 3
    rollback(b.root, NAME)
    b.look()
    assert a.look().adapter.digest == second.digest
    assert (a.look().adapter.path / "adapter_model.safetensors").read_text() == "two"
    assert not [said for said in a.said + b.said if "apart" in said]


def test_promotions_apart_are_told_and_change_nothing(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    a, b = machines
    apart = Machine(tmp_path / "b", f"file://{tmp_path}/elsewhere")
    ours, theirs = a.promote("one"), apart.promote("two")
    assert b.look().adapter.digest == theirs.digest
    assert any("promoted apart" in said for said in b.said)
    assert a.look().adapter.digest == ours.digest


def test_a_lost_disk_comes_back_by_pull(machines: tuple[Machine, Machine], capsys: pytest.CaptureFixture[str]) -> None:
    a, _ = machines
    made = a.promote("one")
    shutil.rmtree(a.root)
    code, rows = a.command(capsys, "pull")
    assert code == 0
    assert {row["note"] for row in rows if row["what"] == "artifact"} == {"brought"}
    assert champion_of(a.root, NAME).adapter.digest == made.digest  # type: ignore[union-attr]
    assert {row["note"] for row in a.command(capsys, "pull")[1] if row["what"] == "artifact"} == {"here already"}


def test_push_sends_what_no_run_has_sent_and_status_shows_both_sides(
    machines: tuple[Machine, Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = machines
    plain = Store(a.root)
    plain.obtain(toy.toy, ToyConfig(), runtime=Runtime(), run=child.here)
    toy_training.DIES_AT.append(2)
    with pytest.raises(RankLost):
        plain.obtain(count, CountConfig(), runtime=Runtime(), run=child.here)
    assert {(r["what"], r["here"], r["there"]) for r in a.command(capsys, "status")[1]} == {
        ("artifact", True, False),
        ("checkpoint", True, False),
    }
    code, rows = a.command(capsys, "push")
    assert code == 0
    assert all("MB sent" in row["note"] for row in rows)
    assert {(r["what"], r["here"], r["there"]) for r in b.command(capsys, "status")[1]} == {
        ("artifact", False, True),
        ("checkpoint", False, True),
    }


def test_pull_names_what_is_damaged_in_the_mirror(
    machines: tuple[Machine, Machine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = machines
    a.promote("one")
    (weights,) = (tmp_path / "mirror").glob("artifacts/adapter/*/adapter_model.safetensors")
    weights.write_text("two")
    code, rows = b.command(capsys, "pull")
    assert code == 1
    (damaged,) = [row for row in rows if row["note"].startswith("damaged")]
    assert "adapter_model.safetensors" in damaged["note"]
    assert not damaged["here"]


def test_a_mirror_out_of_reach_is_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mirror").write_text("a file where a folder should be")
    lonely = Machine(tmp_path / "a", f"file://{tmp_path}/mirror/deeper")
    Store(lonely.root).obtain(toy.toy, ToyConfig(), runtime=Runtime(), run=child.here)
    assert main(["mirror", "push", "--config", str(lonely.config_file())]) == 2
    said = capsys.readouterr().err
    assert said.startswith("MirrorUnreachable: store.mirror=file://")
    assert said.count("\n") == 1


def test_no_mirror_is_one_sentence_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mirror", "status", "--config", "deployments/demo.yaml"]) == 2
    assert "store.mirror is not set" in capsys.readouterr().err


def test_the_doctor_looks_at_the_mirror(tmp_path: Path) -> None:
    store = StoreConfig(root=tmp_path / "store", mirror=f"file://{tmp_path}/mirror")
    (found,) = [f for f in examine(Runtime(), store) if f.check == "mirror"]
    assert found.ok
    assert not [path for path in (tmp_path / "mirror").rglob("*") if path.is_file()]
    (tmp_path / "wall").write_text("")
    (found,) = [
        f
        for f in examine(Runtime(), store.model_copy(update={"mirror": f"file://{tmp_path}/wall/x"}))
        if f.check == "mirror"
    ]
    assert not found.ok
    assert "cannot be reached" in found.found


def test_a_name_bounds_what_is_brought(machines: tuple[Machine, Machine], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = machines
    made = a.promote("one")
    code, rows = b.command(capsys, "pull", f"adapter/{made.path.name}")
    assert (code, [row["what"] for row in rows]) == (0, ["artifact"])
    assert [folder.parent.name for folder in Store(b.root).folders()] == ["adapter"]
    assert read_champions(b.root, NAME).champion is None
    b.command(capsys, "pull", NAME)
    assert read_champions(b.root, NAME).champion is not None


def test_what_was_refused_here_outlives_a_champion_from_elsewhere(
    machines: tuple[Machine, Machine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = machines
    store = Store.of(b.config)
    worse = store.obtain(adapter, ToyConfig(word="worse"), runtime=Runtime(), run=child.here).artifact
    report = store.obtain(evaluation, ToyConfig(word="worse"), runtime=Runtime(), run=child.here).artifact
    refuse(b.root, NAME, adapter=worse, report=report, data_digest="d", reason="not shown")
    (row,) = [row for row in b.command(capsys, "status", NAME)[1] if row["what"] == "champion"]
    assert (row["here"], row["there"]) == (True, False)
    main(["mirror", "status", "--config", str(b.config_file())])
    assert "here only" in capsys.readouterr().out
    better = a.promote("better")
    assert b.look().adapter.digest == better.digest
    assert [r.reason for r in read_champions(b.root, NAME).refusals] == ["not shown"]
    # With the next promotion here the refusal is told on, without a place of this machine.
    b.promote("best")
    assert str(tmp_path) not in (tmp_path / "mirror" / "champions" / f"{NAME}.json").read_text()
    a.look()
    (told,) = read_champions(a.root, NAME).refusals
    assert told.adapter.path == a.root / "adapter" / worse.path.name
