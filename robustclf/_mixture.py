"""Models whose weighted mean predicts: stacks of networks, forests, kernel least squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cholesky, eigh, solve_triangular
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state, gen_batches
from torch import Tensor

from robustclf._net import RobustNet
from robustclf.noise.posterior import expectation_maximised
from robustclf.noise.transition import guarded_transition

Floats = NDArray[np.floating[Any]]

POINTS = 500  # least number of rows whose kernels span the functions
PRODUCTS = 1e9  # n m^2 up to which m points of n rows are more than that
MOST_ROWS = 20_000  # that these functions are fitted to
PENALTIES = np.logspace(-3, 3, 7)
LEAST = 1e-3  # probability of any class
MOST_LEVERAGE = 0.95  # of a row on its own value
STEPS = 60  # of undoing the noise: too few to be as sure as the estimated matrix would have it
CHUNK = 4_096  # rows whose kernels are held at a time
WHOLE = -1  # the fold of a fit to all rows


class Probabilistic(ClassifierMixin, BaseEstimator):
    """A classifier that predicts the most probable class."""

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each row."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels


class KernelLeastSquares(Probabilistic):
    r"""Least squares on one-hot labels in the space of a Gaussian kernel.

    .. math:: \exp(-s \lVert x - x' \rVert^2 / d), \qquad \min_f
       \sum_i w_i \lVert e_{y_i} - f(x_i) \rVert^2 + \lambda \lVert f \rVert^2

    for the d standardised columns of x, with Nystroem's approximation and the penalty of the least
    error on rows left out one at a time. Least squares estimate probabilities of the given labels
    without bias and vary little: of few rows with many wrong labels they often say most.
    Probabilities are clipped from below and scaled to a sum of 1.

    Functions are spanned by the kernels of 500 rows; if s is 1 or more and there are n < 4,000 rows
    by those of :math:`\sqrt{10^9 / n}`, which are all of up to 1,000.

    Parameters
    ----------
    scale : float, default=1.0
        s: small for smooth functions.
    penalty : float or None, default=None
        :math:`\lambda`; None for that of the least error.
    random_state : int, RandomState or None

    Attributes
    ----------
    features_ : transformer
        From rows to the features that least squares weigh.
    error_ : float
        Mean squared error on rows left out one at a time; nan if the penalty was given.

    References
    ----------
    Williams, Seeger. Using the Nyström method to speed up kernel machines. NeurIPS 2000. Least
    squares and wrong labels: Manwani, Sastry. Noise tolerance under risk minimization. IEEE
    Transactions on Cybernetics 2013. arXiv:1109.5231.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> KernelLeastSquares(random_state=0).fit(X, y).score(X, y) > 0.95
    True
    """

    def __init__(
        self, scale: float = 1.0, *, penalty: float | None = None, random_state: Any = None
    ) -> None:
        self.scale = scale
        self.penalty = penalty
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, features: Any = None) -> Self:
        """Fit to rows and labels, to a part of them if they are many.

        ``features`` are those of another fit to such rows, which need not be made anew.
        """
        rng = check_random_state(self.random_state)
        y, w = np.asarray(y), np.ones(X.shape[0]) if sample_weight is None else sample_weight
        self.classes_ = np.unique(y)
        self.fitted_ = np.ones(len(y), dtype=bool)
        if len(y) > MOST_ROWS:
            self.fitted_ = rng.permutation(len(y)) < MOST_ROWS
            X, y, w = X[self.fitted_], y[self.fitted_], w[self.fitted_]
        X, onehot = X.astype(np.float64), (y[:, None] == self.classes_).astype(np.float64)
        self.features_ = self._features(X, rng) if features is None else features
        phi = self.features_.transform(X)
        penalty, self.error_ = self.penalty, np.nan
        if penalty is None:
            penalty, self.error_ = least_error(phi, onehot, w)
        self.ridge_ = Ridge(penalty, solver="cholesky").fit(phi, onehot, sample_weight=w)
        self.tuned_ = {"penalty": penalty}
        return self

    def _features(self, X: Any, rng: np.random.RandomState) -> Any:
        n, d = X.shape
        points = POINTS if self.scale < 1 else max(POINTS, int((PRODUCTS / n) ** 0.5))
        nystroem = Nystroem(gamma=self.scale / d, n_components=min(points, n), random_state=rng)
        features = make_pipeline(StandardScaler(with_mean=not issparse(X)), nystroem)
        return features.set_output(transform="default").fit(X)

    def predict_proba(self, X: Any) -> Floats:
        """Return the probability of each class, ``(row, class)``."""
        batches = gen_batches(X.shape[0], CHUNK)
        phi = (self.features_.transform(X[rows].astype(np.float64)) for rows in batches)
        return self._proba(np.concatenate([self.ridge_.predict(part) for part in phi]))

    def left_out_proba(self, X: Any, y: Any, sample_weight: Any) -> Floats:
        """Return what ``predict_proba`` of the fitted rows would be, each row left out in turn."""
        rows = self.fitted_
        phi, w = self.features_.transform(X[rows].astype(np.float64)), sample_weight[rows]
        value = self.ridge_.predict(phi).reshape(len(phi), -1)
        phi -= np.average(phi, axis=0, weights=w)
        gram = (phi.T * w) @ phi
        gram.flat[:: len(gram) + 1] += self.tuned_["penalty"]
        half = solve_triangular(cholesky(gram, lower=True), phi.T, lower=True)
        leverage = np.einsum("ij,ij->j", half, half)
        own = (w * (leverage + 1 / w.sum())).clip(max=MOST_LEVERAGE)[:, None]
        onehot = y[rows, None] == self.classes_
        proba = np.empty((len(rows), len(self.classes_)))
        proba[rows] = self._proba((value - own * onehot) / (1 - own))
        if not rows.all():
            proba[~rows] = self.predict_proba(X[~rows])
        return proba

    def _proba(self, values: Floats) -> Floats:
        proba: Floats = values.reshape(-1, len(self.classes_)).clip(LEAST)
        proba /= proba.sum(axis=1, keepdims=True)
        return proba


def least_error(phi: Floats, target: Floats, weight: Floats) -> tuple[float, float]:
    """Return the penalty of the least squared leave-one-out error, and this error.

    As ``RidgeCV`` of scikit-learn does, but turned to the principal axes of the features, where the
    leverages of all penalties are one product of matrices.
    """
    phi = phi - np.average(phi, axis=0, weights=weight)
    target = target - np.average(target, axis=0, weights=weight)
    values, axes = eigh((phi.T * weight) @ phi)
    phi = phi @ axes
    shrunk = 1 / (values[:, None] + PENALTIES)
    right = (phi.T * weight) @ target
    residuals = [target - phi @ (right * by[:, None]) for by in shrunk.T]
    own = weight[:, None] * (np.square(phi, out=phi) @ shrunk + 1 / weight.sum())
    errors = [
        float(np.mean(weight[:, None] * (residual / (1 - h[:, None])) ** 2))
        for residual, h in zip(residuals, own.T, strict=True)
    ]
    best = int(np.argmin(errors))
    return float(PENALTIES[best]), errors[best]


class Filtered(Probabilistic):
    r"""Trees and kernel least squares of the rows whose label other rows make the most probable.

    1. Kernel least squares give every row the probabilities that it would have without the row,
       :math:`f_{-i} = (f_i - h_i e_{y_i}) / (1 - h_i)` with its leverage :math:`h_i`.
    2. Their confident joint estimates the transition matrix, and
       :func:`robustclf.noise.clean_proba` turns them into probabilities of the true label.
    3. Extremely randomised trees, and kernel least squares anew, are fitted to the rows whose given
       label is the most probable true one. The latter, which vary less, count twice.

    Where most labels are wrong that says more than what learns from all rows: filter and learners
    err differently. Where few are wrong it leaves out the rows that are hard.

    Parameters
    ----------
    n_estimators : int, default=50
    penalty : float or None, default=None
        Of the kernel least squares of step 3; None for that of the least error.
    random_state : int, RandomState or None

    Attributes
    ----------
    kept_ : ndarray of shape (n_samples,)
        Whether each row was learned from.

    References
    ----------
    Brodley, Friedl. Identifying mislabeled training data. Journal of Artificial Intelligence
    Research 1999. arXiv:1106.0219. There filter and learner are trained by cross-validation and
    labels are taken as they are predicted, without an estimate of the noise.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> given = np.where(np.arange(150) % 5 == 0, (y + 1) % 3, y)  # 30 wrong labels
    >>> model = Filtered(random_state=0).fit(X, given)
    >>> int((given != y)[~model.kept_].sum())  # of 30 wrong labels, left out
    29
    >>> model.score(X, y) > 0.9
    True
    """

    def __init__(
        self, n_estimators: int = 50, *, penalty: float | None = None, random_state: Any = None
    ) -> None:
        self.n_estimators = n_estimators
        self.penalty = penalty
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        kernel: Any = None,
        kept: Any = None,
        features: Any = None,
    ) -> Self:
        """Fit to rows and labels.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y, sample_weight : array-like of shape (n_samples,)
        kernel : KernelLeastSquares, optional
            That of step 1, fitted to the same rows; None to fit it.
        kept : ndarray of shape (n_samples,), optional
            Which rows to learn from; None for those of steps 1 and 2. If they have a single class,
            they are all rows.
        features : transformer, optional
            Of kernel least squares of scale 1; None to make them of the rows that are learned from.
        """
        y, w = np.asarray(y), np.ones(X.shape[0]) if sample_weight is None else sample_weight
        self.classes_, codes = np.unique(y, return_inverse=True)
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=3).tolist()
        if kept is None:
            if kernel is None:
                kernel = KernelLeastSquares(random_state=seeds[0]).fit(X, y, sample_weight=w)
            kept = self._confirmed(kernel.left_out_proba(X, y, w), codes)
        one = len(np.unique(codes[kept])) < 2
        self.kept_ = np.ones(len(codes), dtype=bool) if one else kept
        X, codes, w = X[self.kept_], codes[self.kept_], w[self.kept_]
        self.trees_ = ExtraTreesClassifier(
            self.n_estimators, min_samples_leaf=3, max_features=0.25, random_state=seeds[1]
        ).fit(X, codes, sample_weight=w)
        self.kernel_ = KernelLeastSquares(penalty=self.penalty, random_state=seeds[2])
        self.kernel_.fit(X, codes, sample_weight=w, features=features)
        self.tuned_, self.features_ = self.kernel_.tuned_, self.kernel_.features_
        return self

    @staticmethod
    def _confirmed(proba: Floats, codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        if proba.shape[1] > 1:
            proba = undone(proba, confident_transition(codes, proba))
        confirmed: NDArray[np.bool_] = proba.argmax(axis=1) == codes
        return confirmed

    def predict_proba(self, X: Any) -> Floats:
        """Return the probability of each class, ``(row, class)``."""
        proba = np.zeros((X.shape[0], len(self.classes_)))
        for model, share in ((self.trees_, 1 / 3), (self.kernel_, 2 / 3)):
            proba[:, model.classes_] += share * model.predict_proba(X)
        return proba


def confident_transition(codes: NDArray[np.int64], proba: Floats) -> Floats:
    r"""Return how labels were corrupted, as confident learning counts it: rows count alike.

    Noise is taken to leave every label at least as frequent among rows of its class as among those
    of another, :math:`T_{kk} \ge T_{jk}`. What models say that know hardly more than chance can be
    the opposite, and to undo that would turn their predictions round. Each row j that says so is
    moved towards the identity until :math:`T_{jk}` is at most the estimated :math:`T_{kk}`, for all
    k; of two classes, that swaps the rows.
    """
    shares = proba.astype(np.float64) / proba.sum(axis=1, keepdims=True)
    transition = guarded_transition(codes, shares).transition  # usable also where rows are few
    own, identity = transition.diagonal(), np.eye(len(transition))
    ratio = np.divide(own, transition, out=np.ones_like(transition), where=transition > own)
    moved: Floats = identity + ratio.min(axis=1, keepdims=True) * (transition - identity)
    return moved


def undone(proba: Floats, transition: Floats) -> Floats:
    """Return probabilities of the true class, as :func:`robustclf.noise.clean_proba`, nearly."""
    return expectation_maximised(proba, transition, STEPS)


@dataclass(eq=False)
class Shallow:
    """A classifier of scikit-learn, and the noise to undo in what it says.

    Parameters
    ----------
    estimator : classifier
        Its classes are codes of the classes.
    n_classes : int
    transition : ndarray of shape (n_classes, n_classes) or None
    """

    estimator: Any
    n_classes: int
    transition: Floats | None = None

    def proba(self, x: Any) -> Floats:
        """Return the probabilities of encoded rows, ``(sample, class)``."""
        return self.corrected(self.widened(self.estimator, x))

    def fit(
        self,
        x: Any,
        codes: NDArray[np.int64],
        weight: Floats,
        folds: Any,
        **given: dict[int, Any],
    ) -> tuple[Floats, dict[int, Any]]:
        """Fit to the rows that have a fold; return the probabilities of all rows, and the fits.

        Those of rows that have a fold are of trees, or of a copy, that did not train on them. The
        copies have the parameters that the classifier chose, and its ``features``, which know no
        label. Each fit is under its fold, that to all rows under ``WHOLE``, and so are further
        arguments of each fit in ``given``.
        """
        rows = np.flatnonzero(folds >= 0)

        def fit(estimator: Any, fold: int) -> Any:
            train = rows[folds[rows] != fold]
            more = {name: by_fold[fold] for name, by_fold in given.items()}
            return estimator.fit(x[train], codes[train], sample_weight=weight[train], **more)

        fits = {WHOLE: fit(self.estimator, WHOLE)}
        proba = np.empty((len(codes), self.n_classes))
        others = np.flatnonzero(folds < 0)
        if len(others):
            proba[others] = self.widened(self.estimator, x[others])
        if hasattr(self.estimator, "oob_decision_function_"):
            proba[rows] = self.out_of_bag(x[rows])
            return proba, fits
        tuned = clone(self.estimator).set_params(**self.estimator.tuned_)
        held_out = np.unique(folds[rows]).tolist()
        given["features"] = dict.fromkeys(held_out, self.estimator.features_)
        for fold in held_out:
            fits[fold] = fit(clone(tuned), fold)
            test = rows[folds[rows] == fold]
            proba[test] = self.widened(fits[fold], x[test])
        return proba, fits

    def out_of_bag(self, x: Any) -> Floats:
        """Return the probabilities of the training rows by trees that did not train on them."""
        seen = self.estimator.oob_decision_function_
        never = ~(seen.sum(axis=1) > 0)  # rows that all trees trained on
        wide = np.zeros((len(seen), self.n_classes))
        wide[:, self.estimator.classes_] = seen
        wide[never] = self.widened(self.estimator, x).mean(axis=0)
        return wide

    def widened(self, estimator: Any, x: Any) -> Floats:
        """Return a column for each class, also for those that were not seen."""
        wide = np.zeros((x.shape[0], self.n_classes))
        wide[:, estimator.classes_] = estimator.predict_proba(x)
        return wide

    def corrected(self, proba: Floats) -> Floats:
        """Return probabilities of the true class."""
        return proba if self.transition is None else undone(proba, self.transition)


@dataclass(eq=False)
class Network:
    """A stack of networks, of which all members predict."""

    net: RobustNet

    def proba(self, x: Any) -> Floats:
        """Return the probabilities of encoded rows, ``(sample, class)``."""
        chunks: list[Tensor] = [self.net.mean_proba(logits) for logits in self.net.logits(x)]
        return torch.cat(chunks).numpy(force=True).astype(np.float64)


@dataclass(eq=False)
class Mixture:
    """The weighted mean of models, which predicts for ``loss="auto"``.

    Parameters
    ----------
    weights : list of float
    models : list of Network or Shallow
    """

    weights: list[float]
    models: list[Any]

    def proba(self, x: Any) -> Floats:
        """Return the probabilities of encoded rows, ``(sample, class)``."""
        parts = [w * m.proba(x) for w, m in zip(self.weights, self.models, strict=True)]
        mean: Floats = np.sum(parts, axis=0)
        return mean
