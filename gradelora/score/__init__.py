"""Score new answers with a trained adapter: batched, resumable, with confidence and a flag for humans."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gradelora.artifacts import Adapter, DataFiles, EncodedDataset, ModelSnapshot, canonical_json
from gradelora.config import EncodeConfig, EvaluateConfig, Runtime, ValidateConfig

if TYPE_CHECKING:
    from gradelora.score.scored import Scored

# Answers between two writes: what a kill can cost.
CHUNK = 256


def score(
    encode: EncodeConfig,
    evaluation: EvaluateConfig,
    snapshot: ModelSnapshot,
    adapter: Adapter,
    data: DataFiles,
    *,
    out: Path,
    threshold: float = 0.7,
    trained_on: EncodedDataset | None = None,
    runtime: Runtime | None = None,
    say: Callable[[str], None] = lambda line: print(f"score: {line}", flush=True),
) -> "Scored":
    """`out`/scores.jsonl: every answer of `data`, grouped by question; a second call goes on there.

    An answer whose confidence lies below `threshold`, or that cannot be scored, is flagged for a
    human.  `trained_on` gives each known question the scores that its raters used; a question
    that it does not know takes the finest step of those, or whole points without it.
    Raises BadData for a file that cannot be read, BadConfig where `out` is another run's.
    """
    from gradelora.prompt import load_layout
    from gradelora.score.answers import read_answers
    from gradelora.score.scored import Scored, ScoresFile
    from gradelora.scoring.candidates import read_candidates
    from gradelora.scoring.load import load_both

    # By question, so that its answers share its tokens; the sort is stable.
    answers = sorted(read_answers(data, ValidateConfig().max_file_bytes), key=lambda answer: answer.question_key)
    known = {} if trained_on is None else read_candidates(trained_on.path)
    file = ScoresFile(out, _identity(encode, evaluation, snapshot, adapter, data, threshold, trained_on))
    done = file.resume([answer.item_id for answer in answers], CHUNK)
    resumed = len(done)
    if resumed < len(answers):
        from gradelora.score.scorer import Scorer

        say(f"{len(answers) - resumed} answers to score, {resumed} scored before")
        layout = load_layout(snapshot.path, encode)
        model = load_both(
            snapshot,
            adapter,
            weights=evaluation.weights,
            precision=evaluation.precision,
            device=evaluation.device,
        )
        scorer = Scorer(model, layout, encode, known, threshold, (runtime or Runtime()).evaluate_rows)
        for start in range(resumed, len(answers), CHUNK):
            scored = scorer.score(answers[start : start + CHUNK])
            file.append(scored)
            done += scored
            say(f"{len(done)} of {len(answers)}")
    return Scored(
        file=file.path,
        answers=len(done),
        resumed=resumed,
        to_human=sum(a.send_to_human for a in done),
        unscored=sum(a.score is None for a in done),
        new_questions=len({a.question_key for a in done if a.question_key and not a.known_question}),
    )


def _identity(
    encode: EncodeConfig,
    evaluation: EvaluateConfig,
    snapshot: ModelSnapshot,
    adapter: Adapter,
    data: DataFiles,
    threshold: float,
    trained_on: EncodedDataset | None,
) -> str:
    """Everything that decides the scores."""
    return canonical_json(
        {
            "encode": encode.model_dump(mode="json"),
            "weights": evaluation.weights,
            "precision": evaluation.precision,
            "base": [snapshot.repo_id, snapshot.commit],
            "adapter": adapter.digest,
            "data": data.digest,
            "threshold": threshold,
            "trained_on": None if trained_on is None else trained_on.digest,
        }
    )
