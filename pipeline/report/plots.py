"""Line plots as inline SVG. Colours and fonts are the page's CSS variables, so a plot follows light and dark mode."""

import html
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

SIZE_INCHES = (5.4, 3.1)
STEPS = (1, 2, 2.5, 5, 10)  # distances between ticks
POINTS = 300  # a longer curve is averaged down to about so many points

# matplotlib knows no CSS: it draws in these stand-ins, which the finished SVG replaces by variables.
INK, FAINT, STAR = "#010203", "#010204", "#010209"
LINES = ("#010205", "#010206", "#010207", "#010208", "#01020a", "#01020b", "#01020c")
VARIABLES = {
    INK: "var(--muted)",
    FAINT: "var(--line)",
    STAR: "var(--ink)",
    **{c: f"var(--curve-{i})" for i, c in enumerate(LINES, 1)},
}
# The page has one size, one font and no use for a description of the file format.
UNWANTED = re.compile(r' width="[\d.]+pt" height="[\d.]+pt"| <metadata>.*?</metadata>\n|font-family: [^;"]*; ?', re.DOTALL)
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign is one
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
}


class Curve(NamedTuple):
    """One line: its name in the legend, and x and y of equal length."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def plot(
    name: str,
    curves: Sequence[Curve],
    alt: str,
    *,
    log: bool = False,
    x: str = "images seen",
    dots: bool = False,
    from_zero: bool = True,
    mark: tuple[float, float] | None = None,
) -> str:
    """Curves over `x` as one <svg>.

    `name` makes the ids inside it unique on the page, `alt` says in words what is to be seen. `dots` show every point;
    `mark` is one to point out. A linear axis starts `from_zero`, or below the lowest point.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure, axes = plt.subplots(figsize=SIZE_INCHES, layout="constrained")
        for curve, colour in zip(curves, _colours(len(curves)), strict=True):
            xs, ys = thinned(np.asarray(curve.x, float), np.asarray(curve.y, float))
            shape = {"marker": "o", "markersize": 4} if dots or len(xs) == 1 else {}  # a line of one point shows nothing
            axes.plot(xs, ys, color=colour, linewidth=1.8, label=curve.name, solid_capstyle="round", **shape)
        if mark:
            axes.plot(*mark, marker="*", markersize=13, color=STAR, linestyle="none", clip_on=False, zorder=3)
        _dress(axes, log, x, from_zero)
        if len(curves) > 1:
            figure.legend(loc="outside upper left", ncols=2, frameon=False, handlelength=1.2)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return _for_page(drawn.getvalue(), name, alt)


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve with runs of neighbouring points [N] replaced by their mean, at most POINTS of them."""
    run = -(-len(x) // POINTS)
    starts = np.arange(0, len(x), max(run, 1))
    lengths = np.diff([*starts, len(x)])
    return (x, y) if run <= 1 else (np.add.reduceat(x, starts) / lengths, np.add.reduceat(y, starts) / lengths)


def short(value: float) -> str:
    """A number for an axis: 1500 is 1.5k, 2000000 is 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.3g}"


def _colours(count: int) -> list[str]:
    return [LINES[i % len(LINES)] for i in range(count)]


def _dress(axes: plt.Axes, log: bool, x: str, from_zero: bool) -> None:
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    elif from_zero:
        axes.set_ylim(bottom=0)
    low, high = axes.get_ylim()
    wide = log and high > 6 * low
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(5, steps=STEPS))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.set_xlabel(x)


def _for_page(svg: str, name: str, alt: str) -> str:
    """The <svg> element alone, with ids of its own, a title for screen readers and CSS variables for colours."""
    svg = UNWANTED.sub("", svg[svg.index("<svg") :])
    for before in ('id="', 'href="#', "url(#"):
        svg = svg.replace(before, f"{before}{name}-")
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    opening = f'<svg role="img" aria-label="{html.escape(alt)}"'
    return svg.replace("<svg", opening, 1).strip()
