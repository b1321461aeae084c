"""Score against wrong labels as if they were right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from sklearn.metrics import make_scorer
from sklearn.utils import check_consistent_length
from sklearn.utils.multiclass import unique_labels

from robustclf._registry import check_known
from robustclf._rows import as_labels, row_weights
from robustclf.noise._inputs import check_labels
from robustclf.noise.matrices import check_transition

Floats = NDArray[np.float64]

MAX_CONDITION = 1e3


@overload
def noise_corrected_accuracy(
    y_noisy: ArrayLike,
    y_pred: ArrayLike,
    transition: ArrayLike,
    *,
    classes: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    confidence_level: None = None,
) -> float: ...


@overload
def noise_corrected_accuracy(
    y_noisy: ArrayLike,
    y_pred: ArrayLike,
    transition: ArrayLike,
    *,
    classes: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    confidence_level: float,
) -> tuple[float, float, float]: ...


def noise_corrected_accuracy(
    y_noisy: ArrayLike,
    y_pred: ArrayLike,
    transition: ArrayLike,
    *,
    classes: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    confidence_level: float | None = None,
) -> float | tuple[float, float, float]:
    """Return an unbiased estimate of the accuracy on the true labels, ``mean_i inv(T)[y_i, p_i]``.

    It is the trace of :func:`noise_corrected_confusion_matrix`. Under uniform noise the plain
    accuracy on noisy labels ranks models as the accuracy on true labels does; under any other
    noise it may prefer the wrong one, and this score does not.

    Parameters
    ----------
    y_noisy : array-like of shape (n_samples,)
        Given labels, some of them wrong.
    y_pred : array-like of shape (n_samples,)
        Predictions of a model that did not see these labels.
    transition : array-like of shape (n_classes, n_classes)
        Rows are true classes, columns given ones; an estimate of it has its own error, which
        neither the score nor the interval knows of.
    classes : array-like of shape (n_classes,), optional
        The sorted classes. Default: those of ``transition`` if it has any, else all labels here.
    sample_weight : array-like of shape (n_samples,), optional
        Weight of each row.
    confidence_level : float, optional
        In (0, 1): return ``(score, low, high)``, the normal interval from the standard error of
        the mean. It is too narrow for few rows and where nearly all rows are right.

    Returns
    -------
    float or tuple of three floats
        The score may leave [0, 1], or it would not be unbiased; the interval is clipped to it.

    Raises
    ------
    ValueError
        If T is no invertible transition matrix, or of another number of classes.

    References
    ----------
    Natarajan, Dhillon, Ravikumar, Tewari. Learning with Noisy Labels. NIPS 2013 (lemma 1, here
    with the 0-1 loss).

    Examples
    --------
    >>> import numpy as np
    >>> true = np.repeat([0, 1], 50)
    >>> noisy = np.where(np.arange(100) % 5 == 0, 1, true)  # 20 % of class 0 are labelled 1
    >>> T = [[0.8, 0.2], [0.0, 1.0]]
    >>> float(np.mean(noisy == true)), round(noise_corrected_accuracy(noisy, true, T), 3)
    (0.9, 1.0)
    >>> _, low, high = noise_corrected_accuracy(noisy, true, T, confidence_level=0.95)
    >>> round(low, 2), round(high, 2)
    (0.93, 1.0)
    """
    if confidence_level is not None and not 0 < confidence_level < 1:
        raise ValueError(f"confidence_level must be in (0, 1), got {confidence_level}.")
    table = _tabulate(y_noisy, y_pred, transition, classes, sample_weight)
    score = float((table.inverse * table.weight).sum() / table.weight.sum())
    if confidence_level is None:
        return score
    if table.n < 2:
        raise ValueError(f"an interval needs at least two rows, got {table.n}.")
    squares = (table.squared_weight * (table.inverse - score) ** 2).sum()
    error = np.sqrt(squares * table.n / (table.n - 1)) / table.weight.sum()
    reach = norm.ppf((1 + confidence_level) / 2) * error
    low, high = np.clip([score - reach, score + reach], 0, 1).tolist()
    return score, low, high


def noise_corrected_confusion_matrix(
    y_noisy: ArrayLike,
    y_pred: ArrayLike,
    transition: ArrayLike,
    *,
    classes: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> Floats:
    """Return an unbiased estimate of the confusion matrix on the true labels, ``inv(T).T @ N``.

    ``N[j, k]`` is the share of rows labelled j and predicted k. A label depends on the true class
    alone, so ``N = T.T @ C`` in expectation, where ``C[i, k]`` is the share of rows that truly are
    i and are predicted k.

    Parameters
    ----------
    y_noisy, y_pred, transition, classes, sample_weight
        As for :func:`noise_corrected_accuracy`.

    Returns
    -------
    ndarray of shape (n_classes, n_classes)
        Rows are true classes, columns predicted ones; the entries sum to 1, single ones may be
        negative.

    Raises
    ------
    ValueError
        If T is no invertible transition matrix, or of another number of classes.

    References
    ----------
    Patrini et al. Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach.
    CVPR 2017. arXiv:1609.03683 (theorem 1, here with the 0-1 loss).

    Examples
    --------
    >>> noisy, predicted = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    >>> noise_corrected_confusion_matrix(noisy, predicted, [[0.8, 0.2], [0.0, 1.0]])
    array([[0.5, 0. ],
           [0. , 0.5]])
    """
    table = _tabulate(y_noisy, y_pred, transition, classes, sample_weight)
    corrected: Floats = table.inverse.T @ table.weight / table.weight.sum()
    return corrected


def make_noise_corrected_scorer(
    transition: ArrayLike, *, classes: ArrayLike | None = None, metric: str = "accuracy"
) -> Callable[..., float]:
    """Return a scorer, for validation labels that are wrong as ``transition`` says.

    With C of :func:`noise_corrected_confusion_matrix`, "accuracy" is its trace and
    "balanced_accuracy" the mean of the recalls ``C[k, k] / C[k].sum()``, each clipped to [0, 1]: a
    ratio, so consistent and not unbiased. Classes of which no share is left are left out with a
    UserWarning.

    Parameters
    ----------
    transition : array-like of shape (n_classes, n_classes)
        Rows are true classes, columns given ones.
    classes : array-like of shape (n_classes,), optional
        The sorted classes, needed where a fold may lack some. Default: those of ``transition`` if
        it has any.
    metric : {"accuracy", "balanced_accuracy"}
        What to estimate.

    Returns
    -------
    callable
        ``scorer(estimator, X, y_noisy, sample_weight=None)``, for ``GridSearchCV(scoring=...)``;
        it can be pickled and routes ``sample_weight`` as scikit-learn's scorers do.

    Raises
    ------
    ValueError
        For an unknown metric, classes that are not sorted, or if T is no invertible transition
        matrix.

    Examples
    --------
    >>> from sklearn.dummy import DummyClassifier
    >>> X, noisy = [[0]] * 10, [0] * 4 + [1] * 6
    >>> scorer = make_noise_corrected_scorer([[0.8, 0.2], [0.0, 1.0]])
    >>> round(scorer(DummyClassifier().fit(X, noisy), X, noisy), 3)  # 1 is given, 0 as frequent
    0.5
    """
    check_known("metric", [metric], _METRICS)
    if classes is None:
        classes = getattr(transition, "classes", None)
    n_classes = None if classes is None else len(check_labels(classes, classes)[1])
    inverted(check_transition(transition, n_classes))
    scorer: Callable[..., float] = make_scorer(
        _METRICS[metric], transition=np.asarray(transition), classes=classes
    )
    return scorer


def _balanced_accuracy(
    y_noisy: ArrayLike, y_pred: ArrayLike, transition: ArrayLike, **options: Any
) -> float:
    confusion = noise_corrected_confusion_matrix(y_noisy, y_pred, transition, **options)
    share = confusion.sum(axis=1)
    there = share > 0
    if not there.all():
        warnings.warn(
            f"the corrected shares of the classes are {share.round(3).tolist()}: those without "
            "any are left out of the balanced accuracy.",
            stacklevel=2,
        )
    return float(np.mean((confusion.diagonal()[there] / share[there]).clip(0, 1)))


_METRICS: dict[str, Callable[..., float]] = {
    "accuracy": noise_corrected_accuracy,
    "balanced_accuracy": _balanced_accuracy,
}


class _Table(NamedTuple):
    """Weights of the rows by given (row) and predicted class (column), and the inverse of T."""

    weight: Floats
    squared_weight: Floats
    n: int  # rows that count
    inverse: Floats


def _tabulate(
    y_noisy: ArrayLike,
    y_pred: ArrayLike,
    transition: ArrayLike,
    classes: ArrayLike | None,
    sample_weight: ArrayLike | None,
) -> _Table:
    if classes is None:
        classes = getattr(transition, "classes", None)
    noisy, predicted = as_labels(y_noisy, classes), as_labels(y_pred, classes, name="y_pred")
    check_consistent_length(noisy, predicted)
    if classes is None:
        classes = unique_labels(noisy, predicted)
    given, known = check_labels(noisy, classes)
    cell = given * len(known) + check_labels(predicted, known)[0]
    inverse = inverted(check_transition(transition, len(known)))
    weight = row_weights(sample_weight, None, noisy, np.zeros(len(noisy), dtype=bool))
    w: Floats = np.ones(len(noisy)) if weight is None else weight
    sums, squares = (
        np.bincount(cell, v, inverse.size).reshape(inverse.shape).astype(np.float64)
        for v in (w, w**2)
    )
    return _Table(sums, squares, int((w > 0).sum()), inverse)


def inverted(transition: Floats) -> Floats:
    """Return inv(T), or say why there is none.

    Examples
    --------
    >>> inverted(np.array([[0.8, 0.2], [0.0, 1.0]]))
    array([[ 1.25, -0.25],
           [ 0.  ,  1.  ]])
    """
    check_invertible(transition)
    condition = np.linalg.cond(transition)
    if condition > MAX_CONDITION:
        warnings.warn(
            f"transition has the condition number {condition:.2g} (above {MAX_CONDITION:g}): the "
            "error of the corrected score is inflated by up to as much.",
            stacklevel=4,
        )
    inverse: Floats = np.linalg.inv(transition).astype(np.float64)
    return inverse


def check_invertible(transition: Floats) -> None:
    """Raise ``ValueError`` if T has no inverse."""
    if np.linalg.matrix_rank(transition) < len(transition):
        raise ValueError(
            "transition is singular: given labels cannot tell some true classes apart. Merge "
            "classes whose rows are mixtures of others, or score on labels that are right."
        )
