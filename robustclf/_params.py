"""Parameters of a part that is named by an alias: ``loss="gce", loss__q=0.5``."""

from __future__ import annotations

from inspect import Signature, signature
from typing import Any, ClassVar, Self

from robustclf._registry import closest


class NestedParamsMixin:
    """Let ``part__name`` be set whether ``part`` is an alias or an instance.

    scikit-learn's nested parameters need an instance. Here ``part__name`` of an alias is kept as
    an attribute of the estimator and handed over when the part is built; setting another value
    for ``part`` forgets what was set for the former one.
    """

    _parts: ClassVar[tuple[str, ...]] = ()
    __signature__: ClassVar[Signature]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the named parameters alone: ``**params`` is only the way in for ``part__name``."""
        super().__init_subclass__(**kwargs)
        full = signature(cls.__init__)
        named = [p for name, p in full.parameters.items() if p.kind is not p.VAR_KEYWORD]
        cls.__signature__ = full.replace(parameters=named[1:])

    def _set_part_params(self, params: dict[str, Any]) -> None:
        """Keep the ``**params`` of ``__init__``."""
        for key, value in params.items():
            if key.partition("__")[0] not in self._parts or "__" not in key:
                names = [*self.get_params(deep=False), *(f"{part}__..." for part in self._parts)]
                raise TypeError(
                    f"{type(self).__name__} got an unexpected argument {key!r}"
                    f"{closest(key, names) or f'; allowed are {names}'}"
                )
            setattr(self, key, value)

    def _part_params(self, part: str) -> dict[str, Any]:
        """Return what was set for ``part``, without the prefix."""
        prefix = f"{part}__"
        return {k[len(prefix) :]: v for k, v in vars(self).items() if k.startswith(prefix)}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Get the parameters of this estimator.

        Parameters
        ----------
        deep : bool, default=True
            Also those of the instances among them, as ``part__name``.

        Returns
        -------
        params : dict
        """
        params: dict[str, Any] = super().get_params(deep)  # type: ignore[misc]
        return params | {k: v for k, v in vars(self).items() if k.partition("__")[0] in self._parts}

    def set_params(self, **params: Any) -> Self:
        """Set the parameters of this estimator.

        Parameters
        ----------
        **params : dict
            ``loss="gce", loss__q=0.5``: a part's own parameters follow two underscores.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For an unknown name.
        """
        for part in self._parts:
            value, former = params.get(part, getattr(self, part)), getattr(self, part)
            same = value is former or (isinstance(value, str) and value == former)
            for name in () if same else self._part_params(part):
                delattr(self, f"{part}__{name}")
            for key in [k for k in params if k.startswith(f"{part}__")]:
                alias = not hasattr(value, "get_params") or isinstance(value, type)
                if alias or key in vars(self):
                    setattr(self, key, params.pop(key))
        super().set_params(**params)  # type: ignore[misc]
        return self
