"""Named methods of the field: each is a composition of a loss, strategies, optimiser and module."""

from __future__ import annotations

from typing import Any

from robustclf._registry import Registry
from robustclf.strategies import make_strategy

RECIPES = Registry("recipe", dict)


def list_recipes() -> list[str]:
    """Return the names that :meth:`RobustClassifier.from_recipe` knows.

    Examples
    --------
    >>> from robustclf import list_recipes
    >>> list_recipes()
    ['anl', 'co-teaching', 'dividemix', ..., 'sce']
    """
    return RECIPES.names()


@RECIPES.register("gce")
def gce() -> dict[str, Any]:
    """Generalized cross entropy.

    References
    ----------
    Zhang, Sabuncu. Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
    Labels. NeurIPS 2018. arXiv:1805.07836.
    """
    return {"loss": "gce"}


@RECIPES.register("sce")
def sce() -> dict[str, Any]:
    """Cross entropy plus reverse cross entropy.

    References
    ----------
    Wang et al. Symmetric Cross Entropy for Robust Learning with Noisy Labels. ICCV 2019.
    arXiv:1908.06112.
    """
    return {"loss": "sce"}


@RECIPES.register("anl")
def anl() -> dict[str, Any]:
    """Normalised cross entropy plus its negative, with an L1 penalty in place of weight decay.

    References
    ----------
    Ye et al. Active Negative Loss Functions for Learning with Noisy Labels. NeurIPS 2023.
    arXiv:2412.02373.
    """
    return {"loss": "anl_ce", "strategy": "l1", "weight_decay": 0.0}


@RECIPES.register("ogc-ce")
def ogc_ce() -> dict[str, Any]:
    """Cross entropy, linear below a threshold that a mixture of the losses sets.

    References
    ----------
    Ye et al. Optimized Gradient Clipping for Noisy Label Learning. AAAI 2025. arXiv:2412.08941.
    """
    return {"loss": "ce", "strategy": "ogc"}


@RECIPES.register("co-teaching")
def co_teaching() -> dict[str, Any]:
    """Two networks that train on the rows their peer finds easy.

    ``strategy__tau`` is best the noise rate.

    References
    ----------
    Han et al. Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels.
    NeurIPS 2018. arXiv:1804.06872.
    """
    return {"loss": "ce", "strategy": "co_teaching"}


@RECIPES.register("nested-co-teaching")
def nested_co_teaching() -> dict[str, Any]:
    """Co-teaching of networks with ordered features; one training in place of two stages.

    References
    ----------
    Chen et al. Compressing Features for Learning with Noisy Labels. TNNLS 2022. arXiv:2206.13140.
    """
    return {"loss": "ce", "strategy": "co_teaching", "module": "nested_mlp"}


@RECIPES.register("elr")
def elr() -> dict[str, Any]:
    """Cross entropy held to the running average of the network's own predictions.

    References
    ----------
    Liu et al. Early-Learning Regularization Prevents Memorization of Noisy Labels. NeurIPS 2020.
    arXiv:2007.00151.
    """
    return {"loss": "ce", "strategy": "elr"}


@RECIPES.register("dividemix")
def dividemix() -> dict[str, Any]:
    """Two networks that divide the rows for each other, guess labels together, and mix rows.

    The cross entropy takes the place of the squared error on guessed labels.

    References
    ----------
    Li, Socher, Hoi. DivideMix: Learning with Noisy Labels as Semi-supervised Learning. ICLR 2020.
    arXiv:2002.07394.
    """
    mixup = make_strategy("mixup", alpha=4.0)
    return {"loss": "ce", "strategy": [make_strategy("co_divide"), mixup]}


@RECIPES.register("pls")
def pls() -> dict[str, Any]:
    """Noisy rows get predictions for labels, weighed by the loss on these; rows are mixed.

    Without the contrastive term, which needs augmentations.

    References
    ----------
    Albert et al. Is your noise correction noisy? PLS: Robustness to label noise with two stage
    detection. WACV 2023. arXiv:2210.04578.
    """
    return {"loss": "ce", "strategy": [make_strategy("pls"), make_strategy("mixup")]}


@RECIPES.register("sam")
def sam() -> dict[str, Any]:
    """Sharpness-aware minimisation of the cross entropy.

    References
    ----------
    Foret, Kleiner, Mobahi, Neyshabur. Sharpness-Aware Minimization for Efficiently Improving
    Generalization. ICLR 2021. arXiv:2010.01412.
    """
    return {"loss": "ce", "optimizer": "sam"}


@RECIPES.register("hr")
def hr() -> dict[str, Any]:
    """Worst case over distributions near the sample, of adversarial rows.

    Made for a few wrong labels among rows that may be attacked; it fails where many are wrong.

    References
    ----------
    Bennouna, Lucas, Van Parys. Certified Robust Neural Networks: Generalization and Corruption
    Resistance. ICML 2023. arXiv:2303.02251.
    """
    worst_case = make_strategy("holistic_robust", alpha=0.05, r=0.1)
    return {"loss": "ce", "strategy": [make_strategy("adversarial"), worst_case]}


@RECIPES.register("erase")
def erase() -> dict[str, Any]:
    """Labels denoised over the graph of nearest neighbours, before and during training.

    The cross entropy takes the place of the coding rate reduction of the paper.

    References
    ----------
    Chen et al. ERASE: Error-Resilient Representation Learning on Graphs for Label Noise Tolerance.
    CIKM 2024. arXiv:2312.08852.
    """
    return {"loss": "ce", "strategy": "neighbour_denoise"}
