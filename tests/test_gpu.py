"""On a CUDA device: the same results, and models that do not need it afterwards."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from skorch.callbacks import EpochScoring

from robustclf import RobustClassifier, list_strategies, make_loss, make_strategy
from robustclf._device import find_device
from robustclf.losses._base import LOSSES
from robustclf.optimizers import OPTIMIZERS
from robustclf.stopping import PredictionChangeStopping

pytestmark = pytest.mark.gpu


def small(**params):
    defaults = {"loss": "gce", "hidden": (32,), "max_epochs": 10, "lr": 0.01, "random_state": 0}
    return RobustClassifier(**defaults | {"device": "cuda"} | params)


def on_cpu(clf, monkeypatch):
    """Return the model as a machine without a GPU would load it."""
    data = pickle.dumps(clf)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return pickle.loads(data)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"module": "resnet", "numeric_embedding": "periodic", "n_members": 3},
        {"numeric_embedding": "piecewise_linear", "optimizer": "sam"},
        {"precision": "float64", "strategy": "co_teaching"},
        {"batch_size": 2000},
        {"early_stopping": True},
        {"early_stopping": PredictionChangeStopping()},
        {"cross_fit": 2, "track_dynamics": True},
        {"module": torch.nn.Linear, "n_members": 2},
        {"loss": "legendretron", "n_members": 2},
        {"loss": "auto", "budget": "fast"},
    ],
    ids=str,
)
def test_fit_on_the_gpu_predict_on_the_cpu(noisy_digits, monkeypatch, params):
    X, y, _ = noisy_digits
    clf = small(**params).fit(X, y)
    assert {p.device.type for p in clf.net_.module_.parameters()} == {"cuda"}
    proba = clf.predict_proba(X)
    again = on_cpu(clf, monkeypatch)
    assert {p.device.type for p in again.net_.module_.parameters()} == {"cpu"}
    assert_allclose(again.predict_proba(X), proba, atol=1e-5)
    assert_allclose(again.embed(X), clf.embed(X), atol=1e-4)
    back = pickle.loads(pickle.dumps(clf))
    assert {p.device.type for p in back.net_.module_.parameters()} == {"cuda"}
    assert_array_equal(back.predict_proba(X), proba)


NEEDED = {
    "forward_corrected": {"transition": 0.7 * np.eye(5) + 0.06},
    "backward_corrected": {"transition": 0.7 * np.eye(5) + 0.06},
    "logit_adjusted": {"prior": [0.4, 0.3, 0.1, 0.1, 0.1]},
}


@pytest.mark.parametrize("alias", [a for a in LOSSES.names() if a != "ensloss"])
def test_losses_are_the_same_on_the_gpu(alias):
    logits = torch.randn(2, 50, 5, generator=torch.Generator().manual_seed(0))
    loss = make_loss(alias, **NEEDED.get(alias, {})).build(5)
    for target in (torch.arange(50) % 5, logits[0].softmax(-1)):
        results = []
        for device in ("cpu", "cuda"):
            for module in loss.learned():
                module.to(device)
            z = logits.to(device).requires_grad_()
            value = loss(z, target.to(device))
            results.append([value, *torch.autograd.grad(value.sum(), z)])
        for on_cpu, on_gpu in zip(*results, strict=True):
            torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-5)


def test_auto_takes_the_gpu(noisy_digits):
    X, y, _ = noisy_digits
    assert find_device("auto") == "cuda"
    assert small(device="auto").fit(X, y).net_.module_.body.head.weight.is_cuda
    assert small(device="cuda:0").fit(X, y).net_.module_.body.head.weight.is_cuda
    with pytest.raises(ValueError, match=r"but torch .* sees none"):
        small(device="cuda:99").fit(X, y)


def test_cpu_and_gpu_learn_the_same(noisy_digits):
    X, y, _ = noisy_digits
    options = {"batch_size": 2000, "max_epochs": 20, "loss": "ce"}
    gpu, cpu = small(**options).fit(X, y), small(device="cpu", **options).fit(X, y)
    assert gpu.score(X, y) == pytest.approx(cpu.score(X, y), abs=0.05)
    assert gpu.history_[0, "train_loss"] == pytest.approx(cpu.history_[0, "train_loss"], rel=1e-6)


def test_bf16(noisy_digits, monkeypatch):
    X, y, _ = noisy_digits
    clf = small(precision="bf16", loss="ce", cross_fit=2, max_epochs=20).fit(X, y)
    plain = small(loss="ce", max_epochs=20).fit(X, y)
    assert clf.score(X, y) == pytest.approx(plain.score(X, y), abs=0.05)
    assert {p.dtype for p in clf.net_.module_.parameters()} == {torch.float32}
    assert clf.predict_proba(X).dtype == np.float32
    again = on_cpu(clf, monkeypatch)
    assert_allclose(again.predict_proba(X), clf.predict_proba(X), atol=0.05)


@pytest.mark.filterwarnings("ignore:strategy 'transition':UserWarning")
@pytest.mark.parametrize("optimizer", ["adamw", "sam", "momo"])
@pytest.mark.parametrize("strategy", [*list_strategies(), "all"])
def test_cross_fit_with_strategies(noisy_digits, strategy, optimizer, all_strategies, told):
    X, y, _ = noisy_digits
    if strategy == "all":
        strategy = all_strategies
    clf = small(loss="ce", strategy=strategy, optimizer=optimizer, cross_fit=3)
    clf.fit(X, y, **told(strategy, len(y)))
    assert clf.oof_proba_.shape == (1000, 10)
    assert_allclose(clf.oof_proba_.sum(1), 1, atol=1e-5)
    assert np.isfinite(clf.predict_proba(X)).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_optimizers(noisy_digits, optimizer):
    X, y, _ = noisy_digits
    clf = small(loss="ce", optimizer=optimizer, n_members=2).fit(X, y)
    assert np.isfinite(clf.predict_proba(X)).all()


@pytest.mark.parametrize("strategy", ["pseudo_label", "vat", "mixup", "refurbish"])
def test_rows_without_label(noisy_digits, strategy):
    X, y, _ = noisy_digits
    few = np.where(np.arange(len(y)) % 5 == 0, y, -1)
    clf = small(loss="ce", strategy=strategy, cross_fit=2).fit(X, few)
    assert clf.score(X, y) > 0.5


def test_trusted_rows_and_nested_networks(noisy_digits):
    X, y, flipped = noisy_digits
    trust = make_strategy("transition", matrix="trusted")
    small(loss="ce", strategy=trust).fit(X, y, trusted=~flipped & (np.arange(len(y)) % 5 == 0))
    nested = small(module="nested_mlp").fit(X, y)
    assert nested.net_.module_.body.n_kept.device.type == "cuda"


def test_sparse_rows_categories_and_partial_fit(noisy_digits):
    X, y, _ = noisy_digits
    S = csr_array(X)
    clf = small(loss="ce", max_epochs=20).fit(S, y)
    assert clf.score(S, y) > 0.6
    codes = np.c_[X[:, :3], np.arange(1000) % 30].astype(object)
    codes[:, 3] = [f"c{k}" for k in codes[:, 3]]
    clf = small(strategy="mixup", n_members=2).fit(codes, y)
    assert clf.partial_fit(codes, y).predict(codes).shape == (1000,)


def test_validation_callbacks_and_the_bar(noisy_digits, capsys):
    X, y, _ = noisy_digits
    score = EpochScoring("accuracy", lower_is_better=False, name="scored")
    clf = small(callbacks=[score], verbose=1).fit(X, y, X_val=X, y_val=y)
    assert clf.history_[-1, "scored"] == pytest.approx(clf.history_[-1, "valid_acc"], abs=1e-6)
    assert "accuracy=" in capsys.readouterr().err


def test_the_callers_generators_are_untouched(noisy_digits):
    X, y, _ = noisy_digits
    before, on_gpu = torch.get_rng_state(), torch.cuda.get_rng_state()
    results = []
    for seed in (1, 2):
        torch.cuda.manual_seed(seed)
        clf = small(strategy="mixup", dropout=0.2).fit(X, y)
        results.append(clf.predict_proba(X))
    assert_allclose(*results, atol=1e-4)
    assert torch.equal(before, torch.get_rng_state())
    torch.cuda.set_rng_state(on_gpu)
    small(strategy="mixup", dropout=0.2).fit(X, y)
    assert torch.equal(on_gpu, torch.cuda.get_rng_state())
