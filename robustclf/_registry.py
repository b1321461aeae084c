"""Aliases: the one way to name a loss, strategy, optimiser or network by a string."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any, Generic, TypeVar

from sklearn.base import clone

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def closest(name: object, options: Iterable[str]) -> str:
    """End of an error sentence that names the option nearest to a misspelt `name`, or nothing.

    Examples
    --------
    >>> closest("gec", ["ce", "gce", "mae"])
    "; did you mean 'gce'?"
    >>> closest("hinge", ["ce", "gce", "mae"])
    ''
    """
    by_lower = {option.lower(): option for option in options}
    match = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f"; did you mean {by_lower[match[0]]!r}?" if match else ""


def check_known(kind: str, names: Iterable[object], options: Iterable[str]) -> None:
    """Raise a ValueError for the first of `names` that is not one of `options`.

    Examples
    --------
    >>> check_known("loss", ["gec"], ["ce", "gce"])
    Traceback (most recent call last):
    ValueError: unknown loss 'gec', allowed are 'ce', 'gce'; did you mean 'gce'?
    """
    options = list(options)
    for name in names:
        if name not in options:
            allowed = ", ".join(map(repr, options)) or "none"
            raise ValueError(
                f"unknown {kind} {name!r}, allowed are {allowed}{closest(name, options)}"
            )


class Registry(Generic[T]):
    """Named factories of one kind of object: classes, or functions that compose some (recipes).

    Parameters
    ----------
    kind : str
        What is registered, as error messages call it.
    base : type
        Class of the objects made.

    Examples
    --------
    >>> numbers = Registry("number", int)
    >>> @numbers.register("sum")
    ... def add(a=1, b=2):
    ...     return a + b
    >>> numbers.names(), numbers.make("sum", b=4)
    (['sum'], 5)
    >>> numbers.make("sum", bb=4)
    Traceback (most recent call last):
    ValueError: unknown parameter of number 'sum' 'bb', allowed are 'a', 'b'; did you mean 'b'?
    """

    def __init__(self, kind: str, base: type[T]) -> None:
        self.kind = kind
        self.base = base
        self._factories: dict[str, Callable[..., T]] = {}

    def register(self, alias: str) -> Callable[[F], F]:
        """Class or function decorator; an alias is given once."""
        if alias in self._factories:
            raise ValueError(f"{self.kind} alias {alias!r} is taken: {self._factories[alias]}")

        def add(factory: F) -> F:
            self._factories[alias] = factory
            return factory

        return add

    def names(self) -> list[str]:
        """All aliases, sorted."""
        return sorted(self._factories)

    def get(self, alias: str) -> Callable[..., T]:
        """Class or recipe called `alias`; ValueError if there is none."""
        check_known(self.kind, [alias], self.names())
        return self._factories[alias]

    def make(self, what: str | T, /, **params: Any) -> T:
        """Build the object called `what`, or copy the instance `what`, with `params` set.

        Raises
        ------
        ValueError
            If the alias or a parameter name is unknown; the message lists what is allowed.
        TypeError
            If `what` is neither a string nor an instance.
        """
        plain = {name: value for name, value in params.items() if "__" not in name}
        parts = dict.fromkeys(name.partition("__")[0] for name in params if "__" in name)
        if isinstance(what, str):
            factory = self.get(what)
            if params:  # inspection is slow, and a wrapper may hold an alias in the training loop
                kind, allowed = f"parameter of {self.kind} {what!r}", signature(factory).parameters
                check_known(kind, plain, allowed)
            made: Any = factory(**plain)
            if parts:  # of which a function may have made some itself
                held = [name for name, value in vars(made).items() if isinstance(value, self.base)]
                check_known(kind, parts, dict.fromkeys([*allowed, *held]))
        elif isinstance(what, self.base):
            made = clone(what)
            named = [name for name in params if name not in made.get_params()]
            own = [name.partition("__")[0] for name in named]
            check_known(f"parameter of {type(what).__name__}", own, made.get_params(deep=False))
            made.set_params(**plain)
        else:
            raise TypeError(
                f"{self.kind} must be an alias or an instance of {self.base.__name__}, got {what!r}"
            )
        for part in parts:
            prefix = f"{part}__"
            inner = {k[len(prefix) :]: v for k, v in params.items() if k.startswith(prefix)}
            setattr(made, part, self.make(getattr(made, part), **inner))
        result: T = made
        return result
