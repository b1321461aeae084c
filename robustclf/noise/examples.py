"""Scores of the rows: hard, typical, agreed upon."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import normalize
from sklearn.utils import check_array, check_consistent_length

from robustclf.noise._inputs import check_proba

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ExampleScores:
    """Scores of every row; None for those that what was given does not tell.

    Attributes
    ----------
    el2n : ndarray of shape (n_samples,)
        Norm of the error, the mean over the members.
    confidence : ndarray of shape (n_samples,)
        Largest probability, the mean over the members.
    agreement : ndarray of shape (n_samples,) or None
        Of several members.
    grand : ndarray of shape (n_samples,) or None
        Norm of the gradient of the last layer.
    prototypicality : ndarray of shape (n_samples,) or None
        Likeness to the mean row of the class.
    """

    el2n: Scores
    confidence: Scores
    agreement: Scores | None
    grand: Scores | None
    prototypicality: Scores | None

    def to_frame(self) -> Any:
        """Return a pandas data frame with a column for each score there is."""
        import pandas as pd

        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return pd.DataFrame({name: v for name, v in columns.items() if v is not None})


def example_scores(
    y: ArrayLike,
    proba: ArrayLike,
    *,
    features: ArrayLike | None = None,
    classes: ArrayLike | None = None,
) -> ExampleScores:
    r"""Score every row by what classifiers make of it.

    With probabilities p, the given label y as the indicator e, penultimate features h and the mean
    over members:

    - EL2N :math:`\lVert p - e \rVert_2`: hard rows and wrong labels are high;
    - GraNd :math:`\lVert p - e \rVert_2 \sqrt{\lVert h \rVert_2^2 + 1}`, the norm of the gradient
      of the cross entropy with respect to the last layer, its bias included; the published score
      takes the gradient of all layers, of networks early in training;
    - confidence :math:`\max_k p_k`;
    - agreement :math:`1 - \mathrm{JS} / \log M`, with the Jensen-Shannon divergence of the M
      members, the mean divergence of a member from their mean;
    - prototypicality, the cosine of h and the mean of the h of the class y.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Given labels.
    proba : array-like of shape (n_samples, n_classes) or (n_members, n_samples, n_classes)
        Probabilities, such as ``clf.oof_proba_`` or ``clf.member_proba(X)``.
    features : array-like of shape (n_samples, n_features), optional
        What the last layer sees, such as ``clf.embed(X)``, for GraNd and prototypicality.
    classes : array-like of shape (n_classes,), optional
        Sorted classes, where y lacks some.

    Returns
    -------
    ExampleScores

    Raises
    ------
    ValueError
        If labels, probabilities and features are not what they must be.

    References
    ----------
    Paul, Ganguli, Dziugaite. Deep Learning on a Data Diet. NeurIPS 2021. arXiv:2107.07075 (EL2N,
    GraNd). Carlini, Erlingsson, Papernot. Distribution Density, Tails, and Outliers in Machine
    Learning. 2019. arXiv:1910.13427 (confidence, agreement). Sorscher et al. Beyond Neural Scaling
    Laws. NeurIPS 2022. arXiv:2206.14486 (prototypicality, there to the mean of a cluster).

    Examples
    --------
    >>> members = [[[0.9, 0.1], [0.4, 0.6]], [[0.9, 0.1], [0.2, 0.8]]]
    >>> scores = example_scores([0, 0], members, features=[[1.0, 0.0], [0.0, 1.0]], classes=[0, 1])
    >>> scores.el2n.round(2), scores.agreement.round(2), scores.prototypicality.round(2)
    (array([0.14, 0.99]), array([1.  , 0.97]), array([0.71, 0.71]))
    """
    members = [proba] if np.ndim(proba) != 3 else list(np.asarray(proba))
    checked = [check_proba(y, p, classes) for p in members]
    codes, known = checked[0].codes, checked[0].classes
    p = np.stack([member.proba for member in checked])
    error: Scores = np.linalg.norm(p - np.eye(len(known))[codes], axis=-1)
    h = None if features is None else check_array(features, dtype=float, input_name="features")
    if h is not None:
        check_consistent_length(codes, h)
    return ExampleScores(
        el2n=error.mean(axis=0),
        confidence=p.max(axis=-1).mean(axis=0),
        agreement=_agreement(p) if len(p) > 1 else None,
        grand=None if h is None else error.mean(axis=0) * np.sqrt((h**2).sum(axis=1) + 1),
        prototypicality=None if h is None else _prototypicality(h, codes),
    )


def _agreement(p: Scores) -> Scores:
    mean = p.mean(axis=0)
    ratio = np.divide(p, mean, out=np.ones_like(p), where=p > 0)
    divergence = (p * np.log(ratio)).sum(axis=-1).mean(axis=0)
    agreement: Scores = 1 - divergence / np.log(len(p))
    return agreement


def _prototypicality(h: Scores, codes: NDArray[np.int64]) -> Scores:
    members = np.eye(codes.max() + 1)[codes]
    means = (members.T @ h) / members.sum(axis=0).clip(1)[:, None]
    cosine: Scores = (normalize(h) * normalize(means)[codes]).sum(axis=1)
    return cosine
