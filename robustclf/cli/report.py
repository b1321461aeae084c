"""The report of an audit: one HTML page that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import warnings
from collections.abc import Callable
from importlib import resources
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

import robustclf
from robustclf.cli.audit import Audit, training_of
from robustclf.cli.summary import detail, headline, percent
from robustclf.plotting import LabelQualityDisplay, TrainingDynamicsDisplay, TransitionDisplay

MOST_ROWS = 1_000
WORTH_A_LOOK = 10
MOST_PAIRS = 8
MOST_CLASSES = 30  # of a matrix that one can read
LONGEST_NAME = 14  # of a class in a plot
INK, BLUE, ORANGE = "#010203", "#010204", "#010205"  # stand for what the style sheet says
COLORS = {INK: "currentColor", BLUE: "var(--blue)", ORANGE: "var(--orange)"}
STYLE: dict[Any, Any] = {
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor", "grid.color"], INK),
    **dict.fromkeys(["xtick.color", "ytick.color"], INK),
    **dict.fromkeys(["figure.facecolor", "axes.facecolor", "savefig.facecolor"], "none"),
    "axes.prop_cycle": mpl.rcsetup.cycler(color=[BLUE, ORANGE]),
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.4,
    "font.size": 10,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called $x$
}
QUALITY = "probability of the given label"
Draw = Callable[[Any], object]


def render(audit: Audit, issues: str = "issues.csv", n_issues: int | None = None) -> str:
    """Return the page, which names the file of the issues, of which it has ``n_issues``."""
    script = _resource("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rows = audit.ranking[: min(audit.n_wrong, MOST_ROWS) or WORTH_A_LOOK]
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tied"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    environment.filters["percent"] = lambda share: environment.filters["tied"](percent(share))
    page: str = environment.from_string(_resource("report.html.jinja")).render(
        audit=audit,
        issues=issues,
        n_issues=audit.n_wrong if n_issues is None else n_issues,
        folds=training_of(len(audit.training.rows))["cross_fit"],
        source=audit.source,
        headline=headline(audit),
        detail=detail(audit),
        rows=audit.issues(rows).itertuples(),
        n_rows=len(rows),
        pairs=audit.pairs()[:MOST_PAIRS] if audit.noisy else [],
        plots=_plots(audit),
        script=Markup(script),
        digest=digest,
        version=robustclf.__version__,
    )
    return page


def _resource(name: str) -> str:
    return resources.files("robustclf.cli").joinpath(name).read_text(encoding="utf-8")


def _plots(audit: Audit) -> dict[str, Markup]:
    if not audit.noisy:
        return {"quality": _svg("quality", LabelQualityDisplay(audit.quality).plot, x=QUALITY)}
    suspicious = np.isin(audit.training.rows, audit.ranking[: audit.n_wrong])
    quality = LabelQualityDisplay(audit.quality, suspicious)
    plots = {"quality": _svg("quality", quality.plot, x=QUALITY)}
    names = [_short(name) for name in audit.source.classes.tolist()]
    if len(names) <= MOST_CLASSES:
        matrix = TransitionDisplay(audit.transition.transition, classes=names)
        plots["transition"] = _svg("transition", lambda ax: matrix.plot(ax, colorbar=False))
    if audit.dynamics is not None and audit.dynamics.n_epochs > 1 and suspicious.any():
        dynamics = TrainingDynamicsDisplay(audit.dynamics, suspicious)
        plots["dynamics"] = _svg("dynamics", dynamics.plot, y="loss of the given label")
    return plots


def _short(name: str) -> str:
    name = "".join(c if c.isprintable() else " " for c in name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _svg(name: str, draw: Draw, x: str | None = None, y: str | None = None) -> Markup:
    """Draw into the page: the colours are those of its style, no identifier is there twice."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the browser has it
        figure = Figure(figsize=(4.3, 3.7), layout="constrained")
        ax = figure.subplots()
        draw(ax)
        if legend := ax.get_legend():
            legend.remove()  # the captions name the colours
        ax.set(xlabel=x or ax.get_xlabel(), ylabel=y or ax.get_ylabel())
        figure.savefig(buffer, format="svg", dpi=200, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for color, meaning in COLORS.items():
        svg = svg.replace(color, meaning)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    start = rf'<svg role="img" aria-label="plot of the {name}, described below" \1>'
    return Markup(re.sub(r"^<svg [^>]*?(viewBox=\S+ \S+ \S+ [^ >]+)[^>]*>", start, svg))
