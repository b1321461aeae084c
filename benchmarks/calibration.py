"""Calibration error after calibrating on noisy labels, and sets from folds and from held-out rows.

Data are drawn, so that any number of rows is there to judge by. The seeds of the default had no
part in any choice.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from runs import parse_numbers
from sklearn.datasets import make_blobs, make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.naive_bayes import GaussianNB

from robustclf.calibration import RobustCalibrator, expected_calibration_error
from robustclf.conformal import ConformalClassifier
from robustclf.noise import inject_noise

RATE = 0.2
N_FITTED, N_CALIBRATED, N_JUDGED = 3_000, 2_000, 4_000
CLASSIFIERS = {
    "naive Bayes": lambda seed: GaussianNB(),
    "random forest": lambda seed: RandomForestClassifier(100, random_state=seed),
}
METHODS = ("temperature", "vector", "correctness")


def errors(seed: int, sizes: tuple[int, int, int] = (N_FITTED, N_CALIBRATED, N_JUDGED)) -> Any:
    """Yield classifier, method and calibration, and the calibration error in percent."""
    n, m, rest = sizes
    X, y = make_classification(
        n + m + rest, n_informative=8, n_redundant=8, n_classes=4, class_sep=1.5, random_state=seed
    )
    noisy = inject_noise(y, rate=RATE, random_state=seed)
    fitted, calibrated, judged = slice(n), slice(n, n + m), slice(n + m, None)
    given = {
        "right labels": (y, None),
        "noise ignored": (noisy, None),
        "noise=0.2": (noisy, RATE),
        'noise="estimate"': (noisy, "estimate"),
    }
    for name, make in CLASSIFIERS.items():
        clf = FrozenEstimator(make(seed).fit(X[fitted], noisy[fitted]))
        plain = expected_calibration_error(y[judged], clf.predict_proba(X[judged]))
        for method in METHODS:
            yield name, method, "uncalibrated", 100 * plain
            for label, (labels, noise) in given.items():
                calibrator = RobustCalibrator(clf, method=method, noise=noise, random_state=seed)
                calibrator.fit(X[calibrated], labels[calibrated])
                error = expected_calibration_error(y[judged], calibrator.predict_proba(X[judged]))
                yield name, method, label, 100 * error


def sets(seed: int, n: int = 800, judged: int = 3_000) -> Iterable[tuple[str, float, float]]:
    """Yield how rows calibrate, the coverage of sets of level .9 and their mean size."""
    centers = [[0, 0], [3, 0], [0, 3]]
    X, y = make_blobs(n + judged, centers=centers, random_state=seed)
    noisy = inject_noise(y[:n], rate=RATE, random_state=seed)
    for name, cv in {"cv=5": 5, "cv=None": None}.items():
        clf = ConformalClassifier(GaussianNB(), noise=RATE, cv=cv, random_state=seed)
        kept = clf.fit(X[:n], noisy).predict_set(X[n:], alpha=0.1)
        yield name, kept[np.arange(judged), y[n:]].mean(), kept.sum(axis=1).mean()


def table(seeds: Iterable[int]) -> str:
    """Return the calibration errors, the means over the seeds, as CSV."""
    rows: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in seeds:
        for name, method, label, error in errors(seed):
            rows[name, method][label].append(error)
    lines = ["classifier,method," + ",".join(next(iter(rows.values())))]
    for (name, method), by_label in rows.items():
        means = [f"{np.mean(values):.1f}" for values in by_label.values()]
        lines.append(",".join([name, method, *means]))
    return "\n".join(line.replace('"estimate"', "estimate") for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=parse_numbers, default=list(range(20, 30)))
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="write the table there, too")
    args = parser.parse_args()
    by_name: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for seed in args.seeds:
        for name, coverage, size in sets(seed):
            by_name[name].append((coverage, size))
    for name, values in by_name.items():
        coverage, size = np.mean(values, axis=0)
        print(f"{name:8} coverage {coverage:.3f}, classes in a set {size:.2f}")
    errors_table = table(args.seeds)
    print(errors_table)
    if args.csv:
        (args.csv / "calibration_error.csv").write_text(errors_table + "\n")


if __name__ == "__main__":
    main()
