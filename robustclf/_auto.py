"""loss="auto": models of different strength, weighed by the labels they did not learn from.

1. Networks that differ in what keeps them from memorising (an embedding of numbers or, of many
   columns, dropout and few inputs), forests with leaves of different size and kernel least squares
   are fitted to the labels as they are, and trees with a kernel to the rows that kernel least
   squares confirm ("filtered").
   None is right for every table; together they cost what one search would.
2. Cross-fitting gives every row the probabilities of members that did not train on it. The share
   of given labels they predict ranks the models: it falls with the noise, but alike for all.
3. Weights are soft, exp(-(best - own) / standard error of the difference): models that the labels
   cannot tell apart share the prediction. The more labels are wrong, the less they can tell, and
   the more often "filtered" is the best: it counts eight times, unless hardly any label is wrong.
   The forest of fully grown trees, which memorises, is for clean labels alone and else not fitted;
   nearly linear least squares, which bend too little for many tables, are for noisy ones.
4. The transition matrix T is estimated from the weighted mean, by the confident joint; rows that
   would turn labels round are moved towards the identity.
5. Forests and kernels enter once more with T undone, :func:`robustclf.noise.clean_proba`, and
   steps 3 and 4 repeat with the better predictions.
6. The best network is trained once more through T (forward correction), of many rows longer, and
   with one more layer after an embedding: T explains what it would memorise. The more labels are
   wrong, the less it does, and the shorter the training. Step 3 is final.
   Forests and kernels fitted to the labels as they are say how probable a *given* label is: for
   one scale with the others, uniform noise of the estimated rate is undone in them, which changes
   how sure they are, not what they predict.
7. "filtered" is fitted once more, to the rows that the mixture confirms, and keeps its weight;
   the fully grown forest, of which a hundred trees are enough to judge it, gets three hundred times
   its weight, if that is more.

No label is changed, and the filter is made anew within each fold, so that steps 2 and 3 stay
honest: no model has seen the label of a row that judges it, not even through a target or a choice
of other rows. What knows no label, encoder and kernel features, is of all rows. The mixture's
choice has seen it, so that its refit is not judged; and with ``cross_fit``, where out-of-fold
probabilities are to be those of the model that predicts, it is left out. Without noise T is near
the identity and nothing is lost.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Event
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from threadpoolctl import threadpool_limits

from robustclf._build import (
    SINGLE,
    Method,
    Prepared,
    auto_epochs,
    fit_encoder,
    held_share,
    load_rows,
    make_strategies,
)
from robustclf._device import find_device
from robustclf._distributed import common_random_state
from robustclf._mixture import (
    WHOLE,
    Filtered,
    Floats,
    KernelLeastSquares,
    Mixture,
    Network,
    Shallow,
)
from robustclf._net import DivergenceError
from robustclf._progress import announce
from robustclf._random import DRAWING
from robustclf._rows import row_weights, split_labels
from robustclf._weighing import CORRECTED, NOISY, AutoReport, Candidate, Labels, Tried, mixed
from robustclf.losses import ForwardCorrected
from robustclf.noise import NoiseRate, uniform_transition
from robustclf.strategies import GroupLasso

FOLDS = 5
ROUNDS = 2  # of estimating T and undoing it
NEGLIGIBLE = 0.01  # weight of a model that is not kept
LEAST = 20  # epochs; of a network trained through T up to twice as many
MOST_NUMBERS = 6_500_000  # that it sees for that; an embedding sees no more, but for 10 epochs
DEEPER = (128, 128, 128)  # layers of the one with an embedding, then
MOST_COLUMNS = 100  # beyond which an embedding of each is too dear
LARGE = 1_000_000  # numbers, from which on so many columns are worth wider networks
ALIKE: dict[str, Any] = {"hidden": (128, 128), "warm_up": 0.0, "dropout": 0.1, "lr": 0.005}

# parameters of the classifier; `samples` stands for max_epochs, `large` has others for large tables
NETWORKS: dict[str, dict[str, Any]] = {
    "dropout": {"samples": 30_000, "dropout": 0.5} | {"large": {"hidden": (512, 512), "lr": 0.002}},
    "sparse": {"samples": 30_000, "lr": 0.002, "strategy": GroupLasso()},
    "periodic": {"samples": 30_000, "numeric_embedding": "periodic"},
    "resnet": {"samples": 30_000, "module": "resnet", "hidden": (96,), "dropout": 0.3}
    | {"lr": 0.003, "warm_up": 0.1, "large": {"hidden": (384,), "lr": 0.002}},
    "long": {"samples": 60_000},
    "agce": {"samples": 30_000, "loss": "agce", "warm_up": 0.1},
}
SHALLOW: dict[str, Any] = {
    "forest": RandomForestClassifier(200, min_samples_leaf=20, oob_score=True),
    "extra_trees": ExtraTreesClassifier(
        200, min_samples_leaf=3, max_features=0.5, bootstrap=True, oob_score=True
    ),
    "deep_forest": RandomForestClassifier(100, oob_score=True),
    "kernel": KernelLeastSquares(1.0),
    "smooth_kernel": KernelLeastSquares(0.1),
    "linear_kernel": KernelLeastSquares(0.01),
    "filtered": Filtered(),
}
FOR_CLEAN = "deep_forest"  # memorises: fitted only where few labels are wrong
TREES = 300  # of it where it predicts alone
FILTERS = ("kernel", "smooth_kernel")  # that of less error chooses the rows of "filtered"
AS_GIVEN = ("forest", "extra_trees", "deep_forest", "kernel", "smooth_kernel", "linear_kernel")
UNDONE = tuple(name for name in AS_GIVEN if name != FOR_CLEAN)  # enter again, noise undone
MOST_NOISE = 0.95  # of that at which labels say nothing
BUDGETS: dict[str, tuple[str, ...]] = {
    "fast": ("dropout", "sparse"),
    "balanced": ("dropout", "sparse", "periodic", "resnet"),
    "best": tuple(NETWORKS),
}
OF_FEW_COLUMNS, OF_MANY_COLUMNS = {"periodic"}, {"dropout", "sparse"}
FORWARD = {"fast": 0, "balanced": 1, "best": 2}  # networks trained once more, through T
DECIDED = {"loss", "dropout", "lr", "hidden", "warm_up", "weight_decay", "module"}
DECIDED |= {"numeric_embedding", "max_epochs"}

Untrained = tuple[str, dict[str, Any], Prepared]  # a network's name and parameters


class Auto:
    """The fit of a classifier with ``loss="auto"``.

    Parameters
    ----------
    clf : RobustClassifier
    data : dict
        Arguments of ``fit``.
    """

    def __init__(self, clf: Any, data: dict[str, Any]) -> None:
        data["X"], data["y"] = load_rows(data["X"], data["y"])
        self.clf = clf
        self.data = data
        rng = common_random_state(clf.random_state, find_device(clf.device))
        self.seed = int(rng.randint(2**31 - 1))
        self.n = max(np.asarray(data["y"]).size, 1)  # what is wrong with y is for the fit to say
        self.folds = clf.cross_fit or max(2, min(FOLDS, self._n_trained()))
        self.own = {k for k in DECIDED if not clf._at_default(k)}
        self.encoder: Any = None
        self.x: Any = None
        self.labels: Labels
        self.missing: NDArray[np.bool_]
        self.first: dict[str, Any] = {}
        self.fits: dict[str, dict[int, Any]] = {}
        self.interrupted = False

    def _n_trained(self) -> int:
        """Return how many rows have a label and a weight and are not held out."""
        clf, data = self.clf, self.data
        labels, missing = split_labels(data["y"])
        method = Method.of(clf, np.unique(labels))
        weight = row_weights(data["sample_weight"], None, labels, missing)
        n = int((~missing if weight is None else ~missing & (weight > 0)).sum())
        return n if data["X_val"] is not None else n - int(n * held_share(clf, method, data["X"]))

    def run(self) -> dict[str, Any]:
        """Return what the classifier has learned."""
        self._encode()
        tried = self._as_given()
        labels = self.labels
        corrected: list[Tried] = []
        for _ in range(ROUNDS):
            transition = labels.transition([*tried, *corrected])
            corrected = self._corrected(tried, transition)
        tried += corrected
        transition = labels.transition(tried)
        rate = labels.rate(labels.mixed(tried))
        if rate.low < NOISY:
            with fits_of_trees_and_kernels():
                tried.append(self._shallow(FOR_CLEAN, {}))
        longer = min(round(LEAST * (2 - rate.rate)), self._affordable())
        networks = [t for t in tried if t.learned]
        if self._affordable() < 2 * LEAST:
            networks = [t for t in networks if "numeric_embedding" not in t.params] or networks
        ranked = sorted(networks, key=lambda t: -labels.accuracy(t.oof))
        for best in ranked[: FORWARD[self.clf.budget]]:
            params = best.params | {"loss": ForwardCorrected("ce", transition=transition)}
            if "max_epochs" in params:
                params["max_epochs"] = max(params["max_epochs"], longer)
            if {"hidden", "numeric_embedding"} <= params.keys():
                params["hidden"] = DEEPER
            tried += self._train([self._network(f"{best.name}{CORRECTED}", params)])
        if self.interrupted:
            warnings.warn(
                "The fit was interrupted; the mixture is of what was trained until then.",
                UserWarning,
                stacklevel=4,
            )
        return self._learned(tried, transition)

    def _encode(self) -> None:
        """Check and encode the rows once for all candidates; warn of what there is to warn of."""
        prepared = self._candidate({"loss": SINGLE})._prepare(**self.data, encoded=self._encoded)
        self.first = {"classes_": prepared.classes, "encoder_": prepared.encoder}
        self.labels, self.missing = Labels.of(prepared), prepared.missing

    def _encoded(self, encoder: Any, X: Any, weight: Any) -> tuple[Any, Any]:
        if self.encoder is None:
            self.encoder, self.x = fit_encoder(encoder, X, weight)
        return self.encoder, self.x

    def _candidate(self, params: dict[str, Any]) -> Any:
        alike = {"random_state": self.seed, "verbose": max(0, int(self.clf.verbose) - 1)}
        return self.clf._copy().set_params(**params, **alike, cross_fit=self.folds)

    def _as_given(self) -> list[Tried]:
        """Train networks on the labels as they are, and fit the other models meanwhile."""
        networks = list(self._networks())
        trained = list(self._train(networks)) if self._is_wide() else []  # faster by every thread
        with fits_of_trees_and_kernels(), threads_shared() as (pool, all_free):
            fits: dict[str, Future[Tried]] = {}
            for name in sorted(SHALLOW, key=lambda name: (name not in FILTERS, name != "filtered")):
                if name != FOR_CLEAN:  # what is filtered waits for kernels that began before it
                    fits[name] = pool.submit(self._shallow, name, fits)
            trained += self._train(networks)
            if not trained:
                raise DivergenceError(
                    "No network of loss='auto' could be trained (the warnings say why): try a "
                    f"smaller lr than {self.clf.lr:g}, or leave it at its default."
                )
            all_free.set()
            return [*trained, *(fits[name].result() for name in SHALLOW if name in fits)]

    def _networks(self) -> Iterator[Untrained]:
        left_out = OF_FEW_COLUMNS if self._has_many_columns() else OF_MANY_COLUMNS
        for name in BUDGETS[self.clf.budget]:
            settings = dict(NETWORKS[name])
            if name in left_out and self.clf.budget != "fast":
                continue
            if "strategy" in settings and not isinstance(self.clf.module, str):
                continue  # it may have no layer that the strategy knows
            yield self._network(name, self._params(settings))

    def _has_many_columns(self) -> bool:
        return bool(self.x.shape[1] > MOST_COLUMNS)

    def _is_wide(self) -> bool:
        return self._has_many_columns() and self._size() >= LARGE

    def _size(self) -> int:
        """Return the numbers that there are, of sparse rows those that are not 0."""
        return int(self.x.nnz if issparse(self.x) else self.x.size)

    def _affordable(self) -> int:
        """Return the epochs beyond which a network that is costly by the number is too dear."""
        return MOST_NUMBERS // max(self._size(), 1)

    def _network(self, name: str, params: dict[str, Any]) -> Untrained:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # _encode has warned
            prepared = self._candidate(params)._prepare(**self.data, encoded=self._encoded)
        return name, params, prepared

    def _train(self, networks: list[Untrained]) -> Iterator[Tried]:
        """Train networks, and forget their data; yield those that did not diverge."""
        while networks and not self.interrupted:
            name, params, prepared = networks.pop(0)
            started = time.perf_counter()
            try:
                prepared.train()
            except DivergenceError as error:
                warnings.warn(f"{name!r} of loss='auto' is left out: {error}", stacklevel=2)
                continue
            learned = prepared.fitted(every_member=True)
            net, oof = learned["net_"], learned["oof_proba_"]
            self.interrupted = net.interrupted_
            seconds = time.perf_counter() - started
            yield Tried(name, Network(net), oof, seconds, params, learned)

    def _params(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters of a network: what the user chose is kept."""
        clf, chosen = self.clf, ALIKE | {"loss": SINGLE} | settings
        samples, strategy = chosen.pop("samples"), chosen.pop("strategy", None)
        chosen["max_epochs"] = auto_epochs(self.n, samples=samples, least=LEAST)
        if "numeric_embedding" in chosen:
            chosen["max_epochs"] = min(chosen["max_epochs"], max(LEAST // 2, self._affordable()))
        large = chosen.pop("large", {})
        if self._is_wide():
            chosen |= large
        params = {k: v for k, v in chosen.items() if k not in self.own or k == "loss"}
        if strategy is not None:
            params["strategy"] = [*make_strategies(clf), strategy]
        return params

    def _shallow(self, name: str, begun: dict[str, Future[Tried]]) -> Tried:
        """Fit a forest or kernel least squares; what is filtered takes the kernels, once fitted."""
        given: dict[str, Any] = {}
        if name == "filtered":
            for kernel in FILTERS:
                begun[kernel].result()
            least = min(FILTERS, key=lambda kernel: self.fits[kernel][WHOLE].error_)
            given["kernel"] = self.fits[least]
            given["features"] = {WHOLE: self.fits["kernel"][WHOLE].features_}
        started = time.perf_counter()
        labels = self.labels
        estimator = clone(SHALLOW[name]).set_params(random_state=self.seed)
        model = Shallow(estimator, labels.n_classes)
        oof, self.fits[name] = model.fit(self.x, labels.codes, labels.weight, labels.folds, **given)
        params = {k: v for k, v in estimator.get_params().items() if k != "random_state"}
        return Tried(name, model, oof, time.perf_counter() - started, params)

    @staticmethod
    def _undone(tried: Tried, transition: Floats) -> Tried:
        model = Shallow(tried.model.estimator, tried.model.n_classes, transition)
        return replace(tried, model=model, oof=model.corrected(tried.oof))

    def _corrected(self, tried: list[Tried], transition: Floats) -> list[Tried]:
        """Return forests and kernels with the noise undone in what they say."""
        parallel = Parallel(torch.get_num_threads(), require="sharedmem")
        given = [t for t in tried if t.name in UNDONE]
        with fits_of_trees_and_kernels():
            undone = parallel(delayed(self._undone)(t, transition) for t in given)
        return [replace(t, name=f"{t.name}{CORRECTED}", seconds=0.0) for t in undone]

    def _confirmed(self, tried: Tried, mixed: Floats) -> Tried:
        """Fit a filtered model to the rows whose label the mixture makes the most probable."""
        started = time.perf_counter()
        labels, rows = self.labels, self.labels.rows
        kept = mixed[rows].argmax(axis=1) == labels.codes[rows]
        former = tried.model.estimator  # a penalty tuned to labels so alike would be too small
        estimator = clone(former).set_params(**former.tuned_)
        with fits_of_trees_and_kernels():
            given = {"kept": kept, "features": former.features_}
            estimator.fit(self.x[rows], labels.codes[rows], labels.weight[rows], **given)
        seconds = tried.seconds + time.perf_counter() - started
        return replace(tried, model=Shallow(estimator, labels.n_classes), seconds=seconds)

    def _grown(self, tried: Tried, weight: float) -> Tried:
        """Give a forest that much depends on more trees: what it says varies less."""
        forest, trees = tried.model.estimator, round(TREES * weight)
        if trees <= forest.n_estimators:
            return tried
        started = time.perf_counter()
        labels = self.labels
        forest.set_params(n_estimators=trees, warm_start=True, n_jobs=torch.get_num_threads())
        with fits_of_trees_and_kernels():
            oof, _ = tried.model.fit(self.x, labels.codes, labels.weight, labels.folds)
        forest.set_params(warm_start=False, n_jobs=None)
        seconds = tried.seconds + time.perf_counter() - started
        params = tried.params | {"n_estimators": trees}
        return replace(tried, oof=tried.model.corrected(oof), seconds=seconds, params=params)

    def _weighed(self, tried: list[Tried]) -> tuple[NoiseRate, Floats, list[Tried]]:
        """Return the share of wrong labels, the weights of models, and models of one scale."""
        labels = self.labels
        rate = labels.rate(labels.mixed(tried))
        weights = labels.weights(tried, noisy=min(1.0, rate.low / NOISY))
        weights = np.where(weights < NEGLIGIBLE, 0.0, weights)
        most = MOST_NOISE * (1 - 1 / labels.n_classes)
        uniform = uniform_transition(min(rate.rate, most), labels.n_classes)
        tried = [
            self._undone(t, uniform) if t.name in AS_GIVEN and w > 0 else t
            for t, w in zip(tried, weights, strict=True)
        ]
        return rate, weights / weights.sum(), tried

    def _learned(self, tried: list[Tried], transition: Floats) -> dict[str, Any]:
        labels = self.labels
        rate, weights, tried = self._weighed(tried)
        tried = [
            self._grown(t, w) if t.name == FOR_CLEAN else t
            for t, w in zip(tried, weights, strict=True)
        ]
        oof = mixed(weights, tried)
        if self.clf.cross_fit is None:
            tried = [
                self._confirmed(t, oof) if t.name == "filtered" and w > 0 else t
                for t, w in zip(tried, weights, strict=True)
            ]
        order = np.argsort(-weights, kind="stable")
        candidates = [
            Candidate(t.name, labels.accuracy(t.oof), float(w), t.seconds, t.params)
            for t, w in ((tried[k], weights[k]) for k in order)
        ]
        report = AutoReport(rate, transition, candidates, labels.accuracy(oof))
        if self.clf.verbose:
            announce(str(report))
        kept = [k for k in order if weights[k] > 0]
        best = next(tried[k] for k in order if tried[k].learned)
        quality = oof[np.arange(len(oof)), labels.codes]
        models = [tried[k].model for k in kept]
        learned = {k: v for k, v in best.learned.items() if k in ("net_", "dynamics_")}
        learned |= self.first
        learned["net_"].interrupted_ = self.interrupted
        learned["mixture_"] = Mixture([float(weights[k]) for k in kept], models)
        learned["auto_report_"] = report
        learned["oof_proba_"] = oof
        learned["label_quality_"] = np.where(self.missing, np.nan, quality)
        return learned


@contextmanager
def threads_shared() -> Iterator[tuple[ThreadPoolExecutor, Event]]:
    """Keep one half of torch's threads for the caller; the other half works for a pool.

    The pool, which begins what comes first, has all once the event is set. Fits in several threads
    take turns, for the number of torch's threads is one for all.
    """
    with DRAWING:
        threads = torch.get_num_threads()
        kept, all_free = threads - threads // 2, Event()
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(kept):
                pool.submit(all_free.wait)
            torch.set_num_threads(kept)
            try:
                yield pool, all_free
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            finally:
                all_free.set()
                torch.set_num_threads(threads)


@contextmanager
def fits_of_trees_and_kernels() -> Iterator[None]:
    """Deal out no matrix as small as here to waiting threads; leave the filters of warnings alone.

    Forests set them in each of their threads, and what they restore depends on which ends last.
    """
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        # of rows that every tree trained on; Shallow.out_of_bag gives them the mean
        warnings.filterwarnings("ignore", "Some inputs do not have OOB scores")
        yield
