"""Figures as SVG that takes its colours from the page around it: the loss curve of a run, how sure a model is and how right."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Points = Sequence[tuple[float, float]]

# colours that stand for the page's variables, which a light and a dark page set differently
COLOURS = {
    "#010203": "var(--ink)", "#010204": "var(--grid)", "#010205": "var(--quiet)", "#010206": "var(--accent)", "#010207": "var(--warm)",
}  # fmt: skip
INK, GRID, QUIET, ACCENT, WARM = COLOURS
MAX_POINTS = 400  # of a line; more cannot be seen
SMOOTH_FROM = 40  # points from which a mean is drawn over the single ones


@dataclass(frozen=True)
class Curves:
    """What there is to draw: (step, loss) of the training text, of the held-out text, and the loss of word frequencies alone."""

    train: Points
    heldout: Points = ()
    unigram: float | None = None


def loss_curve(curves: Curves, *, width: float, height: float) -> str:
    """Return the loss curve as an <svg> element without references to anything outside it.

    Units: width and height in inches at 72 px, about as large as it is shown.
    """

    def plot(figure: Any, axes: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        train, heldout = thin(curves.train), thin(curves.heldout)
        if len(train) >= SMOOTH_FROM:
            axes.plot(*zip(*train, strict=True), color=QUIET, linewidth=0.8, alpha=0.35)
            axes.plot(*zip(*smooth(train), strict=True), color=QUIET, linewidth=1.6, label="training")
        elif train:
            axes.plot(*zip(*train, strict=True), color=QUIET, linewidth=1.6, label="training", marker="." if len(train) < 3 else "")
        if heldout:
            axes.plot(*zip(*heldout, strict=True), color=ACCENT, linewidth=2.2, marker="o", markersize=4.5, label="held-out")
        if curves.unigram is not None:
            axes.axhline(curves.unigram, color=WARM, linewidth=1.4, linestyle=(0, (4, 3)), label="word frequencies")
        axes.set_xlabel("step", color=INK)
        axes.set_ylabel("loss per masked token (nats)", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=max(3, int(width)), integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.margins(x=0.02)

    return draw(plot, "loss over the steps of the run", width=width, height=height)


def reliability_curve(points: Sequence[Mapping[str, Any]], *, width: float, height: float) -> str:
    """Return, as an <svg> element, how often a model is right against how sure it is; bins of few tokens are drawn small.

    `points` are those of metrics.json: confidence, accuracy and count of each bin. Units: as loss_curve.
    """

    def plot(figure: Any, axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=WARM, linewidth=1.4, linestyle=(0, (4, 3)), label="as sure as right")
        if points:
            x, y = [point["confidence"] for point in points], [point["accuracy"] for point in points]
            most = max(point["count"] for point in points)
            axes.plot(x, y, color=ACCENT, linewidth=1.4, alpha=0.6, label="this model")
            axes.scatter(x, y, s=[12 + 100 * point["count"] / most for point in points], color=ACCENT, linewidths=0)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.set_xlabel("confidence of the prediction", color=INK)
        axes.set_ylabel("share that is right", color=INK)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:.0%}")

    return draw(plot, "share of right predictions against their confidence", width=width, height=height)


def draw(plot: Callable[[Any, Any], None], label: str, *, width: float, height: float) -> str:
    """Return what `plot(figure, axes)` draws as an element of the page, with axes as all figures have them."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "unmask", "font.family": "sans-serif", "font.size": 11}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        plot(figure, axes)
        axes.tick_params(colors=INK, length=0)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            spacing: dict[str, Any] = {"borderpad": 0, "columnspacing": 1.2, "handlelength": 1.5}
            figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK, **spacing)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return inline(buffer.getvalue(), label)


def inline(svg: str, label: str) -> str:
    """Return an SVG file as an element of a page: its colours the page's, its size the page's, nothing in it that names an address."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\sxmlns(:\w+)?=\"[^\"]*\"", "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{label}">', svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg.strip()


def thin(points: Points) -> list[tuple[float, float]]:
    """Return at most MAX_POINTS points: the means of equal runs of them."""
    points = [point for point in points if point[1] == point[1] and abs(point[1]) != float("inf")]
    if len(points) <= MAX_POINTS:
        return points
    bounds = [round(number * len(points) / MAX_POINTS) for number in range(MAX_POINTS + 1)]
    groups = [points[low:high] for low, high in itertools.pairwise(bounds)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def smooth(points: Points) -> list[tuple[float, float]]:
    """Return the points with each loss the mean of those around it."""
    reach = max(1, len(points) // 40)
    losses = [y for _, y in points]
    means = []
    for number, (x, _) in enumerate(points):
        near = min(reach, number, len(points) - 1 - number)  # as many before as after, so that the ends are not drawn inwards
        means.append((x, sum(losses[number - near : number + near + 1]) / (2 * near + 1)))
    return means
