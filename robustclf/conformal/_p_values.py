"""Tests that a risk is above its limit, from the mean loss of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr
from scipy.stats import binom

Floats = NDArray[np.float64]

ROUNDING = 1e-9  # of n times a mean, which may be a whole number


def hoeffding_bentkus(risk: ArrayLike, n: int, limit: float) -> Floats:
    r"""Return p-values of the hypothesis that the mean of losses in [0, 1] is above a limit.

    .. math:: p = \min\left(e^{-n \, h(\min(\hat R, \alpha), \alpha)},\;
       e \, P(\mathrm{Bin}(n, \alpha) \le \lceil n \hat R \rceil)\right), \quad
       h(a, b) = a \log\frac a b + (1 - a) \log\frac{1 - a}{1 - b}

    Parameters
    ----------
    risk : array-like
        Mean losses of ``n`` rows.
    n : int
    limit : float
        :math:`\alpha`.

    References
    ----------
    Bates, Angelopoulos, Lei, Malik, Jordan. Distribution-Free, Risk-Controlling Prediction Sets.
    JACM 2021. arXiv:2101.02703.

    Examples
    --------
    >>> hoeffding_bentkus([0.0, 0.05, 0.2], 100, 0.1).round(4)
    array([0.    , 0.1565, 1.    ])
    """
    r = np.asarray(risk, dtype=np.float64)
    if limit >= 1:
        return np.zeros(r.shape)
    if limit <= 0:
        return np.ones(r.shape)
    below = np.clip(r, 0, limit)
    hoeffding = np.exp(-n * (rel_entr(below, limit) + rel_entr(1 - below, 1 - limit)))
    bentkus = np.e * binom.cdf(np.ceil(n * r - ROUNDING), n, limit)
    p_values: Floats = np.minimum(np.minimum(hoeffding, bentkus), 1.0)
    return p_values
