"""
See the noise
=============

Five pictures: how labels were corrupted, which ones, how a fit learns them, what they cost, and why
some losses mind them less. The first, second and fourth take any classifier of scikit-learn, too.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from robustclf import RobustClassifier
from robustclf.noise.inject import inject_noise
from robustclf.plotting import (
    LabelQualityDisplay,
    LossDisplay,
    NoiseRobustnessDisplay,
    TrainingDynamicsDisplay,
    TransitionDisplay,
)

# %%
# Digits, read carelessly: of the ones 40 % are labelled 7, of the threes 30 % are labelled 8, of
# the fours 20 % are labelled 9. We make the noise, so we know which labels are ``wrong``; the
# classifier does not.

X, y = load_digits(return_X_y=True)
X, y = X[:1000], y[:1000]
transition = np.eye(10)
for true, given, rate in [(1, 7, 0.4), (3, 8, 0.3), (4, 9, 0.2)]:
    transition[true, given], transition[true, true] = rate, 1 - rate
noisy, wrong = inject_noise(
    y, "matrix", transition=transition, return_mask=True, exact_per_class=True, random_state=0
)
print(f"{wrong.sum()} of {len(y)} labels are wrong")

# %%
# How labels were corrupted
# -------------------------
# With ``cross_fit=5`` one fit gives each row the probabilities of a network that never saw it.
# From these the transition matrix is estimated: a row for each true class, a column for each
# given label. The three mistakes are found. That some sevens and eights seem mislabelled, which
# none were, is the price of a classifier that has learned from the noise: it takes some ones for
# sevens.

clf = RobustClassifier(loss="gce", cross_fit=5, max_epochs=40, random_state=0).fit(X, noisy)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
TransitionDisplay(transition).plot(left, colorbar=False)
TransitionDisplay.from_estimator(clf, X, noisy, ax=right, colorbar=False)
left.set_title("what was done")
right.set_title("what is seen")

# %%
# Which labels are wrong
# ----------------------
# The probability of the given label tells most of them apart. Those in colour are known to be
# wrong; without ``suspicious`` they are the ones that :func:`robustclf.noise.find_label_issues`
# finds.

LabelQualityDisplay.from_estimator(clf, X, noisy, suspicious=wrong, log=True)

# %%
# How they are learned
# --------------------
# With ``track_dynamics=True`` the fit looks at every row after each epoch. The network learns
# right labels first. Cross entropy then learns the wrong ones, too. The generalised cross
# entropy gives them up at first, so that their loss rises, and keeps more of them out to the end.

figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
for loss, ax in zip(["ce", "gce"], axes, strict=True):
    fit = RobustClassifier(loss=loss, max_epochs=40, track_dynamics=True, random_state=0)
    TrainingDynamicsDisplay.from_estimator(fit.fit(X, noisy), suspicious=wrong, ax=ax)
    ax.set_xlabel(f'epoch, loss="{loss}"')

# %%
# What they cost
# --------------
# Labels of the training rows are made wrong at random, at growing rates; the test rows stay as
# they are. All models meet the same wrong labels.

models = {
    "RobustClassifier": RobustClassifier(loss="gce", max_epochs=20, random_state=0),
    "logistic regression": make_pipeline(StandardScaler(), LogisticRegression()),
    "random forest": RandomForestClassifier(random_state=0),
}
folds = StratifiedKFold(3, shuffle=True, random_state=0)
display = NoiseRobustnessDisplay.from_estimators(models, X, y, rates=(0, 0.2, 0.4), cv=folds)
for name, scores in display.scores.items():
    print(f"{name:<20}", *(f"{score:.2f}" for score in scores.mean(axis=1)))

# %%
# Why some losses mind them less
# ------------------------------
# How hard a label pulls, by the probability that the network gives it. Wrong labels start on the
# left, where cross entropy pulls hardest and the others let go.

LossDisplay.from_losses(["ce", "gce", "mae"], quantity="gradient_logit")
plt.show()
