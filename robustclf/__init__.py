"""Classification when labels are wrong: robust losses and training strategies for tables."""

from robustclf.classifier import RobustClassifier
from robustclf.losses import list_losses, make_loss
from robustclf.recipes import list_recipes
from robustclf.sources import ArraySource, DatasetSource, ParquetSource
from robustclf.strategies import list_strategies, make_strategy

__version__ = "0.1.0"

__all__ = [
    "ArraySource",
    "DatasetSource",
    "ParquetSource",
    "RobustClassifier",
    "list_losses",
    "list_recipes",
    "list_strategies",
    "make_loss",
    "make_strategy",
]
