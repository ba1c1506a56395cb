"""The segments of one encoded item, and their wording.

    opening | question, rubric, maximum | answer | closing | target
    `---------- prefix ---------------´
    `------------------- prompt -----------------´

All answers to one question share the prefix, so the question, the rubric and the maximum
stand before the answer.  Each segment is encoded by itself.  The prefix ends on a letter
followed by an empty line, and an answer is stripped of surrounding white space: there the
pre-tokenizer of gpt-oss (o200k) always splits, so the segments are exactly the ids of the
whole text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from gradelora.prompt.text import Text

SHORTENED = " […]"


@dataclass(frozen=True)
class Layout:
    """Constant ids around free text; `name` as configured, `details` for the record.

    opening[A], closing[B], target_opening[C] and target_closing[D] are ids of the format;
    target_closing ends with the token that ends the model's turn.
    """

    name: str
    text: "Text"
    opening: tuple[int, ...]
    user_opening: str
    closing: list[int]
    target_opening: tuple[int, ...]
    target_closing: tuple[int, ...]
    target_form: Literal["score", "score_and_feedback"]
    pad_token_id: int
    details: dict[str, Any]

    def prefix(self, question: str, rubric: str | None, max_score: float) -> list[int]:
        """Ids that all answers of the question share."""
        return [*self.opening, *self.text.encode(self.user_opening + user_text(question, rubric, max_score))]

    def answer(self, text: str) -> list[int]:
        """Ids of one student's answer; empty for a blank one."""
        return self.text.encode(answer_text(text))

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """`answer` for many at once."""
        return self.text.encode_batch([answer_text(text) for text in texts])

    def target(self, score: float, feedback: str | None) -> list[int]:
        """Ids of the whole target, the token that ends the turn included."""
        if self.target_form == "score":
            body = self.text.encode(f'{{"score": {spell_score(score)}}}')
        else:
            body = [*self._score_stem(score), *self.text.encode(feedback_text(feedback))]
        return [*self.target_opening, *body, *self.target_closing]

    def candidate(self, score: float) -> list[int]:
        """What decides for `score` when scoring by likelihood: the target, or its part before the feedback."""
        if self.target_form == "score":
            return self.target(score, None)
        return [*self.target_opening, *self._score_stem(score)]

    def shorten(self, text: str, budget: int) -> list[int] | None:
        """The answer in at most `budget` ids, the middle replaced by a mark; None where not even the mark fits.

        Cut between characters: byte-level tokens may be parts of one.
        """
        ids, spans = self.text.encode_with_spans(answer_text(text))
        if len(ids) <= budget:
            return ids
        mark = self.text.encode(SHORTENED)
        room = budget - len(mark)
        if room < 0:
            return None
        head, tail = (room + 1) // 2, len(ids) - room // 2
        while head > 0 and spans[head][0] < spans[head - 1][1]:
            head -= 1
        while tail < len(ids) and spans[tail][0] < spans[tail - 1][1]:
            tail += 1
        return [*ids[:head], *mark, *ids[tail:]]

    @property
    def shortest(self) -> int:
        """Tokens that any shortened answer takes: the mark's."""
        return len(self.text.encode(SHORTENED))

    def describe(self) -> dict[str, Any]:
        """Everything that decides the ids, for the record beside the adapter."""
        return {
            "layout": self.name,
            **self.details,
            "target": self.target_form,
            "answer": "stripped of surrounding white space",
            "shortened_mark": SHORTENED,
            "pad_token_id": self.pad_token_id,
            "opening": list(self.opening),
            "user_opening": self.user_opening,
            "user_text": user_text("{question}", "{rubric}", 0).replace("\n0\n", "\n{maximum}\n"),
            "closing": list(self.closing),
            "target_opening": list(self.target_opening),
            "target_closing": list(self.target_closing),
        }

    def _score_stem(self, score: float) -> list[int]:
        return self.text.encode(f'{{"score": {spell_score(score)},')


def spell_score(score: float) -> str:
    """A score's one spelling: 3 for 3.0, 3.5; at most six decimals."""
    return f"{score:.6f}".rstrip("0").rstrip(".")


def developer_text(instructions: str, target_form: Literal["score", "score_and_feedback"]) -> str:
    """The instructions and the form of the reply, so that the base model knows it too."""
    form = '{"score": 1}' if target_form == "score" else '{"score": 1, "feedback": "..."}'
    return (
        f"{instructions.strip()}\n\nReply with JSON alone, like {form}. The score lies between 0 and the maximum score."
    )


def user_text(question: str, rubric: str | None, max_score: float) -> str:
    """Everything before the answer; ends where the pre-tokenizer always splits."""
    parts = ["# Question", question.strip()]
    if rubric and rubric.strip():
        parts += ["# Rubric", rubric.strip()]
    return "\n\n".join([*parts, "# Maximum score", spell_score(max_score), "# Student answer", ""])


def answer_text(answer: str) -> str:
    """The answer as encoded."""
    return answer.strip()


def feedback_text(feedback: str | None) -> str:
    """What follows `{"score": 3,`; the cut lies where JSON's space begins a new word."""
    return f' "feedback": {json.dumps(feedback or "", ensure_ascii=False)}}}'
