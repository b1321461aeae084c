"""Turn a table of numbers, categories and missing values into one float array for a network."""

from robustclf.preprocessing._encoder import TabularEncoder

__all__ = ["TabularEncoder"]
