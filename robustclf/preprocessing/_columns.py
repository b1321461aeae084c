"""Columns of a table, one at a time: how numbers are scaled, and which values categories have."""

from collections.abc import Hashable, Iterator
from math import inf, isfinite
from typing import Any, NamedTuple, NoReturn

import narwhals as nw
import numpy as np
from numpy.typing import NDArray

# shares of the weight; in binary fractions a repetition is a weight to the last digit
SHARES = np.array([0.0, 1 / 64, 0.25, 0.5, 0.75, 63 / 64, 1.0])
NEAR = 1 / 8  # share of the distances from the origin that are shorter than the unit of logarithms
CHUNK = 2**14  # elements: the temporaries of one chunk stay in the processor's cache
FAR = 1e18  # its square is finite, and its smooth clip is 3 to the last digit
MAX, TINY = float(np.finfo(np.float64).max), 5e-324


def smooth_clip(x: NDArray[Any], center: Any, scale: Any, out: NDArray[Any]) -> bool:
    """Write z / sqrt(1 + (z / 3)^2) for z = (x - center) / scale; tell if all is plainly finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        z = x - center  # float64, as the center is
        z /= scale
        root = z * z
        root += 9
        # one sum of positive numbers sees NaN, infinity and every square that overflows
        finite = isfinite(np.add.reduce(root, axis=None))
        if not finite:
            z = np.clip(x - center, -MAX, MAX) / scale
            np.clip(z, -FAR, FAR, out=z)
            root = z * z + 9
        np.sqrt(root, out=root)
        z *= 3
        np.divide(z, root, out=out)
    return finite


class Spread(NamedTuple):
    """What is learned of a column of numbers: `origin` and `unit` are those of its logarithm."""

    center: float
    scale: float
    origin: float
    unit: float
    missing: bool


class Ordered:
    """The known values of a column, which gets sorted, and the weight of those in front of each."""

    def __init__(self, column: NDArray[Any], weight: NDArray[np.float64] | None) -> None:
        self.column = column
        self.n = int(len(column) - np.count_nonzero(np.isnan(column)))  # NaN sorts last
        self.order = self.mass = None
        if weight is None:
            column.sort()
            self.missing = self.n < len(column)
        else:
            self.order = np.argsort(column)
            self.missing = bool(weight[self.order[self.n :]].any())
            self.mass = weight[self.order[: self.n]]
            np.cumsum(self.mass, out=self.mass)

    def before(self, position: int) -> float:
        """Return the weight of the rows in front of a position."""
        if self.mass is None or position == 0:
            return float(position)
        return float(self.mass[position - 1])

    def at(self, shares: Any, low: int = 0, high: int | None = None) -> Any:
        """Return the first values to reach each share of the weight from `low` to `high`."""
        start = self.before(low)
        # a positive target, so that the minimum too is of a row of positive weight
        target = start + np.maximum(shares * (self.before(high or self.n) - start), TINY)
        if self.mass is None or self.order is None:
            at = np.ceil(target).astype(np.intp) - 1
        else:
            at = self.order[np.searchsorted(self.mass, target)]
        return self.column[at]

    def distance(self, share: float, origin: Any) -> float:
        """Return the share's quantile of the distances above and below a value, in the mean."""
        low, high = (
            int(np.searchsorted(self.column, origin, side, sorter=self.order))
            for side in ("left", "right")
        )
        sides = []
        if self.before(low) > 0:
            sides.append(float(origin) - float(self.at(1 - share, 0, low)))
        if self.before(self.n) > self.before(high):
            sides.append(float(self.at(share, high)) - float(origin))
        return sum(sides) / len(sides) if sides else inf


def spread_of(
    column: NDArray[Any], weight: NDArray[np.float64] | None, name: str, max_tail: float
) -> Spread:
    """Return what is learned of a column, which gets sorted."""
    known = Ordered(column, weight)
    if known.before(known.n) == 0:
        return Spread(0.0, inf, 0.0, inf, known.missing)
    with np.errstate(over="ignore"):
        chosen = known.at(SHARES)
        values = chosen.astype(np.float64)
        if np.isinf(values[[0, -1]]).any():
            refuse_infinite(column, name)
        tails = np.array([values[3] - values[1], values[5] - values[3]])
        heavy = tails > max_tail * known.distance(0.5, chosen[3])
        origin, unit = 0.0, inf
        if heavy.any():
            # as far as can be from the tail, so that what is on the other side stays apart
            at = 3 if heavy.all() else 1 if heavy[1] else 5
            origin, unit = float(values[at]), known.distance(NEAR, chosen[at])
            values = symlog(values, origin, unit)
        low, _, lower, median, upper, _, high = values.tolist()
    # an infinite divisor: a column from which nothing is learned stays 0 in prediction
    scale = min(upper - lower or high / 2 - low / 2, MAX) or inf
    return Spread(median, scale, origin, unit, known.missing)


def symlog(x: NDArray[Any], origin: Any, unit: Any) -> NDArray[np.float64]:
    """Return sign(d) log(1 + |d| / unit) for d = x - origin."""
    with np.errstate(over="ignore", invalid="ignore"):
        d = x - origin
        out: NDArray[np.float64] = np.copysign(np.log1p(np.abs(d) / unit), d)
    return out


def sparse_scale(X: Any, weight: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return the weighted median of the absolute non-zeros of each column."""
    row = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    mass = np.ones(X.nnz) if weight is None else weight[row]
    size = np.abs(X.data, dtype=np.float64)
    used = np.flatnonzero((size > 0) & (mass > 0))
    order = used[np.lexsort((size[used], X.indices[used]))]
    total = np.concatenate([[0.0], np.cumsum(mass[order])])
    count = np.bincount(X.indices[used], minlength=X.shape[1])
    end = np.cumsum(count)
    start, seen = end - count, count > 0
    at = np.searchsorted(total[1:], (total[start] + total[end]) / 2)
    scale = np.full(X.shape[1], inf)
    scale[seen] = size[order[np.clip(at, start, end - 1)[seen]]]
    return scale


def column_copies(data: Any, positions: list[int]) -> Iterator[NDArray[Any]]:
    """Yield a contiguous copy of each column in turn, in memory that is used again."""
    if isinstance(data, list):
        yield from (np.array(data[j]) for j in positions)
        return
    step = max(1, data.shape[1] // 20)
    memory = np.empty((step, len(data)), data.dtype)
    for start in range(0, data.shape[1], step):
        block = data[:, start : start + step].T
        memory[: len(block)] = block
        yield from memory[: len(block)]


def unmasked(X: Any) -> Any:
    """Return the rows of a masked array with NaN where they are masked; any other X as it is."""
    if not isinstance(X, np.ma.MaskedArray):
        return X
    return np.ma.filled(X.astype(np.float64 if X.dtype.kind in "biuf" else object), np.nan)


def is_category(column: Any) -> bool:
    """Tell whether the dtype, or for objects the values, make a column a category."""
    if isinstance(column, nw.Series):
        if column.dtype != nw.Object:
            return column.dtype in (nw.String, nw.Categorical, nw.Enum)
        column = column.to_numpy()
    try:
        to_float(column)
    except (TypeError, ValueError) as error:
        return isinstance(error, ValueError)
    return False


def checked(column: Any, name: str) -> Any:
    """Return a column that is not of dates or nested values."""
    dtype = column.dtype
    if isinstance(column, nw.Series):
        refused = dtype.is_temporal() or dtype.is_nested()
    else:
        refused = dtype.kind in "mM"
    if refused:
        raise ValueError(
            f"Column {name!r} is of dtype {dtype}: turn it into numbers or strings first, for "
            "example a date into the days since a fixed date."
        )
    return column


def as_numbers(column: Any, name: str) -> NDArray[Any]:
    """Return a column of numbers as an array, which is a view where that is possible."""
    values = checked(column, name)
    if isinstance(values, nw.Series):
        values = values.to_numpy()
    if values.dtype.kind in "biuf":
        return np.asarray(values)
    try:
        return to_float(values)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"Column {name!r} must be numeric, as it was in training or as it is not among "
            f"categorical_features: {error}."
        ) from error


def to_float(values: NDArray[Any]) -> NDArray[np.float64]:
    if values.dtype.kind == "c":
        raise TypeError("complex numbers are not supported")
    try:
        return values.astype(np.float64)
    except TypeError:  # numpy knows None, but not the missing value of pandas
        return np.array([np.nan if is_missing(v) else v for v in values], dtype=np.float64)


def is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ == "NAType" or bool(value != value)


class Table(dict[Hashable, int]):
    """Codes of the known values; each kind of missing value has the code of None."""

    def __missing__(self, value: Hashable) -> int:
        return self.get(None, 0) if is_missing(value) else 0


def values_of(column: Any) -> list[Any]:
    values: list[Any] = column.to_list() if isinstance(column, nw.Series) else column.tolist()
    return values


def table_of(column: Any, name: str) -> Table:
    """Give the sorted values of a category the codes 1 to n; a missing value comes last."""
    values = values_of(column)
    try:
        found: set[Any] = {None if is_missing(value) else value for value in set(values)}
        known = [*sorted(found - {None}), *found & {None}]
    except TypeError as error:
        refuse_mixture(values, name, error)
    return numbered(known)


def numbered(values: list[Any]) -> Table:
    return Table(zip(values, range(1, len(values) + 1), strict=True))


def codes_of(column: Any, table: Table, name: str) -> NDArray[np.int32]:
    values = values_of(column)
    try:
        codes = np.fromiter(map(table.__getitem__, values), np.int32, len(values))
    except TypeError as error:
        refuse_mixture(values, name, error)
    known = next((value for value in table if value is not None), None)
    unknown = {values[i] for i in np.flatnonzero(codes == 0)}
    for value in unknown if known is not None else ():
        if isinstance(value, str) != isinstance(known, str) and not is_missing(value):
            raise TypeError(
                f"Column {name!r} is a category of {type(known).__name__} values such as "
                f"{known!r}, got {value!r} of type {type(value).__name__}: read it as for training."
            )
    return codes


def refuse_mixture(values: list[Any], name: str, error: TypeError) -> NoReturn:
    raise TypeError(
        f"Column {name!r} is a category, whose argument must be all strings or all numbers, "
        f"got {sorted({type(value).__name__ for value in values})}."
    ) from error


def refuse_infinite(column: NDArray[Any], name: str) -> NoReturn:
    raise ValueError(
        f"Input X contains infinity or a value too large for {column.dtype!r}: column {name!r}, "
        f"{np.isinf(column).sum()} row(s)."
    )
