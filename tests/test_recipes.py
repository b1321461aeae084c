"""Named methods: each is the composition its paper describes, fits and predicts."""

import numpy as np
import pytest
from sklearn.base import clone

from robustclf import RobustClassifier, list_recipes, make_strategy
from robustclf.recipes import RECIPES
from robustclf.strategies import Mixup

COMPOSITIONS = {
    "anl": {"loss": "anl_ce", "strategy": "l1", "weight_decay": 0.0},
    "co-teaching": {"loss": "ce", "strategy": "co_teaching"},
    "dividemix": {"loss": "ce", "strategy": ["co_divide", "mixup"]},
    "elr": {"loss": "ce", "strategy": "elr"},
    "erase": {"loss": "ce", "strategy": "neighbour_denoise"},
    "gce": {"loss": "gce"},
    "hr": {"loss": "ce", "strategy": ["adversarial", "holistic_robust"]},
    "nested-co-teaching": {"loss": "ce", "strategy": "co_teaching", "module": "nested_mlp"},
    "ogc-ce": {"loss": "ce", "strategy": "ogc"},
    "pls": {"loss": "ce", "strategy": ["pls", "mixup"]},
    "sam": {"loss": "ce", "optimizer": "sam"},
    "sce": {"loss": "sce"},
}


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_is_its_composition(name):
    assert name in COMPOSITIONS, f"write down what {name!r} is made of"
    params = RobustClassifier.from_recipe(name).get_params(deep=False)
    for part, value in COMPOSITIONS[name].items():
        if isinstance(value, list):
            assert [type(s) for s in params[part]] == [type(make_strategy(s)) for s in value]
        else:
            assert params[part] == value
    others = RobustClassifier().get_params(deep=False)
    given = RECIPES.make(name)
    assert {k: v for k, v in params.items() if k not in given} == {
        k: v for k, v in others.items() if k not in given
    }


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_learns_with_wrong_labels(noisy_digits, name):
    X, noisy, flipped = noisy_digits
    small = {"hidden": (64,), "dropout": 0.0, "batch_size": 32, "max_epochs": 15, "lr": 0.01}
    clf = clone(RobustClassifier.from_recipe(name, **small, random_state=0))
    clf.fit(X[:700], noisy[:700])
    right = ~flipped[700:]
    assert clf.score(X[700:][right], noisy[700:][right]) > 0.8


def test_parameters_beside_and_instead_of_those_of_a_recipe():
    clf = RobustClassifier.from_recipe("co-teaching", strategy__tau=0.4, n_members=3)
    assert clf.get_params()["strategy__tau"] == 0.4
    assert RobustClassifier.from_recipe("elr", loss="gce").loss == "gce"


def test_recipes_do_not_share_strategies():
    first, second = (RobustClassifier.from_recipe("dividemix") for _ in range(2))
    first.strategy[1].alpha = 0.1
    assert isinstance(second.strategy[1], Mixup)
    assert second.strategy[1].alpha == 4.0


def test_unknown_recipes_and_parameters():
    with pytest.raises(ValueError, match=r"unknown recipe 'dividemx', allowed are.*'dividemix'\?"):
        RobustClassifier.from_recipe("dividemx")
    with pytest.raises(TypeError, match=r"n_member.*did you mean 'n_members'"):
        RobustClassifier.from_recipe("gce", n_member=3)


def test_every_recipe_names_its_paper():
    for name in RECIPES.names():
        assert "References\n" in RECIPES.get(name).__doc__
    assert np.all([n == n.lower() for n in RECIPES.names()])
