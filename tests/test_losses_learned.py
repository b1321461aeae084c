"""Theorems on the losses of evidence, of a learned link and of random slopes."""

import copy
import pickle

import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch.distributions import Dirichlet, kl_divergence
from torch.nn import functional as F
from torch.testing import assert_close

from robustclf.losses.ensloss import EnsLoss
from robustclf.losses.evidential import Evidential
from robustclf.losses.legendretron import LegendreTron


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def draw(*shape, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


def built(*args, n_members=1):
    """A LegendreTron for five classes whose link is some way off the identity."""
    torch.manual_seed(0)
    loss = LegendreTron(*args).build(5, n_members)
    loss.link_.double()
    for parameter in loss.parameters():
        parameter.data += 0.7 * torch.randn_like(parameter)
    return loss


LOGITS = draw(7, 5)
TARGET = torch.tensor([0, 1, 2, 3, 4, 0, 1])
ONES, EYE = torch.ones(1, 5), torch.eye(5)
EXTREMES = torch.cat([0 * ONES, ONES, -ONES, 2 * EYE - 1, 1 - 2 * EYE, EYE, draw(9, 5).tanh()])
FORMS = ["squared", "digamma", "log"]
EVIDENCE = {"softplus": F.softplus, "relu": F.relu, "exp": torch.exp}
LOSSES = {f"{form}, {name}": Evidential(form, name) for form in FORMS for name in EVIDENCE} | {
    "legendretron": built(),
    "legendretron, single": LegendreTron(3, 5, 2).build(5),
    "ensloss, 0": EnsLoss(),
    "ensloss, -1": EnsLoss(-1.0),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("soft", [False, True])
def test_extreme_logits_give_finite_losses_and_gradients(loss, dtype, soft):
    logits = (1e4 * EXTREMES).to(dtype).requires_grad_()
    target = torch.arange(len(logits)) % 5
    losses = loss(logits, 0.8 * F.one_hot(target, 5).to(dtype) + 0.04 if soft else target)
    losses.sum().backward()
    assert losses.dtype == dtype
    assert (losses.isfinite() & logits.grad.isfinite().all(-1)).all()


@each_loss
def test_vmap_over_samples_and_any_leading_axes(loss):
    randomness = "different" if loss.stochastic else "error"
    one = torch.func.vmap(loss, randomness=randomness)(LOGITS, TARGET)
    if not loss.stochastic:
        assert_close(one, loss(LOGITS, TARGET))
    for shape in [(5,), (1, 5), (2, 3, 7, 5), (0, 5)]:
        assert loss.per_label(draw(*shape)).shape == loss.inverse_link(draw(*shape)).shape == shape
        assert loss(draw(*shape), torch.tensor(1)).shape == shape[:-1]


@each_loss
def test_compiles_to_one_graph_and_ignores_autocast(loss):
    torch._dynamo.reset()
    compiled = torch.compile(lambda z, y: loss(z, y), fullgraph=True, backend="aot_eager")

    def run(call, autocast=False):
        torch.manual_seed(0)
        logits = LOGITS.float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = call(logits, TARGET)
        return losses, *torch.autograd.grad(losses.sum(), logits)

    assert_close(run(compiled), run(loss))
    assert_close(run(loss, autocast=True), run(loss))


@pytest.mark.parametrize("name", [name for name in LOSSES if not LOSSES[name].stochastic])
def test_gradient(name):
    loss = LOSSES[name]
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: (loss.per_label(z), loss(z, TARGET)), logits)


@pytest.mark.parametrize("loss", [built(), Evidential("log", kl_weight=0.0)], ids=["link", "log"])
def test_proper_losses_are_least_at_the_true_probabilities(loss):
    assert loss.proper
    eta = draw(3, 5, seed=1).softmax(-1)
    logits = torch.zeros(3, 5).double().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, line_search_fn="strong_wolfe")

    def risk():
        value = loss(logits, eta).sum()
        (logits.grad,) = torch.autograd.grad(value, logits)
        return value

    optimizer.step(risk)
    p = loss.inverse_link(logits)
    assert_close(p, eta, rtol=0, atol=1e-3)
    assert_close(p.sum(-1), torch.ones(3).double())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Evidential("sqared"), "unknown form 'sqared', allowed are .* did you mean 'squared'"),
        (Evidential(evidence="rleu"), "unknown evidence 'rleu', .* did you mean 'relu'"),
        (Evidential(kl_weight=-1.0), r"kl_weight must lie in \[0, inf\), got -1.0"),
        (Evidential(annealing_epochs=0.5), "annealing_epochs must be a whole number in .* got 0.5"),
        (LegendreTron(blocks=0), r"blocks must lie in \[1, inf\), got 0"),
        (LegendreTron(depth=1.5), r"depth must be a whole number in \[1, inf\), got 1.5"),
        (EnsLoss(1.5), r"box_cox must lie in \[-1, 1\], got 1.5"),
        (EnsLoss(torch.tensor([0.0, -2.0]).view(2, 1, 1)), r"box_cox must lie in \[-1, 1\]"),
    ],
)
def test_ranges(loss, message):
    with pytest.raises(ValueError, match=message):
        loss.build(5)


# --- evidential ---


def literal(form, alpha, y, kl_weight):
    S, p = alpha.sum(), alpha / alpha.sum()
    one_hot = torch.eye(len(alpha)).double()[y]
    fit = {
        "squared": ((one_hot - p) ** 2 + p * (1 - p) / (S + 1)).sum(),
        "digamma": torch.digamma(S) - torch.digamma(alpha[y]),
        "log": -torch.log(p[y]),
    }[form]
    wrong = Dirichlet(one_hot + (1 - one_hot) * alpha)
    return fit + kl_weight * kl_divergence(wrong, Dirichlet(torch.ones_like(alpha)))


@pytest.mark.parametrize("n_classes", [2, 5, 300])
@pytest.mark.parametrize("evidence", EVIDENCE)
@pytest.mark.parametrize("form", FORMS)
def test_evidential_equals_torch_distributions(form, evidence, n_classes):
    logits = draw(3, n_classes, scale=3.0)
    alpha = EVIDENCE[evidence](logits) + 1
    expected = [[literal(form, a, y, 0.3) for y in range(n_classes)] for a in alpha]
    loss = Evidential(form, evidence, kl_weight=0.3)
    assert_close(loss.per_label(logits), torch.tensor(expected).double(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
def test_evidential_keeps_its_digits_in_float32(scale):
    logits = draw(50, 10, scale=scale).float()
    exact = Evidential().per_label(logits.double()).float()
    assert_close(Evidential().per_label(logits), exact, rtol=1e-5, atol=1e-5)


def test_evidential_anneals_the_divergence():
    loss, plain = Evidential(kl_weight=0.5), Evidential(kl_weight=0.0)
    for epoch, share in [(0, 0.0), (3, 0.3), (10, 1.0), (25, 1.0)]:
        expected = share * loss(LOGITS, TARGET) + (1 - share) * plain(LOGITS, TARGET)
        assert_close(loss.at_epoch(epoch)(LOGITS, TARGET), expected)
    assert Evidential(annealing_epochs=0).at_epoch(0).kl_weight == 1.0
    assert (loss.kl_weight, loss.annealing_epochs) == (0.5, 10)


def test_vacuity_is_one_without_evidence_and_falls_with_it():
    vacuity = Evidential(evidence="relu").vacuity
    assert_close(vacuity(torch.tensor([[-1.0, -9.0], [3.0, -1.0]])), torch.tensor([1.0, 2 / 5]))
    assert (Evidential().vacuity(torch.arange(-5, 5)[:, None] * ONES).diff() < 0).all()


def test_facts_of_evidential_follow_its_parameters():
    assert not any([Evidential().bounded, Evidential("log").proper])
    assert Evidential(kl_weight=0.0).bounded
    assert Evidential(kl_weight=0.0).per_label(draw(500, 5, scale=1e3)).max() < 2.5
    bounded = Evidential("log", evidence="exp")
    assert bounded.bounded
    assert bounded.per_label(1e3 * LOGITS).equal(bounded.per_label(1e4 * LOGITS))


# --- LegendreTron ---


def potential(block, x):
    """a |x|^2 / 2 + b g(x) with the input-convex network g, written out for one member."""
    a, b, V, v = (F.softplus(p[0]) for p in (block.a, block.b, block.V, block.v))
    hidden, chained = V.shape[-2:]
    own = (x @ block.A[0] + block.c[0]).unflatten(-1, (-1, hidden))
    h = F.softplus(own[:, 0])
    for i, V_i in enumerate(V):
        chain = F.softplus(h @ V_i / hidden + own[:, i + 1, :chained])
        h = torch.cat([chain, F.softplus(own[:, i + 1, chained:])], -1)
    g = (h * v).sum(-1) / hidden + x @ block.w[0, 0]
    return a.squeeze() * x.square().sum(-1) / 2 + b.squeeze() * g


@pytest.mark.parametrize("args", [(2, 4, 4), (2, 5, 3), (2, 1, 2), (2, 4, 1)])
def test_maps_are_strictly_monotone_and_the_gradients_of_their_potential(args):
    x, other = draw(500, 4, scale=5.0).requires_grad_(), draw(500, 4, scale=5.0, seed=1)
    for block in built(*args).link_.blocks:
        (expected,) = torch.autograd.grad(potential(block, x).sum(), x)
        assert_close(block(x[None])[0], expected)
        rise = block(x[None])[0] - block(other[None])[0]
        assert (((x - other) * rise).sum(-1) > 0).all()


@pytest.mark.parametrize("n_classes", [2, 5, 100])
def test_link_starts_near_the_identity(n_classes):
    loss, logits = LegendreTron().build(n_classes), draw(50, n_classes)
    with torch.inference_mode():
        p = loss.inverse_link(logits)
        assert_close(p, (-loss.per_label(logits)).exp())
    assert 0 < (p - logits.softmax(-1)).abs().max() < 0.05


def test_training_the_link_alone_lowers_the_loss():
    logits, target = draw(200, 5, scale=5.0), draw(200, 5, seed=1).argmax(-1)
    target[:120] = logits[:120].argmax(-1)
    loss = LegendreTron().build(5)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    before = loss(logits, target).mean()
    for _ in range(150):
        optimizer.zero_grad()
        loss(logits, target).mean().backward()
        optimizer.step()
    assert all(parameter.grad.abs().max() > 0 for parameter in loss.parameters())
    assert loss(logits, target).mean() < 0.6 * before


def test_members_equal_a_loop():
    stack = built(n_members=3)
    logits = draw(3, 7, 5)
    single, singles = built(), []
    for m in range(3):
        for own, stacked in zip(single.parameters(), stack.parameters(), strict=True):
            own.data = stacked.data[m : m + 1]
        singles.append(single(logits[m], TARGET))
    assert_close(stack(logits, TARGET), torch.stack(singles))
    stack.link_.keep_members(2)
    assert_close(stack(logits[:2], TARGET), torch.stack(singles[:2]))


def test_members_start_equal_whatever_their_number():
    one = LegendreTron().build(5)
    torch.manual_seed(0)
    three = LegendreTron().build(5, n_members=3)
    for alone, stacked in zip(one.parameters(), three.parameters(), strict=True):
        assert stacked.equal(alone.expand_as(stacked))


def test_copies_keep_the_link_and_clones_drop_it():
    loss = built()
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert_close(other(LOGITS, TARGET), loss(LOGITS, TARGET))
        assert next(other.parameters()) is not next(loss.parameters())
    assert list(clone(loss).parameters()) == []
    with pytest.raises(NotFittedError, match=r"call `loss.build\(n_classes\)` first"):
        clone(loss).per_label(LOGITS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_precision_is_that_of_the_wider_of_logits_and_link(dtype):
    single = LegendreTron().build(5)
    double = copy.deepcopy(single)
    double.link_.double()
    exact = double.per_label(LOGITS.to(dtype).double())
    for loss in (single, double):
        assert_close(loss.per_label(LOGITS.to(dtype)), exact.to(dtype))


# --- EnsLoss ---


@pytest.mark.parametrize("seed", range(3))
def test_two_classes_are_the_published_algorithm(seed):
    logits, target = draw(50, 2, seed=seed), draw(50, seed=9).gt(0).long()
    margins = (2 * target - 1) * (logits[:, 1] - logits[:, 0])
    torch.manual_seed(seed)
    slopes = torch.empty_like(margins)
    slopes[margins.argsort()] = (-torch.randn_like(margins).exp()).sort().values.clamp(min=-1)
    slopes = torch.where(margins > 1, slopes / margins, slopes) - 1e-6
    torch.manual_seed(seed)
    z = logits.clone().requires_grad_()
    losses = EnsLoss()(z, target)
    assert_close(losses, slopes * margins)
    losses.sum().backward()
    assert_close(z.grad[range(50), target], slopes)
    assert not EnsLoss()(logits, target).equal(losses)


@pytest.mark.parametrize("box_cox", [-1.0, -0.3, 0.0, 1e-8, 0.5, 1.0])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_slopes_are_those_of_a_convex_decreasing_loss(box_cox, n_classes):
    margins = draw(300, n_classes - 1)
    for _ in range(5):
        slopes = EnsLoss(box_cox)._slopes(margins)
        assert (slopes < 0).all()
        assert slopes.min() >= -1 - 1e-6
        assert (slopes.flatten()[margins.flatten().argsort()].diff() >= 0).all()
        assert (slopes * margins.clamp(min=1) >= -1 - 1e-6 * margins.clamp(min=1)).all()
    u = torch.special.ndtri(torch.tensor(0.3).double())
    expected = (1 + box_cox * u) ** (1 / box_cox) if abs(box_cox) > 1e-6 else u.exp()
    drawn = EnsLoss(box_cox)._slopes(torch.zeros(20000, 1).double())
    assert_close((-drawn).quantile(0.3), expected, rtol=0, atol=0.03)


def test_members_draw_on_their_own_and_sort_their_own_batch():
    powers = torch.tensor([0.0, 0.5, -1.0]).double().view(3, 1, 1)
    margins = draw(40, 3).expand(3, 40, 3)
    slopes = EnsLoss(powers)._slopes(margins)
    assert (slopes.flatten(1).gather(1, margins.flatten(1).argsort(1)).diff() >= 0).all()
    assert EnsLoss(powers).per_label(draw(3, 6, 4)).shape == (3, 6, 4)
    assert not torch.allclose(*EnsLoss()._slopes(margins[:2]))


def test_soft_targets_draw_for_every_label():
    logits = draw(32, 4)
    torch.manual_seed(0)
    per_label = EnsLoss().per_label(logits)
    torch.manual_seed(0)
    each = [EnsLoss()(logits, torch.full((32,), label)) for label in range(4)]
    assert_close(per_label, torch.stack(each, -1))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_ensloss_trains_a_linear_model(n_classes, soft):
    x = torch.randn(400, 5)
    y = (x @ torch.randn(5, n_classes)).argmax(-1)
    target = F.one_hot(y).float() if soft else y
    weight = torch.zeros(5, n_classes, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.9)
    for batch in torch.randint(400, (150, 100)):
        optimizer.zero_grad()
        EnsLoss()(x[batch] @ weight, target[batch]).mean().backward()
        optimizer.step()
    assert ((x @ weight).argmax(-1) == y).float().mean() > 0.9
