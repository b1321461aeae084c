"""From probabilities of the given label to those of the true one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustclf.noise._inputs import check_class_proba
from robustclf.noise.matrices import check_transition

Floats = NDArray[np.floating[Any]]

MAX_ITER = 1_000
STEPS = 20  # of which it is seen whether they still change anything,
TOLERANCE = 1e-8  # that is, a probability by more than that
WELL_CONDITIONED = 1e8
TINY = 1e-12
CHUNK = 2_048  # rows that are worked on at a time, in the cache of a processor


def clean_proba(proba: ArrayLike, transition: ArrayLike, max_iter: int = MAX_ITER) -> Floats:
    r"""Return the probabilities of the true classes behind those of the given labels.

    A classifier that learned from noisy labels predicts, at best, the probabilities p of the label
    that would be given. With T the transition matrix, those of the true class are the q with

    .. math:: q = \arg\min_{q \ge 0, \sum_k q_k = 1} \mathrm{KL}(p \,\|\, q T) ,

    which is p T⁻¹ wherever that has no negative entry. Elsewhere, or where T has no inverse, it is
    found by the fixed-point steps of expectation maximisation,
    :math:`q_k \leftarrow q_k \sum_j T_{kj} p_j / (q T)_j`, which begin at p.
    It is the forward correction of a loss, done after the fit: any classifier can have it.

    Parameters
    ----------
    proba : array-like of shape (n_samples, n_classes)
        Probabilities of the given label.
    transition : array-like of shape (n_classes, n_classes)
        T[i, j], the probability of the given label j where the true class is i.
    max_iter : int, default=1000
        Greatest number of steps; fewer are made where they no more change any probability.

    Returns
    -------
    clean : ndarray of shape (n_samples, n_classes)

    Raises
    ------
    ValueError
        If the rows of ``proba``, or those of ``transition``, which needs as many rows and columns
        as there are classes, are not probabilities.

    References
    ----------
    Dempster, Laird, Rubin. Maximum Likelihood from Incomplete Data via the EM Algorithm. JRSS B
    1977.

    Patrini et al. Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach.
    CVPR 2017. arXiv:1609.03683. (The correction while training.)

    Examples
    --------
    >>> import numpy as np
    >>> T = np.array([[0.6, 0.4], [0.0, 1.0]])  # 40 % of the first class are given as the second
    >>> clean_proba([[0.45, 0.55]], T).round(2)  # more likely the first
    array([[0.75, 0.25]])
    """
    p = np.asarray(proba, dtype=np.float64)
    if p.ndim != 2 or len(p):
        p = check_class_proba(p, np.arange(p.shape[-1] if p.ndim else 0))
    T = check_transition(transition, p.shape[1])
    clean: Floats = np.full_like(p, -1)
    if np.linalg.cond(T) < WELL_CONDITIONED:
        clean = np.linalg.solve(T.T, p.T).T
    rest = (clean < 0).any(axis=1)
    clean[rest] = expectation_maximised(p[rest], T, max_iter)
    return clean


def expectation_maximised(p: Floats, T: Floats, max_iter: int) -> Floats:
    """Return what the steps of :func:`clean_proba` make of p."""
    clean = p + TINY
    for start in range(0, len(p), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(p)))  # those that still change
        for made in range(0, max_iter, STEPS):
            given, q = p[rows], clean[rows]
            for _ in range(min(STEPS, max_iter - made)):
                q *= (given / (q @ T + TINY)) @ T.T
                q /= q.sum(axis=1, keepdims=True)
            changed = np.abs(q - clean[rows]).max(axis=1) > TOLERANCE
            clean[rows] = q
            rows = rows[changed]
            if not len(rows):
                break
    return clean
