"""`preceptor report`: one page, its data and its figures from run directories, finished or not.

Reads files only, and imports neither torch nor transformers, so that a report is there in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preceptor.errors import InputError, RunFailed
from preceptor.report.read import Run, named_apart, read_run
from preceptor.report.sources import RunSource, places
from preceptor.system.disk import full_disk
from preceptor.system.files import json_text, write_atomic

if TYPE_CHECKING:
    from preceptor.report.figures import DrawnFigure

__all__ = ["RunSource", "write_report"]

REPORT, PAGE, FIGURES = "report.json", "report.html", "figures"

Log = Callable[[str], None]


def write_report(
    sources: Sequence[Path | RunSource],
    out: Path,
    *,
    title: str | None = None,
    published: bool = False,
    log: Log,
) -> dict[str, Any]:
    """Writes `report.html`, `report.json` and `figures/` into `out`; returns the content of report.json.

    Args:
        sources: run directories, single stages of one, or folders of runs.
        out: made where it is not there; what an earlier report left in it is written over.
        title: of the page; None is the names of the runs.
        published: adds the published figures of other people's models, as rows that name their source.
        log: takes one line of progress; everything that is missing or broken is such a line too.

    Raises:
        InputError: nothing can be reported of any source, or `out` cannot be written or holds another program's report.
        RunFailed: the page could not be made; report.json and the figures are written all the same.
    """
    if not sources:
        raise InputError("report: no run is given; give one or more run directories, such as runs/NAME")
    _refuse_foreign(out)
    runs = _read(sources)
    if not any(stage.reportable for run in runs for stage in run.stages):
        raise InputError(_nothing(runs))
    for run in runs:
        for problem in run.problems:
            log(problem if problem.startswith(f"{run.id}: ") else f"{run.id}: {problem}")

    from preceptor.report.summary import summarise

    report = summarise(runs, title=title, published=published)
    figures = _drawn(report, log)
    report["figures"] = [f"{FIGURES}/{name}.{kind}" for name in figures for kind in ("svg", "png")]
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write_figures(out, report["figures"], figures)
        write_atomic(out / REPORT, json_text(report))
        _write_page(out, report, figures)
    except OSError as error:
        if (full := full_disk(error, out)) is not None:
            raise RunFailed(f"report: {full}; make room, and run the same command again") from error
        raise InputError(
            f"report: {out} cannot be written ({error.strerror}); give a folder that can with --out"
        ) from error
    return report


def _refuse_foreign(out: Path) -> None:
    """Other programs call their files so too; only what this one wrote is written over."""
    if (out / FIGURES).is_symlink():
        raise InputError(
            f"report: {out / FIGURES} is a symbolic link, and figures are written and removed there; move it away, or "
            "give another folder with --out"
        )
    found = [name for name in (REPORT, PAGE) if (out / name).exists()]
    if found and not _is_ours(out / REPORT):
        raise InputError(
            f"report: {out} holds a {found[0]} that preceptor did not write; move it away, or give another folder with "
            "--out"
        )


def _is_ours(path: Path) -> bool:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "preceptor" in value


def _drawn(report: dict[str, Any], log: Log) -> dict[str, DrawnFigure]:
    """Every figure that can be drawn; one that fails becomes a warning of the report."""

    def failed(name: str, error: Exception) -> None:
        problem = f"the figure {name} could not be drawn ({_cause(error)}); its data are in {REPORT}"
        report["warnings"].append(problem)
        log(problem)

    try:
        from preceptor.report.figures import draw

        return draw(report, failed=failed)
    except Exception as error:  # matplotlib itself, its fonts or its caches
        failed("of any kind", error)
        return {}


def _write_figures(out: Path, names: Sequence[str], figures: Mapping[str, DrawnFigure]) -> None:
    """Writes each figure as SVG and PNG, and removes those of an earlier report that are not drawn any more."""
    if figures:
        (out / FIGURES).mkdir(exist_ok=True)
    for name, figure in figures.items():
        write_atomic(out / FIGURES / f"{name}.svg", figure.svg)
        write_atomic(out / FIGURES / f"{name}.png", figure.png)
    try:
        earlier = json.loads((out / REPORT).read_text(encoding="utf-8"))["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for old in earlier if isinstance(earlier, list) else ():
        path = Path(str(old))
        if old not in names and path.parent == Path(FIGURES) and path.suffix in (".svg", ".png"):
            (out / path).unlink(missing_ok=True)


def _write_page(out: Path, report: Mapping[str, Any], figures: Mapping[str, DrawnFigure]) -> None:
    try:
        from preceptor.report.page import render

        page = render(report, figures)
    except Exception as error:
        (out / PAGE).unlink(missing_ok=True)  # an earlier one would be taken for this report
        raise RunFailed(
            f"report: {PAGE} could not be made ({_cause(error)}); {REPORT} and {FIGURES}/ in {out} hold all it shows"
        ) from error
    write_atomic(out / PAGE, page)


def _cause(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _read(sources: Sequence[Path | RunSource]) -> list[Run]:
    """All runs, those given twice once, and each with a name of its own."""
    found: list[Run] = []
    seen: set[tuple[Path, ...]] = set()
    for source in sources:
        for place in places(source):
            stages = tuple(sorted(stage.resolve() for stage in place.stages))
            if not stages or stages not in seen:
                seen.add(stages)
                found.append(read_run(place))
    return named_apart(found)


def _nothing(runs: Sequence[Run]) -> str:
    problems = [problem for run in runs for problem in run.problems]
    more = f" (and {len(problems) - 3} more problems)" if len(problems) > 3 else ""
    return f"report: there is nothing to report: {'; '.join(problems[:3])}{more}"
