"""Write the sample's files anew, byte for byte: `python data/make_sample.py [FOLDER]`.

Made-up students of three made-up schools answer gradelora/sandbox/sample_questions.json.  Their
scores follow the rubrics (one point for each point met), with a first rater who errs in 6 of 100 answers
and, for every third answer, a second rater who errs in 10.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

from gradelora.sandbox.answers import SAMPLE_QUESTIONS, Question, Written, rate, read_questions, write_answer

DATA = Path(__file__).resolve().parent
SEED = 20250805
RATER_NOISE = 0.06
RATER2_NOISE = 0.10
RATER2_SHARE = 1 / 3
EXCERPT_SHARE = 0.3  # of the records: one answer was scored, but is not published
SCHOOLS = ("Harbour School", "Mill Lane School", "St Clare")
# File -> subject, number of students.
CLASSES = {"biology": ("biology", 69), "physics_a": ("physics", 36), "physics_b": ("physics", 33)}


def main(folder: Path) -> None:
    """Write one file a class into `folder`."""
    questions = read_questions(SAMPLE_QUESTIONS)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (subject, students) in CLASSES.items():
        asked = tuple(q for q in questions if q.subject == subject)
        rng = random.Random(f"{SEED}/{name}")
        records = [_record(f"{name}-{number:02d}", asked, rng) for number in range(1, students + 1)]
        text = json.dumps(records, ensure_ascii=False, indent=1) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _record(student_id: str, asked: tuple[Question, ...], rng: random.Random) -> dict[str, Any]:
    """All answers of one student; the sums count an unpublished answer, too."""
    group = rng.choice(SCHOOLS)
    knowledge = rng.uniform(0.1, 0.95)
    answers = [write_answer(question, knowledge, rng) for question in asked]
    items = [_item(student_id, group, q, a, rng) for q, a in zip(asked, answers, strict=True)]
    score, max_score = sum(item["score"] for item in items), sum(q.max_score for q in asked)
    if rng.random() < EXCERPT_SHARE:
        del items[rng.randrange(len(items))]
    return {
        "score": _plain(score),
        "max_score": max_score,
        "normalized_score": round(score / max_score, 2),
        "rubric_alignment": items,
        "feedback": _record_feedback(score / max_score, asked, answers),
    }


def _item(student_id: str, group: str, question: Question, answer: Written, rng: random.Random) -> dict[str, Any]:
    item = {
        "question_id": question.question_id,
        "question": question.question,
        "rubric": question.rubric,
        "answer": answer.text,
        "score": _plain(rate(answer.true_score, question, RATER_NOISE, rng)),
        "max_score": question.max_score,
        "student_id": student_id,
        "group": group,
    }
    if rng.random() < RATER2_SHARE:
        item["rater2_score"] = _plain(rate(answer.true_score, question, RATER2_NOISE, rng))
    if answer.open_points and rng.random() < 0.25:
        point = question.points[answer.open_points[0]].rubric.split(" (half")[0]
        item["feedback"] = f"Not yet there: {point}."
    return item


def _record_feedback(share: float, asked: tuple[Question, ...], answers: list[Written]) -> str:
    worst = min(range(len(asked)), key=lambda i: answers[i].true_score / asked[i].max_score)
    praise = "Very good work." if share > 0.8 else "A good part is right." if share > 0.5 else "This needs more work."
    if not answers[worst].open_points:
        return praise
    return f"{praise} Read again: {asked[worst].question}"


def _plain(score: float) -> float | int:
    """3, not 3.0, as people write it."""
    return int(score) if score == int(score) else score


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "sample")
