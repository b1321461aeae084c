"""Coverage and size of conformal sets that are calibrated on noisy labels, against other libraries.

Each run appends one line to a results file and is skipped when that line is there, so the
benchmark can be stopped and resumed at will. See README.md beside this file.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from conformal_summary import ALPHAS, SCORES, summarise, write
from data import REAL, Features, Labels, load
from issues import true_transition
from runs import Cell, Run, append, parse_names, parse_noise, parse_numbers, read_results
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

RESULTS = Path(__file__).parent / "results" / "conformal.jsonl"
INJECTED = ("none", "symmetric-.2", "pair-.2", "instance-.2")
NOISES = (*INJECTED, *REAL["cifar10n"])
DATASETS = ("digits", "letter", "satellite", "dna", "cifar10n")
MAX_CALIBRATION = 2_000
CLASSIFIERS: dict[str, Callable[[int], Any]] = {
    "forest": lambda seed: RandomForestClassifier(100, min_samples_leaf=5, random_state=seed),
    "tree": lambda seed: DecisionTreeClassifier(max_depth=4, random_state=seed),
    "bayes": lambda seed: GaussianNB(),
}
Sets = np.ndarray  # (row, class, alpha)


class Given(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose rows are their own probabilities."""

    def fit(self, X: Features, y: Labels) -> Self:
        """Take the number of columns as that of the classes."""
        self.classes_ = np.arange(X.shape[1])
        self.n_features_in_ = X.shape[1]
        return self

    def predict_proba(self, X: Features) -> Features:
        """Return the rows."""
        return X

    def predict(self, X: Features) -> Labels:
        """Return the most probable class."""
        return X.argmax(axis=1)


class Problem(NamedTuple):
    """Probabilities and labels to calibrate on and to judge by."""

    proba: Features
    given: Labels
    true: Labels
    transition: Features  # how labels were made wrong
    test_proba: Features
    test: Labels


def make_problem(cell: Cell, classifier: str, max_rows: int = 10_000) -> Problem:
    """Fit a classifier to noisy rows; return its probabilities of other rows, noisy and clean."""
    dataset, noise, seed = cell
    kind, rate = parse_noise(noise)
    X, given, X_test, test = load(dataset, kind, rate, seed, max_rows)
    true, k = load(dataset, "none", 0, seed, max_rows)[1], int(test.max()) + 1
    held = min(MAX_CALIBRATION, len(X) // 2)
    train, calibration = train_test_split(
        np.arange(len(X)), test_size=held, stratify=given, random_state=seed
    )
    model = CLASSIFIERS[classifier](seed).fit(X[train], given[train])
    proba, test_proba = (class_proba(model, rows, k) for rows in (X[calibration], X_test))
    wrong = rate / (k - 1)  # of each other class
    uniform = np.full((k, k), wrong) + np.eye(k) * (1 - rate - wrong)
    transition = uniform if kind == "symmetric" else true_transition(given, true, k)
    return Problem(proba, given[calibration], true[calibration], transition, test_proba, test)


def class_proba(model: Any, X: Features, k: int) -> Features:
    """Return the probabilities of all classes, 0 of those that no training row had."""
    proba = np.zeros((len(X), k))
    proba[:, model.classes_] = model.predict_proba(X)
    return proba


def scaled(transition: Features, factor: float) -> Features:
    """Return the matrix of a rate that is so many times as high."""
    identity = np.eye(len(transition))
    matrix = (identity + factor * (transition - identity)).clip(0)
    return matrix / matrix.sum(axis=1, keepdims=True)


def robust(problem: Problem, score: str, seed: int, told: Any, correction: str) -> tuple[Sets, Any]:
    """Return the sets of ConformalClassifier, and the matrix that it believed in."""
    from robustclf.conformal import ConformalClassifier

    model = FrozenEstimator(Given().fit(problem.proba, problem.given))
    noise = told(problem.transition) if callable(told) else told
    settings = {"score": score, "noise": noise, "correction": correction, "random_state": seed}
    clf = ConformalClassifier(model, **settings).fit(problem.proba, problem.given)
    return clf.predict_set(problem.test_proba, ALPHAS), clf.transition_


def mapie(problem: Problem, score: str, seed: int) -> Sets:
    from mapie.classification import SplitConformalClassifier

    levels = [1 - alpha for alpha in ALPHAS]
    model = Given().fit(problem.proba, problem.given)
    settings = {"confidence_level": levels, "conformity_score": score, "random_state": seed}
    clf = SplitConformalClassifier(model, **settings).conformalize(problem.proba, problem.given)
    last = {"conformity_score_params": {"include_last_label": "randomized"}}
    return clf.predict_set(problem.test_proba, **(last if score == "aps" else {}))[1]


def crepes(problem: Problem, score: str, seed: int) -> Sets:
    from crepes import WrapClassifier

    model = Given().fit(problem.proba, problem.given)
    clf = WrapClassifier(model).calibrate(problem.proba, problem.given, seed=seed)
    p_values = clf.predict_p(problem.test_proba, smoothing=False, seed=seed)
    return p_values[..., None] >= np.array(ALPHAS)


def torchcp(problem: Problem, score: str, seed: int) -> Sets:
    import torch
    from torchcp.classification import score as scores
    from torchcp.classification.predictor import SplitPredictor

    nonconformity = getattr(scores, score.upper())(score_type="identity")
    proba, test = torch.from_numpy(problem.proba), torch.from_numpy(problem.test_proba)
    given = torch.from_numpy(problem.given)
    sets = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for alpha in ALPHAS:
            predictor = SplitPredictor(nonconformity, alpha=alpha, device="cpu")
            predictor.calculate_threshold(proba, given)
            sets.append(predictor.predict_with_logits(test).numpy() > 0)
    return np.stack(sets, axis=-1)


OURS: dict[str, tuple[Any, str]] = {  # what is told of the noise, and the correction
    "clean": (None, "auto"),  # calibrated on true labels
    "ignored": (None, "auto"),
    "told": (lambda transition: transition, "auto"),
    "told-none": (lambda transition: transition, "none"),
    "told-asymptotic": (lambda transition: transition, "asymptotic"),
    "told-bortolotti": (lambda transition: transition, "bortolotti"),
    "estimate": ("estimate", "auto"),
    "estimate-asymptotic": ("estimate", "asymptotic"),
    "half": (lambda transition: scaled(transition, 0.5), "auto"),
    "1.5x": (lambda transition: scaled(transition, 1.5), "auto"),
    "1.5x-asymptotic": (lambda transition: scaled(transition, 1.5), "asymptotic"),
}
PEERS = {"mapie": mapie, "crepes": crepes, "torchcp": torchcp}  # they know of no noise
METHODS = (*OURS, *PEERS)


def run(method: str, problem: Problem, seed: int) -> Run:
    """Return the coverage of the true labels and the mean size of the sets, by score and alpha."""
    if method == "clean":
        problem = problem._replace(given=problem.true)
    result: Run = {}
    for score in SCORES:
        if method == "crepes" and score != "lac":
            continue
        if method in PEERS:
            sets = PEERS[method](problem, score, seed)
        else:
            sets, believed = robust(problem, score, seed, *OURS[method])
            result["believed"] = mean_rate(believed, problem.true)
        covered = sets[np.arange(len(sets)), problem.test].mean(axis=0)
        size = sets.sum(axis=1).mean(axis=0)
        result[score] = {"coverage": covered.tolist(), "size": size.tolist()}
    return result


def mean_rate(transition: Features, true: Labels) -> float:
    return float((1 - np.diagonal(transition))[true].mean())


def run_all(args: argparse.Namespace) -> None:
    """Run what the results file lacks."""
    for classifier in args.classifiers:
        done = read_results(args.results, classifier=classifier)
        for cell in grid(args):
            todo = [method for method in args.methods if method not in done.get(cell, {})]
            if todo:
                _run_cell(cell, classifier, todo, args.results)


def _run_cell(cell: Cell, classifier: str, methods: list[str], results: Path) -> None:
    dataset, noise, seed = cell
    problem = make_problem(cell, classifier)
    labels = {"dataset": dataset, "noise": noise, "seed": seed, "classifier": classifier}
    labels["calibration"], labels["test"] = len(problem.given), len(problem.test)
    labels["accuracy"] = float((problem.test_proba.argmax(axis=1) == problem.test).mean())
    labels["wrong"] = float((problem.given != problem.true).mean())
    for method in methods:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = time.process_time()
            result = run(method, problem, seed)
        seconds = round(time.process_time() - start, 3)
        append(results, labels | {"model": method} | result | {"seconds": seconds})
    print(*cell, classifier, f"{labels['accuracy']:.3f}", flush=True)


def grid(args: argparse.Namespace) -> Iterable[Cell]:
    for seed in args.seeds:
        for dataset in args.datasets:
            for noise in ("none", *REAL[dataset]) if dataset in REAL else INJECTED:
                if noise in args.noises:
                    yield dataset, noise, seed


def cost(args: argparse.Namespace) -> None:
    """Print processor time relative to MAPIE's with LAC: the best of several turns, in turn."""
    proba, given = drawn(args.sizes[0], 0)
    test, _ = drawn(args.sizes[1], 1)
    programs = timed_programs(proba, given, test)
    best: dict[str, float] = dict.fromkeys(programs, np.inf)
    for turn in range(args.turns):
        for name, program in programs.items():
            if turn and best[name] > 2:  # seconds: one more turn would say nothing new
                continue
            start = time.process_time()
            program()
            best[name] = min(best[name], time.process_time() - start)
    unit = best["MAPIE, LAC"]
    rows = [["", "time relative to MAPIE with LAC"]]
    rows += [[name, f"{seconds / unit:.3g}"] for name, seconds in best.items()]
    print(*(": ".join(row) for row in rows[1:]), sep="\n")
    if args.csv:
        write(args.csv / "conformal_time.csv", rows)


def drawn(n: int, seed: int, k: int = 10) -> tuple[Features, Labels]:
    """Draw labels and probabilities that go with them."""
    rng = np.random.default_rng(seed)
    logits, y = rng.standard_normal((n, k)), rng.integers(0, k, n)
    logits[np.arange(n), y] += 2.5
    proba = np.exp(logits)
    return proba / proba.sum(axis=1, keepdims=True), y


def timed_programs(proba: Features, y: Labels, test: Features) -> dict[str, Callable[[], Any]]:
    """Return programs that calibrate and predict at one alpha, each as its users would."""
    import torch
    from crepes import WrapClassifier
    from mapie.classification import SplitConformalClassifier
    from torchcp.classification import score as scores
    from torchcp.classification.predictor import SplitPredictor

    from robustclf.conformal import ConformalClassifier

    model = Given().fit(proba, y)
    tensors = [torch.from_numpy(array) for array in (proba, y, test)]

    def ours(score: str, noise: Any) -> None:
        clf = ConformalClassifier(
            FrozenEstimator(model), score=score, noise=noise, random_state=0
        ).fit(proba, y)
        clf.predict_set(test, 0.1)

    def theirs(score: str, **params: Any) -> None:
        clf = SplitConformalClassifier(model, conformity_score=score, random_state=0)
        clf.conformalize(proba, y).predict_set(test, **params)

    def crepes_sets(smoothing: bool) -> None:
        clf = WrapClassifier(model).calibrate(proba, y, seed=0)
        clf.predict_set(test, labels=False, confidence=0.9, smoothing=smoothing)

    def torchcp_sets(score: str) -> None:
        predictor = SplitPredictor(getattr(scores, score)(score_type="identity"), device="cpu")
        predictor.calculate_threshold(tensors[0], tensors[1], 0.1)
        predictor.predict_with_logits(tensors[2])

    next_class = 0.8 * np.eye(proba.shape[1]) + 0.2 * np.roll(np.eye(proba.shape[1]), 1, axis=1)
    randomized = {"conformity_score_params": {"include_last_label": "randomized"}}
    return {
        "robustclf, LAC": lambda: ours("lac", None),
        "robustclf, LAC, noise=0.2": lambda: ours("lac", 0.2),
        "robustclf, LAC, noise=matrix": lambda: ours("lac", next_class),
        "MAPIE, LAC": lambda: theirs("lac"),
        "crepes, hinge (its LAC)": lambda: crepes_sets(smoothing=True),
        "crepes, hinge, smoothing=False": lambda: crepes_sets(smoothing=False),
        "TorchCP, LAC": lambda: torchcp_sets("LAC"),
        "robustclf, APS": lambda: ours("aps", None),
        "robustclf, APS, noise=0.2": lambda: ours("aps", 0.2),
        "MAPIE, APS": lambda: theirs("aps", **randomized),
        "TorchCP, APS": lambda: torchcp_sets("APS"),
    }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--methods", type=parse_names, default=list(METHODS))
    add("--classifiers", type=parse_names, default=list(CLASSIFIERS))
    add("--datasets", type=parse_names, default=list(DATASETS))
    add("--noises", type=parse_names, default=list(NOISES))
    add("--seeds", type=parse_numbers, default=list(range(5)))
    add("--results", type=Path, default=RESULTS)
    add("--time", action="store_true", help="instead: time calibration and prediction")
    add(
        "--sizes",
        type=parse_numbers,
        default=[20_000, 50_000],
        help="calibration and new rows to time",
    )
    add("--turns", type=int, default=7)
    add("--summary", action="store_true", help="print the tables of the results, run nothing")
    add("--csv", type=Path, metavar="FOLDER", help="with --summary or --time: write tables there")
    args = parser.parse_args(argv)
    known = {"methods": METHODS, "classifiers": CLASSIFIERS, "datasets": DATASETS, "noises": NOISES}
    for what, allowed in known.items():
        if unknown := set(getattr(args, what)).difference(allowed):
            parser.error(f"unknown {what} {unknown}; there are {', '.join(allowed)}.")
    return args


if __name__ == "__main__":
    arguments = parse_args()
    if arguments.summary:
        summarise(arguments)
    elif arguments.time:
        cost(arguments)
    else:
        run_all(arguments)
