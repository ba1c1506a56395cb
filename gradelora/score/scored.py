"""What scoring writes: one line an answer, appended chunk by chunk, and whose run it is."""

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from gradelora.artifacts import Frozen
from gradelora.errors import BadConfig

FILE = "scores.jsonl"
IDENTITY_FILE = "run.json"


class ScoredAnswer(Frozen):
    """One line of scores.jsonl; without a score where the answer could not be scored.

    `confidence` is the probability of `score` among the allowed scores, `mass` the probability
    of all allowed scores together, `expected` their mean.  `reason` says why a human should look.
    """

    item_id: str
    file: str
    record_index: int
    item_index: int
    question_key: str
    known_question: bool
    max_score: float | None
    score: float | None
    expected: float | None
    confidence: float | None
    mass: float | None
    send_to_human: bool
    reason: str


class Scored(Frozen):
    """The end of a run: `resumed` answers were there from an earlier one."""

    file: Path
    answers: int
    resumed: int
    to_human: int
    unscored: int
    new_questions: int


class ScoresFile:
    """scores.jsonl in a folder that belongs to one model, one set of answers and one threshold."""

    def __init__(self, folder: Path, identity: str) -> None:
        """Raises BadConfig where the folder holds another run's scores."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path, record = folder / FILE, folder / IDENTITY_FILE
        if record.exists() and record.read_text(encoding="utf-8") != identity:
            raise BadConfig(
                f"{folder}: holds scores of other answers, another adapter or another threshold; "
                "name another folder with --out, or remove this one"
            )
        part = record.with_suffix(".part")
        part.write_text(identity, encoding="utf-8")
        part.replace(record)

    def resume(self, item_ids: Sequence[str], chunk: int) -> list[ScoredAnswer]:
        """What an earlier run wrote of these answers in this order, in whole chunks; the rest is cut off.

        A chunk is scored as one: begun anew, it gives the same bytes as a run that nobody killed.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().splitlines(keepends=True)
        done: list[ScoredAnswer] = []
        for line, item_id in zip(lines, item_ids, strict=False):
            try:
                answer = ScoredAnswer.model_validate_json(line)
            except ValidationError:
                break
            if not line.endswith(b"\n") or answer.item_id != item_id:
                break
            done.append(answer)
        if len(done) < len(item_ids):
            done = done[: len(done) // chunk * chunk]
        os.truncate(self.path, sum(len(line) for line in lines[: len(done)]))
        return done

    def append(self, answers: Sequence[ScoredAnswer]) -> None:
        """Add lines, durable when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(answer.model_dump_json() + "\n" for answer in answers)
            file.flush()
            os.fsync(file.fileno())
