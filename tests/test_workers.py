"""A search on the workers of a cluster, of which one dies."""

import os
import signal

import numpy as np
import pytest
from joblib import parallel_config
from sklearn.datasets import load_wine

from robustclf import RobustClassifier
from robustclf.model_selection import RobustSearchCV


def test_a_search_on_ray():
    ray = pytest.importorskip("ray")
    joblib_of_ray = pytest.importorskip("ray.util.joblib")
    joblib_of_ray.register_ray()
    X, y = load_wine(return_X_y=True)
    clf = RobustClassifier(loss="gce", hidden=(8,), max_epochs=5, batch_size=32, random_state=0)
    search = RobustSearchCV(clf, {"lr": [0.001, 0.01]}, cv=3, refit=False, n_jobs=2)
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
    try:
        with parallel_config(backend="ray"):
            found = search.fit(X, y).cv_results_["mean_test_score"]
    finally:
        ray.shutdown()
    alone = search.set_params(n_jobs=None).fit(X, y).cv_results_["mean_test_score"]
    np.testing.assert_array_equal(found, alone)


def test_a_search_survives_the_death_of_a_worker(tmp_path):
    distributed = pytest.importorskip("distributed")
    mark = tmp_path / "died"

    def accuracy_of_one_life(clf, X, y):
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return clf.score(X, y)

    X, y = load_wine(return_X_y=True)
    clf = RobustClassifier(loss="gce", hidden=(8,), max_epochs=5, batch_size=32, random_state=0)
    grid = {"lr": [0.001, 0.01]}
    search = RobustSearchCV(clf, grid, cv=3, scoring=accuracy_of_one_life, refit=False, n_jobs=2)
    cluster = distributed.LocalCluster(
        2, threads_per_worker=1, dashboard_address=None, silence_logs="CRITICAL"
    )
    with cluster, distributed.Client(cluster), parallel_config(backend="dask"):
        found = search.fit(X, y).cv_results_
    assert mark.exists()
    assert len(search.groups_) == 2
    alone = search.set_params(n_jobs=None).fit(X, y).cv_results_
    for name in ("split0_test_score", "split1_test_score", "split2_test_score"):
        np.testing.assert_array_equal(found[name], alone[name])
    assert found["params"] == alone["params"]
