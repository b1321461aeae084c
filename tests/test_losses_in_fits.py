"""Losses inside a fit: each of them learns, and learned or annealed parts do what they should."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import RandomizedSearchCV

from robustclf import RobustClassifier, list_losses, make_loss
from robustclf.losses import search_space

FAST = {"hidden": (16,), "max_epochs": 30, "batch_size": 25, "lr": 0.03, "random_state": 0}


# passive losses and those without a gradient where the label is improbable: slow by nature
SLOW = {"anl_ce", "anl_fl", "nnce", "nnfl", "normalized_negative", "truncated_gce", "unhinged"}


@pytest.mark.parametrize("loss", list_losses())
def test_every_loss_learns(iris, loss):
    X, y = iris
    clf = RobustClassifier(loss=loss, **FAST).fit(X, y)
    assert clf.score(X, y) > (0.68 if loss in SLOW else 0.93)


def test_logit_adjustment_finds_the_rare_class():
    rng = np.random.default_rng(0)
    y = (rng.random(2000) < 0.05).astype(int)
    X = rng.normal(size=(2000, 1)) + 1.5 * y[:, None]
    adjusted = make_loss("logit_adjusted", prior=[0.95, 0.05])
    recalls = [
        (RobustClassifier(loss=loss, **FAST).fit(X, y).predict(X[y == 1]) == 1).mean()
        for loss in ("ce", adjusted)
    ]
    assert recalls[0] < 0.4
    assert recalls[1] > 0.7


def test_the_learned_link_is_trained_kept_and_used(iris):
    X, y = iris
    clf = RobustClassifier(loss="legendretron", n_members=2, cross_fit=3, **FAST).fit(X, y)
    loss = clf.net_.criterion_.loss
    start = make_loss("legendretron").build(3)
    assert not torch.allclose(loss.link_.blocks[0].w, start.link_.blocks[0].w)
    assert {len(parameter) for parameter in loss.parameters()} == {2}
    logits = torch.cat(list(clf._logits(X)), 1)
    proba = clf.predict_proba(X)
    np.testing.assert_allclose(proba, loss.inverse_link(logits).detach().mean(0), atol=1e-6)
    assert np.abs(proba - logits.softmax(-1).mean(0).numpy()).max() > 1e-3
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clf)).predict_proba(X), proba)
    assert clf.oof_proba_.argmax(1).tolist().count(0) == 50


def test_cross_fitting_leaves_the_learned_link_alone(iris):
    X, y = iris
    few = FAST | {"max_epochs": 5, "precision": "float64", "dropout": 0.0}
    alone, crossed = (
        RobustClassifier(loss="legendretron", cross_fit=k, **few).fit(X, y) for k in (None, 2)
    )
    np.testing.assert_allclose(alone.predict_proba(X), crossed.predict_proba(X), atol=1e-9)


def test_early_stopping_with_a_learned_link(iris):
    clf = RobustClassifier(loss="legendretron", early_stopping=True, cross_fit=2, **FAST)
    assert clf.fit(*iris).history_[-1, "valid_acc"] > 0.8


def test_evidential_probabilities_and_vacuity(iris):
    X, y = iris
    clf = RobustClassifier(loss="evidential", warm_up=0, **FAST).fit(X, y)
    alpha = 1 + np.log1p(np.exp(clf.decision_function(X)))
    np.testing.assert_allclose(clf.predict_proba(X), alpha / alpha.sum(1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(clf.vacuity(X), 3 / alpha.sum(1), atol=1e-5)
    between = (X[y == 1].mean(0) + X[y == 2].mean(0)) / 2
    assert clf.vacuity(between[None])[0] > clf.vacuity(X[y == 0]).mean()


def test_vacuity_needs_an_evidential_loss(iris):
    clf = RobustClassifier(loss="gce", **FAST)
    assert not hasattr(clf, "vacuity")
    assert not hasattr(RobustClassifier(loss="gec"), "vacuity")
    with pytest.raises(AttributeError, match="vacuity"):
        clf.fit(*iris).vacuity(iris[0])
    assert hasattr(clone(clf).set_params(loss="evidential"), "vacuity")


def test_the_divergence_of_an_evidential_loss_is_annealed(iris):
    clf = RobustClassifier(loss="evidential", loss__annealing_epochs=4, **FAST | {"max_epochs": 3})
    clf.fit(*iris)
    assert clf.net_.criterion_.loss.kl_weight == 0.5  # of epoch 2, the third
    assert clf.net_.criterion_.built.kl_weight == 1.0
    assert clf.partial_fit(*iris).net_.criterion_.loss.kl_weight == 0.75


def test_views_are_members_that_train_together(iris):
    X, y = iris
    clf = RobustClassifier(loss="gjs", loss__n_views=3, n_members=4, **FAST).fit(X, y)
    assert clf.net_.n_members == 6


def test_the_search_space_of_a_loss_is_that_of_a_search(noisy_digits):
    X, y, _ = noisy_digits
    clf = RobustClassifier(loss="nce+agce", **FAST | {"max_epochs": 3})
    search = RandomizedSearchCV(clf, search_space("nce+agce"), n_iter=2, cv=2, random_state=0)
    search.fit(X[:200], y[:200])
    assert search.best_params_.keys() == {"loss__alpha", "loss__beta"}
