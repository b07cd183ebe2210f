"""Figures of the report. Lines and text take the colour of the page, light or dark.

Every function returns the SVGs of a figure's panels, which the page puts side by side or stacks on
a narrow screen, and one PNG that holds all of them.
"""

from __future__ import annotations

import io
import re
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

from codellama_jax.report.findings import Panel

INK = "#010203"  # becomes `currentColor` in SVG; looks black on the white of a PNG
TRAINING, VALIDATION, RATE, SPEED = "#86aee6", "#d9701e", "#8c68c8", "#2a9186"
BIGRAM = "#c44569"
STAGES = ("#3f7fd1", "#d9701e", "#2a9186", "#8c68c8", "#c44569", "#7a7a2a")
PANEL_WIDTH = 4.6  # inches; on a phone of 390 px a letter then has 10 px
LABEL = 30  # characters that fit along the y axis of a panel
PERPLEXITIES = ("perplexity", "last_block")  # keys of the probe that are drawn
WIDE = 4  # a ratio of perplexities from which on their axis is logarithmic
in_style = style.context(Path(__file__).with_suffix(".mplstyle"))  # decorator of what draws

Drawing = tuple[list[str], bytes]  # SVG of each panel, PNG of all


@dataclass(frozen=True)
class Curves:
    """The logged numbers of a stage: x in tokens seen, loss in nats per token."""

    title: str
    training: list[dict[str, float]]  # lines with `tokens` and what was measured there
    validation: list[tuple[float, float]]  # tokens, loss
    bigram: float | None  # validation loss of the bigram model


@in_style
def training_figure(stages: Sequence[Curves]) -> Drawing:
    """Draws loss, learning rate and throughput over tokens, one column per stage."""
    figure, axes = _training_columns(stages)
    limits = [axis.get_ylim() for axis in axes[:, 0]]
    svgs = []
    for stage in stages:
        part, column = _training_columns([stage])
        # The panels of one figure are compared, so each has the limits that they share in the PNG.
        for axis, limit in zip(column[:, 0], limits):
            axis.set_ylim(limit)
        svgs.append(_svg(part))
    return svgs, _png(figure)


def _training_columns(stages: Sequence[Curves]) -> tuple[Figure, np.ndarray]:
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
    for axis, label in zip(axes[:, 0], ("loss (nats per token)", "learning rate", "tokens / s")):
        axis.set_ylabel(label)
    axes[1, 0].ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    axes[2, 0].yaxis.set_major_formatter(EngFormatter())
    for axis in axes[1:].flat:
        axis.set_ylim(bottom=0)
    return figure, axes


def _draw_stage(column: Sequence[Axes], stage: Curves) -> None:
    loss, rate, speed = column
    loss.plot(*_points(stage, "loss"), color=TRAINING, lw=1, label="training")
    if stage.bigram is not None:
        # Dashed and in a separate colour, so that it is visible beside both curves.
        label = f"bigram model ({stage.bigram:.2f})"
        loss.axhline(stage.bigram, color=BIGRAM, lw=2, ls=(0, (4, 2)), label=label)
    tokens = [point[0] for point in stage.validation]
    losses = [point[1] for point in stage.validation]
    loss.plot(tokens, losses, color=VALIDATION, marker="o", ms=4, lw=1.6, label="validation")
    loss.set_title(stage.title)
    loss.legend()
    rate.plot(*_points(stage, "learning_rate"), color=RATE, lw=1.6)
    speed.plot(*_points(stage, "tokens_per_second"), color=SPEED, lw=1.2)
    speed.set_xlabel("tokens seen")
    speed.xaxis.set_major_locator(MaxNLocator(5))
    speed.xaxis.set_major_formatter(EngFormatter())


def _points(stage: Curves, key: str) -> tuple[list[float], list[float]]:
    lines = [line for line in stage.training if key in line]
    return [line["tokens"] for line in lines], [line[key] for line in lines]


@in_style
def perplexity_figure(curves: Mapping[str, Mapping[int, Mapping[str, float]]]) -> Drawing:
    """Draws perplexity over context length for each stage: of all tokens and the last quarter."""
    figure = Figure(figsize=(PANEL_WIDTH, 4.2), layout="constrained")
    axis = figure.subplots()
    values: list[float] = []
    for color, (name, by_length) in zip(STAGES * len(curves), curves.items()):
        lengths = sorted(by_length)
        for key, line in zip(PERPLEXITIES, ("o-", "o--")):
            label = name if key == "perplexity" else f"{name}, last quarter"
            points = [by_length[length][key] for length in lengths]
            axis.plot(lengths, points, line, color=color, ms=3.5, lw=1.3, label=label)
            values += points
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted({length for by_length in curves.values() for length in by_length}))
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
    """Draws panels, in the PNG side by side under one legend, in SVG each with its legend."""
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
    # Inches of a handle and of a letter.
    columns = int(figure.get_figwidth() / (0.6 + 0.08 * max(map(len, handles))))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(max(columns, 1), len(handles)),
    )


def _draw_panel(axis: Axes, panel: Panel) -> None:
    beside = 0.8 / len(panel.lines)  # dots of one tick are shifted to be side by side
    for number, (name, seeds) in enumerate(panel.lines.items()):
        color = STAGES[number % len(STAGES)]
        shift = (number - (len(panel.lines) - 1) / 2) * beside if panel.ticks else 0
        offset = np.array([shift, 0])
        shortest = min(map(len, seeds))
        complete = [points for points in seeds if len(points) == shortest]
        mean = np.mean(complete, axis=0) + offset
        dots = bool(panel.ticks) or len(mean) == 1
        width, size = (0, 4) if dots else (0.8, 2)
        for points in seeds:
            xs, ys = (np.asarray(points) + offset).T
            axis.plot(xs, ys, color=color, lw=width, alpha=0.55, marker="o", ms=size)
        marker = {"lw": 0, "marker": "_"} if dots else {"lw": 2}
        axis.plot(*mean.T, color=color, label=name, ms=16, mew=2, **marker)
    axis.set(xlabel=panel.x, ylabel=textwrap.fill(panel.y, LABEL))
    if panel.log_x:
        axis.set_xscale("log", base=panel.log_x)
    if panel.log_y:
        _logarithmic(axis)
    _mark_x(axis, panel)


def _mark_x(axis: Axes, panel: Panel) -> None:
    if panel.ticks:
        axis.set_xticks(range(len(panel.ticks)), panel.ticks)
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
        axis.xaxis.set_major_formatter(EngFormatter())


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    return png.getvalue()


def _svg(figure: Figure) -> str:
    svg = io.StringIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    text = svg.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Ids of groups repeat among the figures of a page and nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return text.replace(INK, "currentColor")
