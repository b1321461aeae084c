"""Loss correction by the matrix of the noise: given, estimated on the way, or from trusted rows."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from robustclf._registry import check_known
from robustclf.losses import BackwardCorrected, ForwardCorrected
from robustclf.losses._hyperparameters import check_range
from robustclf.noise._guards import check_rate_limit
from robustclf.noise.transition import transition_matrix
from robustclf.strategies._base import STRATEGIES, Batch, Strategy
from robustclf.strategies.relabelling import one_hot, predicted

CORRECTIONS = {"forward": ForwardCorrected, "backward": BackwardCorrected}
METHODS = ("confident_joint", "anchor", "dual_t", "em")
LARGEST_CONDITION = 100.0  # of an estimate that backward correction inverts


@STRATEGIES.register("transition")
class Transition(Strategy):
    r"""Forward or backward correction by a matrix that is known or estimated during the fit.

    .. math::
        \ell(T^\top p)_y \ \text{(forward)}, \qquad
        \sum_j (T^{-1})_{yj} \, \ell_j(p) \ \text{(backward)}

    in place of :math:`\ell_y(p)`; :math:`T_{ij}` is the probability of the label j given that the
    true class is i, and p, the softmax of the logits, is the prediction of the true class.

    Parameters
    ----------
    matrix : {"estimate", "trusted"} or array-like (n_classes, n_classes), default="estimate"
        T itself, whose rows sum to one; "estimate", from the predictions of members for the rows
        they did not train on, for which the fit adds members (see ``cross_fit``); "trusted", the
        mean prediction for the rows of each class in ``fit(..., trusted=...)``.
    correction : {"forward", "backward"}, default="forward"
        Backward is unbiased too, but has negative coefficients: choose a bounded loss for it.
    method : {"confident_joint", "anchor", "dual_t", "em"}, default="confident_joint"
        How "estimate" estimates: see :func:`robustclf.noise.estimate_transition`.
    start : float, default=0.3
        Share of the epochs, in (0, 1), before a matrix is estimated, from the mean of the
        predictions until then, and used; one that is given is used from the first epoch.
    rate : float, "estimate" or None, default=None
        Share of wrong labels that an estimate may not exceed: see there, too. "estimate" costs less
        on clean labels (vowel .92 instead of .91) and gains less where some classes have wrong
        labels and others not (digits .91 instead of .93, plain .76).

    Attributes
    ----------
    transition_ : ndarray of shape (n_classes, n_classes)
        T as it was used, the identity until it is estimated: ``clf.net_.strategies[0].transition_``
        after a fit.

    Raises
    ------
    ValueError
        If a parameter is out of range, or a given matrix is no transition matrix, or singular
        for backward correction.

    Warns
    -----
    UserWarning
        If an estimate cannot be right: a class of which few rows are predicted, or without trusted
        row, is then taken for free of noise, as are classes that labels do not tell apart; a class
        that mostly gets one other label, for half wrong.

    Notes
    -----
    All members share T. A row's label counts in T with a prediction of members that did not see
    it, but T brings it back to them as one part in n of a few shares: so little that out-of-fold
    probabilities stay what they are. ``partial_fit`` has no folds; its estimate uses predictions
    for the rows trained on and finds too little noise.

    "trusted" is GLC within one fit. Until ``start`` the trusted rows have weight 0, so that the
    estimate is that of unseen rows; then they train with the plain loss, all others with the
    corrected one. GLC trains twice, the second time from new weights. In a mixed batch a row is
    observed as trusted to the share that comes from trusted rows.

    An estimate needs a network that predicts most clean labels: of rows it has not yet learned, or
    that are too few (some hundreds), the mistakes are taken for noise. On digits with 40 % of the
    labels moved to the next class, plain cross entropy has an accuracy of 0.65, an estimate 0.93,
    a tenth of the rows trusted 0.96 and the true matrix 0.98; on wine (124 rows) an estimate gains
    nothing. Against symmetric noise, where the most frequent label is the true one anyway, even the
    true matrix adds little.

    In a list backward correction comes after the strategies that edit targets.

    References
    ----------
    Patrini et al. Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach.
    CVPR 2017. arXiv:1609.03683. "trusted": Hendrycks et al. Using Trusted Data to Train Deep
    Networks on Labels Corrupted by Severe Noise. NeurIPS 2018. arXiv:1802.05300. "dual_t": Yao et
    al. Dual T: Reducing Estimation Error for Transition Matrix in Label-noise Learning. NeurIPS
    2020. arXiv:2006.07805.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from robustclf import RobustClassifier
    >>> from robustclf.noise import inject_noise
    >>> X, y = make_blobs(600, centers=[[0, 9], [9, 0], [0, 0]], random_state=0)
    >>> noisy = inject_noise(y, "pair", rate=0.3, random_state=0)
    >>> clf = RobustClassifier(
    ...     strategy="transition", hidden=(64,), lr=0.01, max_epochs=20, random_state=0
    ... ).fit(X, noisy)
    >>> print(clf.net_.strategies[0].transition_.round(1))
    [[0.7 0.3 0. ]
     [0.  0.7 0.3]
     [0.3 0.  0.7]]
    """

    keeps: ClassVar[tuple[str, ...]] = ("transition_",)

    def __init__(
        self,
        matrix: str | ArrayLike = "estimate",
        correction: str = "forward",
        method: str = "confident_joint",
        start: float = 0.3,
        rate: float | str | None = None,
    ) -> None:
        self.matrix = matrix
        self.correction = correction
        self.method = method
        self.start = start
        self.rate = rate

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """Out-of-fold members or trusted rows, to estimate from."""
        known = {"estimate": ("folds",), "trusted": ("trusted",)}
        return known.get(self.matrix, ()) if isinstance(self.matrix, str) else ()

    def check(self, loss: Any, n_classes: int) -> None:
        """Raise ``ValueError`` for a parameter out of range or an impossible matrix."""
        check_known("correction of strategy 'transition'", [self.correction], CORRECTIONS)
        check_known("method of strategy 'transition'", [self.method], METHODS)
        check_range("start", self.start, "(0, 1)")
        check_rate_limit(self.rate)
        if isinstance(self.matrix, str):
            check_known("matrix of strategy 'transition'", [self.matrix], ["estimate", "trusted"])
        else:
            CORRECTIONS[self.correction](transition=self.matrix).check(n_classes)

    # Estimation ---------------------------------------------------------------------------------

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Take the matrix that is given, or start without one."""
        self.rows_ = X
        self.trusted_ = X.trusted if "trusted" in self.needs else None
        self.total_ = X.weight.new_zeros(())
        self.transition_ = np.eye(net.n_classes)
        if not isinstance(self.matrix, str):
            self._use(np.array(self.matrix, dtype=np.float64))

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Estimate the matrix, once the networks have learned something."""
        start = max(1, min(round(self.start * net.max_epochs), net.max_epochs - 1))
        if self._active or net.epoch == 0:
            return
        if self.trusted_ is None:
            self.total_ = self.total_ + out_of_fold(net, self.rows_)
        if net.epoch >= start:
            self._use(self._estimate() if self.trusted_ is None else _trusted_mean(net, self.rows_))

    def _estimate(self) -> NDArray[Any]:
        X = self.rows_
        rows = X.rows[X.weight[0, X.rows] > 0]
        p = self.total_[rows].double()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            T = transition_matrix(
                X.y[rows].cpu().numpy(),
                (p / p.sum(-1, keepdim=True)).cpu().numpy(),
                self.method,
                weight=X.weight[0, rows].double().cpu().numpy(),
                rate=self.rate,
            )
        for warning in caught:
            _warn(str(warning.message).rstrip("."))
        return _dominant(T)

    def _use(self, T: NDArray[Any]) -> None:
        if isinstance(self.matrix, str) and self.correction == "backward":
            while np.linalg.cond(T) > LARGEST_CONDITION:
                T = 0.9 * T + 0.1 * np.eye(len(T))
        self.transition_ = T
        matrix = torch.from_numpy(T).to(self.rows_.weight)
        if self.correction == "backward":
            self.inverse_ = torch.from_numpy(np.linalg.inv(T)).to(matrix)
        else:
            self.forward_ = ForwardCorrected(transition=matrix)

    @property
    def _active(self) -> bool:
        return hasattr(self, "forward_") or hasattr(self, "inverse_")

    # Correction ---------------------------------------------------------------------------------

    def on_batch(self, net: Any, batch: Batch) -> Batch:
        """Leave the trusted rows out until the matrix is estimated."""
        clean = self._clean(batch)
        if clean is None or self._active:
            return batch
        return replace(batch, weight=batch.weight * (1 - clean.squeeze(-1)))

    def observe(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the log probabilities of the given labels, ``(member, sample, class)``."""
        if not hasattr(self, "forward_"):
            return logits
        log_q = self.forward_.prepare(logits)
        clean = self._clean(batch)
        if clean is None:
            return log_q
        return torch.logaddexp(logits.log_softmax(-1) + clean.log(), log_q + (1 - clean).log())

    def relabel(self, net: Any, batch: Batch, logits: Tensor) -> Tensor:
        """Return the coefficients of the losses at each label, ``([member,] sample, class)``."""
        if not hasattr(self, "inverse_"):
            return batch.target
        target = batch.distribution(logits.shape[-1])
        corrected = target @ self.inverse_.to(target)
        clean = self._clean(batch)
        return corrected if clean is None else torch.lerp(corrected, target, clean)

    def _clean(self, batch: Batch) -> Tensor | None:
        """Share of each row that is trusted, ``(sample, 1)``; None where no row is."""
        if self.trusted_ is None:
            return None
        clean: Tensor = self.trusted_[batch.index].to(batch.weight.dtype).unsqueeze(-1)
        return clean if batch.mixing is None else batch.mixing(clean)


def out_of_fold(net: Any, X: Any) -> Tensor:
    """Return the mean prediction of the members with weight 0 on each row, ``(sample, class)``.

    Of all members, where every one trains on the row.
    """
    parts: list[Tensor] = []
    start = 0
    for logits in net.logits(X.x, oof=True):
        p = _predicted(net, logits)
        stop = start + p.shape[1]
        held = (X.weight[:, start:stop] == 0).expand(p.shape[:2])
        held = held | ~held.any(0)
        parts.append((p * held.unsqueeze(-1)).sum(0) / held.sum(0).unsqueeze(-1))
        start = stop
    return torch.cat(parts)


@torch.no_grad()
def _predicted(net: Any, logits: Tensor) -> Tensor:
    return predicted(net, logits)


def _trusted_mean(net: Any, X: Any) -> NDArray[Any]:
    """GLC: mean prediction for the trusted rows of each class."""
    rows = X.rows[X.trusted[X.rows] & (X.weight[0, X.rows] > 0)]
    chunks = net.logits(X.x[rows.cpu().numpy()], oof=True)
    p = torch.cat([_predicted(net, logits).mean(0) for logits in chunks]).double()
    label = one_hot(X.y[rows], p)
    C = _normalised(label.T @ p, label.sum(0) == 0, "without trusted row")
    T: NDArray[Any] = C.cpu().numpy()
    return T


def _normalised(counts: Tensor, unseen: Tensor, why: str) -> Tensor:
    """Divide rows by their sums; rows of zeros become those of the identity."""
    if unseen.any():
        _warn(
            f"classes {unseen.nonzero().flatten().tolist()} are {why}: their labels are taken "
            "for free of noise"
        )
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, counts / total, torch.eye(len(counts)).to(counts))


def _dominant(T: NDArray[Any]) -> NDArray[Any]:
    """Move rows towards the identity until no label is more frequent than the true one."""
    own = T.diagonal()
    excess = T.max(1) - own
    if (excess > 0).any():
        _warn(
            f"the labels of classes {np.flatnonzero(excess > 0).tolist()} seem to be mostly wrong, "
            "which is beyond correction: they are taken for half wrong"
        )
    share = (excess / (1 + excess))[:, None]
    dominant: NDArray[Any] = (1 - share) * T + share * np.eye(len(T))
    return dominant


def _warn(what: str) -> None:
    warnings.warn(f"strategy 'transition': {what}.", UserWarning, stacklevel=2)
