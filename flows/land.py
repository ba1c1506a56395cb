"""New data land: one event for all of them, which starts one finetune run (its trigger stands in prefect.yaml)."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from gradelora.config_file import load_config
from gradelora.errors import BadConfig
from gradelora.landing import Landing, Quiet
from gradelora.records import collect_data_files
from tasks.events import DATA_LANDED, heard, send
from tasks.stage import plainly


# A bucket that hangs must not keep later looks away for ever: they are dropped while this one goes on.
@flow(name="land", log_prints=True, persist_result=False, validate_parameters=True, timeout_seconds=3600)
@plainly
def land(
    config: str = "deployments/h200.yaml",
    overrides: list[str] | None = None,
    source: str = "",
    settle_s: float = 20,
) -> State[Any]:
    """Look whether new graded answers have landed whole; if so tell the server, until a run comes of it.

    Args:
        config: the YAML file whose data are watched, e.g. deployments/h200.yaml
        overrides: as the finetune runs have them, e.g. ["data.files=[answers/*.json]"]
        source: an fsspec URL, e.g. s3://bucket/answers/*.json, copied to <store.root>/landed/<name>;
            empty, the configuration's own data.files are watched where they lie
        settle_s: seconds between the two looks that must agree before anything is read
    """
    run = load_config(Path(config), overrides or ())
    landing = Landing(run, source)
    with landing.held():
        seen = landing.seen()
        if seen.fingerprint and not seen.answered and heard(DATA_LANDED, run.name, seen.accepted):
            landing.answered()
        news = landing.examine(settle_s)
        if isinstance(news, Quiet):
            return Completed(name="NothingNew", message=news.why)
        landing.take(news)
        if landing.copies is not None:
            _read_by_the_run(run.data.files, landing.copies)
        payload = {"fingerprint": news.fingerprint, "files": len(news.files)}
        landing.told(news, send(DATA_LANDED, run.name, payload))
    again = "; told again, for no run came of it" if news.fingerprint == seen.fingerprint else ""
    return Completed(name="Landed", message=f"{len(news.files)} files, fingerprint {news.fingerprint[:12]}{again}")


def _read_by_the_run(patterns: tuple[str, ...], copies: Path) -> None:
    """The finetune run must read what was copied for it."""
    read = collect_data_files(patterns)
    if not read.path.is_relative_to(copies):
        raise BadConfig(f"data.files reads {read.path}, but what lands is copied to {copies}; set data.files to it")
