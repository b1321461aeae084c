"""The fits of a search: prepared, trained side by side where they can be, and scored."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from traceback import format_exc
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.metrics._scorer import _MultimetricScorer
from sklearn.model_selection._validation import _fit_and_score, _score
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing
from sklearn.utils._metadata_requests import _routing_enabled
from sklearn.utils.validation import _check_method_params

from robustclf._build import Method, fit_encoder
from robustclf._lanes import Fit, hashed, stands_alone
from robustclf._rows import split_labels
from robustclf._stack import Stack
from robustclf.classifier import RobustClassifier

SHARE_OF_MEMORY = 0.5
MEMORY = 4 * 2**30  # bytes taken for free where the system does not say
AUTO = "loss='auto'"  # why a fit stands alone: it is many fits itself
FACTOR = 3  # one of so many candidates goes on after a rung of halving

Pair = tuple[int, int]  # candidate and split
Result = dict[str, Any]


@dataclass
class Trial:
    """A candidate on a split: the estimator, and its fit where it can be part of a stack."""

    pair: Pair
    estimator: Any
    fit: Fit | None = None
    reason: str = ""  # why it stands alone
    seconds: float = 0.0  # of training, shared out among the fits of its stack
    result: Result | None = None

    @property
    def classifier(self) -> RobustClassifier:
        """The classifier in the estimator."""
        return final_step(self.estimator)  # type: ignore[no-any-return]


@dataclass
class Search:
    """What is searched; it can be sent to other processes.

    Parameters
    ----------
    estimator : estimator
    X, y : array-like
    candidates : list of dict
    splits : list of (train, test)
    fit_params, score_params : dict
    groups : array-like or None
        For strategies that need them.
    scorers : callable
    error_score : "raise" or float
    train_too : bool
        Whether to score the training rows, too.
    max_members : int or None
    metric : str
        Which of several scores halving ranks by.
    verbose : int
        Of the fits that stand alone.
    """

    estimator: Any
    X: Any
    y: Any
    candidates: list[dict[str, Any]]
    splits: list[tuple[NDArray[np.intp], NDArray[np.intp]]]
    fit_params: Mapping[str, Any]
    score_params: Mapping[str, Any]
    groups: Any
    scorers: Any
    error_score: Any
    train_too: bool
    max_members: int | None
    metric: Any
    verbose: int
    known: dict[Any, Any] = field(default_factory=dict)  # what folds share

    def pairs(self) -> list[Pair]:
        """Return all pairs of a candidate and a split."""
        return [(i, j) for i in range(len(self.candidates)) for j in range(len(self.splits))]

    def run(self, pairs: Iterable[Pair]) -> tuple[dict[Pair, Result], list[str]]:
        """Return the results of pairs, and how they were trained."""
        trials = [self._trial(pair) for pair in pairs]
        if n := sum(trial.reason == AUTO for trial in trials):
            warnings.warn(
                f"{n} fits with {AUTO} are trained one by one, a portfolio each: with a loss "
                "such as 'gce' candidates are trained side by side.",
                UserWarning,
                stacklevel=2,
            )
        groups = []
        for stacked in self._stacks(trials):
            started = time.time()
            try:
                stack = Stack([trial.fit for trial in stacked if trial.fit])
                stack.train()
                stack.finish()
            except Exception as error:  # of one of them, which would take the others with it
                for trial in stacked:
                    trial.fit, trial.reason = None, f"their stack raised {error!r}"
                    trial.estimator = clone(trial.estimator)
                continue
            seconds = (time.time() - started) / len(stacked)
            for trial in stacked:
                trial.seconds = seconds
                trial.result = self._scored(trial)
            groups.append(_described(stacked))
        reasons = Counter(trial.reason for trial in trials if trial.reason)
        groups += [f"{n} alone: {reason}" for reason, n in reasons.items()]
        for trial in trials:
            if trial.reason:
                trial.result = self._alone(trial)
        return {trial.pair: trial.result for trial in trials if trial.result}, groups

    def run_halving(self, pairs: Iterable[Pair]) -> tuple[dict[Pair, Result], list[str]]:
        """Return the results of pairs, of which the worse are dropped on the way."""
        trials = [self._trial(pair) for pair in pairs]
        for trial in trials:
            if trial.reason:
                raise ValueError(
                    f"halving=True trains candidates side by side, but {trial.reason} of "
                    f"{self.candidates[trial.pair[0]]} trains alone: use halving=False."
                )
        groups = self._stacks(trials)
        described = [_described(group) for group in groups]
        stacks = [Stack([trial.fit for trial in group if trial.fit]) for group in groups]
        alive = sorted({trial.pair[0] for group in groups for trial in group})
        n_rungs = max(1, math.ceil(math.log(max(len(alive), 1), FACTOR)))
        for rung in reversed(range(n_rungs)):
            for stack, group in zip(stacks, groups, strict=True):
                started = time.time()
                stack.train(max(1, round(stack.net.max_epochs / FACTOR**rung)))
                stack.hand_over() if rung else stack.finish()
                seconds = (time.time() - started) / len(group)
                for trial in group:
                    trial.seconds += seconds
                    result = self._scored(trial, final=rung == 0)
                    trial.result = result | {"n_epochs": stack.epoch, "iter": n_rungs - 1 - rung}
            if rung:
                alive = self._best(trials, alive)
                groups = [[trial for trial in g if trial.pair[0] in alive] for g in groups]
                for stack, group in zip(stacks, groups, strict=True):
                    if group:
                        stack.keep([trial.fit for trial in group if trial.fit])
                stacks = [stack for stack, group in zip(stacks, groups, strict=True) if group]
                groups = [group for group in groups if group]
        never = {"n_epochs": 0, "iter": 0}
        return {trial.pair: never | trial.result for trial in trials if trial.result}, described

    def _best(self, trials: list[Trial], candidates: list[int]) -> list[int]:
        """Return the candidates that go on after a rung."""

        def score(candidate: int) -> float:
            mine = [t.result["test_scores"] for t in trials if t.result and t.pair[0] == candidate]
            return float(np.mean([self._ranked(s) for s in mine]))

        scores = np.nan_to_num([score(candidate) for candidate in candidates], nan=-np.inf)
        best = np.argsort(-scores, kind="stable")[: math.ceil(len(candidates) / FACTOR)]
        return [candidates[k] for k in sorted(best)]

    def _ranked(self, scores: Any) -> float:
        """Return the score that candidates are ranked by."""
        if not isinstance(scores, dict):
            return float(scores)
        if self.metric not in scores:
            raise ValueError(
                "halving=True ranks candidates by one of several scores: refit must be one of "
                f"{sorted(scores)}, got {self.metric!r}."
            )
        return float(scores[self.metric])

    # Preparing ------------------------------------------------------------------------------------

    def _trial(self, pair: Pair) -> Trial:
        """Prepare a fit; what goes wrong is its result."""
        i, j = pair
        train = self.splits[j][0]
        estimator = clone(self.estimator).set_params(**clone(self.candidates[i], safe=False))
        trial = Trial(pair, estimator)
        try:
            params = self._params_of(estimator)
            if not isinstance(trial.classifier, RobustClassifier):
                trial.reason = f"estimator {type(trial.classifier).__name__}"
                return trial
            if trial.classifier._is_auto():
                trial.reason = AUTO
                return trial
            if params is None:
                trial.reason = "parameters of fit for another step"
                return trial
            X, place = self._transformed(estimator, j)
            params = _check_method_params(self.X, params=params, indices=train)
            y = _safe_indexing(self.y, train)
            prepared = trial.classifier._prepare(X, y, **params, encoded=self._encoding(place))
            shared = (place, prepared.net.device, prepared.data.x.dtype, id(prepared.encoder))
            prepared.data.x = self.known.setdefault(shared, prepared.data.x)
            trial.fit = Fit(prepared)
            trial.reason = stands_alone(trial.fit)
        except Exception:
            trial.result = self._failed(pair)
        if trial.reason:
            trial.fit = None
        return trial

    def _params_of(self, estimator: Any) -> dict[str, Any] | None:
        """Return what the classifier's fit is given; None if another step is given something."""
        params = dict(self.fit_params)
        if isinstance(estimator, Pipeline):
            prefix = f"{estimator.steps[-1][0]}__"
            if not all(name.startswith(prefix) for name in params):
                return None
            params = {name.removeprefix(prefix): value for name, value in params.items()}
        needed = needs_groups(estimator, self.y, self.groups)
        return params | ({"groups": self.groups} if needed else {})

    def _transformed(self, estimator: Any, split: int) -> tuple[Any, Any]:
        """Return the training rows as the classifier gets them, and a key for them."""
        train = self.splits[split][0]
        if not isinstance(estimator, Pipeline) or len(estimator.steps) == 1:
            if (split, "") not in self.known:
                self.known[split, ""] = _safe_indexing(self.X, train)
            return self.known[split, ""], (split, "")
        key = split, hashed(estimator[:-1])
        if key not in self.known:
            steps = estimator[:-1]
            rows = steps.fit_transform(_safe_indexing(self.X, train), _safe_indexing(self.y, train))
            self.known[key] = steps, rows
        steps, rows = self.known[key]
        estimator.steps[:-1] = steps.steps
        return rows, key

    def _encoding(self, place: Any) -> Callable[..., tuple[Any, Any]]:
        """Return what encodes rows, once for all candidates that want the same."""

        def encoded(encoder: Any, X: Any, weight: Any) -> tuple[Any, Any]:
            key = place, hashed(encoder), hashed(weight)
            if key not in self.known:
                self.known[key] = fit_encoder(encoder, X, weight)
            known: tuple[Any, Any] = self.known[key]
            return known

        return encoded

    def _stacks(self, trials: Iterable[Trial]) -> list[list[Trial]]:
        by_shape: dict[Any, list[Trial]] = {}
        for trial in trials:
            if trial.fit:
                by_shape.setdefault(trial.fit.shape(), []).append(trial)
        stacks = []
        for group in by_shape.values():
            fit = group[0].fit
            assert fit is not None
            most = self.max_members or int(free_memory(fit.net.device) / fit.memory())
            n = max(1, most // fit.net.n_stacked)
            n_stacks = math.ceil(len(group) / n)
            cuts = [len(group) * k // n_stacks for k in range(n_stacks + 1)]
            stacks += [group[start:stop] for start, stop in pairwise(cuts)]
        return stacks

    # Scoring --------------------------------------------------------------------------------------

    def _scored(self, trial: Trial, final: bool = True) -> Result:
        """Return the result of a fit that was trained in a stack."""
        fit = trial.fit
        assert fit is not None
        try:
            if fit.error is not None:
                raise fit.error
            trial.classifier._keep(fit.prepared.fitted() if final else fit.prepared.so_far())
        except Exception:
            return self._failed(trial.pair) | {"fit_time": trial.seconds}
        train, test = self.splits[trial.pair[1]]
        started = time.time()
        result = {"test_scores": self._score_on(trial.estimator, test), "n_test_samples": len(test)}
        result |= {"fit_time": trial.seconds, "score_time": time.time() - started}
        result["fit_error"] = None
        if self.train_too:
            result["train_scores"] = self._score_on(trial.estimator, train)
        return result

    def _score_on(self, estimator: Any, rows: NDArray[np.intp]) -> Any:
        params = _check_method_params(self.X, params=self.score_params, indices=rows)
        X, y = _safe_indexing(self.X, rows), _safe_indexing(self.y, rows)
        return _score(estimator, X, y, self.scorers, params, self.error_score)

    def _alone(self, trial: Trial) -> Result:
        train, test = self.splits[trial.pair[1]]
        fit_params = dict(self.fit_params) | groups_for(trial.estimator, self.y, self.groups)
        result: Result = _fit_and_score(
            trial.estimator,
            self.X,
            self.y,
            scorer=self.scorers,
            train=train,
            test=test,
            verbose=self.verbose,
            parameters=self.candidates[trial.pair[0]],
            fit_params=fit_params,
            score_params=self.score_params,
            return_train_score=self.train_too,
            return_n_test_samples=True,
            return_times=True,
            error_score=self.error_score,
        )
        return result

    def _failed(self, pair: Pair) -> Result:
        """Return the result of a fit that raised the error that is handled now."""
        if self.error_score == "raise":
            raise
        scores = self.error_score
        if isinstance(self.scorers, _MultimetricScorer):
            scores = dict.fromkeys(self.scorers._scorers, self.error_score)
        result = {"test_scores": scores, "n_test_samples": len(self.splits[pair[1]][1])}
        result |= {"fit_time": 0.0, "score_time": 0.0, "fit_error": format_exc()}
        return result | ({"train_scores": scores} if self.train_too else {})


@dataclass
class Labelled:
    """A scorer that leaves out the rows without label, which no prediction can be right about."""

    scorer: Callable[..., Any]

    def __call__(self, estimator: Any, X: Any, y: Any, **params: Any) -> Any:
        """Return the score of the rows that have a label."""
        labels, missing = split_labels(y, estimator.classes_)
        rows = np.flatnonzero(~missing)
        params = _check_method_params(X, params=params, indices=rows)
        return self.scorer(estimator, _safe_indexing(X, rows), labels, **params)


def of_labelled(scorers: Any) -> Any:
    """Return a scorer, or several in one, of the rows that have a label."""
    if not isinstance(scorers, _MultimetricScorer):
        return Labelled(scorers)
    each = {name: Labelled(scorer) for name, scorer in scorers._scorers.items()}
    return _MultimetricScorer(scorers=each, raise_exc=scorers._raise_exc)


def final_step(estimator: Any) -> Any:
    """Return the estimator itself, or the last step of a pipeline."""
    return estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator


def groups_for(estimator: Any, y: Any, groups: Any) -> dict[str, Any]:
    """Return the groups as the ``fit`` of an estimator takes them, if a strategy needs them."""
    prefix = f"{estimator.steps[-1][0]}__" if isinstance(estimator, Pipeline) else ""
    return {f"{prefix}groups": groups} if needs_groups(estimator, y, groups) else {}


def needs_groups(estimator: Any, y: Any, groups: Any) -> bool:
    """Tell whether there are groups, and a strategy that needs them; routing brings its own."""
    clf = final_step(estimator)
    if groups is None or _routing_enabled() or not isinstance(clf, RobustClassifier):
        return False
    method = Method.of(clf, np.unique(split_labels(y)[0]))
    return any("groups" in strategy.needs for strategy in method.strategies)


def free_memory(device: str) -> float:
    """Return how many bytes a stack may take on a device."""
    if torch.device(device).type == "cuda":
        return SHARE_OF_MEMORY * float(torch.cuda.mem_get_info(device)[0])
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        free = MEMORY
    return SHARE_OF_MEMORY * free


def _described(trials: list[Trial]) -> str:
    fit = trials[0].fit
    assert fit is not None
    n, width = len(trials), fit.net.n_stacked
    return f"{n} fit{'s' * (n > 1)} of {width} network{'s' * (width > 1)} in one stack"
