"""From probabilities of the given label to those of the true one."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustclf.noise.matrices import check_transition

ITERATIONS = 60
TINY = 1e-12
CHUNK = 2_048  # rows that are worked on at a time, in the cache of a processor


def clean_proba(
    proba: ArrayLike, transition: ArrayLike, max_iter: int = ITERATIONS
) -> NDArray[np.float64]:
    r"""Return the probabilities of the true classes behind those of the given labels.

    A classifier that learned from noisy labels predicts, at best, the probabilities p of the label
    that would be given. With T the transition matrix, those of the true class are the q with

    .. math:: q = \arg\min_{q \ge 0, \sum_k q_k = 1} \mathrm{KL}(p \,\|\, q T) ,

    which is p T⁻¹ wherever that has no negative entry, and needs no inverse. The fixed-point steps
    of expectation maximisation, :math:`q_k \leftarrow q_k \sum_j T_{kj} p_j / (q T)_j`, begin at p.
    It is the forward correction of a loss, done after the fit: any classifier can have it.

    Parameters
    ----------
    proba : array-like of shape (n_samples, n_classes)
        Probabilities of the given label.
    transition : array-like of shape (n_classes, n_classes)
        T[i, j], the probability of the given label j where the true class is i.
    max_iter : int, default=60
        Number of steps.

    Returns
    -------
    clean : ndarray of shape (n_samples, n_classes)

    Raises
    ------
    ValueError
        If ``transition`` is not a matrix of the classes whose rows are probabilities.

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
    T = check_transition(transition, p.shape[1])
    clean = p + TINY
    for start in range(0, len(p), CHUNK):
        given, q = p[start : start + CHUNK], clean[start : start + CHUNK]
        for _ in range(max_iter):
            q *= (given / (q @ T + TINY)) @ T.T
            q /= q.sum(axis=1, keepdims=True)
    return clean
