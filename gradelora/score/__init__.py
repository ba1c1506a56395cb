"""Score: new answers with a trained adapter; batched, resumable, with confidence and a flag for humans."""

from pathlib import Path

from gradelora.artifacts import Adapter, DataFiles, ModelSnapshot
from gradelora.config import Runtime, ScoreConfig, ValidateConfig
from gradelora.score.scored import FILE, KnownQuestions, Scores

VERSION = 2
RESUMES = True
# Answers between two writes: what a kill can cost.
CHUNK = 256


def score(
    config: ScoreConfig,
    snapshot: ModelSnapshot,
    adapter: Adapter,
    data: DataFiles,
    known: KnownQuestions,
    *,
    out: Path,
    runtime: Runtime,
) -> Scores:
    """scores.jsonl: every answer of `data`, grouped by question; a second call goes on in the same `out`.

    An answer is flagged for a human where its confidence, or the probability of all allowed scores
    together, lies below `config.threshold`, or where it cannot be scored.  A question that `known`
    has not takes the finest step of those that it has, or whole points.
    Raises BadData for a file that cannot be read.
    """
    from gradelora.score.answers import read_answers
    from gradelora.score.scored import ScoresFile

    # By question, so that its answers share its tokens; the sort is stable.
    answers = sorted(read_answers(data, ValidateConfig().max_file_bytes), key=lambda answer: answer.question_key)
    file = ScoresFile(out / FILE)
    done = file.resume([answer.item_id for answer in answers], CHUNK)
    if len(done) < len(answers):
        from gradelora.prompt import load_layout
        from gradelora.score.scorer import Scorer
        from gradelora.scoring.load import load_both

        _say(f"{len(answers) - len(done)} answers to score, {len(done)} scored before")
        layout = load_layout(snapshot.path, config.encode)
        model = load_both(snapshot, adapter, weights=config.weights, precision=config.precision, device=config.device)
        scorer = Scorer(model, layout, config.encode, known.read(), config.threshold, runtime.evaluate_rows)
        for start in range(len(done), len(answers), CHUNK):
            scored = scorer.score(answers[start : start + CHUNK])
            file.append(scored)
            done += scored
            _say(f"{len(done)} of {len(answers)}")
    return Scores.collect(
        out,
        answers=len(done),
        to_human=sum(a.send_to_human for a in done),
        unscored=sum(a.score is None for a in done),
        new_questions=len({a.question_key for a in done if a.question_key and not a.known_question}),
    )


def _say(line: str) -> None:
    print(f"score: {line}", flush=True)
