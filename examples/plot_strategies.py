"""
Strategies, compared and combined
=================================

A strategy edits the rows, the targets, the weights or the penalty of the training formula, so any
list of them goes with any loss and optimiser. That it runs does not mean that it helps: the table
below has 40 % wrong labels, and the accuracies are on clean ones.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from robustclf import RobustClassifier, make_strategy

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=0)
rng = np.random.default_rng(0)
wrong = rng.random(len(y)) < 0.4
y_noisy = np.where(wrong, (y + rng.integers(1, 10, len(y))) % 10, y)

# %%
# One strategy has its parameters beside it, ``strategy__tau=0.4``; in a list each is an instance
# made by ``make_strategy``, or an alias where the defaults do.

co_teaching = make_strategy("co_teaching", tau=0.4)
recipes = {
    "cross entropy": {"loss": "ce"},
    "cross entropy, label smoothing": {"loss": "ce", "strategy": "label_smoothing"},
    "cross entropy, mixup": {"loss": "ce", "strategy": "mixup"},
    "cross entropy, co-teaching": {
        "loss": "ce",
        "strategy": "co_teaching",
        "strategy__tau": 0.4,
    },
    "cross entropy, ELR": {"loss": "ce", "strategy": "elr"},
    "cross entropy, mixup and ELR": {"loss": "ce", "strategy": ["mixup", "elr"]},
    "GCE": {},
    "GCE, SAM": {"optimizer": "sam", "optimizer__rho": 0.5},
    "GCE, mixup and co-teaching": {"strategy": ["mixup", co_teaching]},
}

accuracy = {}
for name, params in recipes.items():
    clf = RobustClassifier(**{"loss": "gce"} | params, random_state=0).fit(X, y_noisy)
    accuracy[name] = clf.score(X_test, y_test)
    print(f"{name:<36}{accuracy[name]:.3f}")

figure, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
colors = ["#c0392b" if name.startswith("GCE") else "#2c6fbb" for name in accuracy]
bars = ax.barh(list(accuracy), list(accuracy.values()), color=colors, height=0.65)
ax.bar_label(bars, fmt="%.3f", padding=3)
ax.invert_yaxis()
ax.set(xlim=(0, 1), xlabel="accuracy on clean test labels, 40 % wrong training labels")
ax.spines[["top", "right"]].set_visible(False)
