"""What a plot is, and the one way to draw it: PNG, SVG and CSV files, or an SVG element of the report page.

The same plot gives the same bytes. Series differ in colour, marker and line style, so they are told apart in grey too.
Text is shown as it is: no name is taken for a formula or left out of a legend.
"""

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT = "#1b2127", "#c9d0d8"
COLOURS = ("#0b62b0", "#c4500a", "#1a7f4e", "#7a3fd0", "#b0307a", "#00717a", "#5a616b")
"""At least 4.5:1 on white; the page has lighter ones for its dark mode."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (5, 1.5, 1, 1.5)))
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's own font
    "svg.hashsalt": "mae_transfer",
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Series:
    """Points of one name, in order of x."""

    name: str
    x: tuple[Any, ...]
    y: tuple[float, ...]
    std: tuple[float, ...] = ()
    """Error bars; NaN where there is one run."""
    n: tuple[int, ...] = ()
    """Runs (or encoders) behind each point."""
    ends: tuple[tuple[float, float], ...] = ()
    """Error bars as intervals, where they are not symmetric."""
    texts: tuple[str, ...] = ()
    """Written at the points."""
    key: str = ""
    """Series of one key share a colour; by default the name is the key."""
    published: bool = False
    """A quoted number: dotted, with hollow markers."""
    line: bool = True
    """Whether the points are joined."""


@dataclass(frozen=True)
class Plot:
    stem: str
    """Of its files; letters, digits and dashes."""
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    columns: tuple[str, str] = ("x", "y")
    """Names of x and y in the CSV."""
    places: tuple[Any, ...] | None = None
    """The values of x in order, evenly spaced on the axis; None for an axis of numbers."""
    log_x: bool = False
    markers: bool = True

    def frame(self) -> pd.DataFrame:
        """One row per point of our own series: name, x, y, standard deviation, number of runs, ends of an interval."""
        x, y = self.columns
        rows = [
            {"name": s.name, x: s.x[i], y: s.y[i], "std": _at(s.std, i), "n": _at(s.n, i)}
            | ({"low": s.ends[i][0], "high": s.ends[i][1]} if s.ends else {})
            for s in self.series
            if not s.published
            for i in range(len(s.x))
        ]
        ends = ["low", "high"] if any(s.ends for s in self.series) else []
        return pd.DataFrame(rows, columns=["name", x, y, "std", "n", *ends])

    def description(self) -> str:
        """In words, for who cannot see it."""
        parts = []
        for s in (s for s in self.series if s.x):
            ends = [f"{_number(s.y[i])} at {_tick(s.x[i])}" for i in ((0, -1) if len(s.x) > 1 else (0,))]
            parts.append(f"{s.name}: {' to '.join(ends)} ({len(s.x)} points)")
        return f"{self.title}. {self.y_label} over {self.x_label}. {'; '.join(parts)}."


def _at(values: Sequence[object], i: int) -> object:
    return values[i] if values else None


def _number(value: float) -> str:
    return f"{value:.4g}"


def _tick(value: object) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def draw(plot: Plot) -> "Figure":
    """The figure, made without pyplot's global state; call it inside `matplotlib.rc_context(STYLE)`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = 1 if any(len(s.name) > 30 for s in plot.series) else 2
    rows = -(-len(plot.series) // columns)
    figure = Figure(figsize=(4.4, 2.9 + 0.19 * rows), layout="constrained")
    axes = figure.add_subplot()
    keys = list(dict.fromkeys(s.key or s.name for s in plot.series))
    handles: list[Any] = []
    for number, s in enumerate(plot.series):
        place = keys.index(s.key or s.name)
        colour = COLOURS[place % len(COLOURS)]
        x = [plot.places.index(value) for value in s.x] if plot.places is not None else list(s.x)
        style = LINES[2] if s.published else LINES[(number // len(MARKERS) + number) % len(LINES)]
        bars: list[list[float]] | None = None
        if any(e == e and e for e in s.std):
            bars = [[0.0 if e != e else e for e in s.std]] * 2
        elif s.ends:
            below = [y - low for y, (low, _) in zip(s.y, s.ends, strict=True)]
            bars = [below, [high - y for y, (_, high) in zip(s.y, s.ends, strict=True)]]
        handles.append(
            axes.errorbar(
                x,
                s.y,
                yerr=bars,
                color=colour,
                marker=MARKERS[number % len(MARKERS)] if plot.markers or not s.line or len(x) == 1 else None,
                markerfacecolor="none" if s.published else colour,
                markersize=4.5,
                markevery=max(len(x) // 12, 1) if s.line else 1,
                linestyle=style if s.line else "none",
                linewidth=1.3,
                capsize=2.5,
                elinewidth=1.0,
            )
        )
        for i, text in enumerate(s.texts):
            axes.annotate(text, (x[i], s.y[i]), (5, 4), textcoords="offset points", color=colour, fontsize=8.5)
    if plot.places is not None:
        crowded = len(plot.places) > 10
        axes.set_xticks(range(len(plot.places)), [_tick(value) for value in plot.places], rotation=90 * crowded)
        axes.set_xlim(-0.35, len(plot.places) - 0.65)
    elif plot.log_x:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.margins(y=0.08)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.set_title(_wrapped(plot.title), fontsize=9.5, loc="left")
    axes.grid(True)
    if len(plot.series) > 1 or plot.series[0].name != plot.y_label:
        # a name that begins with an underscore would be left out
        names = [f"\u00a0{s.name}" if s.name.startswith("_") else s.name for s in plot.series]
        figure.legend(handles, [name[:60] for name in names], loc="outside lower left", ncols=columns)
    return figure


def _wrapped(title: str) -> str:
    lines = [""]
    for word in title.split():
        if len(lines[-1]) + len(word) > 54:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def png(plot: Plot) -> bytes:
    return _saved(plot, "png", dpi=160, metadata={"Software": None})


def svg(plot: Plot) -> bytes:
    """A file of its own."""
    return _saved(plot, "svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})


def _saved(plot: Plot, kind: str, **options: Any) -> bytes:
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        draw(plot).savefig(content, format=kind, **options)
    return content.getvalue()


def write_plot(plot: Plot, stem: Path) -> None:
    """Write `<stem>.png`, `.svg` and `.csv`, each whole or not at all; UserError where that cannot be."""
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {stem.parent}: {error.strerror}; choose another --output") from error
    contents = {"csv": plot.frame().to_csv(index=False).encode(), "png": png(plot), "svg": svg(plot)}
    for kind, content in contents.items():
        with atomic_write(stem.with_name(f"{stem.name}.{kind}")) as file:
            file.write(content)


def page_svg(plot: Plot, prefix: str) -> str:
    """An `<svg>` element for an HTML page: no fixed size, ids that begin with `prefix`, colours as CSS variables
    (`--plot-ink`, `--plot-faint`, `--plot-0`, ...), and the description as its name for screen readers."""
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(svg(plot))
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    variables = {INK: "--plot-ink", FAINT: "--plot-faint"}
    variables |= {colour: f"--plot-{i}" for i, colour in enumerate(COLOURS)}
    pattern = re.compile("|".join(variables))
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "id":
                value = prefix + value
            elif value.startswith("#"):  # xlink:href
                value = f"#{prefix}{value[1:]}"
            value = value.replace("url(#", f"url(#{prefix}")
            element.set(name, pattern.sub(lambda found: f"var({variables[found[0]]}, {found[0]})", value))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    for figure in root.findall(f"{{{_SVG}}}g"):  # the page's own background shows through
        for background in figure.findall(f"{{{_SVG}}}g[@id='{prefix}patch_1']"):
            figure.remove(background)
    root.set("class", "plot")
    root.set("role", "img")
    root.set("aria-label", plot.description())
    return ET.tostring(root, encoding="unicode").replace("\n", " ")
