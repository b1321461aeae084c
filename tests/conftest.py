"""Small data, and a stack of networks trained without the classifier around it."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris

from robustclf import _auto, list_strategies, make_strategy
from robustclf._net import Criterion, RobustNet
from robustclf._training_set import TrainingSet
from robustclf.losses import make_loss
from robustclf.modules import TabularInput, make_network
from robustclf.optimizers import get_optimizer

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module", autouse=True)
def _few_trees():
    """Make the portfolio of loss="auto" quick: most of the time of a small fit goes into trees."""
    small = {name: clone(model) for name, model in _auto.SHALLOW.items()}
    for model in small.values():
        if "n_estimators" in model.get_params():
            model.set_params(n_estimators=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_auto, "SHALLOW", small)
        patch.setattr(_auto, "TREES", 20)
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture(scope="session")
def binary(iris):
    X, y = iris
    return X[:100], np.array(["no", "yes"])[y[:100]]


@pytest.fixture(scope="session")
def partly_labelled(iris):
    """Rows, labels with -1 for two of three rows, and which have one."""
    X, y = iris
    known = np.arange(150) % 3 == 0
    return X, np.where(known, y, -1), known


@pytest.fixture(scope="session")
def noisy_digits():
    """Rows, labels of which 20 % are wrong, and which those are."""
    X, y = load_digits(return_X_y=True)
    X, y = X[:1000], y[:1000]
    rng = np.random.default_rng(0)
    flipped = rng.random(len(y)) < 0.2
    wrong = (y + rng.integers(1, 10, len(y))) % 10
    return X, np.where(flipped, wrong, y), flipped


@pytest.fixture(scope="session")
def all_strategies():
    """Every alias, in an order in which they go together."""
    before_mixing = ("co_divide", "pls", "pseudo_label")
    return sorted(list_strategies(), key=lambda alias: alias not in before_mixing)


@pytest.fixture(scope="session")
def told():
    """Return a function that says what a fit to n rows has to be told for these strategies."""

    def known(strategies, n):
        listed = strategies if isinstance(strategies, list) else [strategies]
        needs = {name for s in listed if s for name in make_strategy(s).needs}
        return {"groups": np.arange(n) % 2} if "groups" in needs else {}

    return known


@pytest.fixture(scope="session")
def rows():
    """Rows, labels of three classes and weights of mean one, as tensors in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (24,), generator=generator)
    weight = torch.rand(1, 24, generator=generator, dtype=torch.float64)
    return x, y, weight / weight.mean()


@pytest.fixture(scope="session")
def train():
    """Return a function that trains a stack of networks and returns the net."""

    def fit(
        x,
        y,
        *,
        seeds=(1,),
        weight=None,
        loss="ce",
        strategies=(),
        optimizer="sgd",
        lr=0.1,
        weight_decay=0.0,
        batch_size=1000,
        epochs=1,
        module="mlp",
        cardinalities=(),
        n_members=None,
        precision="float64",
        shuffle=0,
        callbacks=(),
        before=None,
        **optimizer_params,
    ):
        n_dense = x.shape[1] - len(cardinalities)
        inputs = TabularInput(len(seeds), n_dense, n_dense, cardinalities)
        network = make_network(
            module,
            inputs,
            len(seeds),
            3,
            hidden=(5,),
            activation="tanh",
            dropout=0.0,
            seeds=seeds,
        )
        net = RobustNet(
            network,
            n_members=len(seeds) if n_members is None else n_members,
            n_stacked=len(seeds),
            n_codes=len(cardinalities),
            strategies=tuple(strategies),
            precision=precision,
            criterion=Criterion,
            criterion__loss=make_loss(loss),
            criterion__n_classes=3,
            optimizer=get_optimizer(optimizer),
            lr=lr,
            optimizer__weight_decay=weight_decay,
            batch_size=batch_size,
            max_epochs=epochs,
            callbacks=list(callbacks),
            classes=np.arange(3),
            verbose=0,
            train_split=None,
            **{f"optimizer__{name}": value for name, value in optimizer_params.items()},
        )
        weight = torch.ones(1, len(x), dtype=torch.float64) if weight is None else weight
        net.initialize()
        if before is not None:
            before(net)
        with torch.random.fork_rng([]):
            torch.manual_seed(shuffle)
            net.partial_fit(TrainingSet(x, y, weight, torch.arange(len(x))).to(net), None)
        return net

    return fit
