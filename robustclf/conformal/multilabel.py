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
from sklearn.utils import check_array, check_consistent_length, indexable
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_is_fitted

from robustclf._held_out import hold_out, label_proba
from robustclf._wrapped import CALIBRATION_CONSTRAINTS, WrappedClassifier
from robustclf.conformal._levels import Levels, check_one_alpha

Floats = NDArray[np.float64]

SLACK = 1e-9  # of the score for each label: sums in another order differ by rounding


class MultilabelConformalClassifier(WrappedClassifier):
    r"""Sets of label sets that hold the true one in a share :math:`1 - \alpha` of the rows.

    Each of the :math:`2^L` sets of L labels, a vector Y of zeros and ones, has the score

    .. math:: S(x, Y) = \sum_j |Y_j - p_j(x)|^d ,

    and those up to the quantile t of the calibration rows are kept. They need not be listed: the
    best vector rounds p, to flip label j costs :math:`\max(p_j, 1 - p_j)^d - \min(p_j, 1 - p_j)^d`,
    and the costs of several flips add up.

    Parameters
    ----------
    estimator : multi-label classifier with predict_proba
        Is cloned. One in :class:`~sklearn.frozen.FrozenEstimator` is taken as fitted, and all rows
        calibrate it.
    power : float, default=2
        d.
    cv : int, splitter or None, default=5
        Folds that calibrate, each by a classifier that did not see it; then one of all rows takes
        their place. None holds rows out instead.
        The promise is exact for rows that are held out and for a frozen classifier; with folds it
        takes the classifier of all rows to be no worse than those of the folds.
    calibration_size : float in (0, 1), default=0.25
        Share of the rows that is held out, at random.
    random_state : int, RandomState or None, default=None
        Governs which rows are held out, and the folds.

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
    >>> clf = MultilabelConformalClassifier(each, random_state=0)
    >>> kept = clf.fit(X[:1000], Y[:1000]).contains(X[1000:], Y[1000:], alpha=0.2)
    >>> print(f"{kept.mean():.2f}")
    0.79
    >>> clf.predict_label_sets(X[1009:1010], alpha=0.2)[0].tolist()
    [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1]]
    >>> clf.predict_set(X[1009:1010], alpha=0.2)[0].astype(int).T  # may be absent, present
    array([[1, 1, 1, 0],
           [0, 1, 1, 1]])
    """

    _parameter_constraints = {  # noqa: RUF012 (scikit-learn's convention)
        "estimator": [HasMethods(["fit", "predict", "predict_proba"])],
        "power": [Interval(Real, 0, None, closed="neither")],
        **CALIBRATION_CONSTRAINTS,
    }

    def __init__(
        self,
        estimator: Any,
        *,
        power: float = 2,
        cv: Any = 5,
        calibration_size: float = 0.25,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.power = power
        self.cv = cv
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
        self._check_given(Y)
        X, _ = indexable(X, Y)
        labels = check_indicators(Y)
        held = hold_out(
            self.estimator,
            X,
            labels,
            cv=self.cv,
            calibration_size=self.calibration_size,
            answer=label_proba,
            random_state=self.random_state,
        )
        self.n_labels_ = labels.shape[1]
        self._take(held.estimators[0])
        return self._calibrate(self._checked(held.proba), labels[held.rows])

    def calibrate(self, X: Any, Y: Any) -> Self:
        """Calibrate the fitted classifier anew, on rows that it was not fitted to.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        Y : array-like of shape (n_samples, n_labels)

        Returns
        -------
        self : MultilabelConformalClassifier

        Raises
        ------
        ValueError
            If Y is no indicator matrix of the labels of the fit, or of another number of rows.
        """
        check_is_fitted(self)
        labels = check_indicators(Y, self.n_labels_)
        check_consistent_length(X, labels)
        return self._calibrate(self.predict_proba(X), labels)

    def _calibrate(self, proba: Floats, labels: NDArray[np.int64]) -> Self:
        self.levels_ = Levels.textbook(self._scores(proba, labels))
        return self

    def _scores(self, proba: Floats, labels: NDArray[np.int64]) -> Floats:
        scores: Floats = (abs(labels - proba) ** self.power).sum(axis=1)
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

        Raises
        ------
        ValueError
            If Y is no indicator matrix of the labels of the fit, or of another number of rows.
        """
        threshold = self._threshold(alpha)
        labels = check_indicators(Y, self.n_labels_)
        check_consistent_length(X, labels)
        kept: NDArray[np.bool_] = self._scores(self.predict_proba(X), labels) <= threshold
        return kept

    def _threshold(self, alpha: ArrayLike) -> float:
        check_is_fitted(self)
        level = check_one_alpha(alpha)
        threshold = float(self.levels_.threshold(level) + SLACK * self.n_labels_)
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
        return self._checked(super().predict_proba(X))

    def _checked(self, proba: Floats) -> Floats:
        checked: Floats = check_array(proba, dtype=np.float64, input_name="predict_proba")
        if checked.shape[1] != self.n_labels_ or checked.min() < 0 or checked.max() > 1:
            raise ValueError(
                f"predict_proba must give a probability for each of {self.n_labels_} labels, got "
                f"shape {checked.shape} and values from {checked.min():g} to {checked.max():g}."
            )
        return checked

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
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
