"""The mirror on a file:// URL: what goes up, what comes back, what is never believed."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradelora import child, mirror, store
from gradelora.artifacts import Artifact, files_under
from gradelora.config import EvaluateConfig, Runtime, StoreConfig, TrainConfig
from gradelora.errors import Damaged, MirrorUnreachable, MissingTool, NotEnoughDisk, RankLost
from gradelora.mirror import bundle, checkpoints, uploads
from gradelora.mirror.remote import Remote
from gradelora.receipt import RECEIPT, verify_folder
from gradelora.store import Obtained, Store, key_of
from gradelora.train import seals
from tests import toy, toy_training
from tests.toy import ToyConfig, after
from tests.toy_training import CountConfig, count

RUNTIME = Runtime()


VERSION = 1


def shards(config: ToyConfig, *, out: Path, runtime: Runtime) -> toy.Toy:
    for number in range(3):
        (out / f"{number}.bin").write_bytes(bytes(number + 1))
    return toy.Toy.collect(out, length=3)


class Machine:
    """One machine: a store of its own, the mirror, and a process that remembers nothing of another one's."""

    def __init__(self, folder: Path, url: str) -> None:
        self.config = StoreConfig(root=folder / "store", mirror=url)
        self.said: list[str] = []
        self.mirror = mirror.Mirror(url)
        self.mirror.say = self.said.append
        self.store = Store(self.config.root, self.mirror)

    def obtain(self, stage: Callable[..., Any], config: Any, *inputs: Artifact) -> Obtained[Any]:
        return self.store.obtain(stage, config, *inputs, runtime=RUNTIME, run=child.here)

    def toy(self, word: str = "a") -> Obtained[Any]:
        return self.obtain(toy.toy, ToyConfig(word=word))

    def dies_at(self, step: int, step_s: float = 0.08) -> None:
        toy_training.DIES_AT[:] = [step]
        toy_training.STEP_S[0] = step_s
        with pytest.raises(RankLost):
            self.obtain(count, CountConfig())

    def finish(self, timeout_s: float = 20) -> uploads.Tally:
        return self.mirror.finish(timeout_s)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/mirror"


@pytest.fixture
def machines(tmp_path: Path, url: str) -> tuple[Machine, Machine]:
    return Machine(tmp_path / "a", url), Machine(tmp_path / "b", url)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(uploads, "POLL_S", 0.02)
    monkeypatch.setattr(mirror, "AGAIN_S", 0.02)
    monkeypatch.setattr(store, "PATIENCE_S", 0.1)
    for state in (toy_training.DIES_AT, toy_training.BEGAN_AT):
        state.clear()
    yield
    toy_training.STEP_S[0] = 0.0


def mirrored(tmp_path: Path, pattern: str) -> list[Path]:
    return sorted((tmp_path / "mirror").glob(pattern))


def test_another_machine_takes_an_artifact_from_the_mirror(machines: tuple[Machine, Machine]) -> None:
    a, b = machines
    first = a.toy()
    assert a.finish().artifacts == 1
    second = b.toy()
    assert (first.cached, second.cached) == (False, True)
    assert "brought from file://" in second.why
    assert second.artifact.digest == first.artifact.digest
    assert (second.artifact.path / "aside" / "when.txt").read_bytes() == (
        first.artifact.path / "aside" / "when.txt"
    ).read_bytes()
    assert b.toy().why == "verified against its receipt"
    assert b.finish().artifacts == 0


def test_what_comes_back_need_not_be_hashed_on_every_hit(machines: tuple[Machine, Machine]) -> None:
    a, b = machines
    a.toy()
    a.finish()
    path = b.toy().artifact.path
    entry = json.loads((path / RECEIPT).read_text())["artifact"]["files"][0]
    assert (path / entry["name"]).stat().st_mtime_ns == entry["mtime_ns"]


@pytest.mark.parametrize("harm", ["flipped", "short", "gone", "receipt cut", "receipt gone", "receipt of another"])
def test_a_damaged_copy_is_not_believed_and_is_replaced(
    machines: tuple[Machine, Machine], tmp_path: Path, harm: str
) -> None:
    a, b = machines
    digest = a.toy().artifact.digest
    a.finish()
    (word,) = mirrored(tmp_path, "artifacts/toy/*/word.txt")
    receipt = word.parent / RECEIPT
    before = {path.name: path.read_bytes() for path in (word, receipt)}
    match harm:
        case "flipped":
            word.write_text("b")
        case "short":
            word.write_text("")
        case "gone":
            word.unlink()
        case "receipt cut":
            receipt.write_text(receipt.read_text()[:-40])
        case "receipt gone":
            receipt.unlink()
        case "receipt of another":
            receipt.write_text(receipt.read_text().replace('"stage": "toy"', '"stage": "other"'))
    again = b.toy()
    assert not again.cached
    assert again.artifact.digest == digest
    assert bool(b.said) == (harm != "receipt gone")
    assert not list(b.config.root.glob("toy/.*.pulling"))
    b.finish()
    assert word.read_bytes() == before["word.txt"]
    verify_folder(receipt.parent, deep=True)


def test_a_damaged_artifact_comes_back_from_the_mirror(machines: tuple[Machine, Machine]) -> None:
    a, _ = machines
    path = a.toy().artifact.path
    a.finish()
    (path / "word.txt").write_text("b")
    assert a.toy().cached
    assert (path / "word.txt").read_text() == "a"


def test_a_name_that_leaves_its_folder_is_refused(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    a, b = machines
    a.toy()
    a.finish()
    (receipt,) = mirrored(tmp_path, f"artifacts/toy/*/{RECEIPT}")
    receipt.write_text(receipt.read_text().replace('"word.txt"', '"../../../escaped.txt"'))
    assert not b.toy().cached
    assert any("would leave its folder" in said for said in b.said)
    assert not list(tmp_path.rglob("escaped.txt"))


def test_the_base_snapshot_is_not_mirrored(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    """Its files lie in the Hub cache, outside the sealed folder, and come from the Hub again."""
    a, _ = machines
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").write_text("w")

    def elsewhere(*arguments: Any, out: Path, runtime: Runtime, **named: Any) -> Any:
        return toy.Toy(path=tmp_path / "cache", files=files_under(tmp_path / "cache"), length=1)

    a.store.obtain(toy.toy, ToyConfig(), runtime=RUNTIME, run=elsewhere)
    assert a.finish().artifacts == 0
    assert not mirrored(tmp_path, "artifacts/toy/*")


def test_the_mirror_is_part_of_no_key(tmp_path: Path, url: str, machines: tuple[Machine, Machine]) -> None:
    a, _ = machines
    made = a.toy().artifact
    plain = Store(tmp_path / "a" / "store")
    assert plain.obtain(toy.toy, ToyConfig(), runtime=RUNTIME, run=child.here).cached
    assert not {"mirror", "root"} & {*TrainConfig.model_fields, *EvaluateConfig.model_fields, *Runtime.model_fields}
    assert made.path.name == key_of(toy.toy, ToyConfig(), ())


def test_a_training_goes_on_elsewhere_from_its_newest_mirrored_checkpoint(
    machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    a, b = machines
    a.dies_at(3)
    assert a.finish().lost == []
    shutil.rmtree(a.config.root)
    toy_training.DIES_AT.clear()
    made = b.obtain(count, CountConfig())
    assert toy_training.BEGAN_AT == [0, 3]
    assert (made.artifact.path / "sum.txt").read_text() == "5"
    assert not (made.artifact.path / seals.FOLDER / ".step-3.pulling").exists()
    b.finish()
    assert not mirrored(tmp_path, "checkpoints/**/manifest.json"), "an artifact's checkpoints leave the mirror"


@pytest.mark.parametrize("answers", ["after a moment", "never"])
def test_a_hiccup_of_the_mirror_costs_no_training(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    a, b = machines
    a.dies_at(3)
    a.finish()
    toy_training.DIES_AT.clear()
    real, asked = Remote.read, []

    def hiccup(self: Remote, name: str) -> bytes | None:
        asked.append(name)
        if len(asked) <= 2 or answers == "never":
            raise MirrorUnreachable("SlowDown")
        return real(self, name)

    monkeypatch.setattr(Remote, "read", hiccup)
    b.obtain(count, CountConfig())
    monkeypatch.setattr(Remote, "read", real)
    if answers == "never":
        assert toy_training.BEGAN_AT == [0, 0]
        assert any("count BEGINS WITHOUT the checkpoint" in said for said in b.said)
    else:
        assert toy_training.BEGAN_AT == [0, 3]
        assert [said for said in b.said if "asked again for" in said] == b.said[:1]


def test_an_adapter_that_is_there_is_not_trained_again_for_a_hiccup(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = machines
    made = a.obtain(count, CountConfig()).artifact
    a.finish()
    real, asked = Remote.read, []

    def hiccup(self: Remote, name: str) -> bytes | None:
        asked.append(name)
        if len(asked) == 1:
            raise MirrorUnreachable("SlowDown")
        return real(self, name)

    monkeypatch.setattr(Remote, "read", hiccup)
    again = b.obtain(count, CountConfig())
    assert (again.cached, again.artifact.digest) == (True, made.digest)
    assert toy_training.BEGAN_AT == [0]


def test_patience_begins_at_the_first_failure_and_not_with_a_long_pull(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = machines
    a.obtain(count, CountConfig())
    a.finish()
    real, asked = Remote.bring, []

    def breaks_off(self: Remote, name: str, path: Path) -> bool:
        asked.append(name)
        if len(asked) == 1:
            time.sleep(2 * store.PATIENCE_S)
            raise MirrorUnreachable("connection reset")
        return real(self, name, path)

    monkeypatch.setattr(Remote, "bring", breaks_off)
    assert b.obtain(count, CountConfig()).cached


def test_a_full_disk_here_is_no_fault_of_the_mirror(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred kilobytes onto a file system of one page."""
    a, b = machines
    a.toy("x" * 100_000)
    a.finish()
    (into := b.config.root / "toy").mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(into)], check=False).returncode:
        pytest.skip("may not mount")
    try:
        with pytest.raises(NotEnoughDisk, match=r"No space left .* set store\.root"):
            b.toy("x" * 100_000)
    finally:
        subprocess.run(["umount", str(into)], check=True)
    assert b.said == []


def test_superseded_checkpoints_leave_the_mirror(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    a, _ = machines
    a.dies_at(5)
    tally = a.finish()
    assert tally.checkpoints > checkpoints.KEPT
    kept = [path.parent.name for path in mirrored(tmp_path, "checkpoints/count/*/*/manifest.json")]
    assert kept == ["step-4", "step-5"]
    assert len(mirrored(tmp_path, "checkpoints/count/*/*/**/*.txt")) == 2


@pytest.mark.parametrize("harm", ["flipped", "no manifest", "another manifest"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    machines: tuple[Machine, Machine], tmp_path: Path, harm: str
) -> None:
    a, b = machines
    a.dies_at(4)
    a.finish()
    (newest,) = mirrored(tmp_path, "checkpoints/count/*/step-4")
    match harm:
        case "flipped":
            (newest / "state" / "sum.txt").write_text("9")
        case "no manifest":
            (newest / "manifest.json").unlink()
        case "another manifest":
            (newest / "manifest.json").write_text("{}")
    toy_training.DIES_AT.clear()
    b.obtain(count, CountConfig())
    assert toy_training.BEGAN_AT == [0, 3]


def test_a_newer_checkpoint_on_the_machine_is_kept(machines: tuple[Machine, Machine]) -> None:
    a, b = machines
    a.dies_at(2)
    a.finish()
    b.dies_at(4)
    b.mirror.finish(0)
    toy_training.DIES_AT.clear()
    b.obtain(count, CountConfig())
    assert toy_training.BEGAN_AT == [0, 2, 4]


def test_a_checkpoint_is_sent_whole_although_training_deletes_it_meanwhile(
    machines: tuple[Machine, Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = machines
    slow = Remote.send

    def send(self: Remote, path: Path, name: str) -> None:
        time.sleep(0.2)
        slow(self, path, name)

    monkeypatch.setattr(Remote, "send", send)
    a.dies_at(5, step_s=0.05)
    a.finish()
    assert a.said == []
    for manifest in mirrored(tmp_path, "checkpoints/count/*/*/manifest.json"):
        assert seals.fault(manifest.parent, world_size=1, identity="count") is None


def test_uploads_hold_up_no_work(machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    a, _ = machines
    gate = threading.Event()
    monkeypatch.setattr(Remote, "send", lambda *_: gate.wait(20))
    started = time.monotonic()
    a.toy()
    a.obtain(count, CountConfig())
    assert time.monotonic() - started < 2
    lost = a.mirror.finish(0.2).lost
    # The one on its way, and the one behind it.
    assert [what.partition("/")[0] for what in lost if "checkpoint" not in what] == ["toy", "count"]
    assert time.monotonic() - started < 4
    gate.set()


def test_an_unreachable_mirror_is_a_warning_in_a_run(tmp_path: Path) -> None:
    (tmp_path / "mirror").write_text("a file where a folder should be")
    lonely = Machine(tmp_path / "a", f"file://{tmp_path}/mirror")
    assert not lonely.toy().cached
    assert lonely.toy().cached
    lonely.obtain(count, CountConfig())
    lost = lonely.finish().lost
    assert {what.partition("/")[0] for what in lost} == {"toy", "count"}
    assert any("cannot be reached" in said for said in lonely.said)
    told = [said.rpartition("; ")[2] for said in lonely.said]
    assert len(told) == len(set(told)) + 1, "each question tells of the outage once, not for every file and try"


def test_a_mirror_is_asked_again_after_an_outage(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = machines
    a.toy()
    a.finish()
    real = Remote.read

    def out_of_reach(self: Remote, name: str) -> bytes | None:
        raise MirrorUnreachable("no route")

    monkeypatch.setattr(Remote, "read", out_of_reach)
    b.toy("b")
    monkeypatch.setattr(Remote, "read", real)
    assert not b.toy("c").cached, "within the pause it is not asked"
    b.mirror._asked_again = 0.0
    assert b.toy("a").cached
    assert b.finish().lost == []


def test_a_push_cut_short_leaves_nothing_that_looks_whole(
    machines: tuple[Machine, Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = machines
    folder = a.toy().artifact.path
    a.finish()
    sent: list[str] = []
    real = Remote.send

    def cut(self: Remote, path: Path, name: str) -> None:
        if sent:
            raise MirrorUnreachable("cut")
        sent.append(name)
        real(self, path, name)

    monkeypatch.setattr(Remote, "send", cut)
    entries = files_under(folder)
    with pytest.raises(MirrorUnreachable):
        bundle.push(Remote(f"file://{tmp_path}/mirror"), folder, f"artifacts/toy/{folder.name}", entries, RECEIPT)
    monkeypatch.setattr(Remote, "send", real)
    assert not b.toy().cached
    assert b.said == []


def test_a_push_goes_on_behind_the_files_that_are_up(
    machines: tuple[Machine, Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = machines
    a.obtain(shards, ToyConfig())
    real, sent = Remote.send, list[str]()

    def cut_at_the_third(self: Remote, path: Path, name: str) -> None:
        if len(sent) == 2:
            raise MirrorUnreachable("cut")
        sent.append(path.name)
        real(self, path, name)

    monkeypatch.setattr(Remote, "send", cut_at_the_third)
    assert a.finish().lost
    assert sent == ["0.bin", "1.bin"]
    (gone,) = mirrored(tmp_path, "artifacts/shards/*/1.bin")
    gone.unlink()

    def noted(self: Remote, path: Path, name: str) -> None:
        sent.append(path.name)
        real(self, path, name)

    monkeypatch.setattr(Remote, "send", noted)
    again = Machine(tmp_path / "a", a.mirror.url)
    made = again.obtain(shards, ToyConfig())
    assert again.finish().artifacts == 1
    assert sent[2:] == ["1.bin", "2.bin", RECEIPT]
    assert b.obtain(shards, ToyConfig()).cached
    assert not made.artifact.path.with_name(f".{made.artifact.path.name}.sent").exists()


def test_a_pull_goes_on_from_the_files_that_came(
    machines: tuple[Machine, Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = machines
    made = a.obtain(after, ToyConfig(word="z"), a.toy().artifact)
    a.finish()
    into = b.config.root / "after" / f".{made.artifact.path.name}.pulling"
    into.mkdir(parents=True)
    shutil.copy2(made.artifact.path / "word.txt", into / "word.txt")
    brought: list[str] = []
    real = Remote.bring

    def bring(self: Remote, name: str, path: Path) -> bool:
        brought.append(path.name)
        return real(self, name, path)

    monkeypatch.setattr(Remote, "bring", bring)
    assert b.store.bring("after", made.artifact.path.name)
    assert "word.txt" not in brought


def test_a_file_of_another_size_than_its_receipt_is_not_sent(tmp_path: Path, url: str) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "x").write_text("1")
    entries = files_under(tmp_path / "f")
    (tmp_path / "f" / "x").write_text("12")
    with pytest.raises(Damaged, match="2 bytes, 1"):
        bundle.push(Remote(url), tmp_path / "f", "p", entries, RECEIPT)


def test_names_of_checkpoints_are_those_of_training() -> None:
    assert (checkpoints.MANIFEST, checkpoints.FOLDER) == (seals.MANIFEST, seals.FOLDER)


@pytest.mark.parametrize("bad", ["s3://user:secret@bucket/x", "http://host/x", "bucket/x", "s3://bucket/x?key=1"])
def test_a_url_with_a_secret_or_of_another_kind_is_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(ValueError, match=r"password|pattern"):
        StoreConfig(root=tmp_path, mirror=bad)


def test_a_backend_that_is_not_installed_is_named() -> None:
    with pytest.raises(MissingTool, match="pip install gcsfs"):
        Remote("gs://bucket/x")


def test_the_mirror_is_its_owners_alone(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    a, _ = machines
    a.toy()
    a.finish()
    assert (tmp_path / "mirror").stat().st_mode & 0o777 == 0o700


def test_a_run_ends_with_what_did_not_get_up(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_opened", {})
    config = StoreConfig(root=tmp_path / "store", mirror=url, mirror_wait_s=5)
    said: list[str] = []
    with mirror.uploads_finished(config, said.append):
        Store.of(config).obtain(toy.toy, ToyConfig(), runtime=RUNTIME, run=child.here)
    assert said[-1].startswith("mirror: 1 artifacts and 0 checkpoints")
    monkeypatch.setattr(Remote, "send", lambda *_: (_ for _ in ()).throw(MirrorUnreachable("no route")))
    with mirror.uploads_finished(config, said.append):
        Store.of(config).obtain(toy.toy, ToyConfig(word="b"), runtime=RUNTIME, run=child.here)
    assert "not up: toy/" in said[-1]
    assert "gradelora mirror push" in said[-1]


def test_a_cancelled_run_does_not_wait(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_opened", {})
    monkeypatch.setattr(Remote, "send", lambda *_: time.sleep(5))
    config = StoreConfig(root=tmp_path / "store", mirror=url)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _cancelled(config)
    assert time.monotonic() - started < 2


def _cancelled(config: StoreConfig) -> None:
    with mirror.uploads_finished(config, lambda _: None):
        Store.of(config).obtain(toy.toy, ToyConfig(), runtime=RUNTIME, run=child.here)
        raise KeyboardInterrupt


def test_what_nobody_foresaw_costs_one_upload_and_not_the_thread(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = machines
    real = Remote.send

    def send(self: Remote, path: Path, name: str) -> None:
        if "/toy/" in name:
            raise RuntimeError("cannot schedule new futures after shutdown")
        real(self, path, name)

    monkeypatch.setattr(Remote, "send", send)
    a.toy()
    a.obtain(count, CountConfig())
    started = time.monotonic()
    tally = a.finish()
    assert time.monotonic() - started < 5
    assert tally.artifacts == 1
    assert [what.partition("/")[0] for what in tally.lost] == ["toy"]
    assert any("RuntimeError: cannot schedule" in said for said in a.said)


def test_without_a_mirror_nothing_of_it_is_imported(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from gradelora import config, store;"
        f"store.Store.of(config.StoreConfig(root=Path({str(tmp_path)!r}))); print('gradelora.mirror' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "False"
