"""A loaded model asked about new answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradelora.config import EncodeConfig
from gradelora.prompt import Layout
from gradelora.score.answers import Answer
from gradelora.score.scored import ScoredAnswer
from gradelora.scoring.candidates import Candidates, Likelihoods, Prompt
from gradelora.scoring.grid import grid
from gradelora.scoring.likelihood import score_prompts
from gradelora.scoring.opinion import opinion


class Scorer:
    """`known` are the candidates of the questions that the adapter was trained on, by question_key."""

    def __init__(
        self,
        model: Any,
        layout: Layout,
        encode: EncodeConfig,
        known: Mapping[str, Candidates],
        threshold: float,
        rows_per_pass: int,
    ) -> None:
        self.model, self.layout, self.encode = model, layout, encode
        self.known, self.threshold, self.rows_per_pass = known, threshold, rows_per_pass
        self._step = min((c.step for c in known.values()), default=1.0)
        self._asked: dict[str, tuple[Candidates, list[int]]] = {}

    def score(self, answers: Sequence[Answer]) -> list[ScoredAnswer]:
        """In the order of `answers`."""
        faults = {a.item_id: a.fault or self._other_scale(a) for a in answers}
        prompts = {a.item_id: self._prompt(a) for a in answers if not faults[a.item_id]}
        asked = {item_id: prompt for item_id, prompt in prompts.items() if prompt is not None}
        found = score_prompts(
            self.model,
            list(asked.values()),
            {p.question_key: self._asked[p.question_key][0] for p in asked.values()},
            pad_id=self.layout.pad_token_id,
            rows_per_pass=self.rows_per_pass,
        )
        likelihoods = dict(zip(asked, found, strict=True))
        too_long = f"does not fit into encode.max_length {self.encode.max_length}"
        return [
            self._scored(a, likelihoods[a.item_id])
            if a.item_id in asked
            else self._unscored(a, faults[a.item_id] or too_long)
            for a in answers
        ]

    def _other_scale(self, answer: Answer) -> str:
        """Why the scores that the adapter learned for this question are not the answer's; empty where they are."""
        known = self.known.get(answer.question_key)
        if known is None or known.max_score == answer.max_score:
            return ""
        return f"its question was trained with a maximum of {known.max_score:g}, here it has {answer.max_score:g}"

    def _question(self, answer: Answer) -> tuple[Candidates, list[int]]:
        """Candidates and prefix ids of the answer's question: as trained, else the grid that encode would make."""
        key = answer.question_key
        if key not in self._asked:
            candidates = self.known.get(key)
            if candidates is None:
                scores = grid(answer.max_score, self._step, set())
                targets = tuple(tuple(self.layout.candidate(value)) for value in scores)
                candidates = Candidates(
                    max_score=answer.max_score, step=self._step, scores=tuple(scores), targets=targets
                )
            self._asked[key] = candidates, self.layout.prefix(answer.question, answer.rubric, answer.max_score)
        return self._asked[key]

    def _prompt(self, answer: Answer) -> Prompt | None:
        """None where the answer does not fit and may not be, or cannot be, shortened."""
        candidates, prefix = self._question(answer)
        ids: list[int] | None = self.layout.answer(answer.answer)
        others = len(prefix) + len(self.layout.closing) + max(len(target) for target in candidates.targets)
        if others + len(ids or ()) > self.encode.max_length:
            allowed = self.encode.over_length == "shorten"
            ids = self.layout.shorten(answer.answer, self.encode.max_length - others) if allowed else None
        if ids is None:
            return None
        return Prompt((*prefix, *ids, *self.layout.closing), len(prefix), answer.question_key)

    def _scored(self, answer: Answer, likelihoods: Likelihoods) -> ScoredAnswer:
        view = opinion(self._asked[answer.question_key][0], likelihoods)
        reasons = []
        if view.confidence < self.threshold:
            reasons.append(f"confidence {view.confidence:.3f} is below {self.threshold:.3f}")
        if view.mass < self.threshold:
            # The scores are compared with each other; the model would rather write something else.
            reasons.append(f"the allowed scores together have a probability of {view.mass:.3f}")
        return ScoredAnswer(
            **_place(answer),
            known_question=answer.question_key in self.known,
            max_score=answer.max_score,
            score=view.score,
            expected=view.expected,
            confidence=view.confidence,
            mass=view.mass,
            send_to_human=bool(reasons),
            reason="; ".join(reasons),
        )

    def _unscored(self, answer: Answer, fault: str) -> ScoredAnswer:
        return ScoredAnswer(
            **_place(answer),
            known_question=answer.question_key in self.known,
            max_score=answer.max_score or None,
            score=None,
            expected=None,
            confidence=None,
            mass=None,
            send_to_human=True,
            reason=fault,
        )


def _place(answer: Answer) -> dict[str, Any]:
    return {name: getattr(answer, name) for name in ("item_id", "file", "record_index", "item_index", "question_key")}
