"""The matrix of a suite: a row for each backbone, a column for each task and protocol, seeds counted by state."""

from collections import Counter
from collections.abc import Mapping, Sequence

from mae_transfer.suites.estimate import Estimate
from mae_transfer.suites.plan import SuiteRun

ORDER = ("done", "running", "stopped", "missing", "failed")


def show_matrix(
    runs: Sequence[SuiteRun], states: Mapping[SuiteRun, str], estimates: Mapping[SuiteRun, Estimate | None]
) -> str:
    """Markdown, and below it the failures with their reasons and logs, and what is left to do."""
    rows, columns = list(dict.fromkeys(run.row for run in runs)), list(dict.fromkeys(run.column for run in runs))
    cells = {(row, column): "" for row in rows for column in columns}
    for row, column in cells:
        of_cell = [run for run in runs if (run.row, run.column) == (row, column)]
        cells[row, column] = _cell(of_cell, states, estimates)
    table = [["", *columns], *([row, *(cells[row, column] for column in columns)] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns) + 1)]
    lines = [f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in table]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    failed = [run for run in runs if states[run] == "failed"]
    if failed:
        lines.append("")
        lines += [f"failed: {run.title}: {run.place.reason()} ({run.place.log})" for run in failed]
    return "\n".join([*lines, "", _to_do(runs, states, estimates)])


def _cell(
    runs: Sequence[SuiteRun], states: Mapping[SuiteRun, str], estimates: Mapping[SuiteRun, Estimate | None]
) -> str:
    counts = Counter(states[run] for run in runs)
    text = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
    left = [estimate for run in runs if states[run] != "done" and (estimate := estimates.get(run)) is not None]
    if not left:
        return text
    longest = max(left, key=lambda estimate: estimate.seconds)
    memory = max((e.memory for e in left if e.memory is not None), default=None)
    return f"{text} ({duration(longest.seconds)}" + (f", {gibibytes(memory)})" if memory is not None else ")")


def _to_do(
    runs: Sequence[SuiteRun], states: Mapping[SuiteRun, str], estimates: Mapping[SuiteRun, Estimate | None]
) -> str:
    left = [run for run in runs if states[run] != "done"]
    if not left:
        return f"all {len(runs)} runs are done"
    known = [estimate for run in left if (estimate := estimates.get(run)) is not None]
    text = f"{len(runs) - len(left)} of {len(runs)} runs are done"
    if known:
        text += f"; {len(known)} of the other {len(left)} take about {duration(sum(e.seconds for e in known))} together"
        memory = [e.memory for e in known if e.memory is not None]
        text += f", {gibibytes(max(memory))} at most" if memory else ""
    if len(known) < len(left):
        text += f"; nothing is known yet of the time of {len(left) - len(known)}"
    return text


def duration(seconds: float) -> str:
    """45s, 2m05s, 3h20m or 4d02h."""
    whole = round(seconds)
    for size, unit, below, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // below:02d}{smaller}"
    return f"{whole}s"


def gibibytes(size: float) -> str:
    return f"{size / 1024**3:.1f} GiB"
