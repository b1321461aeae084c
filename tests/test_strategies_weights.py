"""Strategies that edit the weights: each is its formula, for every member alone."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.testing import assert_close

from robustclf import RobustClassifier, make_loss, make_strategy
from robustclf.losses import Clipped
from robustclf.strategies import (
    Batch,
    ErrorNormTruncation,
    HolisticRobust,
    InstanceReweighted,
    Mixup,
    SmallLoss,
    SpectralRisk,
)
from robustclf.strategies.gradient_clipping import (
    STEP,
    OptimizedGradientClipping,
    clipping_limit,
    density,
    grid,
    slope,
)
from robustclf.strategies.selection import TwoNormals

REFERENCE = Path(__file__).parent / "reference"
K = 4


def cases(name):
    return json.loads((REFERENCE / f"{name}.json").read_text())["cases"]


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(n, weight=None, start=0, logits=None):
    weight = torch.ones(1, n, dtype=torch.float64) if weight is None else weight
    y = (torch.arange(n) + start) % K
    return Batch(torch.zeros(n, 1), y, weight, torch.arange(n) + start, logits=logits)


def stub(loss="ce", n=40, n_stacked=1, weight=None, **values):
    weight = torch.ones(1, n, dtype=torch.float64) if weight is None else weight
    data = SimpleNamespace(weight=weight, rows=torch.arange(n), y=torch.arange(n) % K)
    net = {
        "n_stacked": n_stacked,
        "n_classes": K,
        "epoch": 99,
        "lr": 0.1,
        "optimizer_": SimpleNamespace(param_groups=[{"lr": 0.05}]),
        "criterion_": SimpleNamespace(loss=make_loss(loss).build(K)),
        "proba": lambda logits: logits.softmax(-1),
        "warming": False,
    }
    return SimpleNamespace(**{**net, **values}), data


# What holds for all ---------------------------------------------------------------------------

BY_LOSS = {
    **{
        f"{m} {d}": SpectralRisk(m, direction=d)
        for m in SpectralRisk.published
        for d in ("trim", "up")
    },
    **{f"exp {d}": InstanceReweighted(0.3, d) for d in ("trim", "up")},
    "hd": HolisticRobust(0.1, 0.2),
    "hr": HolisticRobust(0.1, 0.2, "hr"),
}


@pytest.mark.parametrize("name", BY_LOSS)
def test_each_member_alone_keeps_its_weight_and_rows_of_weight_zero_do_not_matter(name):
    strategy, loss, weight = BY_LOSS[name], rand(3, 20) - 0.7, rand(3, 20, seed=1) + 0.5
    weight[0, 4], weight[1, 7:9], loss[1, 7] = 0, 0, 50
    new = strategy.weigh(None, rows(20, weight), loss)
    assert_close(new.sum(-1), weight.sum(-1))
    assert (new >= 0).all()
    for m in range(3):
        kept = weight[m] > 0
        n = int(kept.sum())
        alone = strategy.weigh(None, rows(n, weight[m : m + 1, kept]), loss[m : m + 1, kept])
        assert_close(new[m, kept], alone[0], rtol=1e-6, atol=1e-8)
        assert (new[m, ~kept] == 0).all()
        ranked = new[m, kept] / weight[m, kept]
        ranked = ranked[loss[m, kept].argsort()].diff()
        assert (ranked * (-1 if "trim" in name else 1) > -1e-8).all()
    none = strategy.weigh(None, rows(20, 0 * weight), loss)
    assert (none == 0).all()


@pytest.mark.parametrize("name", BY_LOSS)
def test_weights_as_repetitions(name):
    """A row of weight two is two rows, also for ranks and worst distributions."""
    loss, weight = rand(1, 10), torch.ones(1, 10, dtype=torch.float64)
    weight[0, 3] = weight[0, loss[0].argmax()] = 2.0
    index = torch.arange(10).repeat_interleave(weight[0].long())
    strategy = BY_LOSS[name]
    once = strategy.weigh(None, rows(10, weight), loss)
    twice = strategy.weigh(None, rows(12), loss[:, index])
    assert_close(once, torch.zeros_like(once).index_add(1, index, twice), rtol=1e-6, atol=1e-8)


# Risks ------------------------------------------------------------------------------------------


def test_cvar_is_the_mean_of_the_smallest_or_largest_losses():
    loss = rand(2, 10)
    for share in (0.3, 0.45, 1.0):
        low = (SpectralRisk("cvar", share).weigh(None, rows(10), loss) * loss).mean(-1)
        full, part = int(10 * share), 10 * share % 1
        ascending = loss.sort(-1).values
        expected = ascending[:, :full].sum(-1) + part * ascending[:, min(full, 9)]
        assert_close(low, expected / (10 * share))
        high = SpectralRisk("cvar", share, "up").weigh(None, rows(10), -loss)
        assert_close((high * loss).mean(-1), low)


def test_extremile_and_esrm_by_their_sums():
    i, n = torch.arange(1, 9, dtype=torch.float64), 8
    loss = i[None] ** 2
    extremile = SpectralRisk("extremile", 3.0, "up").weigh(None, rows(n), loss)
    assert_close(extremile[0] / n, (i**3 - (i - 1) ** 3) / n**3)
    rho = 2.0
    esrm = SpectralRisk("esrm", rho, "up").weigh(None, rows(n), loss)
    steps = torch.exp(rho * i / n) - torch.exp(rho * (i - 1) / n)
    assert_close(esrm[0] / n, np.exp(-rho) * steps / (1 - np.exp(-rho)))


@pytest.mark.parametrize("direction", ["trim", "up"])
def test_spectra_are_finite_for_any_number_of_rows(direction):
    for n in range(1, 60):  # the shares of 9 rows, added up, are a little more than one
        new = SpectralRisk("extremile", 1.5, direction).weigh(None, rows(n), rand(2, n))
        assert_close(new.sum(-1), tensor(n, n))


@pytest.mark.parametrize(
    "uniform",
    [
        SpectralRisk("cvar", 1.0),
        SpectralRisk("extremile", 1.0),
        SpectralRisk("esrm", 1e-9, "up"),
        InstanceReweighted(1e9),
        HolisticRobust(0, 0),
        HolisticRobust(0, 0, "hr"),
        HolisticRobust(0, 1e-14),
    ],
)
def test_limits_are_uniform(uniform):
    new = uniform.weigh(None, rows(12), rand(2, 12))
    assert_close(new, torch.ones_like(new), rtol=0, atol=1e-5)


def test_limits_are_the_extreme_loss():
    loss = tensor([2.0, 0.5, 1.0])
    least, most = tensor([0.0, 3.0, 0.0]), tensor([3.0, 0.0, 0.0])
    assert_close(SpectralRisk("esrm", 1e4).weigh(None, rows(3), loss), least)
    assert_close(InstanceReweighted(1e-3).weigh(None, rows(3), loss), least)
    for form in ("hd", "hr"):
        assert_close(
            HolisticRobust(0.99, 0.0, form).weigh(None, rows(3), loss), most, atol=0.05, rtol=0
        )


def test_exponential_weights_solve_the_penalised_worst_case():
    """max_q q l - lam KL(q | uniform) has the value lam log mean exp(l / lam)."""
    loss, lam, n = rand(1, 9), 0.4, 9
    q = InstanceReweighted(lam, "up").weigh(None, rows(n), loss) / n
    value = (q * loss).sum() - lam * (q * (n * q).log()).sum()
    assert_close(value, lam * (loss / lam).exp().mean().log())


@pytest.mark.parametrize("case", cases("holistic_robust"), ids=lambda c: f"{c['alpha']} {c['r']}")
def test_holistic_robust_agrees_with_the_conic_programs(case):
    loss, n = tensor(case["losses"]), len(case["losses"])
    hd = HolisticRobust(case["alpha"], case["r"]).weigh(None, rows(n), loss) / n
    assert_close(hd[0], tensor(*case["hd_weights"]), rtol=0, atol=1e-5)
    assert (hd * loss).sum().item() == pytest.approx(case["hd_value"], abs=1e-5)
    hr = HolisticRobust(case["alpha"], case["r"], "hr").weigh(None, rows(n), loss) / n
    assert (hr * loss).sum().item() == pytest.approx(case["hr_value"], abs=1e-5)


# Optimised gradient clipping --------------------------------------------------------------------

BASES = {"ce": "ce", "focal gamma=0.5": make_loss("focal", gamma=0.5), "gce q=0.7": "gce"}


@pytest.mark.parametrize("case", cases("ogc"), ids=lambda c: f"{c['base']} {c['ratio_target']}")
def test_ogc_limits_agree_with_the_published_thresholds(case):
    loss, h = make_loss(BASES[case["base"]]), grid(tensor(0.0))[None]
    slopes = slope(loss, -h, torch.zeros_like(h, dtype=torch.int64), K)
    clean, noisy = (
        density(h, tensor([case[f"mean_{of}"]]), tensor([case[f"var_{of}"]]))
        for of in ("clean", "noisy")
    )
    target = case["ratio_target"]
    limit = clipping_limit(slopes, clean, noisy, tensor([target]))
    clipped = slopes.minimum(limit)
    ratio = ((noisy * clipped).sum() / (clean * clipped).sum()).item()
    p = case["p_threshold"]
    if p < 2 / 1024:
        assert limit == torch.inf
        assert ratio <= target
        return
    assert ratio == pytest.approx(target, rel=1e-9)
    # the published p is the upper end of an interval of 1/1024, on which the slope falls
    ends = tensor([max(p - 1.01 / 1024, 1e-7), min(p + 1e-6, 1 - 1e-9)]).log()
    high, low = slope(loss, ends, torch.zeros(1, 2, dtype=torch.int64), K)[0]
    assert low <= limit.item() <= high


def ogc(net, data, logits, **params):
    """Strategy after one batch of all rows, which fills the queue, and its last weights."""
    strategy = OptimizedGradientClipping(**params)
    strategy.on_train_begin(net, data)
    batch = rows(logits.shape[1], data.weight, logits=logits)
    return strategy, strategy.weigh(net, batch, torch.zeros(logits.shape[:2]))


@pytest.mark.parametrize("eps", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("loss", ["ce", "gce", "focal", "poly1", "taylor_ce"])
def test_ogc_gradient_is_that_of_the_clipped_loss(loss, eps):
    n, label = 200, torch.arange(200) % K
    logits = 6 * rand(1, n, K) - 3
    net, data = stub(loss, n)
    strategy, weight = ogc(net, data, logits, eps=eps)
    built = net.criterion_.loss

    def excess(p):
        return (slope(built, tensor([p]).log(), label[:1, None], K) - strategy.limit_).item()

    theta = brentq(excess, 1e-7, 1 - 1e-9)
    assert 0 < (weight < 1).sum() < n
    z = logits.requires_grad_()
    log_p = logits.detach().log_softmax(-1)[:, torch.arange(n), label]

    def exact(log_p):
        return (strategy.limit_ / slope(built, log_p, label[None], K)).clamp_max(1)

    (got,) = torch.autograd.grad((exact(log_p) * built(z, label)).sum(), z)
    (expected,) = torch.autograd.grad(Clipped(built, theta).build(K)(z, label).sum(), z)
    assert_close(got, expected)
    # the weights are those of a p_y at most half a step of the table away
    assert (weight <= exact(log_p + STEP / 2 + 1e-9)).all()
    assert (weight >= exact(log_p - STEP / 2 - 1e-9)).all()


@pytest.mark.parametrize("loss", ["ce", "gce", "nce+rce"])
@pytest.mark.parametrize("lr", [0.1, 0.01, 0.0])
def test_ogc_keeps_its_bound_on_the_fitted_components(loss, lr):
    """The means of the clipped slopes over either component are in the ratio of the bound."""
    logits = torch.cat([3 + 4 * rand(1, 100, 1), torch.zeros(1, 100, 1)], 1) - 4 * rand(1, 200, 1)
    logits = torch.zeros(1, 200, K, dtype=torch.float64).scatter(
        -1, (torch.arange(200) % K)[None, :, None], logits
    )
    net, data = stub(loss, 200, optimizer_=SimpleNamespace(param_groups=[{"lr": lr}]))
    strategy, weight = ogc(net, data, logits, eps=0.5)
    h = -logits.log_softmax(-1)[:, torch.arange(200), torch.arange(200) % K]
    fitted = TwoNormals.fit(h, torch.ones_like(h), floor=1e-3)
    points = grid(h)[None]
    slopes = slope(net.criterion_.loss, -points, torch.zeros(1, 1000, dtype=torch.int64), K)
    clipped = slopes.minimum(strategy.limit_)
    clean, noisy = (
        (density(points, m, v) * clipped).sum()
        for m, v in zip(fitted.mean[0], fitted.variance[0], strict=True)
    )
    bound = 1 + 0.5 * lr / 0.1
    if (noisy / clean).item() < bound * (1 - 1e-6):  # by itself
        assert strategy.limit_ == torch.inf
        assert loss == "nce+rce"
        assert (weight == 1).all()
    else:
        assert (noisy / clean).item() == pytest.approx(bound, rel=1e-6)
        assert (weight < 1).any()


def test_ogc_limit_of_float32_is_that_of_float64():
    logits = 6 * rand(1, 300, K) + 9 * torch.nn.functional.one_hot(torch.arange(300) % K, K)
    limits = []
    for dtype in (torch.float32, torch.float64):
        net, data = stub("nce+rce", 300, weight=torch.ones(1, 300, dtype=dtype))
        limits.append(ogc(net, data, logits.to(dtype), eps=0.02)[0].limit_)
    assert limits[1] > 0.1
    assert_close(limits[0].double(), limits[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "loss", ["ce", "gce", "nce+rce", "squentropy", "evidential", "js", "ldr_kl"]
)
def test_ogc_slopes_are_differences(loss):
    built, n = make_loss(loss).build(K), 50
    p = 0.02 + 0.96 * rand(1, n)
    label = torch.arange(n)[None] % K

    def value(p):
        z = (p / (1 - p)).log() + np.log(K - 1)
        return built(
            torch.zeros(1, n, K, dtype=p.dtype).scatter(-1, label[..., None], z[..., None]), label
        )

    expected = (value(p + 1e-6) - value(p - 1e-6)).abs() / 2e-6
    assert_close(slope(built, p.log(), label, K), expected, rtol=1e-5, atol=1e-6)


def test_ogc_clips_nothing_before_the_queue_is_full_and_while_another_loss_warms_up():
    logits = 8 * rand(1, 60, K) - 4
    net, data = stub(n=60)
    strategy = OptimizedGradientClipping(eps=0.0, queue_size=50, every=1)
    strategy.on_train_begin(net, data)
    smallest = []
    for k in range(6):
        batch = rows(10, start=10 * k, logits=logits[:, 10 * k : 10 * k + 10])
        net.warming = k == 4
        smallest.append(strategy.weigh(net, batch, torch.zeros(1, 10)).min().item())
    assert smallest[:5] == [1.0] * 5
    assert smallest[5] < 0.5
    assert sum(part.shape[-1] for part, _ in strategy.queue_) == 50


def test_ogc_members_are_independent_and_rows_of_weight_zero_stay_out_of_the_queue():
    logits, weight = 8 * rand(2, 80, K) - 4, torch.ones(2, 80, dtype=torch.float64)
    weight[0, :40] = weight[1, 40:] = 0
    logits[0, :40] *= 9
    net, data = stub(n=80, n_stacked=2, weight=weight)
    strategy, new = ogc(net, data, logits)
    for m, kept in enumerate((slice(40, 80), slice(40))):
        net, data = stub(n=40)
        alone, expected = ogc(net, data, logits[m : m + 1, kept])
        assert_close(strategy.limit_[m], alone.limit_[0])
        assert_close(new[m : m + 1, kept], expected)
    assert (new[weight == 0] == 0).all()


def test_two_normals_find_the_components():
    x = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.where(torch.arange(4000) < 2400, 0.3 + 0.1 * x, tensor([2.0], [4.0]) + 0.5 * x)
    fitted = TwoNormals.fit(x, torch.ones_like(x), floor=1e-6)
    assert_close(fitted.mean, tensor([0.3, 2.0], [0.3, 4.0]), atol=0.05, rtol=0)
    assert_close(fitted.variance.sqrt(), tensor([0.1, 0.5], [0.1, 0.5]), atol=0.03, rtol=0)
    assert_close(fitted.share, tensor([0.6, 0.4], [0.6, 0.4]), atol=0.02, rtol=0)
    long = TwoNormals.fit(x, torch.ones_like(x), floor=1e-6, n_iter=100)
    last = TwoNormals.fit(x - 0.02, torch.ones_like(x), floor=1e-6, n_iter=100)
    on = TwoNormals.fit(x, torch.ones_like(x), floor=1e-6, n_iter=3, start=last)
    for value, expected in zip(on, long, strict=True):
        assert_close(value, expected, atol=1e-3, rtol=0)
    same = TwoNormals.fit(torch.ones(1, 9), torch.ones(1, 9), floor=1e-3)
    assert_close(same.posterior_of_low(torch.ones(1, 9)), torch.ones(1, 9))


# Small loss and error norm ----------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["posterior", "hard"])
def test_small_loss_separates_two_clusters(weights):
    loss = torch.stack([0.1 * rand(40), 0.1 * rand(40) - 7])  # negative values too
    loss[0, 25:] += 3
    loss[1, :10] += 2
    weight = torch.ones(2, 40, dtype=torch.float64)
    weight[0, 30], loss[0, 30] = 0, 1e6
    net, data = stub(n=40, n_stacked=2, weight=weight, epoch=0)
    strategy = SmallLoss(warm_up=1, weights=weights)
    strategy.on_train_begin(net, data)
    strategy.on_epoch_begin(net)
    assert_close(strategy.weigh(net, rows(40, weight), loss), weight)
    net.epoch = 1
    strategy.on_epoch_begin(net)
    new = strategy.weigh(net, rows(40, weight), loss.flip(-1))
    assert_close(new.sum(-1), weight.sum(-1))
    low = torch.zeros_like(weight)
    low[0, :25] = 39 / 25
    low[1, 10:] = 40 / 30
    assert_close(new, low, atol=1e-4, rtol=0)


def test_small_loss_of_mixed_batches_remembers_the_unmixed_rows():
    net, data = stub(n=12, module_=lambda x: x[None], criterion_=lambda z, y: z[..., 0] + y)
    strategy = SmallLoss()
    strategy.on_train_begin(net, data)
    batch = rows(12)
    batch.x = rand(12, 3)
    with torch.random.fork_rng([]):
        mixed = Mixup().on_batch(SimpleNamespace(n_codes=0, n_classes=K), batch)
    strategy.clean_ = rand(1, 12)
    mixing = mixed.mixing
    new = strategy.weigh(net, mixed, torch.zeros(1, 12))
    clean = mixing.lam * strategy.clean_ + (1 - mixing.lam) * strategy.clean_[:, mixing.partner]
    assert_close(new / new.sum(), clean / clean.sum())
    strategy.on_batch_end(net, batch=mixed, training=True)
    assert_close(strategy.loss_, (batch.x[:, 0] + batch.target)[None])


def test_error_norm_leaves_out_the_far_rows():
    proba = tensor(
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0.6, 0.4, 0], [0.4, 0.3, 0.2, 0.1]], [[0, 1, 0, 0]] * 4
    )
    batch = rows(4, tensor([1.0, 2.0, 0.0, 1.0]), logits=proba)
    net, _ = stub()
    net.criterion_.loss.inverse_link = lambda z: z

    def weigh(**params):
        return ErrorNormTruncation(**params).weigh(net, batch, torch.zeros(2, 4))

    root2, last = 2**0.5, (0.16 + 0.09 + 0.04 + 0.81) ** 0.5
    assert_close(weigh(threshold=root2 - 1e-9), tensor([1, 2, 0, 1.0], [0, 2, 0, 0.0]))
    assert_close(weigh(threshold=root2 + 1e-9), batch.weight.expand(2, 4))
    assert_close(weigh(threshold=last - 1e-9)[0], tensor(1, 2, 0, 0))
    assert_close(weigh(fraction=0.4)[0], tensor(1, 2, 0, 0))  # two of three rows
    assert_close(weigh(fraction=0.0)[0], batch.weight[0])
    net.epoch = 9
    assert_close(weigh(threshold=0.1, start_epoch=10), batch.weight.expand(2, 4))


def test_error_norm_keeps_no_row_too_many_by_rounding():
    net, _ = stub()
    batch = rows(25, torch.ones(25), logits=torch.randn(1, 25, 4))
    kept = ErrorNormTruncation(fraction=0.4).weigh(net, batch, torch.zeros(1, 25))
    assert kept.sum() == 15


def test_error_norm_reads_the_softmax_while_the_cross_entropy_warms_up():
    batch = rows(6, logits=4 * rand(2, 6, K))
    weights = {
        (loss, warming): ErrorNormTruncation(0.8).weigh(
            stub(loss, warming=warming)[0], batch, torch.zeros(2, 6)
        )
        for loss in ("ce", "evidential")
        for warming in (True, False)
    }
    assert_close(weights["evidential", True], weights["ce", True])
    assert (weights["evidential", False] != weights["ce", False]).any()


# Fits -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def split():
    """Digits: training rows with 40 % of the labels wrong, and clean test rows."""
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.4, random_state=0, stratify=y)
    rng = np.random.default_rng(0)
    wrong = (y + rng.integers(1, 10, len(y))) % 10
    return X, np.where(rng.random(len(y)) < 0.4, wrong, y), X_test, y_test


def accuracy(split, strategy, seed=0):
    X, y, X_test, y_test = split
    clf = RobustClassifier(
        loss="ce", strategy=strategy, hidden=(128,), max_epochs=60, batch_size=64, dropout=0.0
    )
    return clf.set_params(random_state=seed).fit(X, y).score(X_test, y_test)


def test_clipping_and_selection_beat_the_cross_entropy(split):
    plain = accuracy(split, None)
    for strategy in ("ogc", "small_loss", SmallLoss(weights="hard"), "instance_reweighted"):
        assert accuracy(split, strategy) > plain + 0.04


ALIASES = ["ogc", "small_loss", "error_norm", "spectral", "holistic_robust", "instance_reweighted"]


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("loss", ["ce", "gce", "nce+rce", "evidential", "legendretron"])
def test_fits_with_members_and_is_free_of_rows_after(iris, alias, loss):
    clf = RobustClassifier(
        loss=loss,
        strategy=[make_strategy(alias), "mixup"],
        optimizer="sam",
        cross_fit=2,
        hidden=(4,),
        max_epochs=14,
        batch_size=50,
        random_state=0,
    ).fit(*iris)
    assert np.isfinite(clf.history_[:, "train_loss"]).all()
    assert clf.oof_proba_.std(0).max() > 0
    held = [name for s in clf.net_.strategies for name in vars(s) if name.endswith("_")]
    assert held == []
    proba = pickle.loads(pickle.dumps(clf)).predict_proba(iris[0])
    np.testing.assert_allclose(proba, clf.predict_proba(iris[0]), atol=1e-6)


@pytest.mark.parametrize(
    ("alias", "params", "message"),
    [
        ("ogc", {"eps": -1}, r"eps must lie in \[0, inf\), got -1"),
        ("ogc", {"queue_size": 1}, r"queue_size must lie in \[2, inf\)"),
        ("ogc", {"every": 0.5}, "every must lie in"),
        ("small_loss", {"threshold": 1.5}, r"threshold must lie in \[0, 1\], got 1.5"),
        ("small_loss", {"warm_up": 0}, r"warm_up must lie in \[1, inf\)"),
        (
            "small_loss",
            {"weights": "soft"},
            "unknown weights 'soft', allowed are 'posterior', 'hard'",
        ),
        ("error_norm", {"threshold": 0}, r"threshold must lie in \(0, 2\)"),
        ("error_norm", {"fraction": 1.0}, r"fraction must lie in \[0, 1\)"),
        ("error_norm", {"start_epoch": 0.5}, "start_epoch must be a whole number"),
        ("spectral", {"measure": "cva"}, "did you mean 'cvar'"),
        ("spectral", {"direction": "down"}, "unknown direction 'down', allowed are 'trim', 'up'"),
        (
            "spectral",
            {"measure": "cvar", "parameter": 2},
            r"parameter of cvar must lie in \(0, 1\], got 2",
        ),
        ("holistic_robust", {"alpha": 1}, r"alpha must lie in \[0, 1\), got 1"),
        ("holistic_robust", {"r": -1}, r"r must lie in \[0, inf\)"),
        ("holistic_robust", {"form": "dh"}, "unknown form 'dh'"),
        ("instance_reweighted", {"lam": 0}, r"lam must lie in \(0, inf\)"),
        ("instance_reweighted", {"direction": 1}, "unknown direction 1"),
    ],
)
def test_parameters_out_of_range_are_refused(alias, params, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(alias, **params).check(make_loss("ce"), K)


def test_ogc_refuses_a_loss_without_a_slope():
    with pytest.raises(ValueError, match="'ogc' clips the slope of a loss, but EnsLoss"):
        make_strategy("ogc").check(make_loss("ensloss"), K)
