"""What metrics.json says.  Every figure is an Interval: n/a carries its reason, never a 0.

Scales.  All figures are in points.  `qwk` pools the items of all questions on the common scale
of points, as scikit-learn's cohen_kappa_score does with one label a step.  Where questions have
different maxima, pooling rewards a scorer for knowing that a 10-point question yields more
points than a 2-point question, so two figures that do not stand beside it:
`mean_question_qwk`, the plain mean over questions where it is defined (the ASAP competitions'
convention, without their Fisher transform, which is infinite at 1), and `within_question_qwk`,
which takes the chance agreement from within each question (a stratified kappa: Barlow et al.
1991), so that no question is too small to count.
"""

from pathlib import Path
from typing import Literal

from gradelora.artifacts import Frozen, Interval, Split
from gradelora.evaluate.resampling import Person, Unit

FILE = "metrics.json"


class Agreement(Frozen):
    """One scorer against the human scores of the same items.

    exact, adjacent (within one point) and within_step (of the item's own scale) are shares;
    mae and rmse are points; smd is scored minus human in pooled standard deviations; prmse is
    against the true score behind two ratings.
    """

    items: int
    qwk: Interval
    mean_question_qwk: Interval
    within_question_qwk: Interval
    exact: Interval
    adjacent: Interval
    within_step: Interval
    pearson: Interval
    mae: Interval
    rmse: Interval
    smd: Interval
    prmse: Interval


class Gain(Frozen):
    """Adapter minus base on the same items, with paired intervals; for mae less is better."""

    qwk: Interval
    mean_question_qwk: Interval
    within_question_qwk: Interval
    exact: Interval
    mae: Interval


class Expected(Frozen):
    """The mean over a model's probabilities of the allowed scores, against the human scores."""

    pearson: Interval
    rmse: Interval
    prmse: Interval


class Confusion(Frozen):
    """counts[human][scored]; both in the order of `labels` (points)."""

    labels: tuple[float, ...]
    counts: tuple[tuple[int, ...], ...]


class Bin(Frozen):
    """Items whose confidence lies in (low, high]: their mean confidence and exact agreement."""

    low: float
    high: float
    items: int
    confidence: float | None
    accuracy: float | None


class Calibration(Frozen):
    """Expected calibration error over equal-width bins (Guo et al. 2017), and the bins."""

    ece: Interval
    bins: tuple[Bin, ...]


class Decoding(Frozen):
    """The secondary check: what greedy decoding over the whole vocabulary would have written.

    `unparseable` is its share of answers that are no allowed score; `same` the share where it
    writes the likeliest score; `mass` the mean probability of all allowed scores together.
    """

    unparseable: Interval
    same: Interval
    mass: Interval


class Slice(Frozen):
    """A set of items: base, adapter and second rater (the ceiling) against the human scores.

    `unit` says what the bootstrap resampled, `units` how many there are; `crossed` and
    `crossed_units` what was resampled beside the questions, None and 0 where nothing was; `worth`
    how many equally large units they are worth.  `degradation` is the second rater's QWK less the
    adapter's on the same doubly scored items: above 0 humans agree better with each other.
    """

    name: str
    items: int
    unit: Unit
    units: int
    crossed: Person | None
    crossed_units: int
    worth: float
    base: Agreement
    adapter: Agreement
    ceiling: Agreement
    gain: Gain
    degradation: Interval
    base_confusion: Confusion
    adapter_confusion: Confusion


class Baselines(Frozen):
    """What needs no model: each question's commonest score in training, and a straight line
    through answer length there."""

    majority: Agreement
    length: Agreement


class Section(Frozen):
    """One split, or all evaluated splits together.

    `records` is the same at record level: each record's sum over its items in this section,
    for records with at least two.
    """

    name: Split | Literal["all"]
    questions: int
    whole: Slice
    by_question: tuple[Slice, ...]
    by_group: tuple[Slice, ...]
    records: Slice
    baselines: Baselines
    base_expected: Expected
    adapter_expected: Expected
    base_calibration: Calibration
    adapter_calibration: Calibration
    base_decoding: Decoding
    adapter_decoding: Decoding


class Metrics(Frozen):
    """All figures of one evaluation.  `headline` names the section that the facts are taken from."""

    headline: Split
    empty_splits: tuple[Split, ...]
    confidence_level: float
    resamples: int
    seed: int
    sections: tuple[Section, ...]

    def section(self, name: str) -> Section | None:
        """The section of that name, None where the split has no items."""
        return next((s for s in self.sections if s.name == name), None)


def write_metrics(folder: Path, metrics: Metrics) -> None:
    """metrics.json in `folder`."""
    (folder / FILE).write_text(metrics.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_metrics(folder: Path) -> Metrics:
    """metrics.json of an EvalReport's folder."""
    return Metrics.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
