"""What scoring writes: one line an answer, appended chunk by chunk; and what it knows."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from gradelora.artifacts import Artifact, EncodedDataset, Frozen
from gradelora.scoring.candidates import FILE as CANDIDATES
from gradelora.scoring.candidates import Candidates, read_candidates

FILE = "scores.jsonl"


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


class Scores(Artifact):
    """scores.jsonl, and how many answers, of them for a human, without a score, and questions never trained on."""

    answers: int
    to_human: int
    unscored: int
    new_questions: int

    @property
    def file(self) -> Path:
        """Where the lines are."""
        return self.path / FILE


class ScoreOutcome(Frozen):
    """Where the scores are, how many need a human, and whose they are."""

    file: Path
    answers: int
    to_human: int
    unscored: int
    new_questions: int
    cached: bool
    adapter: str


def copied_to(scores: Scores, folder: Path) -> Path:
    """scores.jsonl in `folder`, published in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{FILE}.part"
    shutil.copyfile(scores.file, part)
    return part.replace(folder / FILE)


class KnownQuestions(Artifact):
    """candidates.json of the data that the adapter was trained on; no file where they are not known."""

    @classmethod
    def of(cls, data: EncodedDataset | None) -> Self:
        """What the training data tell about their questions."""
        files = () if data is None else tuple(f for f in data.files if f.name == CANDIDATES)
        return cls(path=Path() if data is None else data.path, files=files)

    def read(self) -> dict[str, Candidates]:
        """By question_key."""
        return read_candidates(self.path) if self.files else {}


class ScoresFile:
    """scores.jsonl under construction."""

    def __init__(self, path: Path) -> None:
        self.path = path

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
