"""
A table of numbers, categories and gaps
=======================================

A data frame goes in as it is: numbers on any scale, categories, strings, missing values, string
labels. ``GridSearchCV`` chooses the loss and its hyper-parameter inside a ``Pipeline``.
"""

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from robustclf import RobustClassifier

rng = np.random.default_rng(0)
data = load_breast_cancer(as_frame=True)
X = data.data[["mean radius", "mean area", "mean concavity", "worst symmetry"]].copy()
X["texture"] = pd.qcut(data.data["mean texture"], 3, labels=["fine", "medium", "coarse"])
X["clinic"] = rng.choice(["north", "south", "east"], len(X))  # a column that says nothing
X = X.mask(rng.random(X.shape) < 0.05)  # 5 % of all cells are missing
y = data.target.map({0: "malignant", 1: "benign"})
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
flipped = rng.random(len(y_train)) < 0.25
y_noisy = y_train.where(~flipped, y_train.map({"malignant": "benign", "benign": "malignant"}))

print(X_train.dtypes)
X_train.head()

# %%
# ``loss__q`` belongs to ``"gce"`` alone, so the grid is a list of two. Accuracy on noisy labels
# ranks models as accuracy on clean ones would, as long as noise does not depend on the features.


def add_compactness(X):
    """Add a column of one's own before the classifier."""
    return X.assign(compactness=X["mean area"] / X["mean radius"] ** 2)


pipeline = Pipeline(
    [
        ("columns", FunctionTransformer(add_compactness)),
        ("clf", RobustClassifier(random_state=0)),
    ]
)
grid = [{"clf__loss": ["ce", "mae"]}, {"clf__loss": ["gce"], "clf__loss__q": [0.4, 0.7, 0.9]}]
search = GridSearchCV(pipeline, grid, cv=3).fit(X_train, y_noisy)

for params, score in zip(
    search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
):
    print(f"{score:.3f} accuracy on noisy labels with {params}")
print("accuracy on clean test labels:", round(search.score(X_test, y_test), 3))
