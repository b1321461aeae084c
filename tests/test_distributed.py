"""Two processes that fit together end with what one process does.

This file is also the program that ``torchrun`` starts: each process fits all cases and writes what
it has learned; the tests compare that with fits of their own.
"""

import os
import pickle
import subprocess
import sys
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from scipy.sparse import csr_array
from sklearn.datasets import load_iris
from skorch.callbacks import Callback
from torch import distributed, nn

from robustclf import RobustClassifier, list_strategies, make_strategy
from robustclf._device import find_device
from robustclf._net import DivergenceError
from robustclf._progress import Progress
from robustclf.optimizers import OPTIMIZERS
from robustclf.stopping import PredictionChangeStopping

N_PROCESSES = 2
PATIENCE = timedelta(seconds=60)  # until a process gives up waiting for the others
DRAWS = []


@cache
def table():
    """Rows, an odd number, labels of which some are wrong, and weights."""
    X, y = load_iris(return_X_y=True)
    rng = np.random.default_rng(0)
    rows = rng.permutation(150)[:77]
    y = np.where(rng.random(150) < 0.2, rng.integers(0, 3, 150), y)
    return X[rows], y[rows], rng.integers(1, 4, 77).astype(float)


class GradientNorms(Callback):
    """What callbacks see of the gradients, in the history."""

    def on_epoch_begin(self, net, **kwargs):
        self.norms_ = []

    def on_grad_computed(self, net, named_parameters, **kwargs):
        self.norms_.append(sum(float(p.grad.norm()) for _, p in named_parameters))

    def on_epoch_end(self, net, **kwargs):
        net.history.record("gradient", sum(self.norms_))


class Copying(Callback):
    """Copies the network in one process, and has the copy predict there."""

    def on_epoch_end(self, net, **kwargs):
        if distributed.get_rank() == 0:
            copy = pickle.loads(pickle.dumps(net.module_))
            assert copy(torch.zeros(5, 4, dtype=net.dtype)).shape[1] == 5


class Drawing(nn.Linear):
    """A module that draws random numbers in each pass of the training."""

    def forward(self, x):
        if self.training:
            DRAWS.append(float(torch.rand(())))
        return super().forward(x)


class Normalised(nn.Sequential):
    def __init__(self, n_inputs, n_classes):
        layers = nn.Linear(n_inputs, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, n_classes)
        super().__init__(*layers)


def early(alias):
    """A strategy that acts from the second epoch on."""
    strategy = make_strategy(alias)
    starts = {"warm_up", "start_epoch", "init_epoch", "every"} & strategy.get_params().keys()
    return strategy.set_params(**dict.fromkeys(starts, 1))


def settings(**params):
    defaults = {"hidden": (8,), "max_epochs": 5, "warm_up": 0.2, "batch_size": 32, "dropout": 0.0}
    defaults |= {"loss": "gce", "lr": 0.01, "precision": "float64", "random_state": 0}
    return defaults | params


def cases():
    """Parameters of the fits that have to be the same in one process and in two."""
    found = {f"strategy {s}": {"loss": "ce", "strategy": early(s)} for s in list_strategies()}
    found |= {f"optimizer {o}": {"optimizer": o} for o in OPTIMIZERS.names()}
    found |= {f"loss {a}": {"loss": a} for a in ("gce", "legendretron", "ensloss", "evidential")}
    found |= {
        "cross_fit": {"cross_fit": 3},
        "weights": {"weighted": True, "class_weight": "balanced"},
        "sparse": {"sparse": True},
        "unlabelled": {"unlabelled": True, "strategy": ["refurbish", "mixup", "vat"]},
        "mixtures": {"strategy": ["co_divide", "mixup", "infobatch"], "loss": "ce"},
        "resnet": {"module": "resnet", "numeric_embedding": "periodic", "n_members": 2},
        "linear": {"module": nn.Linear},
        "stopping": {"early_stopping": 3, "max_epochs": 30, "lr": 0.03},
        "settled": {"early_stopping": PredictionChangeStopping(2), "max_epochs": 30, "lr": 0.03},
        "dynamics": {"track_dynamics": True, "cross_fit": 2},
        "gradients": {"callbacks": [GradientNorms()], "optimizer": "sam"},
        "one batch": {"batch_size": 100},
        "few rows": {"batch_size": 3, "max_epochs": 1},
        "portfolio": {"loss": "auto", "budget": "fast"},
    }
    again = ("loss gce", "optimizer sam", "strategy co_teaching", "cross_fit", "weights")
    found |= {f"{name}, float32": found[name] | {"precision": "float32"} for name in again}
    return {name: settings(**params) for name, params in found.items()}


def fit(params, X=None, y=None):
    params = dict(params)
    everything = table()
    X, y = everything[:2] if X is None else (X, y)
    told = {"sample_weight": everything[2]} if params.pop("weighted", False) else {}
    if params.pop("sparse", False):
        X = csr_array(X)
    if params.pop("unlabelled", False):
        y = np.where(np.arange(len(y)) % 3 == 0, -1, y)
    if "groups" in getattr(params.get("strategy"), "needs", ()):
        told["groups"] = np.arange(len(y)) % 3
    return RobustClassifier(**params).fit(X, y, **told)


def learned(clf):
    """What a fit leaves behind, as arrays."""
    net = clf.net_
    tensors = [*net.module_.state_dict().values(), *net.criterion_.state_dict().values()]
    found = {"weights": torch.cat([t.detach().double().flatten() for t in tensors]).numpy()}
    found |= {"proba": clf.predict_proba(table()[0])}
    for name in ("train_loss", "valid_acc", "prediction_change", "gradient"):
        if name in clf.history_[0]:
            found[name] = np.array(clf.history_[:, name])
    if hasattr(clf, "oof_proba_"):
        found["oof_proba"] = clf.oof_proba_
    if hasattr(clf, "dynamics_"):
        found |= {"loss": clf.dynamics_.loss, "mean_proba": clf.dynamics_.mean_proba}
    return found


# What each process does -----------------------------------------------------------------------


def refusal(error, *args):
    """Return what a fit that cannot work says."""
    with pytest.raises(error) as caught:
        fit(*args)
    return {"message": np.array(str(caught.value))}


def in_parts():
    X, y, _ = table()
    clf = RobustClassifier(**settings(random_state=None))
    for part in (slice(0, 40), slice(40, None)):
        clf.partial_fit(X[part], y[part], classes=[0, 1, 2])
    return clf


def of_processes_only(rank):
    """Fits without counterpart in one process; their results are the same in all processes."""
    X, y, _ = table()
    np.random.seed(rank)  # noqa: NPY002 (read by a fit without seed)
    torch.manual_seed(rank)  # where a module of the user starts from
    clf = fit(settings(random_state=None))
    if rank == 0:  # nobody else has to
        clf.predict(X)
    return {
        "no seed": learned(clf),
        "portfolio without seed": learned(
            fit(settings(loss="auto", budget="fast", random_state=None))
        ),
        "partial_fit": learned(in_parts()),
        "dropout": learned(fit(settings(dropout=0.5))),
        "nested": learned(fit(settings(module="nested_mlp"))),
        "own module": learned(fit(settings(module=nn.Linear(4, 3)))),
        "norms": learned(fit(settings(module=Normalised))),
        "drawing": learned(fit(settings(module=Drawing, max_epochs=3))),
        "copying": learned(fit(settings(callbacks=[Copying()]))),
        "diverged": refusal(DivergenceError, settings(optimizer="sgd", lr=1e200, loss="ce")),
        "other rows": refusal(ValueError, settings(), X[: 50 + rank], y[: 50 + rank]),
        "other labels": refusal(ValueError, settings(), X, np.roll(y, rank)),
        "other seeds": refusal(ValueError, settings(random_state=rank)),
    }


def main(folder):
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    place = {"rank": rank, "world_size": N_PROCESSES, "timeout": PATIENCE}
    distributed.init_process_group("gloo", f"file://{folder}/store", **place)
    results = {name: learned(fit(params)) for name, params in cases().items()}
    results |= of_processes_only(rank)
    distributed.destroy_process_group()
    results["alone"] = learned(fit(settings(random_state=rank)))
    if find_spec("accelerate"):
        from accelerate import Accelerator

        Accelerator(cpu=True)
        results["accelerate"] = learned(fit(settings()))
        distributed.destroy_process_group()
    flat = {f"{case}/{name}": a for case, found in results.items() for name, a in found.items()}
    np.savez(Path(folder) / f"{rank}.npz", draws=np.array(DRAWS), **flat)


# Tests ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _few_trees():
    """Leave the portfolio as the processes have it."""


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of the processes has written; workers of pytest-xdist have one run."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "processes"
    written = [folder / f"{rank}.npz" for rank in range(N_PROCESSES)]
    with FileLock(f"{folder}.lock"):
        if not all(file.exists() for file in written):
            start_processes(folder)
    return [dict(np.load(file)) for file in written]


def start_processes(folder):
    folder.mkdir(exist_ok=True)
    program = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={N_PROCESSES}"]
    done = subprocess.run(
        [sys.executable, *program, __file__, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]


def of_case(process, case):
    start = f"{case}/"
    return {name.removeprefix(start): a for name, a in process.items() if name.startswith(start)}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", cases())
def test_the_same_as_in_one_process(processes, case):
    alone = learned(fit(cases()[case]))
    for process in processes:
        together = of_case(process, case)
        assert together.keys() == alone.keys()
        for name, values in alone.items():
            np.testing.assert_allclose(together[name], values, atol=1e-5, err_msg=name)


def test_what_is_compared_moves_and_stops():
    start, end = (learned(fit(settings(lr=lr)))["weights"] for lr in (1e-9, 0.01))
    assert abs(start - end).max() > 0.03
    for case in ("stopping", "settled"):
        assert 3 < len(learned(fit(cases()[case]))["train_loss"]) < 30


@pytest.mark.parametrize(
    "case",
    [
        "no seed",
        "partial_fit",
        "dropout",
        "nested",
        "own module",
        "norms",
        "drawing",
        "copying",
        "diverged",
    ],
)
def test_the_same_in_all_processes(processes, case):
    first, *others = (of_case(process, case) for process in processes)
    assert first
    for other in others:
        for name, values in first.items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_each_process_draws_other_units(processes):
    first, second = (process["draws"] for process in processes)
    assert len(first) == len(second) > 4
    assert not np.intersect1d(first, second).size


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("other rows", "differ in: training rows [50, 51], labels ["),
        ("other labels", "differ in: labels ["),
        ("other seeds", "differ in: random_state ["),
    ],
)
def test_what_differs_between_processes_is_refused(processes, case, message):
    for process in processes:
        assert message in of_case(process, case)["message"].item()


def test_a_process_without_group_fits_alone(processes):
    for rank, process in enumerate(processes):
        alone = learned(fit(settings(random_state=rank)))
        np.testing.assert_array_equal(of_case(process, "alone")["weights"], alone["weights"])


def test_accelerate_starts_the_processes(processes):
    pytest.importorskip("accelerate")
    alone = learned(fit(settings()))
    for process in processes:
        weights = of_case(process, "accelerate")["weights"]
        np.testing.assert_allclose(weights, alone["weights"], atol=1e-5)
        assert not np.array_equal(weights, alone["weights"])  # rounded otherwise: it was shared


@pytest.fixture
def in_group(monkeypatch):
    """As the last of four processes."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(distributed, "get_rank", lambda: 3)


@pytest.mark.usefixtures("in_group")
def test_one_process_shows_the_progress():
    progress = Progress(3)
    progress.on_train_begin(None)
    assert progress.bar_.disable
    progress.bar_.close()


@pytest.mark.usefixtures("in_group")
@pytest.mark.parametrize(("number", "device"), [("1", "cuda:1"), ("3", "cuda:1"), (None, "cuda:0")])
def test_each_process_has_a_device(monkeypatch, number, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if number is not None:
        monkeypatch.setenv("LOCAL_RANK", number)
    assert find_device("auto") == device


if __name__ == "__main__":
    main(sys.argv[1])
