"""Make labels wrong on purpose, and say exactly how."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata, truncnorm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_array, check_consistent_length, check_random_state

from robustclf._registry import check_known, closest
from robustclf._rows import as_labels, group_codes
from robustclf.noise._inputs import check_labels
from robustclf.noise.matrices import CONVENTIONS, check_rate, check_transition

Codes = NDArray[np.int64]
Floats = NDArray[np.float64]

SPREAD = 0.1  # standard deviation of drawn flip rates, as in Xia et al. (2020)
FOLDS = 5  # of the classifier whose margins are read


def inject_noise(
    y: ArrayLike,
    kind: str = "symmetric",
    rate: float | ArrayLike | Mapping[Any, float] = 0.2,
    *,
    X: ArrayLike | None = None,
    transition: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    classes: ArrayLike | None = None,
    convention: str = "rest",
    exact_per_class: bool = False,
    return_mask: bool = False,
    random_state: int | np.random.RandomState | None = None,
) -> Any:
    """Return a copy of ``y`` in which ``round(rate * n_samples)`` labels are wrong.

    ===================  =======================================================================
    kind                 who is flipped, to what
    ===================  =======================================================================
    ``symmetric``        any row, to any other class
    ``pair``             any row, to the next class ``k + 1 mod K``
    ``matrix``           each row by itself, to class j with probability ``transition[k, j]``
    ``class_dependent``  rows of class k at the rate of k, to any other class
    ``instance``         row i with chance q_i, normal around ``rate`` with standard deviation 0.1
                         truncated to [0, 2 rate], to a class drawn from softmax(x_i W_k) without
                         k; W_k is standard normal and X standardised
    ``feature_noise``    rows far out along one random direction of X, to any other class: the
                         chance of a flip grows linearly with the rank of x_i w, from 0 to 2 rate
                         (from 2 rate - 1 to 1 for rates above half); X itself is left alone
    ``adversarial``      the rows near the boundary or beyond it: the smallest margins between the
                         own and the best other class, to that class; by a logistic regression
                         on standardised X, out of fold
    ``open_set``         all rows whose class is not among ``classes``, to any of these
    ===================  =======================================================================

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        True labels of any one type.
    kind : str
        One of ``NOISE_KINDS``.
    rate : float, mapping or array-like of shape (n_classes,)
        Share of wrong labels in [0, 1). ``class_dependent`` takes a rate per class; from one number
        it draws them as ``instance`` draws its chances, with ``rate`` as their mean over rows. With
        ``groups``, a mapping from group to rate. Not used by ``matrix`` and ``open_set``.
    X : array-like of shape (n_samples, n_features), optional
        Numbers; needed by ``instance``, ``feature_noise`` and ``adversarial``.
    transition : array-like of shape (n_classes, n_classes), optional
        Rows are true classes, columns given ones; needed by ``matrix``.
    groups : array-like of shape (n_samples,), optional
        Group of each row, for ``symmetric`` and ``pair``; its share of wrong labels is that of
        ``rate`` to within one row.
    classes : array-like of shape (n_classes,), optional
        The classes, where ``y`` lacks some; those that remain for ``open_set``.
    convention : {"rest", "all"}
        What flips to "any other class" do: under "all", a share ``rate`` gets a label drawn from
        all classes, so that only ``rate * (K - 1) / K`` are wrong.
    exact_per_class : bool
        Whether the count is exact, rounded, in each true class instead of over all rows; for
        ``matrix`` (else a draw), the counts of given labels, by largest remainders.
    return_mask : bool
        Whether to return also which labels are wrong.
    random_state : int, RandomState or None
        Governs all draws.

    Returns
    -------
    ndarray of shape (n_samples,), or a tuple of it and a mask of that shape
        Labels of the type of ``y``; a class that lost all rows is named in a UserWarning.

    Raises
    ------
    ValueError
        For an unknown kind, rates outside [0, 1), and what a kind needs or does not use.

    References
    ----------
    Sáez. Noise Models in Classification: Unified Nomenclature, Extended Taxonomy and Pragmatic
    Categorization. Mathematics 10(20), 2022. ``instance``: Xia et al. Part-dependent Label Noise.
    NeurIPS 2020. arXiv:2006.07836. ``adversarial`` is near Algan, Ulusoy. arXiv:2003.10471.

    Examples
    --------
    >>> y = ["no"] * 6 + ["yes"] * 4
    >>> noisy, wrong = inject_noise(y, "pair", rate=0.3, return_mask=True, random_state=0)
    >>> noisy.tolist().count("no"), int(wrong.sum())
    (5, 3)
    """
    check_known("kind of noise", [kind], NOISE_KINDS)
    check_known("convention", [convention], CONVENTIONS)
    _check_use(kind, "groups", groups is not None)
    _check_use(kind, "transition", transition is not None)
    _check_use(kind, "convention", convention != "rest")
    _check_use(kind, "exact_per_class", exact_per_class)
    for name, value in {"X": X, "transition": transition, "classes": classes}.items():
        if value is None and kind in _NEEDED_BY[name]:
            raise ValueError(f"kind={kind!r} needs {name}, got None.")
    all_classes = getattr(transition, "classes", None) if classes is None else classes
    if kind == "open_set":
        all_classes = None
    labels = as_labels(y, all_classes)
    codes, known = check_labels(labels, all_classes)
    if len(known) < 2:
        raise ValueError(f"noise needs two classes, got {known.tolist()}: pass classes.")
    strata = _rows_by_class(codes) if exact_per_class else [np.arange(len(codes))]
    rng = check_random_state(random_state)
    job = _Job(codes, known, strata, rng, rate, X, transition, groups, classes, convention)
    noisy = _MAKERS[kind](job)
    lost = np.setdiff1d(codes, noisy)
    if len(lost) and kind != "open_set":
        names = ", ".join(map(repr, known[lost].tolist()))
        warnings.warn(f"no row is labelled {names} any more; lower the rate.", stacklevel=2)
    given = _of_type(known, labels.dtype)[noisy]
    return (given, noisy != codes) if return_mask else given


@dataclass(frozen=True)
class _Job:
    """True classes, and what a kind of noise may need to make some of them wrong."""

    codes: Codes
    classes: NDArray[Any]
    strata: list[NDArray[np.intp]]  # sets of rows in which the count of wrong labels is exact
    rng: np.random.RandomState
    rate: Any
    X: ArrayLike | None
    transition: Any
    groups: ArrayLike | None
    remaining: ArrayLike | None
    convention: str

    def any_class(self) -> Codes:
        """Draw a label for each row: one of the others, or one of all."""
        n, k = len(self.codes), len(self.classes)
        if self.convention == "all":
            return self.rng.randint(k, size=n)
        return (self.codes + self.rng.randint(1, k, size=n)) % k

    def flip(self, chance: Floats, other: Codes, order: Codes | None = None) -> Codes:
        """Flip each row by its chance, the rows of one ``order`` to within one of their sum."""
        flipped = np.zeros(len(self.codes), dtype=bool)
        order = np.zeros_like(self.codes) if order is None else order
        for rows in self.strata:
            flipped[rows] = _systematic_sample(chance[rows], order[rows], self.rng)
        return np.where(flipped, other, self.codes)

    def rescale(self, chance: Floats) -> Floats:
        """Give the chances the mean ``rate`` in each stratum."""
        rate, scaled = _one_rate(self.rate), np.empty_like(chance)
        for rows in self.strata:
            scaled[rows] = _with_mean(chance[rows], rate)
        return scaled

    def standardised(self) -> Floats:
        """Return X, each column with mean 0 and variance 1."""
        X = check_array(self.X, dtype=np.float64, input_name="X")
        check_consistent_length(X, self.codes)
        scaled: Floats = StandardScaler().fit_transform(X)
        return scaled


def _symmetric(job: _Job) -> Codes:
    chance, group = _chance_by_group(job)
    return job.flip(chance, job.any_class(), order=group)


def _pair(job: _Job) -> Codes:
    chance, group = _chance_by_group(job)
    return job.flip(chance, (job.codes + 1) % len(job.classes), order=group)


def _matrix(job: _Job) -> Codes:
    transition = check_transition(job.transition, len(job.classes))
    noisy = job.codes.copy()
    for rows in _rows_by_class(job.codes):
        row = transition[job.codes[rows[0]]]
        if len(job.strata) == 1:
            noisy[rows] = job.rng.choice(len(row), size=len(rows), p=row)
        else:
            counts = _largest_remainders(row * len(rows))
            noisy[rows] = job.rng.permutation(np.repeat(np.arange(len(row)), counts))
    return noisy


def _class_dependent(job: _Job) -> Codes:
    if isinstance(job.rate, Mapping):
        rates = _rates_by_name(job.rate, job.classes, "class")
    elif np.ndim(job.rate):
        rates = check_rate(job.rate)
        if rates.shape != job.classes.shape:
            raise ValueError(
                f"rate has shape {rates.shape}, expected {job.classes.shape}: one for each of the "
                f"classes {job.classes.tolist()}."
            )
    else:
        rate, rows = _one_rate(job.rate), np.bincount(job.codes, minlength=len(job.classes))
        rates = _with_mean(_draw_around(rate, len(rows), job.rng), rate, weight=rows)
    return job.flip(rates[job.codes], job.any_class(), order=job.codes)


def _instance(job: _Job) -> Codes:
    X, k = job.standardised(), len(job.classes)
    chance = job.rescale(_draw_around(_one_rate(job.rate), len(X), job.rng))
    other = np.empty_like(job.codes)
    for rows in _rows_by_class(job.codes):
        scores = X[rows] @ job.rng.standard_normal((X.shape[1], k))
        scores[:, job.codes[rows[0]]] = -np.inf
        # the largest of scores plus Gumbel noise is a draw from their softmax
        other[rows] = (scores + job.rng.gumbel(size=scores.shape)).argmax(axis=1)
    return job.flip(chance, other)


def _feature_noise(job: _Job) -> Codes:
    X = job.standardised()
    rank = rankdata(X @ job.rng.standard_normal(X.shape[1]))
    return job.flip(job.rescale((rank - 0.5) / len(X)), job.any_class())


def _adversarial(job: _Job) -> Codes:
    X, rate = job.standardised(), _one_rate(job.rate)
    present, place, sizes = np.unique(job.codes, return_inverse=True, return_counts=True)
    if len(present) < 2 or sizes.min() < 2:
        raise ValueError(
            "kind='adversarial' needs two classes with two rows each, got the counts "
            f"{dict(zip(job.classes[present].tolist(), sizes.tolist(), strict=True))}."
        )
    folds = StratifiedKFold(min(FOLDS, sizes.min()), shuffle=True, random_state=job.rng)
    model = LogisticRegression(max_iter=1000)
    proba = cross_val_predict(model, X, job.codes, cv=folds, method="predict_proba")
    own = np.take_along_axis(proba, place[:, None], axis=1).ravel()
    np.put_along_axis(proba, place[:, None], -np.inf, axis=1)
    margin = own - proba.max(axis=1)
    flipped = np.zeros(len(X), dtype=bool)
    for rows in job.strata:
        flipped[rows[margin[rows].argsort()[: round(rate * len(rows))]]] = True
    return np.where(flipped, present[proba.argmax(axis=1)], job.codes)


def _open_set(job: _Job) -> Codes:
    remaining = np.unique(np.asarray(job.remaining))
    _check_names("class that remains", remaining.tolist(), job.classes.tolist())
    kept = np.flatnonzero(np.isin(job.classes, remaining))
    outside = ~np.isin(job.codes, kept)
    if not outside.any():
        raise ValueError(f"all rows of y have a class among {remaining.tolist()}: none to change.")
    return np.where(outside, job.rng.choice(kept, size=len(outside)), job.codes)


_MAKERS: dict[str, Callable[[_Job], Codes]] = {
    "symmetric": _symmetric,
    "pair": _pair,
    "matrix": _matrix,
    "class_dependent": _class_dependent,
    "instance": _instance,
    "feature_noise": _feature_noise,
    "adversarial": _adversarial,
    "open_set": _open_set,
}
NOISE_KINDS = tuple(_MAKERS)
_NEEDED_BY = {
    "X": ["instance", "feature_noise", "adversarial"],
    "transition": ["matrix"],
    "classes": ["open_set"],
}
_USED_BY = {
    "transition": ["matrix"],
    "groups": ["symmetric", "pair"],
    "convention": ["symmetric", "class_dependent", "feature_noise"],
    "exact_per_class": [kind for kind in NOISE_KINDS if kind != "open_set"],
}


def _check_use(kind: str, name: str, given: bool) -> None:
    if given and kind not in _USED_BY[name]:
        raise ValueError(f"kind={kind!r} does not use {name}; {', '.join(_USED_BY[name])} do.")


def _check_names(what: str, given: Iterable[Any], allowed: list[Any]) -> None:
    for name in given:
        if name not in allowed:
            hint = closest(name, map(str, allowed))
            raise ValueError(f"{what}: {name!r} is not one of {allowed}{hint}")


def _one_rate(rate: Any) -> float:
    if isinstance(rate, Mapping) or np.ndim(rate):
        raise ValueError(
            f"rate must be one number here, got {rate}: rates of classes go with "
            "kind='class_dependent', rates of groups with groups."
        )
    return float(check_rate(rate))


def _rates_by_name(rate: Mapping[Any, float], names: NDArray[Any], what: str) -> Floats:
    allowed = names.tolist()
    _check_names(f"{what} in rate", rate, allowed)
    missing = [name for name in allowed if name not in rate]
    if missing:
        raise ValueError(f"rate lacks {what} {missing[0]!r}: it must name all of {allowed}.")
    return check_rate([rate[name] for name in allowed])


def _chance_by_group(job: _Job) -> tuple[Floats, Codes | None]:
    group = group_codes(job.groups, len(job.codes))
    if group is None:
        return np.full(len(job.codes), _one_rate(job.rate)), None
    if not isinstance(job.rate, Mapping):
        raise ValueError(f"groups need a mapping from group to rate, got rate={job.rate}.")
    return _rates_by_name(job.rate, np.unique(np.asarray(job.groups)), "group")[group], group


def _rows_by_class(codes: Codes) -> list[NDArray[np.intp]]:
    return [np.flatnonzero(codes == k) for k in np.unique(codes)]


def _draw_around(rate: float, n: int, rng: np.random.RandomState) -> Floats:
    if rate == 0:
        return np.zeros(n)
    low, high = -rate / SPREAD, min(rate, 1 - rate) / SPREAD
    draws: Floats = truncnorm.rvs(low, high, rate, SPREAD, size=n, random_state=rng)
    return draws


def _with_mean(chance: Floats, mean: float, weight: Codes | None = None) -> Floats:
    """Scale chances down, or what is left of them to 1, to the mean asked for."""
    now = np.average(chance, weights=weight)
    if now > mean:
        return chance * (mean / now)
    return 1 - (1 - chance) * ((1 - mean) / (1 - now))


def _systematic_sample(
    chance: Floats, order: Codes, rng: np.random.RandomState
) -> NDArray[np.bool_]:
    """Choose each row by its chance, ``round(sum(chance))`` in all."""
    places = np.lexsort((rng.random_sample(len(chance)), order))
    ends = chance[places].cumsum()
    short = round(ends[-1]) - ends[-1]
    start = rng.uniform(max(0.0, short), min(1.0, 1 + short))
    chosen = np.empty(len(chance), dtype=bool)
    chosen[places] = np.diff(np.floor(ends + start), prepend=0) > 0
    return chosen


def _largest_remainders(quota: Floats) -> Codes:
    counts = np.floor(quota).astype(np.int64)
    short = round(quota.sum()) - counts.sum()
    counts[np.argsort(counts - quota, kind="stable")[:short]] += 1
    return counts


def _of_type(classes: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return classes in the type of y, unless that cannot hold them (strings get longer)."""
    same = classes.astype(dtype)
    return same if (same == classes).all() else classes
