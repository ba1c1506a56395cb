"""New data: what counts as news, when it counts as whole, and what is remembered."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from gradelora.config import RunConfig
from gradelora.config_file import build_config
from gradelora.errors import BadConfig
from gradelora.landing import Landing, News, Quiet, Seen, look, open_for_writing
from tests.network import BUCKET, S3


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    (tmp_path / "data").mkdir()
    values = {
        "name": "x",
        "base": {"repo_id": "owner/name"},
        "data": {"files": [f"{tmp_path}/data/*.json"]},
        "encode": {"layout": "harmony"},
        "store": {"root": str(tmp_path / "store")},
    }
    return build_config(values)


def no_wait(_seconds: float) -> None:
    pass


def drop(folder: Path, count: int, text: str = "[]") -> None:
    for number in range(count):
        (folder / f"{number}.json").write_text(text)


def long_ago(landing: Landing) -> None:
    """The last event was sent long before the trigger's window."""
    seen = landing.seen()
    landing._write(seen.model_copy(update={"accepted": 0.0}))


def told(landing: Landing, news: News) -> None:
    """A moment ago, and a run has come of it."""
    landing.told(news, time.time())
    landing.answered()


def news_of(landing: Landing, sleep: Callable[[float], None] = no_wait) -> News:
    news = landing.examine(1, sleep)
    assert isinstance(news, News), news
    return news


def quiet(landing: Landing, sleep: Callable[[float], None] = no_wait) -> str:
    found = landing.examine(1, sleep)
    assert isinstance(found, Quiet), found
    return found.why


def act(landing: Landing) -> News:
    news = news_of(landing)
    landing.take(news)
    told(landing, news)
    long_ago(landing)
    return news


def test_ten_files_are_one_piece_of_news_and_none_the_second_time(run: RunConfig, tmp_path: Path) -> None:
    assert "no file has landed" in quiet(Landing(run))
    drop(tmp_path / "data", 10)
    assert len(act(Landing(run)).files) == 10
    assert "unchanged" in quiet(Landing(run))


def test_a_touched_file_is_no_news_and_is_hashed_once(run: RunConfig, tmp_path: Path) -> None:
    drop(tmp_path / "data", 2)
    act(Landing(run))
    os.utime(tmp_path / "data" / "0.json", ns=(1, 1))
    assert "of the same contents" in quiet(Landing(run))
    assert "unchanged" in quiet(Landing(run))


@pytest.mark.parametrize("change", ["written", "added", "removed", "renamed"])
def test_another_content_is_news(run: RunConfig, tmp_path: Path, change: str) -> None:
    drop(tmp_path / "data", 2)
    first = act(Landing(run))
    one = tmp_path / "data" / "0.json"
    if change == "written":
        # As long as before, and dated back as `cp -p` and rsync do.
        one.write_text("{}")
        os.utime(one, ns=(1, 1))
    elif change == "added":
        drop(tmp_path / "data", 3)
    elif change == "removed":
        one.unlink()
    else:
        one.rename(one.with_name("a.json"))
    assert news_of(Landing(run)).fingerprint != first.fingerprint


def test_a_file_that_grows_between_two_looks_waits_for_the_next(run: RunConfig, tmp_path: Path) -> None:
    drop(tmp_path / "data", 2)
    landing = Landing(run)
    assert "still being written" in quiet(landing, lambda _s: drop(tmp_path / "data", 1, "[1]"))
    assert len(news_of(landing).files) == 2


def test_a_writer_that_pauses_is_seen_by_its_open_file(run: RunConfig, tmp_path: Path) -> None:
    drop(tmp_path / "data", 1)
    with (tmp_path / "data" / "0.json").open("a"):
        assert "still being written" in quiet(Landing(run))
    with (tmp_path / "data" / "0.json").open() as reader:
        assert not open_for_writing([reader.name])
        assert news_of(Landing(run))


def test_an_upload_under_a_hidden_name_does_not_count(run: RunConfig, tmp_path: Path) -> None:
    drop(tmp_path / "data", 1)
    (tmp_path / "data" / ".1.json.Xy12").write_text("[")
    (tmp_path / "data" / ".2.json").write_text("[")
    assert [f.name for f in news_of(Landing(run)).files] == ["0.json"]


def test_what_the_server_did_not_take_is_told_again(run: RunConfig, tmp_path: Path) -> None:
    drop(tmp_path / "data", 1)
    first = news_of(Landing(run))
    assert news_of(Landing(run)) == first


def test_a_second_event_waits_for_the_end_of_the_triggers_window(run: RunConfig, tmp_path: Path) -> None:
    """Within it the server would count the event to the run that it has started already."""
    drop(tmp_path / "data", 1)
    landing = Landing(run)
    told(landing, news_of(landing))
    drop(tmp_path / "data", 2)
    assert "less than 60 s ago" in quiet(landing)
    long_ago(landing)
    assert news_of(landing)


def test_news_of_which_no_run_came_is_told_again(run: RunConfig, tmp_path: Path) -> None:
    """A server may take an event and lose it."""
    drop(tmp_path / "data", 1)
    landing = Landing(run)
    first = news_of(landing)
    landing.told(first, time.time())
    assert "less than 60 s ago" in quiet(landing)
    long_ago(landing)
    assert news_of(landing) == first
    landing.answered()
    assert "unchanged" in quiet(landing)


def test_a_record_that_cannot_be_read_means_told_twice_not_never(run: RunConfig, tmp_path: Path) -> None:
    drop(tmp_path / "data", 1)
    act(Landing(run))
    (tmp_path / "store" / "landing" / "x.json").write_text("{")
    assert Landing(run).seen() == Seen()
    assert news_of(Landing(run))


def test_two_looks_at_once_are_one(run: RunConfig) -> None:
    with Landing(run).held(), pytest.raises(BadConfig, match="under way"), Landing(run).held():
        pass


def test_files_of_a_url_are_copied_whole_and_what_is_gone_there_goes_here(run: RunConfig) -> None:
    bucket = fsspec.filesystem("memory")
    bucket.pipe({f"/bucket/a/{n}.json": b"[%d]" % n for n in range(3)})
    landing = Landing(run, "memory://bucket/a/*.json")
    news = act(landing)
    copies = landing.copies
    assert copies is not None
    assert {f.name for f in news.files} == {p.name for p in copies.iterdir()} == {"0.json", "1.json", "2.json"}
    assert json.loads((copies / "2.json").read_text()) == [2]
    assert "unchanged" in quiet(landing)
    bucket.rm("/bucket/a/0.json")
    bucket.pipe("/bucket/a/1.json", b"[11]")
    act(landing)
    assert {p.name: p.read_text() for p in copies.iterdir()} == {"1.json": "[11]", "2.json": "[2]"}


@pytest.mark.slow
def test_a_bucket_on_a_real_s3_server_is_watched_as_a_folder_is(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto's server, through s3fs: what is new, what was put again the same, what is gone."""
    s3 = S3("127.0.0.1")
    try:
        for name, value in s3.env.items():
            monkeypatch.setenv(name, value)
        client = s3.client()
        for number in range(3):
            client.put_object(Bucket=BUCKET, Key=f"answers/{number}.json", Body=b"[%d]" % number)
        client.put_object(Bucket=BUCKET, Key="answers/readme.txt", Body=b"no data")
        landing = Landing(run, f"s3://{BUCKET}/answers/*.json")
        first = act(landing)
        assert landing.copies is not None
        assert {p.name: p.read_text() for p in landing.copies.iterdir()} == {f"{n}.json": f"[{n}]" for n in range(3)}
        assert "unchanged" in quiet(landing)
        # S3 keeps times to the second.
        time.sleep(1.1)
        client.put_object(Bucket=BUCKET, Key="answers/0.json", Body=b"[0]")
        assert "of the same contents" in quiet(landing)
        client.put_object(Bucket=BUCKET, Key="answers/1.json", Body=b"[11]")
        client.delete_object(Bucket=BUCKET, Key="answers/2.json")
        assert act(landing).fingerprint != first.fingerprint
        assert {p.name: p.read_text() for p in landing.copies.iterdir()} == {"0.json": "[0]", "1.json": "[11]"}
    finally:
        s3.stop()


def test_a_lost_copy_is_brought_again_and_is_no_news(run: RunConfig) -> None:
    fsspec.filesystem("memory").pipe("/lost/a.json", b"[1]")
    landing = Landing(run, "memory://lost")
    act(landing)
    assert landing.copies is not None
    (landing.copies / "a.json").unlink()
    assert "of the same contents" in quiet(landing)
    assert (landing.copies / "a.json").read_text() == "[1]"


def test_a_url_without_a_client_is_one_sentence(run: RunConfig) -> None:
    with pytest.raises(BadConfig, match="nowhere://x"):
        Landing(run, "nowhere://x/*.json").examine(0, no_wait)


def test_a_look_reads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[]")
    os.utime(path, (1, 1))
    look([str(tmp_path)])
    assert path.stat().st_atime == 1
