"""Draws the figures of a report. Lines and text take the colour of the page, light or dark.

Every public function returns a `Drawing`: the SVG of each panel, which the page shows side by side
or, on a narrow screen, below each other, and one PNG of all panels for Markdown.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from codellama_jax.report.findings import HeatMap, Panel

# The colour of lines and text: black in a PNG. Used by nothing else, so that it can be replaced by
# `currentColor` in the text of an SVG.
INK = "#010203"
TRAINING, VALIDATION, RATE, SPEED = "#86aee6", "#d9701e", "#8c68c8", "#2a9186"
BIGRAM = "#c44569"
STAGES = (
    *("#3f7fd1", "#d9701e", "#2a9186", "#8c68c8", "#c44569"),
    *("#7a7a2a", "#5bb5d5", "#8a5a3c", "#7f7f7f"),
)
PANEL_WIDTH = 4.6  # inches; letters are then 10 px high on a phone of 390 px
MOST_TICKS = 8  # labels of bars that fit side by side
MOST_NUMBERS = 5  # intervals between numbers such as "2.25 M", whose labels fit side by side
LABEL = 30  # characters that fit along the y axis of a panel
LABELS = 45  # characters of all labels of categories that fit along the x axis of a panel
PERPLEXITIES = ("perplexity", "last_block")  # measures of the probe that are drawn
DARK = 0.6  # share above which a cell of a heat map has white text
WIDE = 4  # ratio of the largest to the smallest perplexity above which the axis is logarithmic
# Decorates functions that draw.
in_style = style.context(Path(__file__).with_suffix(".mplstyle"))

Drawing = tuple[list[str], bytes]  # the SVG of each panel, the PNG of all panels


@dataclass(frozen=True)
class Curves:
    """The logged numbers of a stage, by tokens seen; losses in `unit`."""

    title: str
    training: list[dict[str, float]]  # lines with `tokens` and the numbers logged there
    validation: list[tuple[float, float]]  # (tokens, loss)
    bigram: float | None  # validation loss of the bigram model
    unit: str = "nats per token"


@dataclass(frozen=True)
class Bars:
    """A diagram with bars side by side: for each name a number per category."""

    x: str  # the label of the axis with its unit
    y: str  # the label of the axis with its unit
    ticks: Sequence[str]  # the categories
    heights: Mapping[str, Sequence[float]]  # by name: a number for each category


@in_style
def training_figure(stages: Sequence[Curves]) -> Drawing:
    """Draws loss, learning rate and throughput over tokens, one column per stage."""
    figure, axes = _training_columns(stages)
    # The axes of a row share their limits.
    limits = [axis.get_ylim() for axis in axes[:, 0]]
    svgs = []
    for stage in stages:
        part, column = _training_columns([stage])
        # A reader compares the panels, so each SVG has the limits that they share in the PNG.
        for axis, limit in zip(column[:, 0], limits):
            axis.set_ylim(limit)
        svgs.append(_svg(part))
    return svgs, _png(figure)


def _training_columns(stages: Sequence[Curves]) -> tuple[Figure, np.ndarray]:
    """Returns a figure and its axes, [3, stages]."""
    figure = Figure(figsize=(PANEL_WIDTH * len(stages), 6.6), layout="constrained")
    axes = figure.subplots(
        3,
        len(stages),
        sharex="col",
        sharey="row",
        squeeze=False,
        height_ratios=(2.4, 1, 1),
    )
    for column, stage in zip(axes.T, stages):
        _draw_stage(column, stage)
    unit = " or ".join(dict.fromkeys(stage.unit for stage in stages))
    for axis, label in zip(axes[:, 0], (f"loss ({unit})", "learning rate", "tokens / s")):
        axis.set_ylabel(label)
    axes[1, 0].ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    axes[2, 0].yaxis.set_major_formatter(EngFormatter())
    # The loss keeps its own lower end: differences of it would be invisible on an axis from 0.
    for axis in axes[1:].flat:
        axis.set_ylim(bottom=0)
    return figure, axes


def _draw_stage(column: Sequence[Axes], stage: Curves) -> None:
    """Draws a stage on the axes of loss, learning rate and throughput."""
    loss, rate, speed = column
    loss.plot(*_points(stage, "loss"), color=TRAINING, lw=1, label="training")
    if stage.bigram is not None:
        # Dashed and in a separate colour, so that it differs from both curves.
        label = f"bigram model ({stage.bigram:.2f})"
        loss.axhline(stage.bigram, color=BIGRAM, lw=2, ls=(0, (4, 2)), label=label)
    tokens, losses = np.reshape(stage.validation, (-1, 2)).T  # also of no points
    loss.plot(tokens, losses, color=VALIDATION, marker="o", ms=4, lw=1.6, label="validation")
    loss.set_title(stage.title)
    loss.legend()
    rate.plot(*_points(stage, "learning_rate"), color=RATE, lw=1.6)
    speed.plot(*_points(stage, "tokens_per_second"), color=SPEED, lw=1.2)
    speed.set_xlabel("tokens seen")
    speed.xaxis.set_major_locator(MaxNLocator(MOST_NUMBERS))
    speed.xaxis.set_major_formatter(EngFormatter())


def _points(stage: Curves, key: str) -> tuple[list[float], list[float]]:
    """Returns the tokens and the values of the training lines that have `key`."""
    tokens, values = [], []
    for line in stage.training:
        if key in line:
            tokens.append(line["tokens"])
            values.append(line[key])
    return tokens, values


@in_style
def perplexity_figure(curves: Mapping[str, Mapping[int, Mapping[str, float]]]) -> Drawing:
    """Draws the perplexity of all tokens and of the last quarter over the context length.

    `curves` holds the measures of the probe `perplexity` by stage and context length.
    """
    figure = Figure(figsize=(PANEL_WIDTH, 4.2), layout="constrained")
    axis = figure.subplots()
    values: list[float] = []
    for color, (name, by_length) in zip(itertools.cycle(STAGES), curves.items()):
        lengths = sorted(by_length)
        for key, line in zip(PERPLEXITIES, ("o-", "o--")):
            label = name if key == "perplexity" else f"{name}, last quarter"
            points = [by_length[length][key] for length in lengths]
            axis.plot(lengths, points, line, color=color, ms=3.5, lw=1.3, label=label)
            values += points
    axis.set_xscale("log", base=2)
    # Ticks at the measured lengths only, since nothing between them was measured.
    axis.set_xticks(sorted(set().union(*curves.values())))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.xaxis.set_minor_locator(NullLocator())
    if max(values) > WIDE * min(values):
        _logarithmic(axis)
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set(xlabel="context length (tokens)", ylabel="validation perplexity")
    _legend_below(figure, [axis])
    return [_svg(figure)], _png(figure)


def _logarithmic(axis: Axes) -> None:
    axis.set_yscale("log", base=10)
    axis.yaxis.set_major_locator(LogLocator(10, (1, 1.5, 2, 3, 4, 5, 7)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


@in_style
def panels_figure(panels: Sequence[Panel]) -> Drawing:
    """Draws panels. In the PNG they have one legend below them, as SVGs each has its own."""
    return [_svg(_panels([panel])) for panel in panels], _png(_panels(panels))


def _panels(panels: Sequence[Panel]) -> Figure:
    figure = Figure(figsize=(PANEL_WIDTH * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels):
        _draw_panel(axis, panel)
    _legend_below(figure, axes)
    return figure


def _legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """Adds one legend for all axes below them, in as many columns as the width allows."""
    handles = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            handles[label] = handle
    if not handles:
        return
    # An entry takes about 0.6 inches for the line and 0.08 for each letter.
    columns = int(figure.get_figwidth() / (0.6 + 0.08 * max(map(len, handles))))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(max(columns, 1), len(handles)),
    )


def _draw_panel(axis: Axes, panel: Panel) -> None:
    """Draws the seeds of each line thin, and their mean thick."""
    shifts = _shifts(panel) if panel.ticks else {}
    for number, (name, seeds) in enumerate(panel.lines.items()):
        color = STAGES[number % len(STAGES)]
        mean = _mean(seeds, by_category=bool(panel.ticks))
        # A line between categories, or through a single point, would be meaningless.
        is_dots = bool(panel.ticks) or len(mean) == 1
        width, size = (0, 4) if is_dots else (0.8, 2)
        for points in seeds:
            xs, ys = _shifted(points, shifts.get(name))
            axis.plot(xs, ys, color=color, lw=width, alpha=0.55, marker="o", ms=size)
        marker = {"lw": 0, "marker": "_"} if is_dots else {"lw": 2}
        xs, ys = _shifted(mean, shifts.get(name))
        axis.plot(xs, ys, color=color, label=name, ms=16, mew=2, **marker)
    axis.set(xlabel=panel.x, ylabel=textwrap.fill(panel.y, LABEL))
    if panel.log_x:
        axis.set_xscale("log", base=panel.log_x)
    if panel.log_y:
        _logarithmic(axis)
    _mark_x(axis, panel)


def _mean(
    seeds: Sequence[Sequence[tuple[float, float]]], by_category: bool
) -> Sequence[tuple[float, float]] | np.ndarray:
    """Returns the mean points of seeds; if x is a category, of the seeds with a point there."""
    if by_category:
        ys: dict[float, list[float]] = {}
        for x, y in itertools.chain(*seeds):
            ys.setdefault(x, []).append(y)
        return [(x, statistics.fmean(values)) for x, values in ys.items()]
    # Seeds of an unfinished run may have more points than others: the mean is of all seeds, and
    # ends with the shortest.
    shortest = min(map(len, seeds))
    return np.mean([points[:shortest] for points in seeds], axis=0)


def _shifts(panel: Panel) -> dict[str, dict[float, float]]:
    """Returns how far each line's dots are from the tick of a category, by line and category.

    The dots of a category are side by side, with its tick in their middle. Lines without a dot
    there leave no gap.
    """
    names_at: dict[float, list[str]] = {}
    for name, seeds in panel.lines.items():
        for x in dict.fromkeys(x for x, _ in itertools.chain(*seeds)):
            names_at.setdefault(x, []).append(name)
    spacing = 0.8 / max(map(len, names_at.values()), default=1)
    shifts: dict[str, dict[float, float]] = {name: {} for name in panel.lines}
    for x, names in names_at.items():
        for place, name in enumerate(names):
            shifts[name][x] = (place - (len(names) - 1) / 2) * spacing
    return shifts


def _shifted(
    points: Sequence[tuple[float, float]] | np.ndarray, shifts: Mapping[float, float] | None
) -> tuple[list[float], list[float]]:
    """Returns the xs and the ys of points, shifted along x; None shifts nothing."""
    xs, ys = [], []
    for x, y in points:
        xs.append(x + shifts[x] if shifts else x)
        ys.append(y)
    return xs, ys


def _mark_x(axis: Axes, panel: Panel) -> None:
    """Sets the ticks of the x axis: categories, the points of a logarithmic axis, or numbers."""
    if panel.ticks:
        width = LABELS // len(panel.ticks)
        labels = [_broken(tick, width) for tick in panel.ticks]
        axis.set_xticks(range(len(labels)), labels)
        axis.set_xlim(-0.5, len(panel.ticks) - 0.5)
    elif panel.log_x:
        marked: set[float] = set()
        for seeds in panel.lines.values():
            for points in seeds:
                marked.update(x for x, _ in points)
        axis.set_xticks(sorted(marked))
        form = "{x:,.3g}" if axis.get_xlim()[0] < 1 else "{x:,.0f}"
        axis.xaxis.set_major_formatter(StrMethodFormatter(form))
        axis.xaxis.set_minor_locator(NullLocator())
    elif axis.get_xlim()[1] >= 1000:
        axis.xaxis.set_major_locator(MaxNLocator(MOST_NUMBERS))
        axis.xaxis.set_major_formatter(EngFormatter())


def _broken(label: str, width: int) -> str:
    """Returns a label in lines of at most `width` characters, if its words are no longer."""
    # Also after the underscores of names.
    lines = textwrap.wrap(label.replace("_", "_ "), max(width, 1), break_long_words=False)
    return "\n".join(line.replace("_ ", "_") for line in lines)


@in_style
def bars_figure(bars: Bars) -> Drawing:
    """Draws bars, with fewer labels of the x axis where all would overlap."""
    figure = Figure(figsize=(PANEL_WIDTH, 3.8), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(bars.heights)
    for number, (name, heights) in enumerate(bars.heights.items()):
        shift = (number - (len(bars.heights) - 1) / 2) * width
        xs = np.arange(len(heights)) + shift
        axis.bar(xs, heights, width, color=STAGES[number % len(STAGES)], label=name)
    # Every step-th label, so that labels are at equal distances.
    step = math.ceil(len(bars.ticks) / MOST_TICKS)
    axis.set_xticks(range(0, len(bars.ticks), step), bars.ticks[::step])
    axis.set(xlabel=bars.x, ylabel=textwrap.fill(bars.y, LABEL))
    axis.yaxis.set_major_formatter(EngFormatter())
    if len(bars.heights) > 1:
        _legend_below(figure, [axis])
    return [_svg(figure)], _png(figure)


@in_style
def heat_map_figure(heat_map: HeatMap) -> Drawing:
    """Draws a grid of shares: the darker a cell, the larger its share, which is printed in it."""
    shares = np.asarray(heat_map.shares, np.float64)
    height = 1.0 + 0.28 * len(heat_map.rows)
    figure = Figure(figsize=(1.5 * PANEL_WIDTH, height), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(heat_map.columns)), heat_map.columns)
    axis.set_yticks(range(len(heat_map.rows)), heat_map.rows)
    axis.set(xlabel=heat_map.x, ylabel=heat_map.y)
    axis.grid(False)
    for (row, column), share in np.ndenumerate(shares):
        # Readable on light and on dark cells; the colour map does not follow the page's theme.
        color = "white" if share > DARK else "black"
        axis.text(column, row, f"{share:.0%}", ha="center", va="center", color=color, fontsize=8)
    return [_svg(figure)], _png(figure)


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    return png.getvalue()


def _svg(figure: Figure) -> str:
    svg = io.StringIO()
    # Without the date: equal numbers give equal files, in which version control shows no change.
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    text = svg.getvalue()
    # Inside of HTML an SVG begins at its element, without XML declaration and DOCTYPE.
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Two figures have groups of the same id, which must be unique in a page; nothing uses them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return text.replace(INK, "currentColor")
