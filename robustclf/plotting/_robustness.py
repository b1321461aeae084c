"""How much accuracy is left when labels are made wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.metrics import check_scoring
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing, check_random_state, indexable
from sklearn.utils.parallel import Parallel, delayed

from robustclf._registry import check_known
from robustclf._rows import as_labels
from robustclf.noise.inject import NOISE_KINDS, inject_noise
from robustclf.plotting._base import Display, check_matplotlib, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = [kind for kind in NOISE_KINDS if kind not in ("matrix", "open_set")]  # that have a rate
RATE = {
    "rest": "share of wrong training labels",
    "all": "share of training labels drawn from all classes",
}


class NoiseRobustnessDisplay(Display):
    """Score on clean test rows against the rate of noise among the training labels.

    Lines are means, bands one standard deviation of the repeats to either side.

    Parameters
    ----------
    rates : array-like of shape (n_rates,)
        Rates of noise.
    scores : mapping of str to array-like of shape (n_rates, n_repeats)
        Scores of each estimator.
    kind : str, default="symmetric"
        Kind of noise, for the label.
    convention : {"rest", "all"}, default="rest"
        What the rates count, for the label.
    score_name : str, default="accuracy"
        What the scores are, for the label.

    Attributes
    ----------
    lines_ : dict of str to matplotlib Line2D
        Means of the estimators.
    bands_ : dict of str to matplotlib PolyCollection
        One standard deviation to either side.
    ax_, figure_ : matplotlib Axes and Figure

    See Also
    --------
    robustclf.noise.inject_noise : The kinds of noise.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from robustclf.plotting import NoiseRobustnessDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> models = {"tree": DecisionTreeClassifier(random_state=0), "Bayes": GaussianNB()}
    >>> display = NoiseRobustnessDisplay.from_estimators(models, X, y, rates=(0, 0.4))
    >>> {name: scores.mean(axis=1).round(2).tolist() for name, scores in display.scores.items()}
    {'tree': [0.96, 0.51], 'Bayes': [0.95, 0.85]}
    """

    def __init__(
        self,
        rates: ArrayLike,
        scores: Mapping[str, ArrayLike],
        *,
        kind: str = "symmetric",
        convention: str = "rest",
        score_name: str = "accuracy",
    ) -> None:
        self.rates = rates
        self.scores = scores
        self.kind = kind
        self.convention = convention
        self.score_name = score_name

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.

        Returns
        -------
        self : NoiseRobustnessDisplay

        Raises
        ------
        ValueError
            If the scores of an estimator have no row for each rate.
        """
        rates = np.asarray(self.rates, dtype=np.float64)
        scores = {name: np.asarray(values) for name, values in self.scores.items()}
        for name, values in scores.items():
            if values.ndim != 2 or len(values) != len(rates):
                raise ValueError(
                    f"scores of {name!r} must have a row for each of {len(rates)} rates and a "
                    f"column for each repeat, got shape {values.shape}."
                )
        check_known("convention", [self.convention], RATE)
        ax = self._take_axes(ax)
        self.lines_, self.bands_ = {}, {}
        for name, values in scores.items():
            mean, spread = values.mean(axis=1), values.std(axis=1)
            [line] = ax.plot(rates, mean, "o-", label=name)
            self.lines_[name] = line
            self.bands_[name] = ax.fill_between(
                rates, mean - spread, mean + spread, color=line.get_color(), alpha=0.15, linewidth=0
            )
        ax.set(
            xlabel=f"{RATE[self.convention]} ({self.kind.replace('_', ' ')})",
            ylabel=f"{self.score_name} on clean test rows",
        )
        ax.set_xticks(rates, [f"{100 * rate:.3g} %" for rate in rates])
        repeats = max(values.shape[1] for values in scores.values())
        ax.legend(frameon=False, title=f"mean ± s.d. of {repeats} repeats")
        plain(ax)
        return self

    @classmethod
    def from_estimators(
        cls,
        estimators: Mapping[str, Any],
        X: Any,
        y: ArrayLike,
        *,
        kind: str = "symmetric",
        rates: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4),
        convention: str = "rest",
        cv: Any = 5,
        scoring: Any = None,
        random_state: Any = 0,
        n_jobs: int | None = None,
        ax: Axes | None = None,
    ) -> Self:
        """Make training labels wrong, fit, and score on test labels that are left as they are.

        All estimators get the same folds and the same wrong labels.

        Parameters
        ----------
        estimators : mapping of str to estimator
            Copies are fitted.
        X : array-like of shape (n_samples, n_features)
            Rows; numbers, for the kinds of noise that look at them.
        y : array-like of shape (n_samples,)
            Labels, taken to be right.
        kind : str, default="symmetric"
            One of :data:`robustclf.noise.NOISE_KINDS` that has a rate.
        rates : sequence of float, default=(0, 0.1, 0.2, 0.3, 0.4)
            In [0, 1).
        convention : {"rest", "all"}, default="rest"
            As in :func:`robustclf.noise.inject_noise`.
        cv : int, splitter or iterable, default=5
            Each split is a repeat, with noise of its own.
        scoring : str or callable, optional
            A scorer of scikit-learn; by default the method ``score``, for a classifier accuracy.
        random_state : int, RandomState or None, default=0
            Governs the noise.
        n_jobs : int, optional
            Fits at a time, by joblib.
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure.

        Returns
        -------
        display : NoiseRobustnessDisplay

        Raises
        ------
        ValueError
            For an unknown kind or one that has no rate, an unknown scoring, and rates outside
            [0, 1).
        """
        check_matplotlib(f"{cls.__name__}.from_estimators")
        check_known("kind of noise with a rate", [kind], KINDS)
        if not isinstance(estimators, Mapping) or not estimators:
            raise ValueError(f"estimators must be a dict of names, got {estimators!r}.")
        for estimator in estimators.values():
            check_scoring(estimator, scoring)
        labels = as_labels(y)
        X, labels = indexable(X, labels)
        splits = list(check_cv(cv, labels, classifier=True).split(X, labels))
        seeds = check_random_state(random_state).randint(2**31 - 1, size=len(splits))
        noise: dict[str, Any] = {
            "kind": kind,
            "convention": convention,
            "classes": np.unique(labels),
        }
        noisy = [
            [
                inject_noise(
                    labels[train],
                    rate=rate,
                    X=_safe_indexing(X, train),
                    random_state=seed,
                    **noise,
                )
                for (train, _), seed in zip(splits, seeds, strict=True)
            ]
            for rate in rates
        ]
        jobs = (
            delayed(_score)(estimator, X, labels, split, given, scoring)
            for estimator in estimators.values()
            for of_rate in noisy
            for split, given in zip(splits, of_rate, strict=True)
        )
        shape = len(estimators), len(rates), len(splits)
        scores = np.reshape(Parallel(n_jobs=n_jobs)(jobs), shape)
        display = cls(
            rates,
            dict(zip(estimators, scores, strict=True)),
            kind=kind,
            convention=convention,
            score_name=_name(scoring),
        )
        return display.plot(ax)

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, y: ArrayLike, **params: Any) -> Self:
        """Do the same for one estimator.

        Parameters
        ----------
        estimator : estimator
            Copies are fitted.
        X, y, **params
            As in :meth:`from_estimators`.

        Returns
        -------
        display : NoiseRobustnessDisplay
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        return cls.from_estimators({type(estimator).__name__: estimator}, X, y, **params)


def _score(
    estimator: Any, X: Any, y: NDArray[Any], split: Any, y_train: NDArray[Any], scoring: Any
) -> float:
    train, test = split
    model = clone(estimator).fit(_safe_indexing(X, train), y_train)
    score: float = check_scoring(model, scoring)(model, _safe_indexing(X, test), y[test])
    return score


def _name(scoring: Any) -> str:
    if scoring is None:
        return "accuracy"
    name = scoring if isinstance(scoring, str) else getattr(scoring, "__name__", "score")
    return name.replace("_", " ")
