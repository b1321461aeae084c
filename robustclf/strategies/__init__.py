"""Training strategies: each edits one place of the formula and composes with every loss."""

from __future__ import annotations

from typing import Any

from robustclf.strategies._base import STRATEGIES, Batch, Mixing, Strategy, overrides
from robustclf.strategies.adversarial import Adversarial, SmoothAdversarial, VirtualAdversarial
from robustclf.strategies.division import CoDivide, PseudoLossSelection
from robustclf.strategies.gradient_clipping import OptimizedGradientClipping
from robustclf.strategies.groups import GroupBalance, GroupDRO, GroupLossResample
from robustclf.strategies.mixing import DecoupledMixup, FeatureSwap, Mixup, RankMixup
from robustclf.strategies.neighbours import NeighbourDenoise
from robustclf.strategies.peers import CoTeaching, CoTeachingPlus, JoCoR
from robustclf.strategies.perturbation import FeatureNoise
from robustclf.strategies.pruning import InfoBatch
from robustclf.strategies.regularizers import (
    L1,
    EarlyLearningRegularization,
    GroupLasso,
    MeanEntropy,
)
from robustclf.strategies.relabelling import SELC, Bootstrap, LabelSmoothing, Refurbish
from robustclf.strategies.representation import CenterLoss, NeuralCollapse
from robustclf.strategies.rescaling import MetaRescale
from robustclf.strategies.risk import HolisticRobust, InstanceReweighted, SpectralRisk
from robustclf.strategies.selection import ErrorNormTruncation, SmallLoss
from robustclf.strategies.semi_supervised import PseudoLabel
from robustclf.strategies.transition import Transition

__all__ = [
    "L1",
    "SELC",
    "Adversarial",
    "Batch",
    "Bootstrap",
    "CenterLoss",
    "CoDivide",
    "CoTeaching",
    "CoTeachingPlus",
    "DecoupledMixup",
    "EarlyLearningRegularization",
    "ErrorNormTruncation",
    "FeatureNoise",
    "FeatureSwap",
    "GroupBalance",
    "GroupDRO",
    "GroupLasso",
    "GroupLossResample",
    "HolisticRobust",
    "InfoBatch",
    "InstanceReweighted",
    "JoCoR",
    "LabelSmoothing",
    "MeanEntropy",
    "MetaRescale",
    "Mixing",
    "Mixup",
    "NeighbourDenoise",
    "NeuralCollapse",
    "OptimizedGradientClipping",
    "PseudoLabel",
    "PseudoLossSelection",
    "RankMixup",
    "Refurbish",
    "SmallLoss",
    "SmoothAdversarial",
    "SpectralRisk",
    "Strategy",
    "Transition",
    "VirtualAdversarial",
    "list_strategies",
    "make_strategy",
    "overrides",
]


def make_strategy(strategy: str | Strategy, /, **params: Any) -> Strategy:
    """Build the strategy an alias stands for, or copy an instance, with parameters set.

    Parameters
    ----------
    strategy : str or Strategy
        One of :func:`list_strategies`, or an instance, which is left as it is.
    **params
        Parameters of the strategy, by the paper's symbols.

    Returns
    -------
    Strategy

    Raises
    ------
    ValueError
        For an unknown alias or parameter, with what is allowed and the closest match.
    TypeError
        If ``strategy`` is neither an alias nor an instance.

    Examples
    --------
    >>> from robustclf import make_strategy
    >>> make_strategy("co_teaching", tau=0.4)
    CoTeaching(tau=0.4)
    """
    return STRATEGIES.make(strategy, **params)


def list_strategies() -> list[str]:
    """Return the aliases of all strategies.

    Examples
    --------
    >>> from robustclf import list_strategies
    >>> list_strategies()
    ['adversarial', 'bootstrap', 'center', ..., 'vat']
    """
    return STRATEGIES.names()
