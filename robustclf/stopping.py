"""When to stop: on held-out labels, on these corrected for their noise, or without any."""

from __future__ import annotations

import copy
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from skorch.callbacks import Callback, EarlyStopping
from torch import Tensor

from robustclf._registry import check_known
from robustclf.losses._hyperparameters import check_integer
from robustclf.noise.scoring import noise_corrected_accuracy

RECORDED = ("train_loss", "valid_acc", "train_acc", "lr", "dur")  # train_acc where verbose


class Stopping(BaseEstimator, EarlyStopping):
    """Base of what ``early_stopping`` can be: restores the weights of the best epoch."""

    quantity: ClassVar[str]
    """What the history records in every epoch."""

    lower_is_better: ClassVar[bool] = False

    needs_held_out: ClassVar[bool] = True
    """Whether rows have to be held out."""

    needs_all_rows: ClassVar[bool] = False
    """Whether the encoded rows have to be in memory, all at once: not where they are streamed."""

    def __init__(self, patience: int | None = None) -> None:
        super().__init__(
            self.quantity,
            patience,
            threshold=0,  # a relative one lets worse scores pass where they are negative
            lower_is_better=self.lower_is_better,
            sink=_mute,
            load_best=True,
        )

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Start without a best epoch."""
        if self.patience is not None:
            check_integer("patience", self.patience, "[1, inf)")
        super().on_train_begin(net)
        self.best_criterion_: dict[str, Any] | None = None

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Keep the weights, and what the loss learned, of an epoch that is better."""
        super().on_epoch_end(net)
        if self.best_epoch_ == net.history[-1, "epoch"]:
            self.best_criterion_ = copy.deepcopy(net.criterion_.state_dict())

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Restore the best weights, and keep no copy of them."""
        if self.best_criterion_ is not None:
            super().on_train_end(net)
            net.criterion_.load_state_dict(self.best_criterion_)
        self.best_model_weights_ = self.best_criterion_ = None


def make_stopping(early_stopping: Any) -> Callback | None:
    """Return what the parameter of the classifier stands for, a copy of a callback."""
    if isinstance(early_stopping, bool | np.bool_):
        return AccuracyStopping() if early_stopping else None
    if isinstance(early_stopping, Integral):
        return AccuracyStopping(int(early_stopping))
    return copy.deepcopy(early_stopping)


def check_monitor(stopping: Any) -> None:
    """Raise ``ValueError`` for a rule of skorch that watches what no epoch records."""
    if type(stopping) is EarlyStopping:  # a subclass may record what it watches
        check_known("monitor of early_stopping", [stopping.monitor], RECORDED)


def _mute(*args: Any, **kwargs: Any) -> None:
    """Swallow what skorch would print."""


class AccuracyStopping(Stopping):
    """Keep the epoch with the best accuracy on held-out labels, however noisy.

    Where wrong labels depend on the true class alone and most of each class are right, the accuracy
    on noisy labels is best where that on true ones is; a log loss is not.

    Parameters
    ----------
    patience : int or None, default=None
        Epochs without a better one that end the fit; None trains for all.

    References
    ----------
    Chen et al. Robustness of Accuracy Metric and its Inspirations in Learning with Noisy Labels.
    AAAI 2021. arXiv:2012.04193.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from robustclf import RobustClassifier
    >>> from robustclf.stopping import AccuracyStopping
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = RobustClassifier(loss="gce", early_stopping=AccuracyStopping(patience=5))
    >>> len(clf.set_params(random_state=0).fit(X, y).history_) < 150
    True
    """

    quantity = "valid_acc"


class NoiseCorrectedStopping(Stopping):
    r"""Keep the epoch with the best accuracy on held-out rows, corrected for the noise.

    Maximises :func:`robustclf.noise.noise_corrected_accuracy`,
    :math:`\frac1n \sum_i (T^{-1})_{y_i \hat y_i}`, in the history ``valid_acc_corrected``.

    Parameters
    ----------
    transition : array-like of shape (n_classes, n_classes)
        Rows are true classes, columns given ones, both in the order of ``classes_``; such as an
        estimate by :func:`robustclf.noise.estimate_transition`.
    patience : int or None, default=None
        Epochs without a better one that end the fit; None trains for all.

    Raises
    ------
    ValueError
        When the fit begins, if the matrix is no invertible transition matrix of all classes.

    References
    ----------
    Natarajan, Dhillon, Ravikumar, Tewari. Learning with Noisy Labels. NIPS 2013.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from robustclf import RobustClassifier
    >>> from robustclf.noise import pair_transition
    >>> from robustclf.stopping import NoiseCorrectedStopping
    >>> X, y = load_iris(return_X_y=True)
    >>> stopping = NoiseCorrectedStopping(pair_transition(0.2, n_classes=3))
    >>> clf = RobustClassifier(loss="gce", early_stopping=stopping, random_state=0).fit(X, y)
    >>> clf.history_[:, "valid_acc_corrected"][-1] > 0.9
    True
    """

    quantity = "valid_acc_corrected"

    def __init__(self, transition: ArrayLike, patience: int | None = None) -> None:
        self.transition = transition
        super().__init__(patience)

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Try the transition before anything is trained."""
        super().on_train_begin(net)
        self.weight_ = None if X.weight_valid is None else X.weight_valid.cpu().numpy()
        labels = X.y_valid.cpu().numpy()
        self._score(labels, labels, net.n_classes)

    def on_batch_end(
        self, net: Any, batch: Any = None, training: Any = None, **kwargs: Any
    ) -> None:
        """Score the predictions of the held-out rows."""
        if not training:
            predicted = net.mean_proba(kwargs["y_pred"]).argmax(-1).cpu().numpy()
            score = self._score(batch[1].cpu().numpy(), predicted, net.n_classes)
            net.history.record(self.quantity, score)

    def _score(self, labels: ArrayLike, predicted: ArrayLike, n_classes: int) -> float:
        return noise_corrected_accuracy(
            labels,
            predicted,
            np.asarray(self.transition),
            classes=np.arange(n_classes),
            sample_weight=self.weight_,
        )

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Restore the best weights."""
        super().on_train_end(net)
        del self.weight_


class PredictionChangeStopping(Stopping):
    r"""Keep the epoch where the predictions of the training rows have settled, before they move on.

    Needs no labels beyond those of the training rows. The share of rows whose prediction
    :math:`\hat y` changed since the last epoch falls while the network learns the pattern and rises
    when it starts to learn wrong labels; kept is the epoch of the least mean over the last epochs,

    .. math:: \frac1w \sum_{s=t-w+1}^{t} \frac1n \sum_i [\hat y_i^{(s)} \ne \hat y_i^{(s-1)}] .

    Parameters
    ----------
    patience : int or None, default=5
        Epochs without a lower mean that end the fit: the first minimum counts. None trains for all
        epochs.
    window : int, default=3
        Epochs w of the moving mean.

    Notes
    -----
    Made for a constant learning rate: ``RobustClassifier(lr_schedule="constant")``. Where the rate
    falls to zero, so do the changes, and the last epoch wins. The published rule reads the
    predictions that the training steps make; here they are made after the epoch, without dropout.

    It saves time rather than accuracy: on four tables with 40 % wrong labels (cross entropy) it
    ended after 20 of 40 to 100 epochs, with an accuracy between .004 above (satellite) and .11
    below (vowel, which is learned slowly) that of the last epoch.

    References
    ----------
    Yuan, Feng, Liu. Early Stopping Against Label Noise Without Validation Data. ICLR 2024.
    arXiv:2502.07551.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from robustclf import RobustClassifier
    >>> from robustclf.stopping import PredictionChangeStopping
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = RobustClassifier(
    ...     early_stopping=PredictionChangeStopping(), lr_schedule="constant", random_state=0
    ... ).fit(X, y)
    >>> changes = clf.history_[:, "prediction_change"]
    >>> len(changes) < 150, changes[0]
    (True, 1.0)
    """

    quantity = "prediction_change"
    lower_is_better = True
    needs_held_out = False
    needs_all_rows = True

    def __init__(self, patience: int | None = 5, window: int = 3) -> None:
        self.window = window
        super().__init__(patience)

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Start without predictions."""
        check_integer("window", self.window, "[1, inf)")
        super().on_train_begin(net)
        self.x_ = X.x[X.rows.cpu()] if isinstance(X.x, Tensor) else X.x[X.rows.cpu().numpy()]
        self.predicted_: NDArray[np.int64] | None = None
        self.changes_: list[float] = []

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Compare the predictions with those of the last epoch."""
        predicted = np.concatenate(
            [net.mean_proba(logits).argmax(-1).cpu().numpy() for logits in net.logits(self.x_)]
        )
        changed = 1.0 if self.predicted_ is None else np.mean(predicted != self.predicted_)
        self.changes_.append(float(changed))
        self.predicted_ = predicted
        net.history.record(self.quantity, float(np.mean(self.changes_[-self.window :])))
        super().on_epoch_end(net)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Restore the best weights."""
        super().on_train_end(net)
        del self.x_, self.predicted_, self.changes_
