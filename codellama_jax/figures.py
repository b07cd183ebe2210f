"""Figures of the report. Lines and letters take the colour of the page around them, so that they read on light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from codellama_jax.findings import Panel

INK = "#010203"  # becomes `currentColor` in SVG; black enough on the white of a PNG
TRAINING, VALIDATION, RATE, SPEED = "#86aee6", "#d9701e", "#8c68c8", "#2a9186"
STAGES = ("#3f7fd1", "#d9701e", "#2a9186", "#8c68c8", "#c44569", "#7a7a2a")
WIDE = 4  # a ratio of perplexities from which on their axis is logarithmic
in_style = style.context(Path(__file__).with_suffix(".mplstyle"))  # decorates what draws


@dataclass(frozen=True)
class Curves:
    """What a stage logged: x in tokens seen, loss in nats a token."""

    title: str
    training: list[dict[str, float]]  # lines with `tokens` and what was measured at them
    validation: list[tuple[float, float]]  # tokens, loss
    bigram: float | None


@in_style
def training_figure(stages: Sequence[Curves]) -> tuple[str, bytes]:
    """Draws loss, learning rate and throughput over tokens, one column a stage. Returns (SVG, PNG)."""
    figure = Figure(figsize=(max(6.5, 4.6 * len(stages)), 6.6), layout="constrained")
    axes = figure.subplots(3, len(stages), sharex="col", sharey="row", squeeze=False, height_ratios=(2.4, 1, 1))
    for column, stage in zip(axes.T, stages):
        _draw_stage(column, stage)
        column[0].set_title(stage.title)
        column[2].set_xlabel("tokens seen")
        column[2].xaxis.set_major_formatter(EngFormatter())
    for axis, label in zip(axes[:, 0], ("loss (nats a token)", "learning rate", "tokens / s")):
        axis.set_ylabel(label)
    axes[1, 0].ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    axes[2, 0].yaxis.set_major_formatter(EngFormatter())
    for axis in axes[1:].flat:
        axis.set_ylim(bottom=0)
    axes[0, 0].legend(*axes[0, 0].get_legend_handles_labels())
    return _rendered(figure)


def _draw_stage(column: Sequence[Axes], stage: Curves) -> None:
    def draw(axis, key, **style):
        points = [(line["tokens"], line[key]) for line in stage.training if key in line]
        axis.plot(*zip(*points) if points else ((), ()), **style)

    loss, rate, speed = column
    draw(loss, "loss", color=TRAINING, lw=1, label="training")
    loss.plot(*zip(*stage.validation) if stage.validation else ((), ()), color=VALIDATION, marker="o", ms=4, lw=1.6, label="validation")
    if stage.bigram is not None:
        loss.axhline(stage.bigram, color=INK, lw=1, ls=":", alpha=0.7, label="bigram model, validation")
    draw(rate, "learning_rate", color=RATE, lw=1.6)
    draw(speed, "tokens_per_second", color=SPEED, lw=1.2)


@in_style
def perplexity_figure(curves: dict[str, dict[int, dict[str, float]]]) -> tuple[str, bytes]:
    """Draws perplexity over context length for each stage: of the whole prefix, and of its last quarter. Returns (SVG, PNG)."""
    values = [m[key] for by_length in curves.values() for m in by_length.values() for key in ("perplexity", "last_block")]
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axis = figure.subplots()
    for color, (name, by_length) in zip(STAGES * len(curves), curves.items()):
        lengths = sorted(by_length)
        for key, label, line in (("perplexity", name, "o-"), ("last_block", f"{name}, last quarter", "o--")):
            axis.plot(lengths, [by_length[n][key] for n in lengths], line, color=color, ms=3.5, lw=1.3, label=label)
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted({n for by_length in curves.values() for n in by_length}))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.xaxis.set_minor_locator(NullLocator())
    if max(values) > WIDE * min(values):
        _logarithmic(axis)
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_xlabel("context length (tokens)")
    axis.set_ylabel("validation perplexity")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _rendered(figure)


def _logarithmic(axis: Axes) -> None:
    axis.set_yscale("log", base=10)
    axis.yaxis.set_major_locator(LogLocator(10, (1, 1.5, 2, 3, 4, 5, 7)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


@in_style
def panels_figure(panels: Sequence[Panel]) -> tuple[str, bytes]:
    """Draws panels side by side under one legend. Returns (SVG, PNG)."""
    figure = Figure(figsize=(max(6.5, 4.4 * len(panels)), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels):
        _draw_panel(axis, panel)
    named = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    columns = int(figure.get_figwidth() / (0.6 + 0.08 * max(map(len, named))))  # inches of a handle and of a letter
    figure.legend(named.values(), named, loc="outside lower center", ncols=min(max(columns, 1), len(named)))
    return _rendered(figure)


def _draw_panel(axis: Axes, panel: Panel) -> None:
    beside = 0.8 / len(panel.lines)  # dots at one place stand side by side
    for number, (color, (name, seeds)) in enumerate(zip(STAGES * len(panel.lines), panel.lines.items())):
        shift = np.array([(number - (len(panel.lines) - 1) / 2) * beside if panel.ticks else 0, 0])
        mean = np.mean([points for points in seeds if len(points) == min(map(len, seeds))], axis=0) + shift
        dots = bool(panel.ticks) or len(mean) == 1
        for points in seeds:
            axis.plot(*(points + shift).T, color=color, lw=0 if dots else 0.8, alpha=0.55, marker="o", ms=4 if dots else 2)
        axis.plot(*mean.T, color=color, lw=0 if dots else 2, label=name, marker="_" if dots else None, ms=16, mew=2)
    axis.set(xlabel=panel.x, ylabel=panel.y)
    if panel.log_x:
        axis.set_xscale("log", base=panel.log_x)
    if panel.log_y:
        _logarithmic(axis)
    if panel.ticks:
        axis.set_xticks(range(len(panel.ticks)), panel.ticks)
        axis.set_xlim(-0.5, len(panel.ticks) - 0.5)
    elif panel.log_x:
        axis.set_xticks(sorted({x for seeds in panel.lines.values() for points in seeds for x, _ in points}))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.3g}" if axis.get_xlim()[0] < 1 else "{x:,.0f}"))
        axis.xaxis.set_minor_locator(NullLocator())
    elif axis.get_xlim()[1] >= 1000:
        axis.xaxis.set_major_formatter(EngFormatter())


def _rendered(figure: Figure) -> tuple[str, bytes]:
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    figure.savefig(png, format="png", dpi=130)
    text = svg.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # names that figures of one page would share
    return text.replace(INK, "currentColor"), png.getvalue()
