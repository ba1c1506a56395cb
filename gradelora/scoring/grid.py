"""The scores between 0 and a maximum: which step, which values."""

STEPS = (1.0, 0.5, 0.25, 0.1)
# Scores are rounded to this many decimals (layout.spell_score): one spelling, one candidate.
DECIMALS = 6
GRID_LIMIT = 1000


def coarsest_step(scores: set[float]) -> float:
    """The coarsest of STEPS on which all scores lie, else the finest of them."""
    for step in STEPS:
        if all(abs(score / step - round(score / step)) < 1e-6 for score in scores):
            return step
    return STEPS[-1]


def grid(max_score: float, step: float, seen: set[float]) -> list[float]:
    """0, step, ... up to the maximum, with the maximum and the scores seen; ascending."""
    count = int(max_score / step + 1e-9)
    steps = [round(index * step, DECIMALS) for index in range(count + 1)] if count <= GRID_LIMIT else [0.0]
    return sorted({*steps, round(max_score, DECIMALS), *seen})
