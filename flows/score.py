"""New answers in, scores out: with the champion of a deployment, or an adapter that is named."""

from pathlib import Path

from prefect import flow

from gradelora.config_file import load_config
from gradelora.mirror import uploads_finished
from gradelora.score.scored import ScoreOutcome
from tasks.fetch import fetch
from tasks.resolve import resolve
from tasks.score import choose, collect, hand_over
from tasks.score import score as score_answers
from tasks.stage import ensure_gpu_limit, plainly


@flow(name="score", log_prints=True, persist_result=False, validate_parameters=True)
@plainly
def score(
    files: list[str],
    config: str = "deployments/h200.yaml",
    adapter: str = "",
    threshold: float = 0.7,
    out: str = "",
    overrides: list[str] | None = None,
) -> ScoreOutcome:
    """Score new answers; those that the model is unsure of are flagged for a human.

    Args:
        files: the answers, paths or globs, in the format of the training data; scores may be missing
        config: the YAML file of the deployment whose champion scores, e.g. deployments/h200.yaml
        adapter: the folder of another adapter of the same base; empty is the champion
        threshold: from 0 to 1; with less confidence, or less probability of all allowed scores, a human should look
        out: a folder to which scores.jsonl is copied; empty leaves it in the store alone
        overrides: changes of the configuration for this run, e.g. ["runtime.evaluate_rows=8"]
    """
    run = load_config(Path(config), overrides or ())
    ensure_gpu_limit()
    with uploads_finished(run.store, print):
        data = collect(files)
        picked = choose(run, adapter)
        print(f"scoring with {picked.why}")
        base = resolve(run.model_copy(update={"base": picked.base}))
        snapshot = fetch(run, base, part="everything")
        scored = score_answers(run, picked, snapshot, data, threshold)
        return hand_over(scored, picked, out)
