"""
Quick start
===========

Fit, predict, and list the rows whose label is probably wrong.
"""

import numpy as np
from sklearn.datasets import load_wine

from robustclf import RobustClassifier

X, y = load_wine(return_X_y=True, as_frame=True)
y = y.map({0: "barolo", 1: "grignolino", 2: "barbera"})
y_noisy = y.mask(y.index % 5 == 3, "barolo")  # a wrong label here and there

clf = RobustClassifier(random_state=0).fit(X, y_noisy)
print(f"{np.mean(y_noisy != y):.0%} of the training labels are wrong,")
print(f"{np.mean(clf.predict(X) != y):.0%} of the predictions for these rows.")

# %%
# The most suspicious rows, and what models that did not train on them say instead:

table = X[["alcohol", "color_intensity"]].assign(
    given=y_noisy,
    out_of_fold=clf.classes_[clf.oof_proba_.argmax(axis=1)],
    label_quality=clf.label_quality_.round(3),
    true=y,
)
table.sort_values("label_quality").head(8)
