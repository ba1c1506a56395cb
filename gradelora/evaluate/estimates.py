"""Point estimates and confusion matrices by scikit-learn and scipy, and why a figure is undefined."""

from collections.abc import Sequence

import numpy as np

from gradelora.evaluate import agreement
from gradelora.evaluate.agreement import STATISTICS, Array
from gradelora.evaluate.metrics import Confusion
from gradelora.evaluate.resampling import Codes

# Above so many labels scikit-learn's dense matrices of label by label grow large.
MAX_LABELS = 500
# Scores are coded as whole steps of the widest of these that holds them all.
GRIDS = (1.0, 0.5, 0.25, 0.1, 0.05, 0.01)


def points_of(human: Array, scored: Array, step: Array) -> dict[str, float]:
    """Point estimates by scikit-learn and scipy; NaN where the sums say that it is undefined."""
    from scipy import stats
    from sklearn import metrics

    sums = agreement.moments(human, scored, step).sum(0)
    points = {name: float(statistic(sums)) for name, statistic in STATISTICS.items()}
    if len(human) == 0:
        return points
    points["mae"] = float(metrics.mean_absolute_error(human, scored))
    points["rmse"] = float(metrics.root_mean_squared_error(human, scored))
    if not np.isnan(points["pearson"]):
        points["pearson"] = float(stats.pearsonr(human, scored).statistic)
    codes_human, codes_scored, labels = coded(human, scored)
    # The sums give the same (tests/test_metrics.py).
    if not np.isnan(points["qwk"]) and len(labels) <= MAX_LABELS:
        points["qwk"] = float(metrics.cohen_kappa_score(codes_human, codes_scored, weights="quadratic", labels=labels))
    return points


def coded(human: Array, scored: Array) -> tuple[Codes, Codes, list[int]]:
    """Both as whole numbers of steps, and every step from 0 to the highest as labels."""
    both = np.concatenate([human, scored])
    grid = next((g for g in GRIDS if np.allclose(both / g, np.round(both / g), atol=1e-6)), GRIDS[-1])
    codes = np.round(both / grid).astype(np.int64)
    labels = list(range(min(0, int(codes.min())), int(codes.max()) + 1))
    return codes[: len(human)], codes[len(human) :], labels


def confusion(human: Array, scored: Array, labels: Sequence[float]) -> Confusion:
    """Counts by human score and scored score; labels are the scale and what else was given."""
    from sklearn import metrics

    known = sorted({round(float(v), 6) for v in (*labels, *human, *scored)})
    if len(human) == 0 or len(known) == 1:
        return Confusion(labels=tuple(known), counts=tuple((len(human),) * len(known) for _ in known))
    place = {value: i for i, value in enumerate(known)}
    rows = [place[round(float(v), 6)] for v in human]
    columns = [place[round(float(v), 6)] for v in scored]
    counts = metrics.confusion_matrix(rows, columns, labels=list(range(len(known))))
    return Confusion(labels=tuple(known), counts=tuple(tuple(int(c) for c in row) for row in counts))


def why_undefined(name: str, human: Array) -> str:
    """Why a statistic of these scores is undefined."""
    if len(human) == 0:
        return "no items"
    if len(human) == 1 and name in ("pearson", "smd"):
        return "one item has no variance"
    if name == "pearson":
        return "the human scores do not vary" if np.ptp(human) == 0 else "the given scores do not vary"
    if name == "smd":
        return "no score varies"
    return "both give every item one and the same score: no chance agreement to beat"
