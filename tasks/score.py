"""Score new answers; what was scored is never scored again, a lost process goes on where it stopped."""

from pathlib import Path

from prefect.logging import get_run_logger

from gradelora.artifacts import DataFiles, ModelSnapshot
from gradelora.config import RunConfig
from gradelora.errors import ChildFailed
from gradelora.records import collect_data_files
from gradelora.score import score as stage
from gradelora.score.chosen import Chosen
from gradelora.score.chosen import choose as chosen
from gradelora.score.scored import ScoreOutcome, Scores, copied_to
from gradelora.store import Obtained
from tasks.stage import obtain, only, stage_task


@stage_task()
def choose(run: RunConfig, adapter: str) -> Chosen:
    """The champion's adapter, or the one in the folder `adapter`; never cached, for the champion may have changed."""
    return chosen(run, Path(adapter) if adapter else None)


@stage_task()
def collect(files: list[str]) -> DataFiles:
    """The answers to score, by their bytes."""
    return collect_data_files(tuple(files))


@stage_task(retries=1, retry_delay_seconds=15, retry_condition_fn=only(ChildFailed))
def score(
    run: RunConfig, picked: Chosen, snapshot: Obtained[ModelSnapshot], data: DataFiles, threshold: float
) -> Obtained[Scores]:
    """scores.jsonl: a score, its confidence and a flag for humans, a line an answer."""
    config = picked.config(run, threshold)
    return obtain(run, stage, config, snapshot.artifact, picked.adapter, data, picked.known, gpu=True)


@stage_task()
def hand_over(scored: Obtained[Scores], picked: Chosen, out: str) -> ScoreOutcome:
    """The lines where the user wants them; never cached, for the folder may be another one."""
    scores = scored.artifact
    file = copied_to(scores, Path(out)) if out else scores.file
    get_run_logger().info("%s answers, %s for a human: %s", scores.answers, scores.to_human, file)
    return ScoreOutcome(
        file=file,
        answers=scores.answers,
        to_human=scores.to_human,
        unscored=scores.unscored,
        new_questions=scores.new_questions,
        cached=scored.cached,
        adapter=picked.why,
    )
