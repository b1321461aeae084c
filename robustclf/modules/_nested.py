"""Networks whose last features are ordered by importance, so that the first few suffice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from robustclf.losses._hyperparameters import check_range
from robustclf.modules._layers import Activation
from robustclf.modules._networks import MLP, Headed, ResNet

BLOCK = 2**19  # logits at once, where every number of features is tried


class NestedDropout(Headed):
    r"""Nested dropout of the last hidden layer, in front of the class of a network.

    In training each batch keeps the first k features and sets those behind to zero, with

    .. math:: p(k) \propto \exp\left(-(k / \sigma)^2\right), \qquad k = 1, \ldots, \mathrm{width}.

    A feature so learns to add to those in front of it, and what takes many of them to say, such as
    the wrong labels of single rows, is left to the last. In evaluation member m keeps its first
    ``n_kept[m]`` features. :class:`~robustclf.RobustClassifier` holds rows out (unless given
    ``X_val``), tries every number after each epoch, and keeps that with the best accuracy there,
    the fewest features in case of a tie. ``partial_fit`` holds none out: all are kept, or as many
    as a ``fit`` before it chose.

    Parameters
    ----------
    n_members, in_features, n_classes, hidden, activation, dropout
        As of the network. Dropout acts on the hidden layers in front of the last one only: nested
        dropout takes its place there, as published.
    sigma : float, optional
        Scale of k in features, positive: the mean of k is about 0.56 sigma, or half the width
        where sigma is far larger. Published: 10 (CIFAR-10) and 100 (CIFAR-100, Clothing1M,
        ANIMAL-10N) of 512 features. By default a fifth of the width, the larger of the two.

    Attributes
    ----------
    n_kept : tensor of shape (member,)
        Features that each member keeps in evaluation; a part of the state.

    Raises
    ------
    ValueError
        If sigma is not positive, or there is no hidden layer.

    Notes
    -----
    As in the published code one k is drawn for all rows of a batch, and features are not scaled up
    for those left out. Members draw the same k, so that none depends on which others are in the
    stack. In the paper co-teaching fine-tunes two nested networks; ``strategy="co_teaching"`` here
    trains with nested dropout from the start.

    The paper chooses k on clean rows. Among a few held-out rows with wrong labels the best of many
    k is partly luck: ``X_val`` with right labels is worth having, and ``early_stopping``, which
    takes the best of these again, may do harm. Few features also learn slowly: with the cross
    entropy and 30 to 40 % wrong labels, the accuracy of the default network rose on digits (.87 to
    .90) and breast_cancer (.73 to .77), and fell where many classes meet few rows, on letter (2,000
    rows, .75 to .69) and vowel (.71 to .65). Search over sigma.

    References
    ----------
    Chen, Hu, Shen, Ai, Suykens. Compressing Features for Learning with Noisy Labels. IEEE TNNLS
    2022. arXiv:2206.13140.
    Rippel, Gelbart, Adams. Learning Ordered Representations with Nested Dropout. ICML 2014.
    arXiv:1402.0915.

    Examples
    --------
    >>> import torch
    >>> from robustclf.modules import NestedMLP
    >>> network = NestedMLP(2, in_features=4, n_classes=3, hidden=(5,)).eval()
    >>> network.n_kept = torch.tensor([2, 3])
    >>> network.drop(torch.ones(2, 1, 5))
    tensor([[[1., 1., 0., 0., 0.]],
    <BLANKLINE>
            [[1., 1., 1., 0., 0.]]])
    """

    needs_held_out: ClassVar[bool] = True
    n_kept: Tensor
    survival: Tensor

    def __init__(
        self,
        n_members: int,
        in_features: int,
        n_classes: int,
        hidden: Sequence[int] = (256, 256),
        activation: Activation = F.relu,
        dropout: float = 0.0,
        sigma: float | None = None,
    ) -> None:
        if not hidden:
            raise ValueError("nested dropout needs at least one entry in hidden, got none.")
        super().__init__(n_members, in_features, n_classes, hidden, activation, dropout)
        width = self.head.weight.shape[1]
        sigma = width / 5 if sigma is None else sigma
        check_range("sigma", sigma, "(0, inf)")
        log_p = -(torch.arange(1, width + 1, dtype=torch.float64) / sigma).square()
        survival = log_p.softmax(0).flip(0).cumsum(0).flip(0)
        self.register_buffer("survival", survival.float(), persistent=False)  # P(k >= 1), ...
        self.register_buffer("n_kept", torch.full((n_members,), width))

    def drop(self, features: Tensor) -> Tensor:
        """Keep the first features: in training k of them, one draw for the batch."""
        if self.training:
            return features * (self.survival > torch.rand(()))
        place = torch.arange(features.shape[-1], device=features.device)
        return features * (place < self.n_kept.view(-1, 1, 1))

    def keep_all(self) -> None:
        """Keep all features in evaluation."""
        self.n_kept.fill_(len(self.survival))

    @torch.no_grad()
    def keep_best(self, features: Iterable[Tensor], target: Tensor, weight: Tensor) -> None:
        """Keep as many features as are most accurate; the fewest of those that are.

        Parameters
        ----------
        features : iterable of tensors of shape (member, sample, width)
            All features of consecutive held-out rows.
        target, weight : tensors of shape (sample,)
            The labels of all these rows and their weights.
        """
        correct = torch.zeros_like(self.head.weight[..., 0])
        n_rows = max(1, BLOCK // self.head.weight.numel())
        start = 0
        for block in (b for f in features for b in f.split(n_rows, dim=1)):
            stop = start + block.shape[1]
            right = self._predicted(block) == target[start:stop, None]
            correct += (right * weight[start:stop, None]).sum(1)
            start = stop
        self.n_kept.copy_(correct.argmax(-1) + 1)  # the first of several maxima

    def _predicted(self, features: Tensor) -> Tensor:
        """Return the class predicted with the first 1, 2, ... features, (member, sample, k)."""
        parts = features.unsqueeze(-1) * self.head.weight.unsqueeze(1)
        logits = parts.cumsum(2).add_(self.head.bias.unsqueeze(2))
        return logits.argmax(-1)


class NestedMLP(NestedDropout, MLP):
    """Multi-layer perceptrons with nested dropout; see :class:`NestedDropout`.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(loss="gce", module="nested_mlp", module__sigma=20)
    >>> clf = clf.set_params(random_state=0).fit(X, y)
    >>> bool(clf.net_.module_.body.n_kept < 256), clf.score(X, y) > 0.95
    (True, True)
    """


class NestedResNet(NestedDropout, ResNet):
    """Residual networks with nested dropout of what the head reads; see :class:`NestedDropout`.

    Examples
    --------
    >>> from robustclf.modules import NestedResNet
    >>> NestedResNet(2, in_features=4, n_classes=3, hidden=(8, 16), sigma=2.0).n_kept
    tensor([8, 8])
    """
