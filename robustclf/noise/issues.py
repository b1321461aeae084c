"""Which labels are wrong."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.utils import check_consistent_length

from robustclf._registry import check_known
from robustclf.noise._detectors import METHODS, PRUNE, Evidence, Scores, combined, pruned
from robustclf.noise._inputs import check_proba
from robustclf.noise.dynamics import TrainingDynamics
from robustclf.noise.rate import is_noisy, noise_rate

LIMIT = 1e-6  # probabilities stay this far from 0 and 1


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """Rows whose labels are probably wrong, the most suspicious first.

    Attributes
    ----------
    index : ndarray of shape (n_issues,)
        Index of the rows where y was a pandas Series, else their numbers.
    given, suggested : ndarray of shape (n_issues,)
        The label, and the most probable other one.
    probability : ndarray of shape (n_issues,)
        That the given label is wrong.
    rows : ndarray of shape (n_issues,)
        Numbers of the rows.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.array([3])
    >>> LabelIssues(one, np.array(["cat"]), np.array(["dog"]), np.array([0.9]), one).to_frame()
      given suggested  probability
    3   cat       dog          0.9
    """

    index: NDArray[Any]
    given: NDArray[Any]
    suggested: NDArray[Any]
    probability: Scores
    rows: NDArray[np.intp]

    def __len__(self) -> int:
        """Return the number of issues."""
        return len(self.rows)

    def to_frame(self) -> Any:
        """Return a pandas data frame with the columns given, suggested and probability."""
        import pandas as pd

        columns = {"given": self.given, "suggested": self.suggested}
        return pd.DataFrame(columns | {"probability": self.probability}, index=self.index)


def find_label_issues(
    y: Any,
    proba: ArrayLike,
    method: str = "combined",
    *,
    classes: ArrayLike | None = None,
    X: Any = None,
    dynamics: TrainingDynamics | None = None,
    n_issues: int | float | str = "auto",
    prune: str = "by_noise_rate",
    random_state: Any = None,
) -> LabelIssues:
    r"""Rank the rows whose given label y is probably wrong.

    The default, ``"combined"``, forms class probabilities p as the mean of those that the networks
    have while they learn (``dynamics``, else ``proba``) and of those of the nearest rows (``X``),
    each weighted by its accuracy out of fold, and ranks by

    .. math:: 1 - \frac{p_y \sqrt{T_{yy}}}{\sum_k p_k \sqrt{T_{ky}}}

    with the transition T counted from p and y where p is sure, and shrunk towards uniform noise as
    far as the counts agree with it: T matters where labels are mistaken for one another in one
    direction. The probabilities of all methods have the estimated noise rate as their mean.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Given labels. The index of a pandas Series is kept.
    proba : array-like of shape (n_samples, n_classes)
        Out-of-fold probabilities of any classifier, such as ``clf.oof_proba_``.
    method : str, default="combined"
        ``"self_confidence"`` and ``"normalized_margin"`` read ``proba``, as do
        ``"confident_learning"``, ``"el2n"`` and ``"loss_mixture"``; the last two read ``dynamics``
        if given. ``"aum"`` and ``"forgetting"`` need ``dynamics``, ``"neighbours"`` needs ``X``.
    classes : array-like of shape (n_classes,), optional
        Sorted classes, where y lacks some.
    X : array-like or data frame of shape (n_samples, n_features), optional
        Features, for the neighbours.
    dynamics : TrainingDynamics, optional
        ``clf.dynamics_`` of ``RobustClassifier(track_dynamics=True)``.
    n_issues : int, float, "auto" or "all", default="auto"
        How many rows to return, or which share. ``"auto"`` is the estimated number of wrong labels,
        for ``"confident_learning"`` what it prunes, and none where :func:`is_noisy` sees no noise.
    prune : {"by_noise_rate", "by_class", "both", "off_diagonal"}, default="by_noise_rate"
        Which rows ``"confident_learning"`` takes.
    random_state : int, RandomState or None, default=None
        Draws the rows that can be neighbours, of more than 20,000.

    Returns
    -------
    LabelIssues

    Raises
    ------
    ValueError
        If labels, probabilities or parameters are not what they must be, or the method needs more.

    References
    ----------
    Northcutt, Jiang, Chuang. Confident Learning. JAIR 2021. arXiv:1911.00068. Of the other methods:
    :class:`TrainingDynamics`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import cross_val_predict
    >>> X, y = load_iris(return_X_y=True)
    >>> y[[3, 70, 140]] = [1, 0, 0]
    >>> clf = LogisticRegression(max_iter=1000)
    >>> proba = cross_val_predict(clf, X, y, method="predict_proba")
    >>> issues = find_label_issues(y, proba, X=X, n_issues=3)
    >>> issues.rows, issues.suggested
    (array([140,  70,   3]), array([2, 2, 0]))
    """
    check_known("method", [method], METHODS)
    check_known("prune", [prune], PRUNE)
    codes, p, known = check_proba(y, proba, classes)
    _check_lengths(codes, p, X, dynamics)
    evidence = Evidence(codes, p, X, dynamics, prune, random_state)
    score = METHODS[method](evidence)
    rate = noise_rate(codes, p, classes=range(len(known))).rate
    probability, suggested = _calibrated(evidence, score, rate, known)
    order = np.lexsort((evidence.at_label(p), -score))
    rows = order[: _number(n_issues, method, evidence, rate)]
    index = np.asarray(y.index) if hasattr(y, "index") and hasattr(y, "iloc") else np.arange(len(p))
    return LabelIssues(index[rows], known[codes][rows], suggested[rows], probability[rows], rows)


def _check_lengths(
    codes: NDArray[np.int64], p: Scores, X: Any, dynamics: TrainingDynamics | None
) -> None:
    if X is not None:
        check_consistent_length(codes, X)
    if dynamics is not None and dynamics.mean_proba.shape != p.shape:
        raise ValueError(
            f"dynamics are of {dynamics.mean_proba.shape} rows and classes, proba of {p.shape}: "
            "they must come from the same table."
        )


def _number(n_issues: int | float | str, method: str, e: Evidence, rate: float) -> int:
    """Return how many rows to return."""
    n = len(e.codes)
    if isinstance(n_issues, str):
        check_known("n_issues", [n_issues], ("auto", "all"))
        if n_issues == "all":
            return n
        if not is_noisy(e.codes, e.proba, classes=range(e.proba.shape[1])):
            return 0
        if method == "confident_learning":
            return int(pruned(e.codes, e.proba, e.prune).sum())
        return round(n * rate)
    if isinstance(n_issues, Integral) and n_issues >= 0:
        return min(int(n_issues), n)
    if isinstance(n_issues, Real) and 0 <= n_issues <= 1:
        return round(n * float(n_issues))
    raise ValueError(
        f"n_issues must be a number of rows, a share between 0.0 and 1.0, 'auto' or 'all', got "
        f"{n_issues!r}."
    )


def _calibrated(
    e: Evidence, score: Scores, rate: float, classes: NDArray[Any]
) -> tuple[Scores, NDArray[Any]]:
    """Return the probability of each row to be wrong, monotone in the score, and a better label.

    The posterior of the combined method is shifted on the scale of log-odds until its mean is the
    noise rate; a monotone regression carries it over to the score.
    """
    wrong = combined(e).clip(LIMIT, 1 - LIMIT)
    odds, rate = logit(wrong), min(max(rate, LIMIT), 1 - LIMIT)
    shift = brentq(lambda s: expit(odds + s).mean() - rate, -50, 50)
    monotone = IsotonicRegression(out_of_bounds="clip").fit_transform(score, expit(odds + shift))
    others = e.posterior.copy()
    others[np.arange(len(others)), e.codes] = -1
    return monotone, classes[others.argmax(axis=1)]
