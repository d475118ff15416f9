"""Query criteria against brute force and scikit-activeml."""

from __future__ import annotations

import doctest
import math
import sys

import numpy as np
import pytest
from sklearn.svm import SVC

from active_pools import LOGISTIC, TASK, blobs
from foveate.errors import FoveateError
from foveate.learning import query_criteria
from foveate.learning.active import DEAL, EXPERTS


def labelled(classes: int = 3):
    x, y = blobs(60, classes, seed=5)
    return x[:15], y[:15], x[15:]


def test_us_agrees_with_the_library_and_with_two_lines():
    from skactiveml.classifier import SklearnClassifier
    from skactiveml.pool import UncertaintySampling

    x, y, pool = labelled()
    classifier = LOGISTIC.fit(x, y)
    found = EXPERTS["US"](classifier, x, y, pool)
    top = np.sort(classifier.predict_proba(pool), 1)
    assert found == pytest.approx(1 - (top[:, -1] - top[:, -2]))
    theirs = UncertaintySampling(method="margin_sampling").query(
        x, y, SklearnClassifier(LOGISTIC, classes=[0, 1, 2]), candidates=pool,
        return_utilities=True,
    )  # fmt: skip
    assert np.argmax(found) == theirs[0][0]
    assert found == pytest.approx(theirs[1][0])


@pytest.mark.parametrize("classes", [2, 3])
def test_us_of_an_svm_is_its_smallest_margin(classes):
    x, y, pool = labelled(classes)
    classifier = SVC(kernel="linear").fit(x, y)
    values = classifier.decision_function(pool)
    gap = np.abs(values) if classes == 2 else np.diff(np.sort(values, 1)[:, -2:], axis=1)[:, 0]
    found = EXPERTS["US"](classifier, x, y, pool)
    assert np.array_equal(np.argsort(-found, kind="stable"), np.argsort(gap, kind="stable"))
    assert ((found > 0) & (found <= 1)).all()


def test_density_and_distance_by_brute_force():
    x, y, pool = labelled()
    apart = [math.dist(a, b) for i, a in enumerate(pool) for b in pool[:i]]
    sigma = float(np.median(apart))
    density = [
        sum(math.exp(-(math.dist(a, b) ** 2) / (2 * sigma**2)) for b in pool) / len(pool)
        for a in pool
    ]
    assert EXPERTS["DENS"](None, x, y, pool) == pytest.approx(density)
    nearest = [min(math.dist(a, b) for b in x) for a in pool]
    assert EXPERTS["DFF"](None, x, y, pool) == pytest.approx(nearest, abs=1e-7)
    assert len(set(EXPERTS["RAND"](None, x, y, pool).tolist())) == 1


def test_density_of_a_large_pool_is_bounded_work_and_much_the_same(monkeypatch):
    pool, _ = blobs(120)
    full = EXPERTS["DENS"](None, pool, None, pool)
    monkeypatch.setattr(query_criteria, "BLOCK", 7)
    assert EXPERTS["DENS"](None, pool, None, pool) == pytest.approx(full)
    monkeypatch.setattr(query_criteria, "ANCHORS", 40)
    assert np.corrcoef(EXPERTS["DENS"](None, pool, None, pool), full)[0, 1] > 0.8
    same = np.ones((5, 3))
    assert EXPERTS["DENS"](None, same, None, same) == pytest.approx(np.ones(5))
    assert EXPERTS["DENS"](None, same, None, same[:1]) == pytest.approx([1.0])


def test_quire_is_the_librarys():
    from skactiveml.pool import Quire

    x, y, pool = labelled(2)
    names = np.array(["no", "yes"])[y]
    theirs = Quire(classes=[0, 1]).query(
        np.concatenate([x, pool]), np.concatenate([y, np.full(len(pool), np.nan)]),
        return_utilities=True,
    )[1][0]  # fmt: skip
    assert EXPERTS["QUIRE"](None, x, names, pool) == pytest.approx(theirs[len(x) :])


def test_committee_disagrees_between_the_classes():
    x, y, pool = labelled(2)
    found = EXPERTS["QBC"](LOGISTIC.fit(x, y), x, np.array(["a", "b"])[y], pool)
    shares = np.array([0, 1, 2]) / 5  # of five votes, entropies of 5:0, 4:1, 3:2
    entropy = [-sum(s * math.log(s) for s in (a, 1 - a) if s > 0) for a in shares]
    assert all(min(abs(value - e) for e in entropy) < 1e-9 for value in found)
    far = np.abs(pool[:, 0]) > 1.2  # the centres are at -1.2 and 1.2
    assert found[~far].mean() > found[far].mean()
    again = EXPERTS["QBC"](LOGISTIC.fit(x, y), x, np.array(["a", "b"])[y], pool)
    assert np.array_equal(found, again)  # pure: a resumed session asks the same
    one = np.array([0, 1])  # a bootstrap of one label per class is those labels
    assert EXPERTS["QBC"](LOGISTIC.fit(x, y), x[one], y[one], pool).max() == 0


def test_doubt_times_density():
    x, y, pool = labelled()
    classifier = LOGISTIC.fit(x, y)
    us, dens, both = (EXPERTS[n](classifier, x, y, pool) for n in ("US", "DENS", "US*DENS"))
    assert both == pytest.approx(us * dens)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skactiveml", None)
    monkeypatch.setitem(sys.modules, "skactiveml.pool", None)
    with pytest.raises(FoveateError, match=r"pip install 'foveate\[active\]'"):
        DEAL(None, LOGISTIC, 9).query(TASK.x_pool, TASK.x_start, TASK.y_start)
    mixed = DEAL(("DENS", "DFF", "RAND"), LOGISTIC, 9, random_state=0)  # these need no library
    assert mixed.query(TASK.x_pool, TASK.x_start, TASK.y_start).expert in ("DENS", "DFF", "RAND")


def test_the_example_runs():
    assert doctest.testmod(query_criteria).failed == 0


def test_density_of_a_pool_that_is_mostly_one_item_follows_the_scale():
    """A median distance of 0 says nothing; then that of the pairs that differ."""
    pool = np.array([[0.0]] * 8 + [[1.0], [3.0]])
    scores = [EXPERTS["DENS"](None, s * pool, None, s * pool) for s in (1.0, 1e-3, 1e3)]
    assert scores[0] == pytest.approx(scores[1])
    assert scores[0] == pytest.approx(scores[2])
    assert (scores[0][:8] > scores[0][8]).all()
