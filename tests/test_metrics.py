"""Agreement, calibration and intervals against hand-checked and published numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from gradelora.evaluate import agreement
from gradelora.evaluate.estimates import confusion
from gradelora.evaluate.intervals import Resampled, difference_interval, expanded_tail, interval
from gradelora.evaluate.items import Items
from gradelora.evaluate.measure import Bootstrap, measure, measure_expected, measure_scores
from gradelora.evaluate.metrics import Slice
from gradelora.evaluate.resampling import MIN_UNITS, Units, resampled_by_question, resampled_sums, units_of
from gradelora.evaluate.sections import calibration, learn, measure_records

NONE = Bootstrap(0, 0.95, 0, ())
SOME = Bootstrap(500, 0.95, 0)
ONE_SCORE = "both give every item one and the same score: no chance agreement to beat"


def items(human, scored, *, base=None, questions=None, records=None, students=None, rater2=None, step=1.0) -> Items:
    n = len(human)
    return Items(
        questions=tuple(questions or ["q"] * n),
        records=tuple(records or [f"r{i}" for i in range(n)]),
        students=tuple(students or [None] * n),
        human=np.array(human, dtype=float),
        rater2=np.array([math.nan if r is None else r for r in rater2 or [None] * n], dtype=float),
        base=np.array(scored if base is None else base, dtype=float),
        adapter=np.array(scored, dtype=float),
        step=np.full(n, step),
        labels=(),
    )


def measured(human, scored, **more) -> Slice:
    return measure("case", items(human, scored, **more), NONE)


def prmse(human, scored, rater2) -> float:
    ratings = np.array([math.nan if r is None else r for r in rater2], dtype=float)
    terms = agreement.double_moments(np.array(human, dtype=float), ratings, np.array(scored, dtype=float))
    return float(agreement.prmse(terms.sum(0)))


def counted(table: list[list[int]]) -> tuple[list[int], list[int]]:
    """Ratings from counts[first][second]."""
    pairs = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return [i for i, _ in pairs], [j for _, j in pairs]


@pytest.mark.parametrize(
    ("human", "scored", "expected"),
    [
        # 1-3: the unit tests of the ASAP competition's own metric (Kaggle, Metrics/quadratic_weighted_kappa).
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([1, 2, 1], [1, 2, 2], 0.4),
        ([1, 2, 3, 1, 2, 2, 3], [1, 2, 3, 1, 2, 3, 2], 0.75),
        # 4: Artstein & Poesio 2008, table 1; with two categories any weighting is Cohen's kappa: .348.
        (*counted([[20, 20], [10, 50]]), 0.3478),
        # 5: scikit-learn's test_cohen_kappa, quadratic weights.
        ([0] * 46 + [1] * 44 + [2] * 10, [0] * 50 + [1] * 40 + [2] * 10, 0.9541),
        # 6: opposite halves: observed 1, expected 1/2, so 1 - 2.
        ([0, 1], [1, 0], -1.0),
        # 7: constant scores beside varying ones carry no information: observed = expected.
        ([0, 1, 2], [1, 1, 1], 0.0),
        # 8: two constants that differ: observed 1, expected 1.
        ([1, 1], [2, 2], 0.0),
        # 9: one item, different scores: the same.
        ([1], [2], 0.0),
        # 10: half points, by hand: mean d^2 = (0 + .25 + .25) / 3 = 1/6; population variances 1/6 and
        # 2/3; means 1 and 1; so 1 - (1/6) / (5/6).
        ([0.5, 1, 1.5], [0, 1, 2], 0.8),
    ],
)
def test_qwk_of_published_and_hand_made_ratings(human: list, scored: list, expected: float) -> None:
    assert measured(human, scored).adapter.qwk.value == pytest.approx(expected, abs=5e-5)


def test_qwk_of_half_points_is_that_of_their_doubles() -> None:
    human, scored = [0, 0.5, 1.5, 2, 2, 1], [0.5, 0.5, 1, 2, 1.5, 0]
    doubled = cohen_kappa_score([int(2 * s) for s in human], [int(2 * s) for s in scored], weights="quadratic")
    assert measured(human, scored, step=0.5).adapter.qwk.value == pytest.approx(doubled, abs=1e-6)


def test_a_grid_of_thousands_of_steps_takes_no_matrix_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A maximum of 50 and one score of 12.33 make 5,001 steps: label by label they would be 200 MB a matrix."""
    human, scored = [12.33, 50, 3, 20.5], [12, 50, 7.25, 20]
    found = measured(human, scored, step=0.01).adapter.qwk.value
    codes = [[round(100 * s) for s in side] for side in (human, scored)]
    monkeypatch.setattr("sklearn.metrics.cohen_kappa_score", None)
    assert measured(human, scored, step=0.01).adapter.qwk.value == found
    # The same on a scale that is short enough for scikit-learn: 1 is what both lie apart in.
    assert found == pytest.approx(1 - np.mean(np.subtract(*codes) ** 2) / np.mean(np.subtract.outer(*codes) ** 2))


@pytest.mark.parametrize("scores", [[2], [2, 2, 2]])
def test_one_class_throughout_is_no_kappa_and_says_why(scores: list) -> None:
    case = measured(scores, scores).adapter
    assert (case.qwk.value, case.qwk.reason) == (None, ONE_SCORE)
    assert case.exact.value == 1


def test_constant_scores_have_no_correlation_and_say_whose() -> None:
    assert measured([1, 1], [1, 2]).adapter.pearson.reason == "the human scores do not vary"
    assert measured([1, 2], [1, 1]).adapter.pearson.reason == "the given scores do not vary"
    assert measured([1], [1]).adapter.pearson.reason == "one item has no variance"


def test_exact_adjacent_and_within_a_step_of_half_points() -> None:
    # Off by 0, .5, 1, 1.5: within a step (.5) two, within a point three of four.
    case = measured([1, 1, 1, 1], [1, 1.5, 2, 2.5], step=0.5).adapter
    assert (case.exact.value, case.within_step.value, case.adjacent.value) == (0.25, 0.5, 0.75)
    # MAE 3 / 4; RMSE sqrt((.25 + 1 + 2.25) / 4).
    assert case.mae.value == 0.75
    assert case.rmse.value == pytest.approx(0.935414, abs=1e-6)


def test_smd_is_the_shift_in_pooled_standard_deviations() -> None:
    # Both sd 1 (n - 1), shifted by one point up.
    assert measured([1, 2, 3], [2, 3, 4]).adapter.smd.value == 1
    # sd 1 and 2: -2 / sqrt((1 + 4) / 2) (Williamson, Xi & Breyer 2012).
    assert measured([5, 6, 7], [2, 4, 6]).adapter.smd.value == pytest.approx(-2 / math.sqrt(2.5), abs=1e-6)
    assert measured([1, 1], [2, 2]).adapter.smd.reason == "no score varies"


def test_prmse_with_two_ratings_of_every_item() -> None:
    # Error variance (0 + .5 + 0 + .5) / 4 = .25; means 1, 2.5, 3, 4.5 around 2.75; true variance
    # (2 x 6.25 - 3 x .25) / (8 - 16 / 8) = 11.75 / 6; error (2 x 1.5 - 4 x .25) / 8 = .25.
    assert prmse([1, 2, 3, 4], [2, 2, 3, 4], [1, 3, 3, 5]) == pytest.approx(1 - 0.25 / (11.75 / 6))


def test_prmse_with_some_second_ratings_missing() -> None:
    # Error variance (0 + .5) / 2 = .25; counts 2, 2, 1, 1; means 1, 2.5, 3, 4 around 14 / 6; true variance
    # (6.8333 - 3 x .25) / (6 - 10 / 6) = 1.403846; error (.5 - 4 x .25) / 6 = -1 / 12: above 1 is possible.
    assert prmse([1, 2, 3, 4], [1, 2, 3, 4], [1, 3, None, None]) == pytest.approx(1 + (1 / 12) / 1.4038462)


def test_prmse_has_an_interval_and_is_na_where_few_items_have_a_second_rating() -> None:
    case = measure("case", simulated(12, 10), SOME).adapter.prmse
    assert case.value is not None
    assert case.low is not None
    assert case.low < case.value < case.high
    few = measured([1, 2, 3, 4], [1, 2, 3, 4], rater2=[1, 3, None, None]).adapter.prmse
    assert (few.value, few.reason) == (None, "PRMSE needs 10 items with a second rating, there are 2")


def test_degradation_is_measured_on_the_doubly_scored_items_alone_and_paired() -> None:
    # The second rater has .4 on the first three (the competition's example), the adapter 1; the fourth takes no part.
    case = measured([1, 2, 1, 9], [1, 2, 1, 0], rater2=[1, 2, 2, None])
    assert case.degradation.value == pytest.approx(0.4 - 1)
    assert measured([1, 2], [1, 2]).degradation.reason == "no item has a second rating"
    some = simulated(12, 20)
    alike = measure("case", replace(some, adapter=some.rater2), SOME).degradation
    assert (alike.value, alike.low, alike.high) == (0, 0, 0)
    found = measure("case", some, SOME)
    assert found.degradation.value == pytest.approx(found.ceiling.qwk.value - found.adapter.qwk.value, abs=2e-6)
    assert found.degradation.low < found.degradation.value < found.degradation.high


def test_the_expected_score_is_measured_as_it_is_not_rounded() -> None:
    case = simulated(12, 20)
    expected = case.adapter * 0.8 + 0.31
    found = measure_expected(case, expected, SOME)
    assert found.rmse.value == pytest.approx(np.sqrt(np.mean((expected - case.human) ** 2)), abs=1e-6)
    assert found.pearson.value == pytest.approx(stats.pearsonr(case.human, expected).statistic, abs=1e-6)
    assert found.rmse.low < found.rmse.value < found.rmse.high
    assert found.prmse.value == pytest.approx(prmse(case.human, expected, case.rater2), abs=1e-6)


def test_without_a_second_rating_prmse_and_ceiling_are_na() -> None:
    case = measured([1, 2], [1, 2])
    assert case.adapter.prmse.reason == "PRMSE needs 10 items with a second rating, there are 0"
    assert case.ceiling.items == 0
    assert {case.ceiling.qwk.reason, case.ceiling.mean_question_qwk.reason} == {"no item has a second rating"}


def test_raters_who_only_disagree_leave_no_true_score() -> None:
    case = measured([0, 1] * 5, [0, 1] * 5, rater2=[1, 0] * 5).adapter
    assert case.prmse.reason == "the raters' own error leaves no variance of true scores"


def test_the_ceiling_is_the_second_rater_on_doubly_scored_items_alone() -> None:
    case = measured([1, 2, 1, 9], [0, 0, 0, 0], rater2=[1, 2, 2, None])
    # The competition's second example again; the item without a second rating takes no part.
    assert (case.ceiling.items, case.ceiling.qwk.value) == (3, 0.4)


def test_no_items_are_na_everywhere() -> None:
    case = measured([], [])
    names = ("qwk", "mean_question_qwk", "within_question_qwk", "exact", "pearson", "mae", "smd")
    assert {getattr(case.adapter, name).reason for name in names} == {"no items"}
    assert case.gain.qwk.reason == "no items"
    assert case.adapter.items == 0


def test_qwk_over_questions_by_mean_and_with_chance_within_questions() -> None:
    # a: [0,1] x [1,0]: observed 2, expected 1, kappa -1.  b: [0,2] x [0,2]: 0, 4, kappa 1.
    case = measured([0, 1, 0, 2], [1, 0, 0, 2], questions=["a", "a", "b", "b"]).adapter
    assert case.mean_question_qwk.value == 0
    assert case.within_question_qwk.value == pytest.approx(1 - 2 / 5)


def test_a_question_without_kappa_counts_in_no_mean() -> None:
    case = measured([0, 1, 2, 2], [0, 1, 2, 2], questions=["a", "a", "b", "b"]).adapter
    assert (case.mean_question_qwk.value, case.within_question_qwk.value) == (1, 1)
    case = measured([1, 1, 2, 2], [1, 1, 2, 2], questions=["a", "a", "b", "b"]).adapter
    assert case.mean_question_qwk.reason == case.within_question_qwk.reason == "undefined in every question"


def test_pooling_questions_of_different_maxima_flatters_and_the_figures_beside_it_do_not() -> None:
    # Reversed within both questions, yet the 10-point question is known to yield more points.
    case = measured([0, 1, 9, 10], [1, 0, 10, 9], questions=["a", "a", "b", "b"]).adapter
    assert case.qwk.value == pytest.approx(1 - 1 / (2 * 20.5), abs=1e-6)
    assert (case.mean_question_qwk.value, case.within_question_qwk.value) == (-1, -1)


def test_confusion_counts_by_human_then_scored() -> None:
    found = confusion(np.array([0, 0, 1, 1.5]), np.array([0, 1, 1, 0]), (0, 0.5, 1))
    assert found.labels == (0, 0.5, 1, 1.5)
    assert found.counts == ((1, 0, 1, 0), (0, 0, 0, 0), (0, 0, 1, 0), (1, 0, 0, 0))


def test_calibration_error_of_two_bins() -> None:
    # Bin (.9, 1]: confidence .95, right half the time: .45.  Bin (.5, .6]: .55, always right: .45.
    found = calibration([0.95, 0.95, 0.55, 0.55], [True, False, True, True])
    assert found.ece.value == pytest.approx(0.45)
    assert [(b.low, b.items, b.accuracy) for b in found.bins if b.items] == [(0.5, 2, 1.0), (0.9, 2, 0.5)]
    assert found.bins[0].confidence is None


def test_bins_are_closed_above_and_every_confidence_has_one() -> None:
    found = calibration([0.0, 0.5, 0.3, 1.0], [True] * 4)
    assert [b.items for b in found.bins] == [1, 0, 1, 0, 1, 0, 0, 0, 0, 1]
    assert calibration([], []).ece.reason == "no items"


def test_record_level_sums_the_items_of_records_with_several() -> None:
    case = measure_records(
        items([1, 2, 3, 4, 5], [1, 3, 3, 3, 0], records=["a", "a", "b", "b", "c"], rater2=[1, 2, 3, None, 5]), NONE
    )
    # Human 3 and 7, scored 4 and 6; of b one second rating is missing, c has one item.
    assert (case.items, case.adapter.mae.value) == (2, 1)
    assert case.ceiling.items == 1


def test_baselines_learn_from_training_alone() -> None:
    known = learn([1, 2, 3, 4], [0, 1, 1, 2])
    # Least squares: slope 3 / 5, through (2.5, 1).
    assert (known.majority, known.slope, known.intercept) == (1, pytest.approx(0.6), pytest.approx(-0.5))
    assert learn([5, 5], [2, 0]).majority == 0
    unknown = measure_scores(items([1, 2], [1, 2]), np.array([np.nan, np.nan]), "no training answer")
    assert (unknown.items, unknown.qwk.reason) == (0, "no training answer")


@pytest.mark.parametrize("step", [1.0, 0.5])
def test_figures_from_sums_equal_scikit_learn_and_scipy(step: float) -> None:
    rng = np.random.default_rng(4)
    human = rng.integers(0, 7, 60) * step
    scored = np.clip(human + rng.integers(-2, 3, 60) * step, 0, 6 * step)
    sums = agreement.moments(human, scored, np.full(60, step)).sum(0)
    codes = [(s / step).astype(int) for s in (human, scored)]
    assert agreement.qwk(sums) == pytest.approx(cohen_kappa_score(*codes, weights="quadratic", labels=list(range(7))))
    assert agreement.pearson(sums) == pytest.approx(stats.pearsonr(human, scored).statistic)


def test_resampled_figures_equal_those_of_the_resampled_items() -> None:
    rng = np.random.default_rng(8)
    human, scored, units = rng.integers(0, 5, 40) / 2, rng.integers(0, 5, 40) / 2, rng.permutation(40) % 8
    sums = resampled_sums(agreement.moments(human, scored, np.ones(40)), units, resamples=20, seed=3)
    draws = np.random.default_rng(3).integers(0, 8, size=(20, 8))
    for draw, kappa in zip(draws, agreement.qwk(sums), strict=True):
        chosen = np.concatenate([np.flatnonzero(units == u) for u in draw])
        codes = [(2 * s[chosen]).astype(int) for s in (human, scored)]
        assert kappa == pytest.approx(cohen_kappa_score(*codes, weights="quadratic", labels=list(range(5))))


def simulated(questions: int, answers: int, seed: int = 0) -> Items:
    rng = np.random.default_rng(seed)
    n = questions * answers
    human = rng.integers(0, 5, n)
    return items(
        human,
        np.clip(human + rng.integers(-1, 2, n), 0, 4),
        base=np.clip(human + rng.integers(-2, 3, n), 0, 4),
        questions=[f"q{i % questions}" for i in range(n)],
        rater2=list(np.clip(human + rng.integers(-1, 2, n), 0, 4)),
    )


@pytest.mark.parametrize("questions", [3, 12])
def test_every_interval_holds_its_estimate_and_questions_are_the_units_if_enough(questions: int) -> None:
    case = measure("case", simulated(questions, 20), SOME)
    assert (case.unit, case.units) == (("question", 12) if questions >= MIN_UNITS else ("record", 60))
    for agreed in (case.base, case.adapter, case.ceiling):
        for name in ("qwk", "mean_question_qwk", "within_question_qwk", "exact", "pearson", "mae", "smd"):
            figure = getattr(agreed, name)
            assert figure.low < figure.value < figure.high, name


def test_a_difference_of_equal_scores_is_zero_and_sure() -> None:
    case = simulated(8, 10)
    gain = measure("case", replace(case, base=case.adapter), SOME).gain.qwk
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)


def test_pairing_makes_the_gain_surer_than_two_separate_intervals() -> None:
    case = simulated(8, 20)
    # The base is the adapter, wrong in one more item of ten.
    worse = np.where(np.arange(160) % 10 == 0, np.abs(case.adapter - 2), case.adapter)
    found = measure("case", replace(case, base=worse), SOME)
    spread = found.gain.qwk.high - found.gain.qwk.low
    assert spread < (found.adapter.qwk.high - found.adapter.qwk.low) + (found.base.qwk.high - found.base.qwk.low)


def test_the_same_seed_gives_the_same_interval_and_another_another() -> None:
    case = simulated(10, 10)
    first, again = (measure("case", case, SOME).adapter.qwk for _ in range(2))
    other = measure("case", case, replace(SOME, seed=1)).adapter.qwk
    assert first == again
    assert (first.value, first.low) == (other.value, pytest.approx(other.low, abs=0.1))
    assert first.low != other.low


def test_tails_are_expanded_for_few_units() -> None:
    # t(.975, 9) = 2.262; Phi(-2.262 x sqrt(10 / 9)) = Phi(-2.385) = .0086 (Hesterberg 2015, 5.3).
    assert expanded_tail(0.95, 10) == pytest.approx(0.0086, abs=1e-4)
    assert expanded_tail(0.95, 100_000) == pytest.approx(0.025, abs=1e-5)


def test_a_single_unit_has_no_interval_and_says_so() -> None:
    qwk = measure("case", items([0, 1, 2], [0, 1, 1], records=["r"] * 3), SOME).adapter.qwk
    assert qwk.value is not None
    assert (qwk.low, qwk.reason) == (None, "no interval: a single unit cannot be resampled")


def test_resamples_without_kappa_are_counted_not_hidden() -> None:
    # Nine equal items and one other: a third of the resamples lacks it.
    qwk = measure("case", items([1] * 9 + [2], [1] * 9 + [2]), SOME).adapter.qwk
    assert qwk.value == 1
    assert qwk.low is None
    assert qwk.reason.startswith("no interval: undefined in 1")


def test_a_record_stands_for_the_student_where_none_is_named() -> None:
    """A record is what one student handed in: its answers depend on each other, named or not."""
    questions, records = [f"q{i % 6}" for i in range(60)], [f"r{i // 6}" for i in range(60)]
    unnamed, named = (
        units_of(questions, records, [None] * 60),
        units_of(questions, records, [i // 6 for i in range(60)]),
    )
    assert (unnamed.crossed, named.crossed) == ("record", "student")
    assert unnamed.counts == named.counts == (6, 10, 60)
    # Papers of one answer each add nothing.
    assert units_of(questions, list(map(str, range(60))), [None] * 60).crossed is None


def test_a_student_with_one_item_is_no_more_than_the_item_and_few_questions_are_not_drawn() -> None:
    questions, records = [f"q{i % 6}" for i in range(60)], [f"r{i // 6}" for i in range(60)]
    assert not units_of(questions, records, list(range(60))).crossed
    # Three questions are too few to draw: then those who answered are drawn.
    few = [f"q{i % 3}" for i in range(60)]
    assert units_of(few, records, [None] * 60).unit == "record"
    assert units_of(few, records, [i // 12 for i in range(60)]).counts == (5,)


def test_items_of_unnamed_students_count_by_their_record() -> None:
    questions, records = [f"q{i % 6}" for i in range(60)], [f"r{i // 6}" for i in range(60)]
    students = [i // 12 if i < 36 else None for i in range(60)]
    units = units_of(questions, records, students)
    # Three students of two records each, then four records; every answer is a cell of its own
    # but for the two that a student gave to one question.
    assert (units.crossed, units.counts, units.crossed_units) == ("student", (6, 7, 42), 7)


def test_sums_by_question_add_up_to_those_of_the_whole() -> None:
    rng = np.random.default_rng(8)
    human, scored, units = rng.integers(0, 5, 40) / 2, rng.integers(0, 5, 40) / 2, rng.permutation(40) % 8
    terms, questions = agreement.moments(human, scored, np.ones(40)), np.arange(40) % 3
    parts = list(resampled_by_question(terms, questions, units, resamples=20, seed=3))
    assert np.concatenate(parts).sum(1) == pytest.approx(resampled_sums(terms, units, resamples=20, seed=3))


def test_students_with_a_bias_of_their_own_make_the_gain_less_sure() -> None:
    rng = np.random.default_rng(2)
    students = np.tile(np.arange(20), 30)
    bias = rng.integers(-1, 2, 20)[students]
    human = rng.integers(0, 5, 600)
    case = items(
        human,
        np.clip(human + bias, 0, 4),
        base=np.clip(human + rng.integers(-1, 2, 600), 0, 4),
        questions=[f"q{i // 20}" for i in range(600)],
    )
    alone = measure("case", replace(case, records=tuple(map(str, range(600)))), SOME)
    crossed = measure("case", replace(case, students=tuple(students.tolist())), SOME)
    assert (alone.crossed, crossed.crossed_units, crossed.units) == (None, 20, 30)
    for name in ("qwk", "mean_question_qwk", "within_question_qwk"):
        without, beside = getattr(alone.gain, name), getattr(crossed.gain, name)
        assert without.value == beside.value
        assert beside.high - beside.low > 1.5 * (without.high - without.low), name
    assert crossed.adapter.qwk.low < alone.adapter.qwk.low < crossed.adapter.qwk.value < crossed.adapter.qwk.high <= 1


def test_a_crossed_error_is_that_by_question_and_by_student_less_that_by_item() -> None:
    ways = tuple(np.array([-1.0, 1.0]) * s for s in (3.0, 2.0, 1.0))
    # Standard deviations (n - 1) are s x sqrt 2; corrected by 5 / 4, 10 / 9 and 50 / 49.
    expected = math.sqrt(2 * (9 * 5 / 4 + 4 * 10 / 9 - 50 / 49))
    assert Resampled(ways, (5, 10, 50), 5).error == pytest.approx(expected)
    # Where the items' own error is the largest, the larger of the other two stands.
    small = Resampled((ways[0], ways[1], 4 * ways[0]), (5, 10, 50), 5)
    assert small.error == pytest.approx(math.sqrt(2 * 9 * 5 / 4))


def test_a_level_widened_by_students_stays_within_its_bounds() -> None:
    ways = (np.linspace(0.8, 1.0, 101), np.linspace(0.2, 1.0, 101), np.linspace(0.85, 0.95, 101))
    found = interval(0.95, Resampled(ways, (20, 20, 400), 20), confidence_level=0.95, bounds=(-1.0, 1.0))
    assert found.low is not None
    assert found.low < 0.7
    assert found.high == 1


def test_units_of_unequal_size_are_worth_fewer_equal_ones_and_the_interval_is_wider() -> None:
    def units(sizes: list[int]) -> Units:
        questions = [f"q{q:02}" for q, size in enumerate(sizes) for _ in range(size)]
        return units_of(questions, list(map(str, range(len(questions)))), [None] * len(questions))

    everyone = np.ones(780, dtype=bool)
    # (400 + 19 x 20)^2 / (400^2 + 19 x 20^2), and of equal sizes their number.
    assert units([400] + [20] * 19).worth(everyone) == pytest.approx(780**2 / 167_600)
    assert units([39] * 20).worth(everyone) == 20
    # Of the chosen items alone: all of them in one question.
    assert units([400] + [20] * 19).worth(np.arange(780) < 400) == 1
    gain = (np.linspace(-0.1, 0.3, 101),)
    equal, unequal = (difference_interval(0.1, Resampled(gain, (20,), n), confidence_level=0.95) for n in (20, 3.63))
    assert equal.low is not None
    assert unequal.low is not None
    # t(.975, 2.63) = 3.45 beside t(.975, 19) = 2.09.
    assert (0.1 - unequal.low) / (0.1 - equal.low) == pytest.approx(3.45 / 2.09, abs=0.01)
    alone = difference_interval(0.1, Resampled(gain, (20,), 1.1), confidence_level=0.95)
    assert (alone.low, alone.reason) == (None, "no interval: nearly all items are of one unit")
