"""The command line: ``robustclf audit | clean | fit | predict``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from robustclf import __version__, list_losses, list_recipes, list_strategies
from robustclf._files import written
from robustclf._registry import check_known

OPTIONAL = ("jinja2", "matplotlib", "pandas", "pyarrow")
DONE, BAD_INPUT, TOO_NOISY, INTERRUPTED = 0, 1, 3, 130
NO_VERDICT = (
    "no verdict, as predictions are no better than guesses: with --fail-above these labels are not "
    "taken for good"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; usage errors exit with 2, as argparse has it."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except KeyboardInterrupt:
        return _complain("interrupted: nothing was written", INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in OPTIONAL:
            raise
        return _complain(f'this needs {error.name}: run `pip install "robustclf[cli]"`')
    except (ValueError, OSError, ArithmeticError) as error:
        return _complain(str(error))
    return code


def _complain(message: str, code: int = BAD_INPUT, kind: str = "error") -> int:
    print(f"robustclf: {kind}: {message}", file=sys.stderr)
    return code


# Commands; what they need is imported when they run, as it may be missing -----------------------


def _audit(arguments: argparse.Namespace) -> int:
    from robustclf.cli import audit, files, report, summary
    from robustclf.cli.tables import save_rows

    issues = arguments.issues or arguments.out.with_name("issues.csv")
    files.check_outputs([arguments.table], [arguments.out, issues], force=arguments.force)
    found = audit.audit(arguments.table, arguments.label, _settings(arguments))
    number = found.n_wrong if arguments.top is None else arguments.top
    with written(arguments.out, issues) as [page, rows]:
        page.write_text(report.render(found, issues.name, number), encoding="utf-8")
        save_rows(found.issues(found.ranking[:number]), rows)
    wrote = {"report": str(arguments.out), "issues": str(issues)}
    _say(arguments, summary.as_text(found), summary.as_dict(found), wrote)
    limit = arguments.fail_above
    if limit is None or found.rate.lower_bound <= limit:
        return DONE
    return _complain(NO_VERDICT, TOO_NOISY, "warning") if found.blind else TOO_NOISY


def _clean(arguments: argparse.Namespace) -> int:
    from robustclf.cli import audit, clean, files, summary
    from robustclf.cli.tables import open_table, save_rows

    log = arguments.log or arguments.out.with_name("changes.csv")
    files.check_outputs([arguments.table], [arguments.out, log], force=arguments.force)
    clean.check_suffix(open_table(arguments.table, arguments.encoding), arguments.out)
    found = audit.audit(arguments.table, arguments.label, _settings(arguments))
    rows = clean.chosen(found, arguments.threshold)
    with written(arguments.out, log) as [table, changes]:
        n_written = clean.write_clean(found, rows, arguments.action, table)
        save_rows(clean.change_log(found, rows, arguments.action), changes)
    wrote = {"table": str(arguments.out), "changes": str(log)}
    told = {"action": arguments.action, "changed_rows": len(rows), "rows_written": n_written}
    verb = {"prune": "left out", "relabel": "relabelled"}[arguments.action]
    text = f"{summary.headline(found)}. {summary.detail(found)}\n\n"
    text += f"{len(rows):,} rows {verb}, {n_written:,} rows written"
    _say(arguments, text, summary.as_dict(found) | told, wrote)
    return DONE


def _fit(arguments: argparse.Namespace) -> int:
    import joblib

    from robustclf.cli import files, model

    files.check_outputs([arguments.table], [arguments.model], force=arguments.force)
    parts = {"loss": arguments.loss, "strategy": arguments.strategy}
    chosen = {name: value for name, value in parts.items() if value is not None}
    fitted, training = model.fit_model(
        arguments.table, arguments.label, _settings(arguments), arguments.recipe, **chosen
    )
    with written(arguments.model) as [path]:
        joblib.dump(fitted, path)
    n, kinds = len(training.rows), fitted.features.kinds
    classes = training.source.classes.tolist()
    text = f"{n:,} rows, {len(kinds)} columns, {len(classes)} classes"
    text = "\n".join([text, *(f"note: {note}" for note in training.notes)])
    told = {"rows": n, "columns": kinds, "classes": classes, "notes": training.notes}
    _say(arguments, text, told, {"model": str(arguments.model)})
    return DONE


def _predict(arguments: argparse.Namespace) -> int:
    from robustclf.cli import files, model
    from robustclf.cli.tables import open_table

    inputs = [arguments.model, arguments.table]
    files.check_outputs(inputs, [arguments.out], force=arguments.force)
    fitted = model.load_model(arguments.model)
    table = open_table(arguments.table, arguments.encoding)
    with written(arguments.out) as [path]:
        n = model.write_predictions(fitted, table, path, arguments.id, proba=arguments.proba)
    _say(arguments, f"{n:,} rows predicted", {"rows": n}, {"predictions": str(arguments.out)})
    return DONE


def _settings(arguments: argparse.Namespace) -> Any:
    from robustclf.cli.audit import Settings

    return Settings(
        encoding=arguments.encoding,
        row_id=arguments.id,
        drop=tuple(arguments.drop),
        max_rows=arguments.max_rows,
        max_epochs=arguments.max_epochs,
        seed=arguments.seed,
        device=arguments.device,
        quiet=arguments.quiet,
    )


def _say(
    arguments: argparse.Namespace, text: str, told: dict[str, Any], wrote: dict[str, str]
) -> None:
    if arguments.json:
        print(json.dumps(told | {"wrote": wrote}))
    else:
        print(f"{text}\n\nwrote {', '.join(wrote.values())}")


# Arguments --------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robustclf",
        description="Find, clean and withstand wrong labels in a table (CSV or Parquet).",
        epilog="Exit codes: 0 done, 1 the input cannot be worked with, 2 wrong usage, 3 more wrong "
        "labels than --fail-above, or not known to be good.",
    )
    parser.add_argument("--version", action="version", version=f"robustclf {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_audit(commands)
    _add_clean(commands)
    _add_fit(commands)
    _add_predict(commands)
    return parser


def _add_audit(commands: Any) -> None:
    audit = _command(commands, "audit", _audit, "say how many labels are wrong, and which")
    _add_table(audit)
    audit.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="HTML", help="the report to write"
    )
    audit.add_argument(
        "--issues", type=Path, metavar="CSV", help="default: issues.csv beside the report"
    )
    audit.add_argument(
        "--top",
        type=count,
        metavar="N",
        help="rows of issues.csv; default: as many as labels are estimated to be wrong, none where "
        "the test sees no noise",
    )
    audit.add_argument(
        "--fail-above",
        type=share,
        metavar="RATE",
        help="exit with 3 if the safe lower bound of the noise rate is above this share",
    )
    _add_fitting(audit)


def _add_clean(commands: Any) -> None:
    clean = _command(commands, "clean", _clean, "write the table without wrong labels")
    _add_table(clean)
    clean.add_argument("--out", type=Path, required=True, help="the table to write")
    clean.add_argument(
        "--action",
        choices=("prune", "relabel"),
        default="prune",
        help="leave suspicious rows out (the default), or give them the more probable label",
    )
    clean.add_argument(
        "--threshold",
        type=share,
        metavar="P",
        help="change the rows whose label is wrong with at least this probability; default: as "
        "many rows as labels are estimated to be wrong, none where the test sees no noise",
    )
    clean.add_argument(
        "--log", type=Path, metavar="CSV", help="what was changed; default: changes.csv beside OUT"
    )
    _add_fitting(clean)


def _add_fit(commands: Any) -> None:
    fit = _command(commands, "fit", _fit, "fit a classifier that withstands wrong labels")
    _add_table(fit)
    fit.add_argument("--model", type=Path, required=True, metavar="JOBLIB", help="file to write")
    fit.add_argument("--loss", type=_known("loss", _losses), help="such as gce (default: auto)")
    fit.add_argument("--strategy", type=_known("strategy", list_strategies), help="such as elr")
    fit.add_argument("--recipe", type=_known("recipe", list_recipes), help="such as co-teaching")
    _add_fitting(fit)


def _add_predict(commands: Any) -> None:
    warning = (
        "A model is a joblib file, which can run any code when it is loaded: do not use one from "
        "somebody you do not trust."
    )
    predict = _command(commands, "predict", _predict, "predict the labels of a table", warning)
    predict.add_argument("model", type=Path, help="a file that `robustclf fit` wrote")
    predict.add_argument("table", type=Path, help="CSV or Parquet file")
    predict.add_argument("--out", type=Path, required=True, metavar="CSV", help="file to write")
    predict.add_argument("--id", metavar="COLUMN", help="column to name the rows by")
    predict.add_argument(
        "--proba", action="store_true", help="write the probability of every class too"
    )
    _add_common(predict)


def _command(
    commands: Any, name: str, run: Callable[..., int], does: str, more: str = ""
) -> argparse.ArgumentParser:
    description = f"{does[0].upper()}{does[1:]}. {more}"
    parser: argparse.ArgumentParser = commands.add_parser(name, help=does, description=description)
    parser.set_defaults(run=run)
    return parser


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", type=Path, help="CSV or Parquet file")
    parser.add_argument("--label", required=True, metavar="COLUMN", help="column of the labels")
    parser.add_argument(
        "--id", metavar="COLUMN", help="column that names the rows; default: number them from 1"
    )
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="COLUMN",
        help="column not to learn from; may be repeated",
    )


def _add_fitting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-rows",
        type=positive,
        default=200_000,
        metavar="N",
        help="fit to a random sample of so many rows if there are more (default: 200,000)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    parser.add_argument("--device", default="auto", help="such as cpu or cuda (default: auto)")
    parser.add_argument("--max-epochs", type=positive, help=argparse.SUPPRESS)
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoding", default="utf-8", help="of a CSV file (default: utf-8)")
    parser.add_argument("--force", action="store_true", help="replace outputs that exist")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no text")


def _losses() -> list[str]:
    return ["auto", *list_losses()]


def _known(kind: str, options: Callable[[], list[str]]) -> Callable[[str], str]:
    def check(name: str) -> str:
        try:
            check_known(kind, [name], options())
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return name

    return check


def share(text: str) -> float:
    """Read a number between 0 and 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share between 0 and 1, got {text}")
    return value


def count(text: str) -> int:
    """Read a number of rows."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return value


def positive(text: str) -> int:
    """Read a number of rows, not 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
