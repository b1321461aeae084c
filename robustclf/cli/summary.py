"""What an audit found, in words and as a JSON object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from robustclf.cli.audit import Audit

TOLERABLE = 0.02  # share of wrong labels, as in `is_noisy`
SHOWN = 10  # rows and pairs
LONGEST = 40  # characters of a cell on the terminal


def percent(share: float) -> str:
    """Return a share as a percentage, with a decimal below 10 %.

    Examples
    --------
    >>> percent(0.123), percent(0.0312), percent(0.0), percent(0.0001)
    ('12 %', '3.1 %', '0 %', '0.01 %')
    """
    digits = 0 if share >= 0.0995 or not share else max(1, -math.floor(math.log10(share)) - 2)
    return f"{100 * share:.{digits}f} %"


def one_in(share: float) -> str:
    """Return a share as people say it.

    Examples
    --------
    >>> one_in(0.12), one_in(0.38), one_in(0.001)
    ('one label in 8', '4 labels in 10', 'one label in 1,000')
    """
    return f"{share * 10:.0f} labels in 10" if share > 0.29 else f"one label in {1 / share:,.0f}"


def shown(text: object, longest: int = LONGEST) -> str:
    r"""Return the text of a cell for a terminal: of bounded length, control characters escaped.

    Examples
    --------
    >>> print(shown("red\x1b[31m"), shown("x" * 50, 8))
    red\x1b[31m xxxxxxx…
    """
    plain = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)
    )
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def headline(audit: Audit) -> str:
    """Return the shortest answer to how many labels are wrong."""
    if audit.blind:
        return "Nothing can be said of these labels"
    if audit.noisy:
        return f"About {percent(audit.rate.rate)} of the labels are wrong"
    calm = audit.rate.rate <= TOLERABLE
    return "Nothing needs cleaning" if calm else "No label can be called wrong"


def detail(audit: Audit) -> str:
    """Return what the headline rests on."""
    rate, n = audit.rate, audit.n_labelled
    if audit.blind:
        return (
            "From these columns the classes are predicted no better than by guessing: either they "
            f"have little to do with the labels, or most of the {n:,} labels are wrong."
        )
    interval = f"the 95 % interval is {percent(rate.low)} to {percent(rate.high)}"
    if audit.noisy:
        return (
            f"{one_in(rate.rate).capitalize()}, some {audit.n_wrong:,} of {n:,} rows; {interval}."
        )
    if rate.rate > TOLERABLE:
        return (
            f"The estimate is {percent(rate.rate)}, but it rests on {rate.n_rows:,} rows and may "
            f"be chance; {interval}."
        )
    if not rate.rate:
        return f"No label looks wrong where a classifier is most certain; {interval}."
    return (
        f"About {percent(rate.rate)} of the labels look wrong, no more than the mistakes that a "
        f"classifier makes on right ones; {interval}."
    )


def as_text(audit: Audit) -> str:
    """Return what the terminal shows."""
    source = audit.source
    without = len(source.codes) - audit.n_labelled
    parts = [
        f"{shown(source.table.path)}: {len(source.codes):,} rows, {len(source.classes)} classes, "
        f"{len(audit.training.features.kinds)} columns to learn from"
        + (f"; {without:,} rows without label left out" if without else ""),
        f"{headline(audit)}. {detail(audit)}",
    ]
    if audit.noisy:
        parts.append(_pairs(audit))
    rows = audit.ranking[: min(audit.n_wrong, SHOWN) or SHOWN // 2]
    title = (
        f"Most suspicious rows ({len(rows)} of {audit.n_wrong:,})"
        if audit.n_wrong
        else f"Worth a look, though not called wrong ({len(rows)} rows)"
    )
    cells = [
        (shown(row.id), shown(row.given), shown(row.suggested), f"{row.probability:.2f}")
        for row in audit.issues(rows).itertuples()
    ]
    header = (shown(source.id or "row"), "given", "suggested", "probability")
    parts.append(title + "\n" + _aligned([header, *cells]))
    if audit.training.notes:
        parts.append("\n".join(f"note: {shown(note, 400)}" for note in audit.training.notes))
    return "\n\n".join(parts)


def _pairs(audit: Audit) -> str:
    rows = [("true", "given as", "share of the true class", "suspicious rows")]
    rows += [
        (
            shown(pair.true),
            shown(pair.given),
            f"{percent(pair.share)} ({percent(pair.low)} to {percent(pair.high)})",
            f"{pair.issues:,}",
        )
        for pair in audit.pairs()[:5]
    ]
    return "Most confused classes\n" + _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(f"  {line}" for line in lines)


def as_dict(audit: Audit) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    rate, source = audit.rate, audit.source
    rows = audit.ranking[:SHOWN]
    return {
        "table": str(source.table.path),
        "label": source.label,
        "rows": len(source.codes),
        "without_label": len(source.codes) - audit.n_labelled,
        "trained_on": len(audit.training.rows),
        "classes": source.classes.tolist(),
        "columns": list(audit.training.features.kinds),
        "noisy": audit.noisy,
        "blind": audit.blind,
        "wrong_labels": audit.n_wrong,
        "noise_rate": {
            "rate": rate.rate,
            "low": rate.low,
            "high": rate.high,
            "lower_bound": rate.lower_bound,
            "confidence_level": rate.confidence_level,
        },
        "confused_pairs": [vars(pair) for pair in audit.pairs()[:SHOWN]],
        "suspicious_rows": audit.issues(rows).to_dict("records"),
        "notes": audit.training.notes,
    }
