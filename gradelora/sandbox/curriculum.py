"""What the tiny base is pretrained on: answers to questions of other subjects than the sample's."""

import random
from collections.abc import Iterator

from gradelora.config import EncodeConfig
from gradelora.sandbox.answers import CURRICULUM_QUESTIONS, Question, Written, read_questions, write_answer

# The demo's instructions, short so that a row costs little; deployments/demo.yaml spells the same.
INSTRUCTIONS = "Score the answer."
ENCODING = EncodeConfig(layout="harmony", instructions=INSTRUCTIONS)
ANSWERS_PER_QUESTION = 200


def curriculum_questions() -> tuple[Question, ...]:
    """Geography, chemistry, history, economics, language, computing."""
    return read_questions(CURRICULUM_QUESTIONS)


def lessons(
    questions: tuple[Question, ...], answers_per_row: int, seed: int
) -> Iterator[tuple[Question, list[Written]]]:
    """Rows of answers to one question each, in a random order: an epoch has every answer once."""
    rng = random.Random(f"{seed}/lessons")
    answers = {
        question: [write_answer(question, rng.random(), rng) for _ in range(ANSWERS_PER_QUESTION)]
        for question in questions
    }
    while True:
        epoch = []
        for question, written in answers.items():
            shuffled = rng.sample(written, len(written))
            for first in range(0, len(shuffled), answers_per_row):
                epoch.append((question, shuffled[first : first + answers_per_row]))
        rng.shuffle(epoch)
        yield from epoch
