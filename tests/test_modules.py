"""Layers and networks with a member axis against torch's own, one member at a time."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from robustclf.modules import (
    ACTIVATIONS,
    EMBEDDINGS,
    MODULES,
    Dropout,
    MemberLayerNorm,
    MemberLinear,
    PeriodicEmbedding,
    PiecewiseLinearEmbedding,
    TabularInput,
    make_embedding,
    make_network,
)


def build(module="mlp", n_members=2, n_dense=3, cardinalities=(), seeds=None, **options):
    numeric = options.pop("embedding", None)
    inputs = TabularInput(n_members, n_dense, n_dense, cardinalities, numeric)
    defaults = {"hidden": (6, 5), "activation": "relu", "dropout": 0.0}
    seeds = range(n_members) if seeds is None else seeds
    return make_network(module, inputs, n_members, 4, seeds=list(seeds), **defaults | options)


def rows(n=7, k=3):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(0))


def drawn(layer, n_members=2):
    for member in range(n_members):
        with torch.no_grad():
            layer.reset_member(member, torch.Generator().manual_seed(member))
    return layer


# Layers ---------------------------------------------------------------------------------------


def test_linear_is_one_affine_map_per_member():
    layer = drawn(MemberLinear(2, 3, 5))
    with torch.no_grad():
        layer.bias.normal_(generator=torch.Generator().manual_seed(5))
    x = rows().expand(2, -1, -1)
    for m in range(2):
        expected = F.linear(x[m], layer.weight[m].T, layer.bias[m, 0])
        assert_close(layer(x)[m], expected)


@pytest.mark.parametrize("gain", [1.0, math.sqrt(2)])
def test_linear_starts_at_the_scale_of_its_gain(gain):
    layer = drawn(MemberLinear(2, 400, 300, gain=gain))
    assert layer.weight.std().item() == pytest.approx(gain / 20, rel=0.01)
    assert layer.weight.abs().max().item() <= gain * math.sqrt(3 / 400)
    assert (layer.bias == 0).all()


def test_layer_norm_has_a_scale_per_member():
    norm, x = MemberLayerNorm(2, 3), rows().expand(2, -1, -1)
    with torch.no_grad():
        norm.scale[1], norm.shift[1] = 2.0, -1.0
    expected = F.layer_norm(x[0], (3,))
    assert_close(norm(x), torch.stack([expected, 2 * expected - 1]))


def test_periodic_embedding_by_hand():
    layer, x = drawn(PeriodicEmbedding(2, 3, n_frequencies=4, n_outputs=2)), rows()
    out = layer(x)
    assert out.shape == (2, 7, layer.out_features) == (2, 7, 9)
    for m in range(2):
        assert_close(out[m, :, :3], x)
        for j in range(3):
            angle = x[:, j, None] * layer.frequency[m, 0, j] * 2 * math.pi + layer.phase[m, 0, j]
            expected = torch.cos(angle) @ layer.mix[m, j]
            assert_close(out[m, :, 3 + 2 * j : 5 + 2 * j], expected)


def test_piecewise_linear_embedding_by_hand():
    edges = torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, 2.0]])
    layer = PiecewiseLinearEmbedding(edges)
    x = torch.tensor([[0.5, 1.5], [2.0, 1.0], [-1.0, 3.0], [4.0, 0.0]])
    expected = [[0.5, 0, 0, 0.5], [1, 0.5, 0, 0], [-1, 0, 0, 2], [1, 1.5, 0, 0]]
    assert_close(layer(x), torch.tensor(expected))


def test_a_bin_too_narrow_for_single_precision_is_empty():
    edges = torch.tensor([[0.0], [1e-300], [1.0]], dtype=torch.float64)
    layer = PiecewiseLinearEmbedding(edges).float()
    assert_close(layer(torch.tensor([[0.0], [0.5]])), torch.tensor([[0.0, 0.0], [0.0, 0.5]]))


def test_piecewise_linear_bins_are_quantiles():
    x = np.random.default_rng(0).exponential(size=(1000, 2))
    layer = make_embedding("piecewise_linear", x, 1, n_bins=4)
    out = layer(torch.from_numpy(x)).reshape(1000, 2, 4)
    inside = ((out > 0) & (out < 1)).double().mean(0)
    assert_close(inside, torch.full((2, 4), 0.25).double(), atol=0.01, rtol=0)
    # from sparse rows too
    sparse = make_embedding("piecewise_linear", csr_array(x), 1, n_bins=4)
    assert_close(sparse(torch.from_numpy(x)), layer(torch.from_numpy(x)))


@pytest.mark.parametrize("name", EMBEDDINGS.names())
def test_no_numbers_need_no_embedding(name):
    assert make_embedding(name, np.empty((5, 0)), 1) is None
    assert make_embedding(None, np.ones((5, 2)), 1) is None


@pytest.mark.parametrize("per_member", [False, True])
def test_categories_are_looked_up_in_the_table_of_each_member(per_member):
    inputs = TabularInput(2, 3, 3, (5, 20))
    network = build(cardinalities=(5, 20))
    inputs = network.inputs
    assert inputs.out_features == 3 + 5 + 8
    codes = torch.tensor([[0, 19], [4, 0], [2, 7]])
    x = torch.cat([rows(3), codes], 1)
    x = torch.stack([x, x.flip(0)]) if per_member else x
    out = inputs(x)
    assert out.shape == (2, 3, 16)
    for m in range(2):
        mine, mine_codes = (x[m], x[m, :, 3:].long()) if per_member else (x, codes)
        tables = [table.weight[m] for table in inputs.categories]
        looked_up = [table[mine_codes[:, j]] for j, table in enumerate(tables)]
        assert_close(out[m], torch.cat([mine[:, :3], *looked_up], 1))


def test_embedded_numbers_stand_before_the_other_dense_columns():
    embedding = PiecewiseLinearEmbedding(torch.tensor([[0.0, 0.0], [1.0, 2.0]]))
    inputs = TabularInput(1, 3, 2, (4,), embedding)
    out = inputs(torch.tensor([[0.5, 1.0, 7.0, 2.0]]))
    assert_close(out[0, 0, :3], torch.tensor([0.5, 0.5, 7.0]))
    assert out.shape[-1] == inputs.out_features == 3 + 4


def test_columns_that_are_not_embedded_stand_behind():
    embedding = PiecewiseLinearEmbedding(torch.tensor([[0.0, 0.0], [1.0, 2.0]]))
    inputs = TabularInput(1, 4, 3, (4,), embedding, embedded=[0, 2])
    out = inputs(torch.tensor([[0.5, 8.0, 1.0, 7.0, 2.0]]))
    assert_close(out[0, 0, :4], torch.tensor([0.5, 0.5, 8.0, 7.0]))
    assert out.shape[-1] == inputs.out_features == 4 + 4


# Networks -------------------------------------------------------------------------------------


def test_mlp_by_torch():
    network, x = build("mlp"), rows()
    for m in range(2):
        layers = [*network.body.layers, network.body.head]
        h = x
        for layer in layers[:-1]:
            h = F.relu(F.linear(h, layer.weight[m].T, layer.bias[m, 0]))
        assert_close(network.embed(x)[m], h)
        assert_close(network(x)[m], h @ layers[-1].weight[m] + layers[-1].bias[m])


def test_mlp_without_hidden_layers_is_linear():
    network, x = build("mlp", hidden=()), rows()
    twice = network(2 * x) - network(torch.zeros_like(x))
    assert_close(twice, 2 * (network(x) - network(torch.zeros_like(x))))
    assert_close(network.embed(x), x.expand(2, -1, -1))


def test_resnet_by_torch():
    network, x = build("resnet"), rows()
    body = network.body
    for m in range(2):

        def linear(layer, h, m=m):
            return h @ layer.weight[m] + layer.bias[m]

        h = linear(body.stem, x)
        assert h.shape == (7, 6)
        for expand, project in zip(body.expand, body.project, strict=True):
            h = h + linear(project, F.relu(linear(expand, F.layer_norm(h, (6,)))))
        h = F.relu(F.layer_norm(h, (6,)))
        assert_close(network.embed(x)[m], h)
        assert_close(network(x)[m], linear(body.head, h))


def test_resnet_needs_a_width():
    with pytest.raises(ValueError, match="'resnet' needs at least one entry in hidden"):
        build("resnet", hidden=())


@pytest.mark.parametrize("module", MODULES.names())
def test_dropout_acts_in_training_only(module):
    network, x = build(module, hidden=(40, 40), dropout=0.5), rows()
    network.eval()
    assert_close(network(x), network(x), rtol=0, atol=0)
    expected = network(x)
    network.train()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        assert (network(x) - network(x)).abs().max() > 1e-3
        mean = torch.stack([network.embed(x) for _ in range(20)]).mean(0)
    assert mean.shape == (2, 7, 40)
    network.eval()
    assert_close(network(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("p", [0.3, 0.5, 0.9])
def test_dropout_is_unbiased_and_independent(p):
    x = torch.full((2, 101, 997), 1.5, dtype=torch.float64, requires_grad=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        out = Dropout(p)(x)
        other = Dropout(p)(x)
    dropped = out == 0
    n = dropped.numel()
    assert abs(dropped.double().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5
    assert_close(out.max().item(), 1.5 / (1 - p), rtol=2**-12, atol=0)
    out.sum().backward()
    assert_close(x.grad, out.detach() / 1.5)
    for also in (dropped.roll(1, -1), dropped.roll(4, -1), dropped.roll(1, 0), other == 0):
        joint = (dropped & also).double().mean()
        assert abs(joint - p * p) < 5 * (p * p * (1 - p * p) / n) ** 0.5


def test_dropout_at_its_limits():
    x = torch.ones(1, 2, 3)
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5).eval()(x) is x
    for p in (1e-9, 1 - 1e-9):
        assert Dropout(p)(x).isfinite().all()


@pytest.mark.parametrize("module", MODULES.names())
@pytest.mark.parametrize("options", [{}, {"cardinalities": (4,)}])
def test_a_member_starts_from_the_same_weights_in_any_stack(module, options):
    stack = build(module, 3, seeds=(7, 8, 9), **options)
    alone = build(module, 1, seeds=(8,), **options)
    for many, one in zip(stack.parameters(), alone.parameters(), strict=True):
        assert_close(many[1:2], one, rtol=0, atol=0)
    weights = [p for p in stack.parameters() if p.std() > 0 and p.ndim == 3 and p.shape[1] > 1]
    assert weights
    assert all((p[0] - p[1]).abs().max() > 1e-3 for p in weights)


def test_a_member_with_periodic_numbers_starts_from_the_same_weights_in_any_stack():
    stack = build("mlp", 3, seeds=(7, 8, 9), embedding=PeriodicEmbedding(3, 3))
    alone = build("mlp", 1, seeds=(8,), embedding=PeriodicEmbedding(1, 3))
    assert_close(stack(rows())[1:2], alone(rows()))


@pytest.mark.parametrize("module", [*MODULES.names(), nn.Linear])
def test_keep_members(module):
    network, x = build(module, 3).eval(), rows()
    first = network(x)[:2].detach()
    network.keep_members(2)
    assert_close(network(x), first)
    assert network.embed(x).shape[0] == 2
    smaller = sum(p.numel() for p in build(module, 2).parameters())
    assert sum(p.untyped_storage().nbytes() // 4 for p in network.parameters()) == smaller


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(name):
    x = rows()
    network = build("mlp", 1, hidden=(5,), activation=name)
    hidden = x @ network.body.layers[0].weight[0]
    by_torch = torch.tanh if name == "tanh" else getattr(F, name)
    assert_close(network.embed(x)[0], by_torch(hidden))
    names = ["elu", "gelu", "leaky_relu", "mish", "relu", "selu", "silu", "tanh"]
    assert sorted(ACTIVATIONS) == names


def test_any_callable_is_an_activation():
    x = rows()
    network = build("mlp", 1, hidden=(5,), activation=torch.sin)
    assert_close(network.embed(x)[0], torch.sin(x @ network.body.layers[0].weight[0]))


def test_an_activation_that_learns_is_refused():
    for activation in (nn.PReLU(), nn.PReLU(5)):
        with pytest.raises(ValueError, match=r"PReLU.* has parameters, which all members"):
            build("mlp", 1, hidden=(5,), activation=activation)


def test_an_activation_that_is_a_class_is_refused():
    with pytest.raises(TypeError, match=r"must be a function or a module, got the class .*ReLU"):
        build("mlp", 1, hidden=(5,), activation=nn.ReLU)
    build("mlp", 1, hidden=(5,), activation=nn.ReLU())


# Modules of the user --------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self, in_features, n_classes, width=6):
        super().__init__()
        self.first = nn.Linear(in_features, width)
        self.last = nn.Linear(width, n_classes)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def test_a_module_class_is_built_once_per_member():
    network, x = build(Two, 3, width=8), rows()
    assert network.body.members[0].first.out_features == 8
    for member, logits, features in zip(
        network.body.members, network(x), network.embed(x), strict=True
    ):
        assert_close(logits, member(x))
        assert_close(features, torch.relu(member.first(x)))
    assert (network(x)[0] - network(x)[1]).abs().max() > 1e-3
    again = build(Two, 1, seeds=(1,), width=8)
    assert_close(again(x)[0], network(x)[1])


def test_a_module_is_copied_and_its_first_copy_keeps_its_weights():
    mine = Two(3, 4)
    kept = copy.deepcopy(mine.state_dict())
    network, x = build(mine, 3), rows()
    assert_close(network(x)[0], mine(x))
    assert (network(x)[1] - mine(x)).abs().max() > 1e-3
    assert (network(x)[1] - network(x)[2]).abs().max() > 1e-3
    with torch.no_grad():
        network.body.members[0].first.weight.zero_()
    assert_close(dict(mine.state_dict()), dict(kept))


def test_a_module_may_change_its_rows_in_place():
    network, x = build(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 4)), 2), rows()
    before = x.clone()
    logits, features = network(x), network.embed(x)
    assert_close(x, before, rtol=0, atol=0)
    for member, mine, of_mine in zip(network.body.members, logits, features, strict=True):
        assert_close(of_mine, x.relu())
        assert_close(mine, member[1](x.relu()))
    logits.sum().backward()


def test_modules_leave_the_generators_as_they_were(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", None)
    mine, before = Two(3, 4), torch.get_rng_state()
    build(Two, 3)
    build(mine, 3)
    assert torch.equal(torch.get_rng_state(), before)


class Pair(Two):
    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda n_inputs, n_classes: 3, "module must make a torch.nn.Module, got 3 of"),
        (Pair, "module must map rows to a tensor of logits, got tuple"),
    ],
    ids=["no module", "no tensor"],
)
def test_what_is_no_module_is_refused(module, message):
    with pytest.raises(TypeError, match=message):
        build(module, 1)


def test_embed_needs_a_linear_layer():
    unlinear = nn.Sequential(nn.ZeroPad1d((0, 1)))  # 3 columns, 4 classes
    with pytest.raises(ValueError, match=r"embed needs a module with a torch.nn.Linear layer"):
        build(unlinear, 1).embed(rows())


# Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"module": "mpl"}, "unknown module 'mpl', allowed are 'mlp', .*'resnet'; .* 'mlp'"),
        ({"activation": "rleu"}, "unknown activation 'rleu', allowed are .* did you mean 'relu'"),
        ({"depth": 3}, "unknown parameter of module 'mlp' 'depth'"),
        ({"hidden_": 3, "module": "resnet"}, "unknown parameter of module 'resnet' 'hidden_'"),
    ],
)
def test_what_is_unknown_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**{"module": "mlp"} | options)


def test_unknown_embedding():
    with pytest.raises(ValueError, match=r"unknown numeric_embedding 'peridic'.*'periodic'"):
        make_embedding("peridic", np.ones((3, 2)), 1)
