"""Prediction sets of several labels at once: whole sets of labels are the classes."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Iterator
from itertools import islice
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import _safe_indexing, check_array, get_tags, indexable
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_is_fitted

from robustclf.conformal._fitting import generator
from robustclf.conformal._levels import Levels
from robustclf.conformal.classifier import check_alpha

Floats = NDArray[np.float64]


class MultilabelConformalClassifier(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    r"""Sets of label sets that hold the true one in a share :math:`1 - \alpha` of the rows.

    Each of the :math:`2^L` sets of L labels, a vector Y of zeros and ones, has the score

    .. math:: S(x, Y) = \sum_j |Y_j - p_j(x)|^d ,

    and those up to the quantile t of the calibration rows are kept. They need not be listed: the
    best vector rounds p, to flip label j costs :math:`\max(p_j, 1 - p_j)^d - \min(p_j, 1 - p_j)^d`,
    and the costs of several flips add up.

    Parameters
    ----------
    estimator : multi-label classifier with predict_proba
        Is cloned; around one in a :class:`~sklearn.frozen.FrozenEstimator`, all rows calibrate.
    power : float, default=2
        d.
    calibration_size : float in (0, 1), default=0.25
        Share of the rows that is held out, at random.
    random_state : int, RandomState or None, default=None
        Governs the split.

    Attributes
    ----------
    estimator_ : classifier
    n_labels_ : int
    n_features_in_ : int

    Notes
    -----
    Labels are taken as right: noise of single labels is not corrected. It makes sets larger unless
    it prefers what is improbable.

    References
    ----------
    Maltoudoglou, Paisios, Papadopoulos, Lenc, Král. Well-calibrated confidence measures for
    multi-label text classification with a large number of labels. Pattern Recognition 2022.
    arXiv:2312.09304.

    Examples
    --------
    >>> from sklearn.datasets import make_multilabel_classification
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.multiclass import OneVsRestClassifier
    >>> X, Y = make_multilabel_classification(2000, n_classes=4, random_state=0)
    >>> each = OneVsRestClassifier(LogisticRegression())
    >>> clf = MultilabelConformalClassifier(each, calibration_size=0.5, random_state=1)
    >>> kept = clf.fit(X[:1000], Y[:1000]).contains(X[1000:], Y[1000:], alpha=0.2)
    >>> print(f"{kept.mean():.2f}")
    0.79
    >>> clf.predict_label_sets(X[1002:1003], alpha=0.2)[0].tolist()
    [[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]
    >>> clf.predict_set(X[1002:1003], alpha=0.2)[0].astype(int).T  # may be absent, present
    array([[1, 1, 1, 1],
           [1, 0, 1, 0]])
    """

    _parameter_constraints = {  # noqa: RUF012 (scikit-learn's convention)
        "estimator": [HasMethods(["fit", "predict", "predict_proba"])],
        "power": [Interval(Real, 0, None, closed="neither")],
        "calibration_size": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        power: float = 2,
        calibration_size: float = 0.25,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.power = power
        self.calibration_size = calibration_size
        self.random_state = random_state

    def fit(self, X: Any, Y: Any) -> Self:
        """Fit the classifier to some rows and calibrate on the others.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        Y : array-like of shape (n_samples, n_labels)
            1 for each label that a row has, else 0.

        Returns
        -------
        self : MultilabelConformalClassifier

        Raises
        ------
        ValueError
            If Y is no indicator matrix, or too few rows are left to calibrate on.
        """
        self._validate_params()
        X, _ = indexable(X, Y)
        labels = check_indicators(Y)
        self.n_labels_ = labels.shape[1]
        if isinstance(self.estimator, FrozenEstimator):
            check_is_fitted(self.estimator)
            self.estimator_ = self.estimator
            return self._calibrate(X, labels)
        n_held = int(self.calibration_size * len(labels))
        if not 0 < n_held < len(labels):
            raise ValueError(
                f"calibration_size={self.calibration_size:g} of {len(labels)} rows leaves "
                f"{n_held} to calibrate on and {len(labels) - n_held} to fit; give more rows."
            )
        held, rest = np.split(generator(self.random_state).permutation(len(labels)), [n_held])
        self.estimator_ = clone(self.estimator).fit(_safe_indexing(X, rest), labels[rest])
        return self._calibrate(_safe_indexing(X, held), labels[held])

    def calibrate(self, X: Any, Y: Any) -> Self:
        """Calibrate the fitted classifier anew, on rows that it was not fitted to.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        Y : array-like of shape (n_samples, n_labels)

        Returns
        -------
        self : MultilabelConformalClassifier
        """
        check_is_fitted(self)
        return self._calibrate(X, check_indicators(Y, self.n_labels_))

    def _calibrate(self, X: Any, labels: NDArray[np.int64]) -> Self:
        if hasattr(self.estimator_, "n_features_in_"):
            self.n_features_in_ = self.estimator_.n_features_in_
        self.levels_ = Levels.textbook(self._scores(X, labels))
        return self

    def _scores(self, X: Any, labels: NDArray[np.int64]) -> Floats:
        scores: Floats = (abs(labels - self.predict_proba(X)) ** self.power).sum(axis=1)
        return scores

    def predict_set(self, X: Any, alpha: float = 0.1) -> NDArray[np.bool_]:
        """Return which values each label has in some label set that is kept.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        alpha : float, default=0.1
            Share of the true label sets that may be missed, in (0, 1).

        Returns
        -------
        values : ndarray of bool of shape (n_samples, n_labels, 2)
            Whether the label may be absent, and whether it may be present. If only one of them
            holds, it is certain at this level; if none, no label set is kept.

        Warns
        -----
        UserWarning
            If calibration rows are too few for alpha, so that everything is kept.
        """
        best, score, cost = self._flips(X)
        budget = self._threshold(alpha) - score
        stays = np.broadcast_to(budget[:, None] >= 0, cost.shape)
        flips = cost <= budget[:, None]
        return np.stack([np.where(best, flips, stays), np.where(best, stays, flips)], axis=-1)

    def predict_label_sets(
        self, X: Any, alpha: float = 0.1, max_sets: int = 100
    ) -> list[NDArray[np.int64]]:
        """Return the label sets that are kept, the best first.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        alpha : float, default=0.1
        max_sets : int, default=100
            How many are listed at most; there may be up to 2 to the number of labels.

        Returns
        -------
        label_sets : list of ndarray of shape (n_sets, n_labels)
        """
        best, score, cost = self._flips(X)
        budgets = self._threshold(alpha) - score
        listed = []
        for start, costs, budget in zip(best, cost, budgets, strict=True):
            flips = list(islice(_cheapest(costs, float(budget)), max_sets))
            vectors = np.repeat(start[None], len(flips), axis=0)
            for vector, flipped in zip(vectors, flips, strict=True):
                vector[flipped] = ~vector[flipped]
            listed.append(vectors.astype(np.int64))
        return listed

    def contains(self, X: Any, Y: Any, alpha: ArrayLike = 0.1) -> NDArray[np.bool_]:
        """Return whether the label set of each row is kept.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        Y : array-like of shape (n_samples, n_labels)
        alpha : float, default=0.1

        Returns
        -------
        kept : ndarray of bool of shape (n_samples,)
        """
        threshold = self._threshold(alpha)
        kept: NDArray[np.bool_] = self._scores(X, check_indicators(Y, self.n_labels_)) <= threshold
        return kept

    def _threshold(self, alpha: ArrayLike) -> float:
        check_is_fitted(self)
        if np.ndim(alpha):
            raise ValueError(f"alpha must be one number, got {alpha!r}.")
        level = float(check_alpha(alpha)[0])
        threshold = float(self.levels_.threshold(level))
        if np.isinf(threshold):
            warnings.warn(
                f"{len(self.levels_.scores)} calibration rows are too few for alpha={level:g}, "
                f"which needs {int(np.ceil(1 / level)) - 1}: all label sets are kept. Calibrate "
                "on more rows, or take a larger alpha.",
                UserWarning,
                stacklevel=3,
            )
        return threshold

    def _flips(self, X: Any) -> tuple[NDArray[np.bool_], Floats, Floats]:
        """Return the best label set of each row, its score, and what flipping each label costs."""
        proba = self.predict_proba(X)
        best = proba > 0.5
        near = np.minimum(proba, 1 - proba) ** self.power
        far = np.maximum(proba, 1 - proba) ** self.power
        return best, near.sum(axis=1), far - near

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the labels of each row, by the classifier.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows

        Returns
        -------
        Y : ndarray of shape (n_samples, n_labels)
        """
        check_is_fitted(self)
        labels: NDArray[Any] = self.estimator_.predict(X)
        return labels

    def predict_proba(self, X: Any) -> Floats:
        """Return the probability of each label.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows

        Returns
        -------
        proba : ndarray of shape (n_samples, n_labels)

        Raises
        ------
        ValueError
            If the classifier gives other than one number for each label.
        """
        check_is_fitted(self)
        proba = self.estimator_.predict_proba(X)
        if isinstance(proba, list):  # forests and the like: (sample, absent or present) per label
            proba = np.stack([p[:, 1] if p.shape[1] == 2 else np.zeros(len(p)) for p in proba], 1)
        checked: Floats = check_array(proba, dtype=np.float64, input_name="predict_proba")
        if checked.shape[1] != self.n_labels_ or checked.min() < 0 or checked.max() > 1:
            raise ValueError(
                f"predict_proba must give a probability for each of {self.n_labels_} labels, got "
                f"shape {checked.shape} and values from {checked.min():g} to {checked.max():g}."
            )
        return checked

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.estimator).input_tags
        tags.target_tags.single_output = False
        tags.target_tags.multi_output = True
        tags.classifier_tags.multi_label = True
        tags.classifier_tags.multi_class = False
        return tags


def check_indicators(Y: Any, n_labels: int | None = None) -> NDArray[np.int64]:
    """Return a matrix of zeros and ones; ``ValueError`` for anything else."""
    given = np.asarray(Y)
    if given.ndim != 2 or not np.isin(given, (0, 1)).all():
        raise ValueError(
            "Y must be a matrix of 0 and 1, with a column for each label, got "
            f"{given.dtype} of shape {given.shape}. MultiLabelBinarizer makes one of lists."
        )
    if n_labels is not None and given.shape[1] != n_labels:
        raise ValueError(f"Y has {given.shape[1]} labels, expected the {n_labels} of the fit.")
    return given.astype(np.int64)


def _cheapest(cost: Floats, budget: float) -> Iterator[list[int]]:
    """Yield the sets of labels whose costs add up to at most the budget, the cheapest first.

    From a set that ends at the i-th cheapest label come two: with the next label added, or put in
    its place. So each set comes once, after all cheaper ones.

    Examples
    --------
    >>> list(_cheapest(np.array([0.5, 0.1, 0.3]), 0.45))
    [[], [1], [2], [1, 2]]
    """
    order = np.argsort(cost, kind="stable").tolist()
    if budget < 0:
        return
    yield []
    queue = [(float(cost[order[0]]), [0])]
    while queue and queue[0][0] <= budget:
        total, places = heapq.heappop(queue)
        yield [order[place] for place in places]
        last = places[-1]
        if last + 1 < len(order):
            step = float(cost[order[last + 1]])
            heapq.heappush(queue, (total + step, [*places, last + 1]))
            swapped = total - float(cost[order[last]]) + step
            heapq.heappush(queue, (swapped, [*places[:-1], last + 1]))
