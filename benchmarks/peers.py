"""The models of other libraries, at their defaults but for what is written here."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from data import Features, Labels
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HELD_OUT = 0.2  # share of the training rows, with the labels given, that early stopping looks at
BOOSTING = {"n_estimators": 1000, "early_stopping_rounds": 50}


class EarlyStopped:
    """A boosting model whose number of trees is the best for held-out rows with noisy labels."""

    def __init__(self, model: Any, seed: int) -> None:
        self.model = model
        self.seed = seed

    def fit(self, X: Features, y: Labels) -> Self:
        """Hold a part of the rows out, and fit to the others."""
        train, held_out = split_rows(y, self.seed)
        self.model.fit(X[train], y[train], eval_set=[(X[held_out], y[held_out])])
        return self

    def predict(self, X: Features) -> Labels:
        """Return the labels of rows."""
        return np.ravel(self.model.predict(X))  # CatBoost returns a column

    def predict_proba(self, X: Features) -> Features:
        """Return the probabilities of the classes."""
        return self.model.predict_proba(X)


def split_rows(y: Labels, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows to train on and those held out; every class has a row to train on."""
    rows = np.flatnonzero(np.bincount(y)[y] > 1)
    _, held_out = train_test_split(rows, test_size=HELD_OUT, stratify=y[rows], random_state=seed)
    return np.setdiff1d(np.arange(len(y)), held_out), np.sort(held_out)


def forest(seed: int, threads: int) -> Any:
    return RandomForestClassifier(300, n_jobs=threads, random_state=seed)


def cleaned_forest(seed: int, threads: int) -> Any:
    from cleanlab.classification import CleanLearning

    jobs = {"n_jobs": threads}
    return CleanLearning(forest(seed, threads), seed=seed, find_label_issues_kwargs=jobs)


def lightgbm(seed: int, threads: int, **params: Any) -> Any:
    from lightgbm import LGBMClassifier

    return LGBMClassifier(n_jobs=threads, random_state=seed, verbose=-1, **params)


def catboost(seed: int, threads: int, **params: Any) -> Any:
    from catboost import CatBoostClassifier

    quiet = {"verbose": False, "allow_writing_files": False}
    return CatBoostClassifier(thread_count=threads, random_state=seed, **quiet, **params)


def mlp(seed: int, early_stopping: bool) -> Any:
    network = MLPClassifier(early_stopping=early_stopping, max_iter=200, random_state=seed)
    return make_pipeline(StandardScaler(), network)


def pytabkit(name: str, seed: int, threads: int) -> Any:
    from pytabkit.models.sklearn import sklearn_interfaces

    model = getattr(sklearn_interfaces, name)
    return model(device="cpu", n_threads=threads, random_state=seed)


PEERS: dict[str, Callable[[int, int], Any]] = {  # takes seed and threads
    "rf": forest,
    "cl-rf": cleaned_forest,
    "lgbm": lightgbm,
    "lgbm-es": lambda seed, threads: EarlyStopped(lightgbm(seed, threads, **BOOSTING), seed),
    "catboost": lambda seed, threads: EarlyStopped(catboost(seed, threads, **BOOSTING), seed),
    "mlp": lambda seed, threads: mlp(seed, early_stopping=True),
    "mlp-noes": lambda seed, threads: mlp(seed, early_stopping=False),
    "logistic": lambda seed, threads: make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=1000)
    ),
}
APART: dict[str, Callable[[int, int], Any]] = {  # in an environment of their own: see README.md
    "realmlp": lambda seed, threads: pytabkit("RealMLP_TD_Classifier", seed, threads),
    "tabm": lambda seed, threads: pytabkit("TabM_D_Classifier", seed, threads),
}
