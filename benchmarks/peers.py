"""The models of other libraries, at their defaults but for what is written here."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pandas as pd
from data import Features, Labels
from numpy.typing import NDArray
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

HELD_OUT = 0.2  # share of the training rows, with the labels given, that early stopping looks at
NATIVE = ("lgbm", "lgbm-es", "catboost")  # have means of their own for categories
BOOSTING = {"n_estimators": 1000, "early_stopping_rounds": 50}


class EarlyStopped:
    """A boosting model whose number of trees is the best for held-out rows with noisy labels."""

    def __init__(self, model: Any, seed: int) -> None:
        self.model = model
        self.seed = seed

    def fit(self, X: Features, y: Labels) -> Self:
        """Hold a part of the rows out, and fit to the others."""
        train, held_out = split_rows(y, self.seed)
        rows = getattr(X, "iloc", X)
        self.model.fit(rows[train], y[train], eval_set=[(rows[held_out], y[held_out])])
        return self

    def predict(self, X: Features) -> Labels:
        """Return the labels of rows."""
        return np.ravel(self.model.predict(X))  # CatBoost returns a column

    def predict_proba(self, X: Features) -> Features:
        """Return the probabilities of the classes."""
        return self.model.predict_proba(X)


class Native:
    """A boosting model that takes the texts of dataframes as categories by its own means."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def fit(self, X: pd.DataFrame, y: Labels) -> Self:
        """Name the categories, and fit."""
        booster = getattr(self.model, "model", self.model)
        self.names = list(X.select_dtypes(exclude="number"))
        self.types: dict[str, pd.CategoricalDtype] = {}
        if "CatBoost" in type(booster).__name__:
            booster.set_params(cat_features=self.names)
        else:
            texts = self.texts(X)
            self.types = {name: pd.CategoricalDtype(texts[name].unique()) for name in self.names}
        self.model.fit(self.typed(X), y)
        return self

    def texts(self, X: pd.DataFrame) -> pd.DataFrame:
        """Return the texts; a gap is one, too."""
        return X[self.names].astype(object).fillna("gap").astype(str)

    def typed(self, X: pd.DataFrame) -> pd.DataFrame:
        """Return the rows with their texts as what the model takes."""
        texts = self.texts(X)
        for name, kind in self.types.items():
            codes = kind.categories.get_indexer(texts[name])  # -1, a gap, if never seen
            texts[name] = pd.Categorical.from_codes(codes, dtype=kind)
        return X.assign(**texts)

    def predict(self, X: pd.DataFrame) -> Labels:
        """Return the labels of rows."""
        return np.ravel(self.model.predict(self.typed(X)))


class Indicators:
    """A model that takes the texts of dataframes as indicators, and medians for gaps."""

    def __init__(self, model: Any) -> None:
        self.model = model
        indicators = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
        texts = make_column_selector(dtype_exclude="number")
        numbers = SimpleImputer(strategy="median")
        self.encoder = make_column_transformer((indicators, texts), remainder=numbers)

    def fit(self, X: pd.DataFrame, y: Labels) -> Self:
        """Encode the rows, and fit."""
        self.model.fit(self.encoder.fit_transform(X), y)
        return self

    def predict(self, X: pd.DataFrame) -> Labels:
        """Return the labels of rows."""
        return self.model.predict(self.encoder.transform(X))


def of_dataframes(name: str, make: Callable[[], Any]) -> Any:
    """Return a peer that takes dataframes."""
    if name in APART:
        return make()
    return (Native if name in NATIVE else Indicators)(make())


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
