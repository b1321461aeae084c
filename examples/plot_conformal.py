"""
Sets that survive wrong labels
==============================

A prediction set promises to hold the true class of 90 % of new rows. Calibrated on wrong labels it
keeps another promise: to hold 90 % of *wrong* labels, for which it must be large. Told how labels
were made wrong, the same rows give sets of the size that clean ones would give.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from robustclf.conformal import ConformalClassifier
from robustclf.noise import inject_noise

# %%
# A forest learns the digits from labels of which a fifth is wrong; then it stays as it is. The
# calibration rows get more and more wrong labels, up to 40 %. The test rows are labelled right.

X, y = load_digits(return_X_y=True)
X_train, X, y_train, y = train_test_split(X, y, train_size=600, stratify=y, random_state=0)
noisy = inject_noise(y_train, "symmetric", 0.2, random_state=0)
forest = FrozenEstimator(RandomForestClassifier(random_state=0).fit(X_train, noisy))
rates = np.linspace(0, 0.4, 9)


def measure(told, seed, **params):
    """Return coverage and size for each rate of noise, where the method is told ``told(rate)``."""
    X_cal, X_test, y_cal, y_test = train_test_split(X, y, train_size=800, random_state=seed)
    rows = []
    for rate in rates:
        given = inject_noise(y_cal, "symmetric", rate, random_state=seed)
        clf = ConformalClassifier(forest, noise=told(rate), random_state=seed, **params)
        sets = clf.fit(X_cal, given).predict_set(X_test, alpha=0.1)
        rows.append([sets[np.arange(len(sets)), y_test].mean(), sets.sum(axis=1).mean()])
    return rows


# %%
# Four ways to calibrate: labels taken as right; the rate told, with the correction that sets need
# and with one that leaves a margin; and a rate that is told too high.

methods = {
    "labels taken as right": (lambda rate: None, {}),
    'noise told, correction="auto"': (lambda rate: rate, {}),
    'noise told, "asymptotic"': (lambda rate: rate, {"correction": "asymptotic"}),
    "twice the noise told": (lambda rate: min(2 * rate, 0.8), {"correction": "none"}),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
for name, (told, params) in methods.items():
    coverage, size = np.mean([measure(told, seed, **params) for seed in range(5)], axis=0).T
    left.plot(rates, coverage, marker="o", label=name)
    right.plot(rates, size, marker="o")
    print(f"{name:<32} at 20 % noise: {coverage[4]:.2f} covered by {size[4]:.1f} classes")
left.axhline(0.9, color="black", linewidth=1, linestyle=":")
left.set(xlabel="share of wrong calibration labels", ylabel="true classes in their sets")
right.set(xlabel="share of wrong calibration labels", ylabel="classes in a set")
left.legend(frameon=False, loc="lower left")

# %%
# Ignoring the noise is safe and useless: half of all classes are in a set. Over-estimating it is
# what breaks the promise. Where the rate is unknown, ``noise="estimate"`` takes a lower bound.

plt.show()
