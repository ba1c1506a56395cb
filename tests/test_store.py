import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from gradelora import child
from gradelora.artifacts import canonical_json
from gradelora.config import Runtime
from gradelora.errors import Damaged
from gradelora.store import RECEIPT, Obtained, Store, key_of
from tests import toy
from tests.toy import Toy, ToyConfig, after

RUNTIME = Runtime()


def obtain(store: Store, word: str = "a") -> Obtained[Toy]:
    return store.obtain(toy.toy, ToyConfig(word=word), runtime=RUNTIME, run=child.here)


def test_a_second_call_is_cached_and_gives_the_same_artifact(tmp_path: Path) -> None:
    first, second = obtain(Store(tmp_path)), obtain(Store(tmp_path))
    assert (first.cached, second.cached) == (False, True)
    assert first.artifact == second.artifact
    assert (second.artifact.path / "word.txt").read_text() == "a"


def test_another_config_has_another_key(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not obtain(store, "a").cached
    assert not obtain(store, "b").cached
    assert len(list(store.folders())) == 2


def test_a_bumped_version_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(toy.toy, ToyConfig(), ())
    monkeypatch.setattr(toy, "VERSION", 2)
    assert key_of(toy.toy, ToyConfig(), ()) != before


def test_the_digest_ignores_paths_and_what_lies_aside(tmp_path: Path) -> None:
    one, two = obtain(Store(tmp_path / "one")).artifact, obtain(Store(tmp_path / "two")).artifact
    assert one.digest == two.digest
    assert one.path != two.path


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "receipt", "receipt gone", "facts"])
def test_a_damaged_artifact_is_built_again_and_says_why(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    folder = obtain(store).artifact.path
    word, receipt = folder / "word.txt", folder / RECEIPT
    match damage:
        case "flip":
            word.write_text("b")
        case "truncate":
            word.write_text("")
        case "delete":
            word.unlink()
        case "receipt":
            receipt.write_text(receipt.read_text()[:-40])
        case "receipt gone":
            receipt.unlink()
        case "facts":
            record = json.loads(receipt.read_text())
            record["artifact"]["length"] = 7
            receipt.write_text(json.dumps(record))
    again = obtain(store)
    assert not again.cached
    assert "the stage will run again" in again.why
    assert str(folder) in again.why
    assert (folder / "word.txt").read_text() == "a"


def test_touching_an_artifact_is_no_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    os.utime(obtain(store).artifact.path / "word.txt", ns=(1, 1))
    assert obtain(store).cached


def test_rebuilding_one_artifact_leaves_what_follows_cached(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def follow() -> bool:
        before = obtain(store).artifact
        return store.obtain(after, ToyConfig(word="z"), before, runtime=RUNTIME, run=child.here).cached

    assert not follow()
    (obtain(store).artifact.path / "word.txt").unlink()
    assert follow()


def test_what_lies_aside_is_kept_and_is_no_part_of_the_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    note = obtain(store).artifact.path / "aside" / "when.txt"
    note.write_text("later")
    assert obtain(store).cached


def test_a_stage_in_a_child_process_is_cached_the_next_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    states = [store.obtain(toy.toy, ToyConfig(), runtime=Runtime(threads=1)).cached for _ in range(2)]
    assert states == [False, True]


def test_a_failed_build_leaves_nothing_sealed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(Exception, match="add answers"):
        store.obtain(toy.toy, ToyConfig(behaviour="refuse"), runtime=RUNTIME, run=child.here)
    assert list(store.folders()) == []
    assert store.find(toy.toy, ToyConfig(behaviour="refuse")) is None


def test_leftovers_of_a_killed_build_are_not_part_of_the_next(tmp_path: Path) -> None:
    store = Store(tmp_path)
    half = tmp_path / "toy" / f".{key_of(toy.toy, ToyConfig(), ())}.building"
    half.mkdir(parents=True)
    (half / "stale.txt").write_text("from a killed run")
    assert {f.name for f in obtain(store).artifact.files} == {"word.txt"}


def _hold_and_work(root: str, seconds: float) -> None:
    def slow(*arguments: object, **named: object) -> Toy:
        time.sleep(seconds)
        return child.here(*arguments, **named)  # type: ignore[arg-type]

    Store(Path(root)).obtain(toy.toy, ToyConfig(), runtime=RUNTIME, run=slow)


def test_two_calls_with_one_key_work_once(tmp_path: Path) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=_hold_and_work, args=(str(tmp_path), 2.0))
    worker.start()
    wait_for_building(tmp_path)
    waited = obtain(Store(tmp_path))
    worker.join()
    assert worker.exitcode == 0
    assert waited.cached


def test_a_dead_holder_blocks_nobody(tmp_path: Path) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=_hold_and_work, args=(str(tmp_path), 600.0))
    worker.start()
    wait_for_building(tmp_path)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert not obtain(Store(tmp_path)).cached


def wait_for_building(root: Path) -> None:
    until = time.monotonic() + 30
    while not list(root.glob("toy/.*.building")):
        assert time.monotonic() < until, "the other process never began"
        time.sleep(0.05)


def test_the_store_is_its_owners_alone(tmp_path: Path) -> None:
    assert Store(tmp_path / "store").root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("value", [{1, 2}, Path("x"), float("nan"), object()])
def test_a_value_without_a_stable_form_is_an_error(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        canonical_json({"x": value})


def test_find_deep_reads_every_byte_of_a_large_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradelora.receipt.ALWAYS_DEEP_BYTES", 0)
    store = Store(tmp_path)
    word = obtain(store).artifact.path / "word.txt"
    time_ns = word.stat().st_mtime_ns
    word.write_text("b")
    os.utime(word, ns=(time_ns, time_ns))
    assert store.find(toy.toy, ToyConfig()) is not None
    with pytest.raises(Damaged, match="contents differ"):
        store.find(toy.toy, ToyConfig(), deep=True)
