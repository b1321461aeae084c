"""
Wrong labels on real data
=========================

Handwritten digits, of whose training labels a share is replaced by another digit, drawn at random.
The test labels stay clean. How much accuracy does each classifier keep, and which rows are wrong?

As a script this prints a table and saves ``noisy_labels.png`` in the current folder.
"""

import sys
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from robustclf import RobustClassifier

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=0)


def symmetric_noise(y, rate, seed=0):
    """Replace the share ``rate`` of the labels by one of the nine other digits."""
    rng = np.random.default_rng(seed)
    wrong = rng.permutation(len(y)) < round(rate * len(y))
    return np.where(wrong, (y + rng.integers(1, 10, len(y))) % 10, y)


# %%
# Accuracy on clean test labels
# -----------------------------
# Everything is at its default, but scikit-learn's network gets the scaling and the early stopping
# that it needs. By default ``RobustClassifier`` weighs networks, forests and kernel machines by the
# labels they did not learn from; with a single loss it trains one network.

models = {
    "RobustClassifier": RobustClassifier(random_state=0),
    "RobustClassifier (loss='gce')": RobustClassifier(loss="gce", random_state=0),
    "MLPClassifier (scaled, early stopping)": make_pipeline(
        StandardScaler(), MLPClassifier(early_stopping=True, random_state=0)
    ),
    "RandomForestClassifier (300 trees)": RandomForestClassifier(300, random_state=0),
}
rates = [0.0, 0.2, 0.4]
accuracy = {}

print(f"{'wrong training labels':<40}" + "".join(f"{rate:>8.0%}" for rate in rates) + "   seconds")
for name, model in models.items():
    start = perf_counter()
    accuracy[name] = [
        model.fit(X_train, symmetric_noise(y_train, rate)).score(X_test, y_test) for rate in rates
    ]
    seconds = perf_counter() - start
    print(f"{name:<40}" + "".join(f"{a:>8.3f}" for a in accuracy[name]) + f"{seconds:>10.1f}")

# %%
# Which labels are wrong?
# -----------------------
# The fit to labels of which 40 % are wrong knows. ``label_quality_`` is the probability that models
# which never saw a row give to its label.

y_noisy = symmetric_noise(y_train, 0.4)
wrong = y_noisy != y_train
clf = models["RobustClassifier"]

suspects = np.argsort(clf.label_quality_)
found, base = wrong[suspects[:50]].mean(), wrong.mean()
print(f"\nwrong among the 50 rows of lowest label quality: {found:.2f}, among all: {base:.2f}")

# %%
# The plot
# --------

figure = plt.figure(figsize=(10.5, 4.8), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1.1, 1])
axes = left.subplots()
colors = ["#c0392b", "#e08e79", "#2c6fbb", "#4d8b4d"]
for (name, values), color in zip(accuracy.items(), colors, strict=True):
    width = 3 if name == "RobustClassifier" else 1.8
    axes.plot(rates, values, "o-", color=color, linewidth=width, label=name)
axes.set_xticks(rates, [f"{rate:.0%}" for rate in rates])
axes.set_xlabel("wrong training labels")
axes.set_ylabel("accuracy on clean test labels")
axes.grid(alpha=0.3)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)

predicted = clf.classes_[clf.oof_proba_.argmax(axis=1)]
for row, ax in zip(suspects, right.subplots(3, 5).flat, strict=False):
    ax.imshow(X_train[row].reshape(8, 8), cmap="gray_r", interpolation="nearest")
    ax.set_title(f"given {y_noisy[row]},\nlooks like {predicted[row]}", fontsize=8)
    ax.set(xticks=[], yticks=[])
right.suptitle("The most suspicious of the training rows, 40 % wrong", fontsize=11)

if "sphinx_gallery" not in sys.modules:
    figure.savefig("noisy_labels.png", dpi=130)
    print("Saved noisy_labels.png.")
