"""A parameter called ``score`` beside the method of that name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sklearn.base import BaseEstimator


class ScoreParameter:
    """Keep the parameter ``score`` beside the method ``score`` of every classifier."""

    @property
    def score(self) -> Callable[..., float]:
        """Return the method; the parameter is in ``get_params``."""
        method: Callable[..., float] = super().score  # type: ignore[misc]
        return method

    @score.setter
    def score(self, value: Any) -> None:
        vars(self)["score"] = value

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Get the parameters of this estimator.

        Parameters
        ----------
        deep : bool, default=True
            Also those of the estimators among them, as ``estimator__name``.

        Returns
        -------
        params : dict
        """
        params: dict[str, Any] = super().get_params(deep)  # type: ignore[misc]
        own = params["score"] = vars(self)["score"]
        if deep and isinstance(own, BaseEstimator):
            params |= {f"score__{name}": value for name, value in own.get_params().items()}
        return params
