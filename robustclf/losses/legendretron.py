"""A proper loss whose link function is learned with the network."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn
from torch.nn import functional as F

from robustclf.losses._base import LOSSES, Loss
from robustclf.losses._hyperparameters import check_integer


@LOSSES.register("legendretron")
class LegendreTron(Loss):
    r"""LegendreTron: cross entropy behind a learned link, so that the loss is proper and fits.

    .. math:: -\log p_y, \qquad p = \mathrm{softmax}(u_1, \dots, u_{K-1}, 0), \quad
        u = \nabla f_B \circ \dots \circ \nabla f_1 (x), \quad x_k = z_k - z_K

    The potentials f are convex: :math:`f(x) = a \|x\|^2 / 2 + b \, g(x)` with positive, learned a
    and b and an input-convex network g, so that every map is one-to-one and onto. `predict_proba`
    is p. The last class is the reference against which the others are measured.

    `build` makes the link, which is to be trained together with the network: `parameters` yields
    its weights. It starts near the identity, from which the loss is cross entropy.

    Parameters
    ----------
    blocks : int, default=2
        Gradient maps, in [1, inf). The default is that of the published experiments.
    hidden : int, default=4
        Units of a layer of the network g, in [1, inf). Half of them build on the layer before, the
        others on x alone. The default is that of the published code; its experiments take 2.
    depth : int, default=4
        Layers of the network g, in [1, inf). The default is that of the published experiments.

    Attributes
    ----------
    link_ : Link
        The learned inverse link, once built.

    Notes
    -----
    Published code differentiates the potential by automatic differentiation, for which a step
    needs a second derivative; here the gradient is written out. Left out is its ActNorm, which the
    first batch initialises. The paper's networks end in K - 1 logits, those of this package in K.

    References
    ----------
    K. Lam, C. Walder, S. Penev, R. Nock, "LegendreTron: uprising proper multiclass loss learning",
    ICML 2023, arXiv:2301.11695.

    Examples
    --------
    >>> import torch
    >>> from robustclf.losses import LegendreTron
    >>> _ = torch.manual_seed(0)
    >>> loss = LegendreTron().build(n_classes=3)
    >>> loss.per_label(torch.tensor([[2.0, 0.0, 0.0]])).detach()
    tensor([[0.2390, 2.2471, 2.2360]])
    >>> sum(parameter.numel() for parameter in loss.parameters())
    160
    """

    proper = True
    takes_log_p = False
    search_space = {"blocks": [1, 2, 3], "hidden": [2, 4, 8], "depth": [2, 4]}

    def __init__(self, blocks: int = 2, hidden: int = 4, depth: int = 4) -> None:
        self.blocks = blocks
        self.hidden = hidden
        self.depth = depth

    def check(self, n_classes: int) -> None:
        """Check all hyper-parameters."""
        check_integer("blocks", self.blocks, "[1, inf)")
        check_integer("hidden", self.hidden, "[1, inf)")
        check_integer("depth", self.depth, "[1, inf)")

    def build(self, n_classes: int, n_members: int = 1) -> LegendreTron:
        """Return the loss with a link of its own for each stacked network.

        Parameters
        ----------
        n_classes : int
        n_members : int, default=1
            For more than one, logits must be `(member, sample, class)`.
        """
        self.check(n_classes)
        link = Link(n_classes, n_members, self.blocks, self.hidden, self.depth)
        return self._replaced(link_=link)

    def learned(self) -> Iterator[nn.Module]:
        """Yield the link, once built."""
        if hasattr(self, "link_"):
            yield self.link_

    def of(self, x_y: Tensor, x: Tensor) -> Tensor:
        """Loss of the labels whose log probabilities, behind the link, are `x_y`."""
        return -x_y

    def inverse_link(self, logits: Tensor) -> Tensor:
        """Class probabilities, as the link reads the logits."""
        return self.prepare(logits).exp()

    def prepare(self, logits: Tensor) -> Tensor:
        """Return the log probabilities that the link makes of the logits."""
        if not hasattr(self, "link_"):
            raise NotFittedError(
                "this LegendreTron has no link to learn yet; call `loss.build(n_classes)` first "
                "and use the loss that it returns"
            )
        log_p: Tensor = self.link_(logits)
        return log_p


class Link(nn.Module):
    """Learned inverse links, one per member: logits to log probabilities.

    The number of members does not change what is drawn: all start from the same weights.

    Parameters
    ----------
    n_classes, n_members : int
    blocks, hidden, depth : int
        As for `LegendreTron`.

    Examples
    --------
    >>> import torch
    >>> link = Link(n_classes=3, n_members=2, blocks=2, hidden=4, depth=4)
    >>> link(torch.zeros(2, 5, 3)).exp().sum(-1).shape
    torch.Size([2, 5])
    """

    def __init__(self, n_classes: int, n_members: int, blocks: int, hidden: int, depth: int):
        super().__init__()
        self.n_members = n_members
        self.blocks = nn.ModuleList(
            ConvexGradient(n_members, n_classes - 1, hidden, depth) for _ in range(blocks)
        )

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits `(member, sample, class)`, or any `(..., class)` for one member, to log p.

        Logits of the first members alone are welcome too.
        """
        weight = next(self.parameters())
        dtype = torch.promote_types(torch.promote_types(logits.dtype, weight.dtype), torch.float32)
        z = logits.to(dtype)
        if self.n_members == 1:
            z = z.reshape(1, -1, z.shape[-1])
        u = z[..., :-1] - z[..., -1:]
        with torch.autocast(logits.device.type, enabled=False):
            for gradient in self.blocks:
                u = gradient(u)
        return F.pad(u, (0, 1)).log_softmax(-1).reshape(logits.shape).to(logits.dtype)

    def keep_members(self, n: int) -> None:
        """Drop all members but the first `n`."""
        self.n_members = n
        for parameter in self.parameters():
            parameter.data = parameter.data[:n].clone()
            parameter.grad = None


class ConvexGradient(nn.Module):
    r"""Gradient of the potential :math:`a \|x\|^2 / 2 + b \, g(x)`, one per member.

    The network g is convex in x, since its activations are convex and increasing and the weights
    between its layers are positive:

    .. math:: h_0 = \zeta(A_0 x + c_0), \qquad h_i = \zeta([V_i h_{i-1}; 0] + A_i x + c_i), \qquad
        g(x) = v^T h_D + w^T x

    with :math:`\zeta` the softplus, which also keeps V, v, a and b positive. In the backward pass
    written out in `forward`, its derivative is the sigmoid.

    Parameters
    ----------
    n_members, features : int
    hidden, depth : int
        As for `LegendreTron`.
    """

    def __init__(self, n_members: int, features: int, hidden: int, depth: int) -> None:
        super().__init__()

        def member_wise(start: Tensor) -> nn.Parameter:
            return nn.Parameter(start.expand(n_members, *start.shape).clone())

        def uniform(*shape: int, fan_in: int) -> nn.Parameter:
            return member_wise((2 * torch.rand(shape) - 1) / math.sqrt(fan_in))

        chained = hidden - hidden // 2
        # softplus makes 1 and 0.1 of them: near the identity, yet not too flat to leave it
        self.a = member_wise(torch.full((1, 1), math.log(math.expm1(1.0))))
        self.b = member_wise(torch.full((1, 1), math.log(math.expm1(0.1))))
        self.A = uniform(features, depth * hidden, fan_in=features)
        self.c = uniform(1, depth * hidden, fan_in=features)
        self.V = uniform(depth - 1, hidden, chained, fan_in=hidden)
        self.v = uniform(1, hidden, fan_in=hidden)
        self.w = member_wise(torch.zeros(1, features))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(member, sample, feature)` to the gradient there, of the same shape."""
        A, c, w = (p[: len(x)].to(x.dtype) for p in (self.A, self.c, self.w))
        positive = (F.softplus(p[: len(x)].to(x.dtype)) for p in (self.a, self.b, self.V, self.v))
        a, b, V, v = positive
        hidden, chained = V.shape[-2:]
        layers = (V / hidden).unbind(1)
        before, *own = (x @ A + c).split(hidden, -1)
        befores = [before]
        for V_i, own_i in zip(layers, own, strict=True):
            chain = F.softplus(befores[-1]) @ V_i
            befores.append(own_i + F.pad(chain, (0, hidden - chained)))
        slopes = [v / hidden * befores[-1].sigmoid()]
        for V_i, before in zip(reversed(layers), reversed(befores[:-1]), strict=True):
            slopes.append(slopes[-1][..., :chained] @ V_i.mT * before.sigmoid())
        return a * x + b * (torch.cat(slopes[::-1], -1) @ A.mT + w)
