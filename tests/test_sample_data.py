"""The sample: valid, reproducible, and nothing in it but the answer's content tells the score."""

import json
import os
import random
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradelora.sandbox.answers import SAMPLE_QUESTIONS, rate, read_questions, write_answer

DATA = Path(__file__).parents[1] / "data"
FILES = sorted((DATA / "sample").glob("*.json"))
Items = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return [record for file in FILES for record in json.loads(file.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def items(records: list[dict[str, Any]]) -> Items:
    by_question = defaultdict(list)
    for record in records:
        for item in record["rubric_alignment"]:
            by_question[item["question_id"]].append(item)
    return dict(by_question)


def validator() -> Any:
    from jsonschema import Draft202012Validator

    schema = json.loads((DATA / "schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_sample_and_the_documented_example_fit_the_schema() -> None:
    example = re.search(r"```json\n(.*?)```", (DATA / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    texts = [example.group(1), *(file.read_text(encoding="utf-8") for file in FILES)]
    assert len(texts) == 4
    for text in texts:
        validator().validate(json.loads(text))


@pytest.mark.parametrize(
    "change",
    [{"score": True}, {"score": -1}, {"score": "3"}, {"max_score": 0}, {"rubrik": "misspelt"}, {"question": " "}],
    ids=str,
)
def test_the_schema_refuses_a_damaged_item(change: dict[str, Any]) -> None:
    record = json.loads(FILES[0].read_text(encoding="utf-8"))[0]
    record["rubric_alignment"][0] |= change
    assert not validator().is_valid([record])


def test_the_documentation_names_every_field() -> None:
    text = (DATA / "README.md").read_text(encoding="utf-8")
    fields = json.loads((DATA / "schema.json").read_text(encoding="utf-8"))["$defs"]
    for name in (*fields["record"]["properties"], *fields["item"]["properties"]):
        assert f"`{name}`" in text, name


def test_the_generator_writes_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, str(DATA / "make_sample.py"), str(tmp_path)], check=True, env=env)
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name for file in FILES]
    for file in FILES:
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_sample_is_as_documented(items: Items) -> None:
    subjects = {question.subject for question in read_questions(SAMPLE_QUESTIONS)}
    assert len(items) == 10
    assert subjects == {"biology", "physics"}
    assert {len(answers) for answers in items.values()} <= set(range(60, 71))
    assert {item["max_score"] for answers in items.values() for item in answers} == {2, 3, 4}
    for answers in items.values():
        assert len({(item["question"], item["rubric"], item["max_score"]) for item in answers}) == 1
    counts = [len(answers) for answers in items.values()]
    documented = f"10 questions in biology and physics, {min(counts)} to {max(counts)} answers each"
    assert documented in (DATA / "README.md").read_text(encoding="utf-8")


def test_one_question_alone_is_scored_in_half_points(items: Items) -> None:
    halves = {key for key, answers in items.items() if any(item["score"] % 1 for item in answers)}
    assert halves == {"phy-cooling"}
    assert all((2 * item["score"]) % 1 == 0 for item in items["phy-cooling"])


def test_a_record_is_one_student_and_adds_up_or_is_an_excerpt(records: list[dict[str, Any]]) -> None:
    excerpts = 0
    for record in records:
        scored = record["rubric_alignment"]
        assert len({(item["student_id"], item["group"]) for item in scored}) == 1
        assert abs(record["normalized_score"] - record["score"] / record["max_score"]) <= 0.005 + 1e-9
        whole = sum(item["max_score"] for item in scored) == record["max_score"]
        assert sum(item["score"] for item in scored) == record["score"] or not whole
        excerpts += not whole
    assert len({record["rubric_alignment"][0]["student_id"] for record in records}) == len(records)
    assert 0 < excerpts < len(records) / 2


def test_length_alone_does_not_tell_the_score(items: Items) -> None:
    given, guessed = [], []
    for answers in items.values():
        scores = np.array([item["score"] for item in answers])
        ranks = np.argsort(np.argsort([len(item["answer"]) for item in answers], kind="stable"), kind="stable")
        # The best that a rule "longer is better" can do: it even knows how often each score is given.
        given += scores.tolist()
        guessed += np.sort(scores)[ranks].tolist()
    assert abs(agreement(given, guessed)) < 0.3


def test_two_raters_agree_as_humans_do(items: Items) -> None:
    twice = [item for answers in items.values() for item in answers if "rater2_score" in item]
    assert len(twice) > 150
    kappa = agreement([item["score"] for item in twice], [item["rater2_score"] for item in twice])
    assert 0.85 < kappa < 0.99


def agreement(first: list[float], second: list[float]) -> float:
    """Quadratic weighted kappa: 1 - mean squared difference / that of independent raters."""
    x, y = np.array(first, dtype=float), np.array(second, dtype=float)
    return float(1 - ((x - y) ** 2).mean() / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))


def test_an_answer_earns_the_points_that_its_clauses_meet() -> None:
    rng = random.Random(0)
    for question in read_questions(SAMPLE_QUESTIONS):
        for _ in range(40):
            written = write_answer(question, rng.random(), rng)
            text = re.sub(r"[^a-z]", "", written.text.lower())
            earned = sum(
                1.0 if said(point.met, text) else 0.5 if said(point.half, text) else 0.0 for point in question.points
            )
            # A swapped pair of letters hides a clause from this test, never the other way round.
            assert earned <= written.true_score <= question.max_score
            assert len(written.open_points) >= question.max_score - written.true_score


def said(clauses: tuple[str, ...], text: str) -> bool:
    return any(re.sub(r"[^a-z]", "", clause.lower()) in text for clause in clauses)


def test_a_rater_errs_by_one_step_and_never_leaves_the_scale() -> None:
    question = next(q for q in read_questions(SAMPLE_QUESTIONS) if q.step == 0.5)
    rng = random.Random(1)
    given = [rate(true, question, 0.06, rng) for true in (0.0, 1.5, 3.0) for _ in range(1000)]
    beside = [abs(score - true) for score, true in zip(given, np.repeat([0.0, 1.5, 3.0], 1000), strict=True)]
    assert set(beside) == {0.0, 0.5}
    assert 0.045 < np.mean([b > 0 for b in beside]) < 0.075
    assert min(given) == 0
    assert max(given) == 3
