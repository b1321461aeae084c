"""Classification when labels are wrong: robust losses and training strategies for tables."""

from robustclf._version import __version__ as __version__
from robustclf._weighing import AutoReport
from robustclf.classifier import RobustClassifier
from robustclf.losses import list_losses, make_loss
from robustclf.recipes import list_recipes
from robustclf.sources import ArraySource, DatasetSource, ParquetSource
from robustclf.strategies import list_strategies, make_strategy

__all__ = [
    "ArraySource",
    "AutoReport",
    "DatasetSource",
    "ParquetSource",
    "RobustClassifier",
    "list_losses",
    "list_recipes",
    "list_strategies",
    "make_loss",
    "make_strategy",
]
