"""Prediction sets for data that drift, kept right by each label that comes in."""

from __future__ import annotations

from collections import deque
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from robustclf._held_out import generator
from robustclf._rows import as_labels, encode_labels
from robustclf.conformal._evidence import Floats
from robustclf.conformal._levels import conformal_quantile
from robustclf.conformal._noise_aware import (
    CONSTRAINTS,
    NoiseAwareClassifier,
    usable_inverse,
)
from robustclf.conformal._parameter import ScoreParameter
from robustclf.conformal._scores import SCORES, Score, row_uniforms


class OnlineConformalClassifier(ScoreParameter, NoiseAwareClassifier):
    r"""Adaptive conformal inference: sets that miss a share :math:`\alpha`, however the data drift.

    Rows come one after the other. A row whose label was missed makes the next sets larger, one
    whose label was not makes them a little smaller:

    .. math:: \tau \leftarrow \tau + \eta_t (e_t - \alpha), \qquad e_t = 1[S(x_t, y_t) > \tau],

    which descends the pinball loss of the threshold of the sets :math:`\{k: S(x, k) \le \tau\}`.
    For scores in [0, 1] and any sequence of rows, the share of missed labels is within
    :math:`(1 + \eta) / (\eta t)` of :math:`\alpha`. Where labels are noisy, what is known of the
    true label takes the place of :math:`e_t`,

    .. math:: \hat e_t = \sum_k T^{-1}[\tilde y_t, k] \, 1[S(x_t, k) > \tau],

    the gradient of the robust pinball loss; its mean over the noise is that of :math:`e_t`.

    Parameters
    ----------
    estimator : classifier with predict_proba
        Is cloned. One in :class:`~sklearn.frozen.FrozenEstimator` is taken as fitted, and all rows
        calibrate it.
    score : {"lac", "margin", "topk", "aps", "raps", "saps"} or Score, default="lac"
        How ill a class suits a row.
    alpha : float, default=0.1
        Share of the true labels that sets may miss, in (0, 1).
    track : {"threshold", "level"}, default="threshold"
        What is moved: the threshold, or the level :math:`\alpha_t` at which it is the quantile of
        the last scores of given labels, as in the first paper; :math:`\alpha_t` then falls by
        :math:`\eta_t (\hat e_t - \alpha)`.
    step : float, default=0.05
        :math:`\eta`, in units of the score or of the level.
    decay : float in [0, 1), default=0
        :math:`\eta_t = \eta t^{-\text{decay}}`: 0 follows drift for ever; 0.6 settles.
    window : int, default=1000
        How many scores the quantile is taken of, for ``track="level"``.
    noise : float, array-like of shape (n_classes, n_classes), "estimate" or None, default=None
        How labels were made wrong: uniformly at a rate, by a transition matrix (rows are true
        classes), not at all (None), or as the calibration rows show, by the lower bound of
        :func:`~robustclf.noise.noise_rate`. Estimate only with a classifier that is right where it
        is surest: any other has its own errors counted as noise, and too large a rate breaks the
        promise. Too small a one keeps it.
    noise_convention : {"rest", "all"}, default="rest"
        What a rate counts: wrong labels, or labels drawn from all classes.
    cv : int, splitter or None, default=5
        Folds that calibrate, each by a classifier that did not see it; then one of all rows takes
        their place. An estimator with a parameter ``cross_fit``, such as
        :class:`~robustclf.RobustClassifier`, does this in one fit. None holds rows out instead.
        Only the first threshold rests on these rows.
    calibration_size : float in (0, 1), default=0.25
        Share of the rows that is held out, stratified by the given labels.
    random_state : int, RandomState or None, default=None
        Governs which rows are held out, the folds, and randomised scores.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    estimator_ : classifier
    transition_ : ndarray of shape (n_classes, n_classes)
        How labels are taken to be wrong: the rows are true classes.
    threshold_ : float
        :math:`\tau` after the last update.
    level_ : float
        :math:`\alpha_t`; moves for ``track="level"`` only.
    n_updates_ : int
        Rows that came in.
    miscoverage_ : float
        Mean of :math:`\hat e_t` over them; nan before the first.

    References
    ----------
    Gibbs, Candès. Adaptive Conformal Inference Under Distribution Shift. NeurIPS 2021.
    arXiv:2106.00170.
    Xi, Liu, Zeng, Sun, Wei. Exploring the Noise Robustness of Online Conformal Prediction. NeurIPS
    2025. arXiv:2501.18363.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = load_digits(return_X_y=True)
    >>> plain = LogisticRegression(C=0.01, max_iter=1000)
    >>> online = OnlineConformalClassifier(plain, random_state=0).fit(X[:600], y[:600])
    >>> missed = []
    >>> for start in range(600, 1797, 10):
    ...     rows = slice(start, start + 10)
    ...     missed.extend(~online.predict_set(X[rows])[range(len(y[rows])), y[rows]])
    ...     online = online.update(X[rows], y[rows])
    >>> print(f"{np.mean(missed):.2f} missed")
    0.11 missed
    """

    _parameter_constraints = {  # noqa: RUF012 (scikit-learn's convention)
        "estimator": [HasMethods(["fit", "predict", "predict_proba"])],
        "score": [StrOptions(set(SCORES.names())), Score],
        "alpha": [Interval(Real, 0, 1, closed="neither")],
        "track": [StrOptions({"threshold", "level"})],
        "step": [Interval(Real, 0, None, closed="neither")],
        "decay": [Interval(Real, 0, 1, closed="left")],
        "window": [Interval(Integral, 1, None, closed="left")],
        **CONSTRAINTS,
    }

    def __init__(
        self,
        estimator: Any,
        *,
        score: str | Score = "lac",
        alpha: float = 0.1,
        track: str = "threshold",
        step: float = 0.05,
        decay: float = 0.0,
        window: int = 1000,
        noise: Any = None,
        noise_convention: str = "rest",
        cv: Any = 5,
        calibration_size: float = 0.25,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.score = score
        self.alpha = alpha
        self.track = track
        self.step = step
        self.decay = decay
        self.window = window
        self.noise = noise
        self.noise_convention = noise_convention
        self.cv = cv
        self.calibration_size = calibration_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the classifier, and start where the sets miss the share alpha of rows it did not see.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        y : array-like of shape (n_samples,)
            Given labels, some of them wrong.

        Returns
        -------
        self : OnlineConformalClassifier

        Raises
        ------
        ValueError
            If noise does not fit the classes or cannot be undone.
        """
        self._validate_params()
        rows = self._hold_out(X, y)
        inverse = usable_inverse(rows.noise)
        self._inverse = inverse
        self.score_ = SCORES.make(vars(self)["score"])
        self._seed = int(generator(self.random_state).randint(2**31 - 1))
        scores = self._scores(rows.proba)
        own = scores[np.arange(len(scores)), rows.codes]
        self._recent = deque(own.tolist(), maxlen=self.window)
        self.threshold_ = _first_threshold(scores, inverse[rows.codes], self.alpha)
        self.level_, self.n_updates_, self.miscoverage_ = float(self.alpha), 0, float("nan")
        if self.track == "level":
            self.threshold_ = self._quantile()
        return self

    def update(self, X: Any, y: Any) -> Self:
        """Learn from rows in their order, each with the sets that the ones before it led to.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows
        y : array-like of shape (n_samples,)
            Given labels, of known classes.

        Returns
        -------
        self : OnlineConformalClassifier
        """
        check_is_fitted(self)
        codes = encode_labels(as_labels(y, self.classes_), self.classes_)
        scores = self._scores(self.predict_proba(X))
        if len(scores) != len(codes):
            raise ValueError(f"X has {len(scores)} rows for {len(codes)} labels.")
        for of_class, code in zip(scores, codes, strict=True):
            missed = float(self._inverse[code] @ (of_class > self.threshold_))
            self._move(missed, float(of_class[code]))
        return self

    def _move(self, missed: float, own: float) -> None:
        self.n_updates_ += 1
        before = 0.0 if self.n_updates_ == 1 else self.miscoverage_
        self.miscoverage_ = before + (missed - before) / self.n_updates_
        by = self.step * self.n_updates_**-self.decay * (missed - self.alpha)
        if self.track == "threshold":
            self.threshold_ += by
            return
        self.level_ -= by
        self._recent.append(own)
        self.threshold_ = self._quantile()

    def _quantile(self) -> float:
        """Return the quantile of the last scores; sets are full or empty beyond levels 0 and 1."""
        if not 0 < self.level_ < 1:
            return np.inf if self.level_ <= 0 else -np.inf
        return float(conformal_quantile(list(self._recent), self.level_))

    def predict_set(self, X: Any) -> NDArray[np.bool_]:
        """Return which classes are in the set of each row, by the threshold of now.

        Parameters
        ----------
        X : array-like or whatever the classifier takes, of n_samples rows

        Returns
        -------
        sets : ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        sets: NDArray[np.bool_] = self._scores(self.predict_proba(X)) <= self.threshold_
        return sets

    def _scores(self, proba: Floats) -> Floats:
        return self.score_(proba, row_uniforms(proba, self._seed))


def _first_threshold(scores: Floats, weight: Floats, alpha: float) -> float:
    """Return the smallest score below which an estimated share 1 - alpha of true labels is."""
    order = np.argsort(scores, axis=None)
    covered = np.cumsum(weight.ravel()[order]) / len(scores)
    enough = np.maximum.accumulate(covered) >= 1 - alpha
    return float(scores.ravel()[order[np.argmax(enough)]] if enough.any() else scores.max())
