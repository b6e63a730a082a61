"""Scores over rows and fine-tunings against simulations whose variances are known, scikit-learn and the textbook."""

from __future__ import annotations

import numpy as np
import pytest

from collapse_lib.metrics import crossed
from collapse_lib.metrics.crossed import Estimate


def drawn(random: np.random.Generator, tunings: int, rows: int, spreads: tuple[float, float, float]) -> np.ndarray:
    """Scores [tunings, rows] of mean zero with these standard deviations between fine-tunings, between rows, and of the rest."""
    shapes = ((tunings, 1), (1, rows), (tunings, rows))
    return sum(random.normal(0, spread, shape) for spread, shape in zip(spreads, shapes, strict=True))


@pytest.mark.parametrize("tunings", [3, 5])
@pytest.mark.parametrize("spreads", [(0.0, 0.4, 0.4), (0.02, 0.3, 0.4), (0.05, 0.3, 0.3), (0.2, 0.3, 0.3)])
def test_intervals_cover_the_truth_as_often_as_they_say(tunings, spreads):
    """Satterthwaite's degrees of freedom are not exact with three fine-tunings: 92 to 97% in longer simulations. Rows alone cover far less."""
    random = np.random.default_rng(1)
    samples = [drawn(random, tunings, 300, spreads) for _ in range(600)]
    found = [crossed.mean(sample) for sample in samples]
    covered = np.mean([abs(one.value) <= one.reach for one in found])
    assert 0.90 < covered < 0.985
    if spreads[0] >= 0.05:
        alone = np.mean([abs(sample.mean()) <= 1.96 * sample.mean(0).std() / 300**0.5 for sample in samples])
        assert alone < 0.85


def test_the_variance_is_that_of_the_mean():
    """With many fine-tunings nothing is cut off, and the estimated variance is right on average."""
    random, spreads = np.random.default_rng(2), (0.05, 0.3, 0.4)
    found = [crossed.mean(drawn(random, 20, 100, spreads)).standard_error ** 2 for _ in range(400)]
    expected = spreads[0] ** 2 / 20 + spreads[1] ** 2 / 100 + spreads[2] ** 2 / 2000
    assert np.mean(found) == pytest.approx(expected, rel=0.03)


def test_it_is_the_analysis_of_variance_of_the_textbook():
    scores = np.array([[1.0, 2.0, 4.0], [3.0, 3.0, 5.0]])  # grand mean 3, residuals of -1/3, 1/6, 1/6
    a, b, e = 8 / 3, 14 / 4, 1 / 3 / 2
    assert crossed.mean(scores).standard_error ** 2 == pytest.approx((a + b - e) / 6)
    assert crossed.mean(scores[:1]).standard_error ** 2 == pytest.approx(np.var(scores[0], ddof=1) / 3)
    opposed = np.array([[1.0, 0.0], [0.0, 1.0]])  # rows and fine-tunings differ by nothing on average: the residual is not taken off
    assert crossed.mean(opposed).standard_error == 0


@pytest.mark.parametrize("lucky", [0.0, 1.0])
def test_equal_models_are_seldom_told_apart(lucky):
    """Two models that answer 70% of the rows each, easy rows alike, whose fine-tunings are lucky or not: few differences leave out zero."""
    random, wrong, told = np.random.default_rng(3), 0, 0
    for _ in range(600):
        easy = random.normal(0, 1, 200)

        def answers(easy: np.ndarray = easy) -> np.ndarray:
            return (easy + lucky * random.normal(0, 1, (3, 1)) + random.normal(0, 1, (3, 200)) > -0.75).astype(float)

        found, better = crossed.difference(answers(), answers()), answers(easy + 1.0)
        wrong += abs(found.value) > found.reach
        one = crossed.difference(better, answers())
        told += one.value > one.reach
    assert wrong / 600 < 0.08
    assert lucky or told / 600 > 0.95  # a real difference is seen where fine-tuning is not all


def test_a_handful_of_differing_rows_tells_nothing_apart():
    """Rows that all fine-tunings of one model get right and the other's wrong: as in the exact sign test, six are the first to tell."""
    for rows, apart in ((2, False), (5, False), (6, True)):
        mine, theirs = np.zeros((3, 800)), np.zeros((3, 800))
        mine[:, :rows] = 1
        found = crossed.difference(mine, theirs)
        assert (found.value > found.reach) == apart
    same = crossed.difference(mine, mine)
    assert same.value == 0 and same.reach > 0


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_scores_of_rows_add_up_to_scikit_learns_measures(classes):
    from sklearn.metrics import accuracy_score, f1_score

    random = np.random.default_rng(classes)
    true = random.integers(0, classes, 90)
    answers = np.where(random.random((3, 90)) < 0.6, true, random.integers(0, classes - 1, (3, 90)))  # the last class is answered seldom
    for measure, score in (("accuracy", accuracy_score), ("f1", lambda a, b: f1_score(a, b, average="weighted", zero_division=0))):
        found = crossed.row_scores(true, answers, classes, measure).mean(1)
        assert found == pytest.approx([score(true, one) for one in answers])
    always = crossed.row_scores(true, np.zeros((1, 90), dtype=np.int64), classes + 1, "f1").mean()  # and one class is not there at all
    assert always == pytest.approx(f1_score(true, [0] * 90, average="weighted", zero_division=0))


def test_the_error_of_f1_is_that_of_drawing_rows_again():
    from sklearn.metrics import f1_score

    random = np.random.default_rng(4)
    true = random.integers(0, 2, 400)
    answers = np.where(random.random(400) < 0.7, true, 1)
    again = []
    for _ in range(300):
        rows = random.integers(0, 400, 400)
        again.append(f1_score(true[rows], answers[rows], average="weighted"))
    assert crossed.mean(crossed.row_scores(true, answers[None], 2, "f1")).standard_error == pytest.approx(np.std(again), rel=0.12)


def test_the_interval_of_one_fine_tuning_is_wilsons():
    for right, low, high in ((5, 0.236593, 0.763407), (0, 0.0, 0.277533), (10, 0.722467, 1.0)):
        scores = np.arange(10) < right
        error = crossed.mean(scores[None].astype(float)).standard_error
        assert crossed.interval(Estimate(right / 10, error, 1.959964), 10) == pytest.approx((low, high), abs=1e-6)


def test_an_interval_stays_within_its_share_and_widens_with_the_error():
    for share in (0.001, 0.5, 0.999):
        narrow, wide = (crossed.interval(Estimate(share, error, 4.0), 100) for error in (0.001, 0.2))
        assert 0 <= wide[0] < narrow[0] < share < narrow[1] < wide[1] <= 1


@pytest.mark.parametrize("classes", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 7, 8, 33])
def test_packed_answers_come_back(classes, rows):
    answers = np.random.default_rng(rows).integers(0, classes, (2, rows))
    texts = [crossed.packed(one, classes) for one in answers]
    assert np.array_equal(crossed.unpacked(texts, rows, classes), answers) and np.array_equal(crossed.unpacked(texts[0], rows, classes), answers[0])
    assert len(texts[0]) == 2 * -(-rows * max(1, (classes - 1).bit_length()) // 8)
