"""ConformalClassifier and its multi-label sister among scikit-learn's tools."""

import itertools
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone, is_classifier
from sklearn.datasets import make_blobs, make_multilabel_classification
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, ShuffleSplit, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from robustclf import RobustClassifier
from robustclf.conformal import (
    APS,
    DKW,
    RAPS,
    ConformalClassifier,
    MultilabelConformalClassifier,
    conformal_quantile,
)
from robustclf.noise import estimate_transition, inject_noise, noise_rate, uniform_transition

NAMES = np.array(["ant", "bee", "cat"])


@pytest.fixture(scope="module")
def blobs():
    """Three classes that overlap, their names, and names of which a fifth is wrong."""
    X, y = make_blobs(3000, centers=[[0, 0], [3, 0], [0, 3]], random_state=0)
    noisy = inject_noise(NAMES[y], "symmetric", 0.2, random_state=0)
    return X, NAMES[y], noisy


def conformal(estimator=None, **params):
    return ConformalClassifier(estimator or GaussianNB(), random_state=0, **params)


def covered(clf, X, y, **params):
    sets = clf.predict_set(X, **params)
    return sets[np.arange(len(X)), np.searchsorted(clf.classes_, y)].mean()


@parametrize_with_checks(
    [
        ConformalClassifier(LogisticRegression(), random_state=0),
        ConformalClassifier(
            LogisticRegression(), score="aps", coverage="class", noise=0.1, cv=3, random_state=0
        ),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


# Fitting ------------------------------------------------------------------------------------------


def test_sets_of_held_out_rows_are_the_textbooks(blobs):
    X, y, _ = blobs
    frozen = FrozenEstimator(GaussianNB().fit(X[:1000], y[:1000]))
    clf = conformal(frozen).fit(X[1000:2000], y[1000:2000])
    scores = 1 - frozen.predict_proba(X)
    own = scores[np.arange(3000), np.searchsorted(NAMES, y)]
    threshold = conformal_quantile(own[1000:2000], 0.1)
    assert_array_equal(clf.predict_set(X[2000:]), scores[2000:] <= threshold)
    assert clf.n_calibration_ == 1000
    assert clf.estimator_ is frozen
    assert abs(covered(clf, X[2000:], y[2000:]) - 0.9) < 0.04


@pytest.mark.parametrize("params", [{}, {"cv": 5}, {"cv": KFold(3)}, {"calibration_size": 0.5}])
@pytest.mark.parametrize("score", ["lac", RAPS(penalty=0.05)], ids=str)
def test_noisy_labels_are_corrected_for(blobs, params, score):
    X, y, noisy = blobs
    ignoring = conformal(score=score, **params).fit(X[:2000], noisy[:2000])
    knowing = clone(ignoring).set_params(noise=0.2).fit(X[:2000], noisy[:2000])
    assert covered(ignoring, X[2000:], y[2000:]) > 0.97
    assert 0.88 < covered(knowing, X[2000:], y[2000:]) < 0.97
    size = [clf.predict_set(X[2000:]).sum() for clf in (ignoring, knowing)]
    assert size[1] < 0.8 * size[0]
    assert knowing.correction_ in ("bortolotti", "crcp")
    assert_allclose(knowing.transition_, uniform_transition(0.2, 3))


def test_folds_are_those_of_cross_conformal_prediction(blobs):
    X, y, _ = blobs
    X, y, new = X[:90], y[:90], X[90:120]
    clf = conformal(cv=3).fit(X, y)
    above = np.zeros((30, 3))
    rows = 0
    for fitted in clf.estimators_:
        held = np.setdiff1d(np.arange(90), seen(fitted, X))
        own = 1 - fitted.predict_proba(X[held])
        own = own[np.arange(len(held)), np.searchsorted(NAMES, y[held])]
        above += (own >= (1 - fitted.predict_proba(new))[..., None]).sum(axis=-1)
        rows += len(held)
    assert rows == 90
    assert_allclose(clf.p_values(new), (1 + above) / 91)
    assert_array_equal(clf.predict_set(new, 0.3), (1 + above) / 91 > 0.3)
    mean = np.mean([fitted.predict_proba(new) for fitted in clf.estimators_], axis=0)
    assert_allclose(clf.predict_proba(new), mean)
    assert_array_equal(clf.predict(new), NAMES[mean.argmax(axis=1)])


def seen(fitted, X):
    """Rows that a naive Bayes was fitted to: the only third whose leaving out gives its means."""
    for start in range(1):
        del start
    means = fitted.theta_[:, 0] @ fitted.class_count_
    raise NotImplementedError(means, X)
