"""Hyper-parameter search that trains candidates and folds side by side."""

from __future__ import annotations

import time
from itertools import pairwise
from numbers import Integral
from typing import Any, Self

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from sklearn.base import clone, is_classifier
from sklearn.metrics._scorer import _MultimetricScorer
from sklearn.model_selection import ParameterGrid, ParameterSampler, check_cv
from sklearn.model_selection._search import BaseSearchCV
from sklearn.model_selection._validation import (
    _insert_error_scores,
    _warn_or_raise_about_fit_failures,
)
from sklearn.utils import _safe_indexing, check_random_state, check_scalar, indexable
from sklearn.utils._metadata_requests import _routing_enabled
from sklearn.utils.validation import _check_method_params

from robustclf._build import load_rows
from robustclf._held_out import hold_out
from robustclf._rows import encode_labels, split_labels
from robustclf._search import Result, Search, final_step, groups_for, of_labelled
from robustclf.classifier import RobustClassifier
from robustclf.noise import estimate_transition, make_noise_corrected_scorer

N_ITER = 10  # candidates of a random search


class RobustSearchCV(BaseSearchCV):
    r"""Search over hyper-parameters, whose fits are trained side by side as one network.

    The interface, the splits and ``cv_results_`` are those of
    :class:`~sklearn.model_selection.GridSearchCV` and
    :class:`~sklearn.model_selection.RandomizedSearchCV`. Candidates and folds whose networks have
    one shape become members of one stack: what is a number (learning rate, weight decay, dropout,
    parameters of a loss or strategy) or a choice of loss, strategy or seed differs between members
    of a stack; what changes shapes or the number of steps (``hidden``, ``module``, ``batch_size``,
    ``max_epochs``, ``optimizer``) makes another stack. Every fit draws the random numbers that it
    would draw alone, so that its scores are those of training it alone.

    Parameters
    ----------
    estimator : RobustClassifier, or Pipeline whose last step is one
        With a single loss: the portfolio of the default, ``"auto"``, is fitted once per candidate
        and fold, which a warning says. The transformers of a pipeline are fitted once per fold for
        all candidates that leave them as they are.
    param_grid : dict or list of dicts, optional
        Lists of values by name: all combinations are candidates.
    param_distributions : dict or list of dicts, optional
        In place of a grid: distributions, or lists of values, to sample candidates from.
    n_iter : int, optional
        Number of candidates that are sampled, 10 by default.
    cv : int, splitter or iterable, default=5
    scoring : str, callable, list, tuple or dict, optional
        As in GridSearchCV. None is the accuracy on the given labels, corrected for their noise
        where ``transition`` says something about it.
    transition : array-like of shape (n_classes, n_classes) or "estimate", optional
        ``T[i, j] = P(given j | true i)`` of the labels that scores are computed from; "estimate"
        estimates it first, from out-of-fold predictions of ``estimator``.
    refit : bool, str or callable, default=True
        As in GridSearchCV.
    halving : bool, default=False
        Successive halving: all candidates train for a part of their epochs, the best third of them
        goes on, and so forth; the others are dropped from the stack. Their scores are those they
        had then: ``cv_results_`` says after how many rounds, ``iter`` from 0, and ``n_epochs``.
        Of several scores ``refit`` names the one that counts.
    max_members : int, optional
        Networks side by side; by default as many as half of the free memory holds.
    n_jobs : int, optional
        Parts that the fits are dealt out to, through joblib: processes, or the workers of
        ``joblib.parallel_config(backend="dask")``. Without, one stack uses all threads of torch.
    random_state : int, RandomState or None, default=None
        Draws the candidates, and the seed of an estimator that has none: all fits then share one.
    error_score : "raise" or number, default=nan
        Score of a fit that fails.
    return_train_score : bool, default=False
    verbose : int, default=0
        For fits that stand alone: 2 prints how long each took, 3 its scores, too, and 10 also when
        it starts. Those of a stack print nothing; ``groups_`` says which they are.

    Attributes
    ----------
    cv_results_ : dict of ndarrays
        As that of GridSearchCV; the time of a stack is shared out evenly among its fits. With
        halving also "n_epochs" and "iter", the epochs and the last round of a candidate.
    best_estimator_, best_score_, best_params_, best_index_ : RobustClassifier, float, dict, int
        As those of GridSearchCV, and so are ``scorer_``, ``n_splits_``, ``refit_time_`` and
        ``multimetric_``.
    transition_ : ndarray of shape (n_classes, n_classes)
        With ``transition``: what the scores are corrected by.
    groups_ : list of str
        How the fits were trained, such as ``"60 fits of 1 network in one stack"``, and which could
        not be part of a stack, and why.

    Raises
    ------
    TypeError
        If the estimator is not a RobustClassifier or a pipeline that ends in one.
    ValueError
        If not one of ``param_grid`` and ``param_distributions`` is given, or a candidate of a
        search with halving cannot be part of a stack.

    References
    ----------
    Jamieson, Talwalkar. Non-stochastic Best Arm Identification and Hyperparameter Optimization.
    AISTATS 2016. arXiv:1502.07943 (successive halving).

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from robustclf import RobustClassifier
    >>> from robustclf.model_selection import RobustSearchCV
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = RobustClassifier(hidden=(32,), max_epochs=30, random_state=0)
    >>> grid = {"lr": [1e-4, 3e-3, 0.01], "loss": ["ce", "gce"]}
    >>> search = RobustSearchCV(clf, grid, cv=3).fit(X, y)
    >>> search.groups_
    ['18 fits of 1 network in one stack']
    >>> bool(search.best_score_ > 0.9), search.best_params_["lr"] > 1e-4
    (True, True)
    """

    def __init__(
        self,
        estimator: Any,
        param_grid: Any = None,
        *,
        param_distributions: Any = None,
        n_iter: int | None = None,
        cv: Any = 5,
        scoring: Any = None,
        transition: Any = None,
        refit: Any = True,
        halving: bool = False,
        max_members: int | None = None,
        n_jobs: int | None = None,
        random_state: Any = None,
        error_score: Any = np.nan,
        return_train_score: bool = False,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            estimator,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.param_grid = param_grid
        self.param_distributions = param_distributions
        self.n_iter = n_iter
        self.transition = transition
        self.halving = halving
        self.max_members = max_members
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, **params: Any) -> Self:
        """Train and score all candidates on all folds; refit the best on all rows.

        Parameters
        ----------
        X : array-like, data frame, sparse matrix or source of shape (n_samples, n_features)
            A source is loaded.
        y : array-like of shape (n_samples,)
            Rows without label, as in the classifier's ``fit``, are not scored.
        **params
            As in GridSearchCV: parameters of the estimator's ``fit``, such as ``sample_weight``,
            split as the rows are; ``groups`` for the splitter, and for strategies that need them.

        Returns
        -------
        self : RobustSearchCV
        """
        self._check_estimator()
        if self.max_members is not None:
            check_scalar(self.max_members, "max_members", Integral, min_val=1)
        rng = check_random_state(self.random_state)
        candidates = self._candidates(rng)
        X, y = indexable(*load_rows(X, y))
        params = _check_method_params(X, params=params)
        base = self._seeded(rng)
        labels, missing = split_labels(y)
        self._find_transition(base, X, labels, missing, params)
        scorers, refit_metric = self._get_scorers()
        routed = self._get_routed_params_for_fit(params)
        dealt = y
        if missing.any():  # splitters take no gaps
            dealt = np.where(missing, -1, encode_labels(labels, np.unique(labels), missing))
        splitter = check_cv(self.cv, dealt, classifier=is_classifier(self.estimator))
        splits = list(splitter.split(X, dealt, **routed.splitter.split))
        self.n_splits_ = len(splits)
        search = Search(
            base,
            X,
            y,
            candidates,
            splits,
            routed.estimator.fit,
            routed.scorer.score,
            params.get("groups"),
            of_labelled(scorers) if missing.any() else scorers,
            self.error_score,
            self.return_train_score,
            self.max_members,
            self.refit if isinstance(self.refit, str) else refit_metric,
            self.verbose,
        )
        out = self._run(search)
        _warn_or_raise_about_fit_failures(out, self.error_score)
        if callable(self.scoring):
            _insert_error_scores(out, self.error_score)
        more = self._budgets(out) if self.halving else {}
        results = self._format_results(candidates, len(splits), out, more)
        self.multimetric_ = isinstance(out[0]["test_scores"], dict)
        if callable(self.scoring) and self.multimetric_:
            self._check_refit_for_multimetric(out[0]["test_scores"])
            refit_metric = self.refit
        if self.refit or not self.multimetric_:
            self.best_index_ = self._select_best_index(self.refit, refit_metric, results)
            if not callable(self.refit):
                self.best_score_ = results[f"mean_test_{refit_metric}"][self.best_index_]
            self.best_params_ = results["params"][self.best_index_]
        if self.refit:
            started = time.time()
            best = clone(base).set_params(**clone(self.best_params_, safe=False))
            fit_params = routed.estimator.fit | groups_for(best, y, params.get("groups"))
            self.best_estimator_ = best.fit(X, y, **fit_params)
            self.refit_time_ = time.time() - started
            if hasattr(best, "feature_names_in_"):
                self.feature_names_in_ = best.feature_names_in_
        multi = isinstance(scorers, _MultimetricScorer)
        self.scorer_ = scorers._scorers if multi else scorers
        self.cv_results_ = results
        return self

    def _check_estimator(self) -> None:
        if not isinstance(final_step(self.estimator), RobustClassifier):
            raise TypeError(
                "estimator must be a RobustClassifier, or a Pipeline whose last step is one, got "
                f"{self.estimator!r}. Use GridSearchCV for any other."
            )

    def _candidates(self, rng: np.random.RandomState) -> list[dict[str, Any]]:
        given = [p for p in (self.param_grid, self.param_distributions) if p is not None]
        if len(given) != 1:
            raise ValueError(
                "RobustSearchCV needs either param_grid or param_distributions, got "
                f"{'both' if given else 'neither'}."
            )
        if self.param_grid is not None:
            if self.n_iter is not None:
                raise ValueError(
                    f"n_iter={self.n_iter!r} is for param_distributions; a grid is searched whole."
                )
            return list(ParameterGrid(self.param_grid))
        n_iter = N_ITER if self.n_iter is None else self.n_iter
        return list(ParameterSampler(self.param_distributions, n_iter, random_state=rng))

    def _seeded(self, rng: np.random.RandomState) -> Any:
        """Return the estimator, with a seed: fits that share one can share what they draw."""
        base = clone(self.estimator)
        clf = final_step(base)
        if clf.random_state is None:
            clf.set_params(random_state=int(rng.randint(2**31 - 1)))
        return base

    def _find_transition(
        self, base: Any, X: Any, labels: Any, missing: Any, params: dict[str, Any]
    ) -> None:
        for name in ("transition_", "_classes"):  # of a former fit
            self.__dict__.pop(name, None)
        if self.transition is None:
            return
        if self.scoring is not None:
            raise ValueError(
                f"transition says how scoring=None is corrected, got scoring={self.scoring!r}. Use "
                "robustclf.noise.make_noise_corrected_scorer for a score of your own."
            )
        if not isinstance(self.transition, str):
            self.transition_ = np.asarray(self.transition)
            classes = getattr(self.transition, "classes", None)
            self._classes = np.unique(labels) if classes is None else classes
            return
        if self.transition != "estimate":
            raise ValueError(
                f"transition must be a matrix, 'estimate' or None, got {self.transition!r}."
            )
        rows = np.flatnonzero(~missing)
        params = _check_method_params(X, params=params, indices=rows)
        known = self._get_routed_params_for_fit(params).estimator.fit
        known = known | groups_for(base, labels, params.get("groups"))
        held = hold_out(
            base,
            _safe_indexing(X, rows),
            labels,
            cv=check_cv(5, labels, classifier=True),
            params=known,
            refit=False,
            n_jobs=self.n_jobs,
        )
        estimate = estimate_transition(labels, held.proba, n_bootstrap=0)
        self.transition_, self._classes = estimate.transition, estimate.classes

    def _get_scorers(self) -> tuple[Any, Any]:
        T = self.transition
        if isinstance(T, str):
            T = getattr(self, "transition_", None)
        if T is None:
            scorers: tuple[Any, Any] = super()._get_scorers()
            return scorers
        scorer: Any = make_noise_corrected_scorer(T, classes=getattr(self, "_classes", None))
        if _routing_enabled():  # it stands for the score of the classifier
            asked = final_step(self.estimator).get_metadata_routing().score.requests
            scorer.set_score_request(sample_weight=asked["sample_weight"])
        return scorer, "score"

    def _run(self, search: Search) -> list[Result]:
        """Return a result for each candidate and split, those of a candidate together."""
        pairs = search.pairs()
        if not pairs:
            raise ValueError("No fits were performed: there are no candidates or no splits.")
        n_parts = 1 if self.halving else min(effective_n_jobs(self.n_jobs), len(pairs))
        cuts = [len(pairs) * k // n_parts for k in range(n_parts + 1)]
        run = search.run_halving if self.halving else search.run
        dealt = sorted(pairs, key=lambda pair: pair[1])  # fits to the same rows share much
        jobs = (delayed(run)(dealt[start:stop]) for start, stop in pairwise(cuts))
        done = [run(dealt)] if n_parts == 1 else Parallel(n_jobs=self.n_jobs)(jobs)
        self.groups_ = [group for _, groups in done for group in groups]
        results = {pair: result for found, _ in done for pair, result in found.items()}
        return [results[pair] for pair in pairs]

    def _budgets(self, out: list[Result]) -> Result:
        """Return how far each candidate got in successive halving."""
        n = self.n_splits_
        candidates = [out[start : start + n] for start in range(0, len(out), n)]
        return {k: [max(r[k] for r in each) for each in candidates] for k in ("n_epochs", "iter")}

    @staticmethod
    def _select_best_index(refit: Any, refit_metric: str, results: Result) -> int:
        if callable(refit) or "iter" not in results:
            return int(BaseSearchCV._select_best_index(refit, refit_metric, results))
        last = np.flatnonzero(results["iter"] == results["iter"].max())
        return int(last[results[f"rank_test_{refit_metric}"][last].argmin()])
