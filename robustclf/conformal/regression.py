"""Intervals for a number, from a classifier of the bin that it falls into."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import _safe_indexing, indexable
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)

from robustclf._held_out import Prepare, generator, hold_out
from robustclf._wrapped import CALIBRATION_CONSTRAINTS, Wrapper
from robustclf.conformal._levels import check_one_alpha, conformal_quantile

MIDDLES = "__loss__middles"  # ends the name of the parameter, also in a step of a pipeline

Floats = NDArray[np.float64]


class ConformalRegressor(RegressorMixin, Wrapper):
    r"""Conformal regression by classification: sets that hold the number in most of the rows.

    The range of y is cut into bins, and a classifier tells the bin. Its probabilities, divided by
    the widths of the bins and interpolated linearly between their middles, are a density
    :math:`\hat f(y \mid x)`, and the set is

    .. math:: C(x) = \{y : \hat f(y \mid x) \ge c\}, \qquad
       c = \text{the } \lfloor (n + 1) \alpha \rfloor \text{-th smallest } \hat f(y_i \mid x_i)

    of rows that the classifier did not see: an interval, or several where y has several likely
    values. The number is in the set with probability at least :math:`1 - \alpha`.

    Parameters
    ----------
    estimator : classifier with predict_proba
        Is cloned and fitted to the numbers of the bins. One in
        :class:`~sklearn.frozen.FrozenEstimator` is taken as fitted, to the numbers of ``bins``.
    bins : int or array-like of shape (n_bins + 1,), default=50
        Number of the bins, or their edges. Outside of them the density is 0. A number of bins
        is cut from the range of the rows that the classifier learns from; a bin that it has not
        seen has probability 0.
    strategy : {"uniform", "quantile"}, default="uniform"
        Bins of the same width, as in the paper, or of as many rows each.
    cv : int, splitter or None, default=5
        Folds that calibrate, each by a classifier that did not see it; then one of all rows takes
        their place. An estimator with a parameter ``cross_fit``, such as
        :class:`~robustclf.RobustClassifier`, does this in one fit. None holds rows out instead.
        The promise is exact for rows that are held out and for a frozen classifier; with folds it
        takes the classifier of all rows to be no worse than those of the folds.
    calibration_size : float in (0, 1), default=0.25
        Share of the rows that is held out, drawn at random: to leave a row of each bin to learn
        from would keep rare numbers out of the calibration.
    random_state : int, RandomState or None, default=None
        Governs which rows are held out, and the folds.

    Attributes
    ----------
    estimator_ : classifier
    edges_ : ndarray of shape (n_bins + 1,)
    scores_ : ndarray of shape (n_calibration,)
        :math:`-\hat f(y_i \mid x_i)` of the rows that calibrate.
    n_features_in_ : int

    Notes
    -----
    The paper's classifier is a network with a loss of its own, which knows that bins are ordered
    and rewards the entropy of its prediction:
    :class:`~robustclf.losses.RegressionToClassification`. Pass
    ``RobustClassifier(loss=RegressionToClassification())`` for it; the middles of the bins are
    told to it. To any other classifier bins are classes in no order: a density that is less smooth
    and sets that are larger, but no less right. Published code takes the plain quantile
    :math:`\alpha` of the densities, without the n + 1.

    Labels are taken as right: a number that is noisy is what the set holds.

    References
    ----------
    Guha, Natarajan, Möllenhoff, Khan, Ndiaye. Conformal Prediction via
    Regression-as-Classification. ICLR 2024. arXiv:2404.08168.

    Examples
    --------
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = rng.uniform(-1, 1, (1500, 1))
    >>> y = rng.choice([-1, 1], 1500) * (1 + X[:, 0]) + 0.1 * rng.normal(size=1500)
    >>> forest = RandomForestClassifier(30, min_samples_leaf=10, random_state=0)
    >>> sets = ConformalRegressor(forest, bins=30, random_state=0).fit(X[:1000], y[:1000])
    >>> print(f"{sets.covers(X[1000:], y[1000:]).mean():.2f} covered")
    0.93 covered
    >>> print(sets.predict_set([[0.5]])[0].round(1))
    [[-1.7 -1.3]
     [ 1.3  1.7]]
    """

    _parameter_constraints = {  # noqa: RUF012 (scikit-learn's convention)
        "estimator": [HasMethods(["fit", "predict", "predict_proba"])],
        "bins": [Interval(Integral, 2, None, closed="left"), "array-like"],
        "strategy": [StrOptions({"uniform", "quantile"})],
        **CALIBRATION_CONSTRAINTS,
    }

    def __init__(
        self,
        estimator: Any,
        *,
        bins: int | ArrayLike = 50,
        strategy: str = "uniform",
        cv: Any = 5,
        calibration_size: float = 0.25,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.bins = bins
        self.strategy = strategy
        self.cv = cv
        self.calibration_size = calibration_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the classifier of bins, and score the rows that it did not see.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        y : array-like of shape (n_samples,)
            Numbers.

        Returns
        -------
        self : ConformalRegressor

        Raises
        ------
        ValueError
            For edges that do not increase, numbers that are all the same, and a frozen classifier
            without edges or of other bins.
        """
        self._validate_params()
        self._check_given(y)
        X, _ = indexable(X, y)
        numbers = _numbers(y)
        crosses = self.estimator.get_params(deep=False).get("cross_fit") is not None
        if self.cv is None and not crosses and not isinstance(self.estimator, FrozenEstimator):
            return self._split(X, numbers)
        self.edges_ = self._edges(numbers)
        codes = _bin(numbers, self.edges_)
        if not isinstance(self.estimator, FrozenEstimator):
            _check_several(codes)
        held = hold_out(
            self.estimator,
            X,
            codes,
            cv=self.cv,
            prepare=self._told(numbers),
            random_state=self.random_state,
        )
        self._codes = held.classes
        self._take(held.estimators[0])
        self.scores_ = -_at(numbers, *self._density(held.proba))
        return self

    def _split(self, X: Any, numbers: Floats) -> Self:
        """Fit to some rows and score the others, whose numbers choose neither rows nor bins.

        Only then are they exchangeable with new rows.
        """
        n = len(numbers)
        order = generator(self.random_state).permutation(n)
        rows, learned = np.split(order, [int(n * self.calibration_size)])
        if not len(rows):
            raise ValueError(
                f"calibration_size={self.calibration_size:g} of {n} rows leaves none to calibrate "
                "on; give more rows, a larger share, or cv=5."
            )
        self.edges_ = self._edges(numbers[learned])
        codes = _bin(numbers[learned], self.edges_)
        _check_several(codes)
        estimator = self._told(numbers[learned])(clone(self.estimator), codes)
        self._take(estimator.fit(_safe_indexing(X, learned), codes))
        self._codes = self.estimator_.classes_
        proba = self.estimator_.predict_proba(_safe_indexing(X, rows))
        self.scores_ = -_at(numbers[rows], *self._density(proba))
        return self

    def _told(self, numbers: Floats) -> Prepare:
        """Return what tells a classifier the middles of the bins that it is fitted to."""

        def told(estimator: Any, codes: NDArray[Any]) -> Any:
            middles = _middles(self.edges_)[np.unique(codes)] / numbers.std()
            asking = [name for name in estimator.get_params() if f"__{name}".endswith(MIDDLES)]
            return estimator.set_params(**dict.fromkeys(asking, middles.tolist()))

        return told

    def _edges(self, y: Floats) -> Floats:
        if not isinstance(self.bins, Integral):
            edges = np.asarray(self.bins, dtype=np.float64)
            if edges.ndim != 1 or len(edges) < 3 or not (np.diff(edges) > 0).all():
                raise ValueError(
                    f"bins must be a number, or three or more increasing edges, got {self.bins!r}."
                )
            return edges
        if isinstance(self.estimator, FrozenEstimator):
            raise ValueError("a frozen classifier knows its bins: pass their edges as bins=.")
        if y.min() == y.max():
            raise ValueError(
                f"y is {y[0]:g} in all rows (n_samples={len(y)}): there is nothing to tell apart."
            )
        at = np.linspace(0, 1, int(self.bins) + 1)
        if self.strategy == "uniform":
            edges = y.min() + at * (y.max() - y.min())
        else:
            edges = np.unique(np.quantile(y, at))
        if len(edges) < 3:
            raise ValueError(
                f"the quantiles of y make {len(edges) - 1} bin: pass strategy='uniform' or edges."
            )
        return np.asarray(edges, dtype=np.float64)

    def _density(self, proba: Floats) -> tuple[Floats, Floats]:
        """Return points ``(point,)``, and the density at them ``(row, point)``, linear between."""
        edges = self.edges_
        known = np.asarray(self._codes)
        if known.dtype.kind not in "iu" or known.min() < 0 or known.max() > len(edges) - 2:
            raise ValueError(
                f"the classes of the classifier must be numbers of {len(edges) - 1} bins, got "
                f"{known.tolist()}."
            )
        density = np.zeros((len(proba), len(edges) - 1))
        density[:, known] = proba / np.diff(edges)[known]
        points = np.concatenate([edges[:1], _middles(edges), edges[-1:]])
        return points, np.column_stack([density[:, 0], density, density[:, -1]])

    def predict(self, X: Any) -> Floats:
        """Return the mean of the middles of the bins, weighted by their probabilities.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows

        Returns
        -------
        numbers : ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        proba = np.asarray(self.estimator_.predict_proba(X), dtype=np.float64)
        numbers: Floats = proba @ _middles(self.edges_)[self._codes]
        return numbers

    def predict_set(self, X: Any, alpha: float = 0.1) -> list[Floats]:
        """Return the intervals of the set of each row.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        alpha : float, default=0.1
            Share of the numbers that sets may miss, in (0, 1).

        Returns
        -------
        sets : list of ndarray of shape (n_intervals, 2)
            Ends of the intervals, in order; none where no number is likely enough. The whole line
            where the rows of the fit are too few for alpha.
        """
        check_is_fitted(self)
        cutoff = self._cutoff(alpha)
        points, density = self._density(self.estimator_.predict_proba(X))
        if cutoff <= 0:
            return [np.array([[-np.inf, np.inf]]) for _ in density]
        return _above(points, density, cutoff)

    def predict_interval(self, X: Any, alpha: float = 0.1) -> Floats:
        """Return the smallest interval that holds the set of each row.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        alpha : float, default=0.1
            Share of the numbers that sets may miss, in (0, 1).

        Returns
        -------
        intervals : ndarray of shape (n_samples, 2)
            nan where the set is empty.
        """
        sets = self.predict_set(X, alpha)
        hulls = [(s[0, 0], s[-1, 1]) if len(s) else (np.nan, np.nan) for s in sets]
        return np.array(hulls, dtype=np.float64)

    def covers(self, X: Any, y: ArrayLike, alpha: float = 0.1) -> NDArray[np.bool_]:
        """Return whether the set of each row holds its number.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        y : array-like of shape (n_samples,)
        alpha : float, default=0.1
            Share of the numbers that sets may miss, in (0, 1).

        Returns
        -------
        covered : ndarray of bool of shape (n_samples,)

        Raises
        ------
        ValueError
            For numbers that are missing, infinite, or not one for each row.
        """
        check_is_fitted(self)
        numbers = _numbers(y)
        check_consistent_length(X, numbers)
        points, density = self._density(self.estimator_.predict_proba(X))
        covered: NDArray[np.bool_] = _at(numbers, points, density) >= self._cutoff(alpha)
        return covered

    def _cutoff(self, alpha: float) -> float:
        return -float(conformal_quantile(self.scores_, check_one_alpha(alpha)))


def _numbers(y: Any) -> Floats:
    """Return numbers as a vector, refusing missing and infinite ones."""
    numbers: Floats = check_array(
        column_or_1d(y, warn=True), ensure_2d=False, dtype=np.float64, input_name="y"
    )
    return numbers


def _middles(edges: Floats) -> Floats:
    middles: Floats = (edges[1:] + edges[:-1]) / 2
    return middles


def _bin(y: Floats, edges: Floats) -> NDArray[np.int64]:
    """Return the bin of each number; those outside are in the first or the last."""
    place = np.searchsorted(edges, y, side="right") - 1
    return place.clip(0, len(edges) - 2).astype(np.int64)


def _check_several(codes: NDArray[np.int64]) -> None:
    """Raise ``ValueError`` for rows of one bin."""
    if (codes == codes[0]).all():
        raise ValueError(
            f"the {len(codes)} rows to learn from fall into one bin: there is nothing to tell "
            "apart."
        )


def _at(y: Floats, points: Floats, density: Floats) -> Floats:
    """Return the density of each row at its number; 0 outside of the points."""
    place = (np.searchsorted(points, y, side="right") - 1).clip(0, len(points) - 2)
    rows = np.arange(len(y))
    left, right = density[rows, place], density[rows, place + 1]
    part = (y - points[place]) / (points[place + 1] - points[place])
    inside = (y >= points[0]) & (y <= points[-1])
    value: Floats = np.where(inside, left + part * (right - left), 0.0)
    return value


def _above(points: Floats, density: Floats, cutoff: float) -> list[Floats]:
    """Return where the density of each row is at least the cutoff, as intervals."""
    high = density >= cutoff
    outside = np.zeros((len(density), 1), dtype=bool)
    turns = np.diff(np.hstack([outside, high, outside]).astype(np.int8), axis=1)
    sets = []
    for row, turn in zip(density, turns, strict=True):
        starts, ends = np.flatnonzero(turn == 1), np.flatnonzero(turn == -1) - 1
        low = _crossing(points, row, starts - 1, starts, cutoff)
        up = _crossing(points, row, ends + 1, ends, cutoff)
        sets.append(np.column_stack([low, up]))
    return sets


def _crossing(
    points: Floats,
    row: Floats,
    below: NDArray[np.intp],
    above: NDArray[np.intp],
    cutoff: float,
) -> Floats:
    """Return where the density passes the cutoff between points; the end where there is none."""
    inside = (below >= 0) & (below < len(points))
    low = np.where(inside, below, above)
    rise = row[above] - row[low]
    share = np.divide(row[above] - cutoff, rise, out=np.zeros(len(above)), where=inside)
    crossing: Floats = points[above] + share * (points[low] - points[above])
    return crossing
