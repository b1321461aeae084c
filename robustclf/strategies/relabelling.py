"""Strategies that edit labels: by a constant, or by the network's own predictions."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustclf._registry import check_known
from robustclf.losses import CrossEntropy
from robustclf.losses._hyperparameters import check_integer, check_range
from robustclf.strategies._base import STRATEGIES, Batch, Strategy
from robustclf.strategies._unlabelled import SemiSupervised, with_guesses

PUBLISHED_BETA = {"hard": 0.8, "soft": 0.95}


def predicted(net: Any, logits: Tensor) -> Tensor:
    """Return the probabilities that the loss of this epoch reads off the logits."""
    if net.warming:  # the cross entropy trains
        return logits.softmax(-1)
    p: Tensor = net.criterion_.loss.inverse_link(logits)
    return p


def one_hot(label: Tensor, like: Tensor) -> Tensor:
    """Return labels as distributions, of the classes and the type of ``like``."""
    return torch.nn.functional.one_hot(label, like.shape[-1]).to(like.dtype)


@STRATEGIES.register("label_smoothing")
class LabelSmoothing(Strategy):
    r"""Move a part of every target to the uniform distribution.

    .. math:: t \leftarrow (1 - \varepsilon)\, t + \varepsilon / K

    Parameters
    ----------
    epsilon : float, default=0.1
        Probability mass spread over all K classes, the given one included; in [0, 1].

    Raises
    ------
    ValueError
        If ``epsilon`` lies outside [0, 1].

    Notes
    -----
    On a symmetric loss (MAE, normalised losses), whose sum over the labels is a constant, smoothing
    only scales the loss by ``1 - epsilon``.

    References
    ----------
    Szegedy et al. Rethinking the Inception Architecture for Computer Vision. CVPR 2016.
    arXiv:1512.00567. Under label noise: Lukasik et al. ICML 2020. arXiv:2003.02819.

    Examples
    --------
    >>> import torch
    >>> from robustclf.strategies import STRATEGIES, Batch, LabelSmoothing
    >>> logits = torch.zeros(1, 2, 4)
    >>> batch = Batch(torch.zeros(2, 3), torch.tensor([0, 2]), torch.ones(1, 2), torch.arange(2))
    >>> LabelSmoothing(epsilon=0.2).relabel(None, batch, logits)
    tensor([[0.8500, 0.0500, 0.0500, 0.0500],
            [0.0500, 0.0500, 0.8500, 0.0500]])
    """

    stackable = True

    def __init__(self, epsilon: float = 0.1) -> None:
        self.epsilon = epsilon

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` unless epsilon lies in [0, 1]."""
        check_range("epsilon", self.epsilon, "[0, 1]")

    def relabel(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the smoothed targets, ``([member,] sample, class)``."""
        n_classes = logits.shape[-1]
        return (1 - self.epsilon) * batch.distribution(n_classes) + self.epsilon / n_classes


@STRATEGIES.register("bootstrap")
class Bootstrap(Strategy):
    r"""Move a part of every target to what the network predicts now.

    .. math:: t \leftarrow \beta\, t + (1 - \beta)\, p, \qquad
              p = \text{the most probable class (hard) or the prediction (soft)}

    Parameters
    ----------
    beta : float or None, default=None
        Share of the given target, in [0, 1]. None is the published value: 0.8 for the hard form,
        0.95 for the soft one.
    form : {"hard", "soft"}, default="hard"
        Whether the prediction enters as its most probable class or as probabilities.

    Raises
    ------
    ValueError
        If ``beta`` lies outside [0, 1] or ``form`` is unknown.

    Warns
    -----
    UserWarning
        For the soft form with the cross entropy, whose gradient it only multiplies by ``beta``.

    Notes
    -----
    A target is a constant of the step, so no gradient flows through the prediction. In published
    code it does in the soft form, which then adds ``1 - beta`` times the entropy of the prediction
    to the cross entropy.

    References
    ----------
    Reed et al. Training Deep Neural Networks on Noisy Labels with Bootstrapping. ICLR 2015
    workshop. arXiv:1412.6596.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> from robustclf.strategies import Bootstrap
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(loss="ce", strategy=Bootstrap(0.7), random_state=0)
    >>> clf.fit(X, y).score(X, y) > 0.95
    True
    """

    stackable = True

    def __init__(self, beta: float | None = None, form: str = "hard") -> None:
        self.beta = beta
        self.form = form

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for a parameter out of range."""
        check_known("form of strategy 'bootstrap'", [self.form], PUBLISHED_BETA)
        if self.beta is not None:
            check_range("beta", self.beta, "[0, 1]")
        if self.form == "soft" and isinstance(loss, CrossEntropy):
            warnings.warn(
                "strategy 'bootstrap' with form='soft' only scales the gradient of loss='ce'; "
                "use form='hard' or another loss.",
                UserWarning,
                stacklevel=2,
            )

    def relabel(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the mean of target and prediction, ``(member, sample, class)``."""
        p = predicted(net, logits)
        if self.form == "hard":
            p = one_hot(p.argmax(-1), p)
        beta = PUBLISHED_BETA[self.form] if self.beta is None else self.beta
        return beta * batch.distribution(p.shape[-1]) + (1 - beta) * p


class Remembering(SemiSupervised):
    """Base of the strategies that keep a distribution for each member and training row.

    ``relabel`` leaves in ``updated_`` what the rows of the batch are remembered by from now on.
    """

    uses_unlabelled: ClassVar[bool] = False

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Start from the given labels: what is remembered belongs to the rows of one fit."""
        super().on_train_begin(net, X, y, **kwargs)
        self.rows_ = X
        classes = X.weight.new_empty(net.n_classes)
        self.memory_ = one_hot(X.y, classes).repeat(net.n_stacked, 1, 1)

    def on_batch_end(self, net: Any, batch: Any = None, training: Any = None, **kw: Any) -> None:
        """Remember the predictions of this step."""
        if training:
            self.memory_[:, batch.index] = self.updated_

    def predicted_rows(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the probabilities of the rows themselves, also where the batch is mixed."""
        if batch.mixing is not None:
            logits = net.module_(batch.mixing.x).to(logits.dtype)
        return predicted(net, logits)

    def mixed(self, batch: Batch, target: Tensor) -> Tensor:
        """Put targets in the place of the given labels, mixed as the batch is mixed.

        Each counts with the weight of its row. What rows without label train on stays.
        """
        before = batch.distribution(target.shape[-1])
        if batch.mixing is None:
            if self.unlabelled_ is None:
                return target
            labelled = self.unlabelled_.index_select(1, batch.index) == 0
            return torch.where(labelled.unsqueeze(-1), target, before)
        weight = self.rows_.weight.index_select(1, batch.index).unsqueeze(-1)
        new = batch.mixing(weight * target)
        if self.unlabelled_ is not None:
            given = batch.mixing(weight * one_hot(self.rows_.y[batch.index], target))
            new = new + (batch.weight.unsqueeze(-1) * before - given).relu()
        return new / new.sum(-1, keepdim=True).clamp_min(torch.finfo(new.dtype).tiny)


@STRATEGIES.register("selc")
class SELC(Remembering):
    r"""Self-ensemble label correction: fade the labels out in favour of past predictions.

    .. math:: t_i \leftarrow \alpha\, t_i + (1 - \alpha)\, p_i

    from epoch ``warm_up`` on. :math:`t_i` starts as the given label, so after m more epochs that
    label still has the weight :math:`\alpha^m`; the rest is an average of the predictions.

    Parameters
    ----------
    momentum : float, default=0.9
        The factor alpha, in [0, 1]. Published: 0.9.
    warm_up : int, default=10
        Epochs that train with the given labels, at least 0. Published: the epoch in which the
        network begins to memorise wrong labels; 10 in the code.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    As in the published code, the prediction of a step is part of the target of that step. The
    targets are built from the given labels, so in a list this strategy comes before others that
    edit targets. After mixup the corrected targets are mixed, and they are corrected by the
    predictions of the unmixed rows, which costs a second forward pass.

    References
    ----------
    Lu, He. SELC: Self-Ensemble Label Correction Improves Learning with Noisy Labels. IJCAI 2022.
    arXiv:2205.01156.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> from robustclf.strategies import SELC
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(loss="ce", strategy=SELC(warm_up=20), random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    def __init__(self, momentum: float = 0.9, warm_up: int = 10) -> None:
        self.momentum = momentum
        self.warm_up = warm_up

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("momentum", self.momentum, "[0, 1]")
        check_integer("warm_up", self.warm_up, "[0, inf)")

    def relabel(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the corrected targets, ``(member, sample, class)``."""
        past = self.memory_[:, batch.index]
        if net.epoch < self.warm_up:
            self.updated_ = past
            return batch.target
        self.updated_ = torch.lerp(self.predicted_rows(net, batch, logits), past, self.momentum)
        return self.mixed(batch, self.updated_)


@STRATEGIES.register("refurbish")
class Refurbish(Remembering):
    r"""Replace labels that the network has long and constantly disagreed with.

    .. math::
        t_i \leftarrow e_c, \quad c = \arg\max_k \bar e_{ik},
        \qquad \text{where } \bar e_{ic} > \text{threshold}

    from epoch ``warm_up`` on; :math:`e_c` is the one-hot vector of class c and :math:`\bar e_i` the
    exponentially weighted mean of the labels predicted for the row in the epochs before. All other
    rows keep their labels, and a replaced label comes back once the predictions waver. Rows
    without label train on :math:`e_c` while they do not.

    Parameters
    ----------
    threshold : float, default=0.9
        Weighted share of the predictions, in [0, 1], above which their label takes the place of
        the given one.
    warm_up : int, default=10
        Epochs that train with the given labels, at least 0.
    decay : float, default=0.9
        Weight of the past in the running mean, in [0, 1); 0.9 averages over about 10 epochs.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    SELFIE calls a row refurbishable when the entropy of its predicted labels in the last 15 epochs
    is at most 0.05 of the largest one, that is if all of them are the same; here a running mean
    takes the place of that history. SELFIE also needs the noise rate and leaves out the rows with
    a large loss that cannot be refurbished: add ``"co_teaching"`` or another selection for that.
    In a list this strategy comes before others that edit targets. After mixup the refurbished
    targets are mixed, and the mean is that of the unmixed rows, which costs a second forward pass.
    The mean over the rows without label counts as much as that over the others, as in
    ``"pseudo_label"``.

    References
    ----------
    Song, Kim, Lee. SELFIE: Refurbishing Unclean Samples for Robust Deep Learning. ICML 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> from robustclf.strategies import Refurbish
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(loss="ce", strategy=Refurbish(0.8), random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95
    True
    """

    uses_unlabelled: ClassVar[bool] = True

    def __init__(self, threshold: float = 0.9, warm_up: int = 10, decay: float = 0.9) -> None:
        self.threshold = threshold
        self.warm_up = warm_up
        self.decay = decay

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for parameters out of range."""
        check_range("threshold", self.threshold, "[0, 1]")
        check_integer("warm_up", self.warm_up, "[0, inf)")
        check_range("decay", self.decay, "[0, 1)")

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Start with no predictions."""
        super().on_train_begin(net, X, y, **kwargs)
        self.memory_.zero_()

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Give the rows without label, where the network is sure of them, a label and weight."""
        if self.unlabelled_ is None or net.epoch < self.warm_up:
            return batch
        weight = self.unlabelled_.index_select(1, batch.index)
        if batch.mixing is None:
            weight = weight * (batch.weight == 0)
        past = self.memory_[:, batch.index]
        sure, best = self._sure(past)
        return with_guesses(batch, one_hot(best, past), weight * sure)

    def relabel(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the refurbished targets, ``(member, sample, class)``."""
        past = self.memory_[:, batch.index]
        now = one_hot(self.predicted_rows(net, batch, logits).argmax(-1), past)
        self.updated_ = torch.lerp(now, past, self.decay)
        if net.epoch < self.warm_up:
            return batch.target
        sure, best = self._sure(past)
        label = torch.where(sure, best, self.rows_.y[batch.index])
        return self.mixed(batch, one_hot(label, past))

    def _sure(self, past: Tensor) -> tuple[Tensor, Tensor]:
        """Return whether a row's label is to be replaced, and by which, ``(member, sample)``."""
        # the weights of n predictions sum to 1 - decay^n, which the sum over the classes is
        mean = past / past.sum(-1, keepdim=True).clamp_min(torch.finfo(past.dtype).tiny)
        confidence, best = mean.max(-1)
        return confidence > self.threshold, best
