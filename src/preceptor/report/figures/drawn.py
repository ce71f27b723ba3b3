"""From a matplotlib figure to what a page can hold: SVG that follows the page's theme, and PNG for a file.

matplotlib's SVG is made for a file of its own: its ids repeat from figure to figure, its style sheet would reach the
page around it, its inline styles are refused by a strict content security policy, and its colours are fixed.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure  # pyplot would choose a backend for the whole process

from preceptor.report.figures.looks import INK, MUTED, PAPER, RULE, THEMED, legible

WIDTH = 10.6
"""Inches at 72 to the inch: 763 units, which a page shows one to one."""
PNG_DPI = 144
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the reader's own font
    "text.parse_math": False,  # a $ in a model's name is a $
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "lines.linewidth": 1.5,
    "path.simplify_threshold": 0.2,
}
_HEX = re.compile(r"#[0-9a-fA-F]{6}\b")
_LONG = re.compile(r"-?\d+\.\d{3,}")
_LOCAL = re.compile(r"url\(#([^)]*)\)")
# Properties of matplotlib's inline styles that are attributes in SVG too; fonts are the page's.
_ATTRIBUTES = {
    "fill", "fill-opacity", "fill-rule", "stroke", "stroke-width", "stroke-opacity", "stroke-linejoin",
    "stroke-linecap", "stroke-dasharray", "stroke-dashoffset", "stroke-miterlimit", "opacity", "font-size",
    "font-weight", "font-style", "text-anchor",
}  # fmt: skip


@dataclass(frozen=True)
class DrawnFigure:
    """One figure. `svg` has a title and a description and needs nothing around it; `alt` says what is to be seen."""

    title: str
    alt: str
    svg: str
    png: bytes
    caption: str


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """matplotlib's settings for the figure called `name`, put back afterwards."""
    settings: Any = {**_STYLE, "svg.hashsalt": name}  # its stubs want a literal
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Letters the PNG's font lacks are drawn as boxes there; the SVG has them as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def finish(figure: Figure, name: str, *, title: str, alt: str, caption: str) -> DrawnFigure:
    """Both formats of a figure drawn within `drawing(name)`; the same figure gives the same bytes."""
    title, alt, caption = (legible(text) for text in (title, alt, caption))
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    figure.set_layout_engine("none")  # the PNG is laid out as the SVG was, which costs half the time and no more
    figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return DrawnFigure(title, alt, themed_svg(svg.getvalue(), name, title, alt), png.getvalue(), caption)


def themed_svg(source: bytes, name: str, title: str, alt: str) -> str:
    """matplotlib's SVG made fit for a page: ids of its own, the theme's colours, the page's fonts, no inline styles."""
    root = ElementTree.fromstring(source)  # our own output, not a stranger's file
    name = f"figure-{name}"
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}style", f"{{{SVG}}}metadata"):
                parent.remove(child)
    for element in root.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.partition("}")[2]
        element.attrib = dict(_attributes(element.attrib, name))
        if element.tag != "text":
            element.text = None
        element.tail = None
    # matplotlib names every group; only what is pointed at needs a name, and a page must not have 5,000 of them.
    pointed = {value for each in root.iter() for value in _pointed_at(each.attrib)}
    for element in root.iter():
        if element.get("id") not in pointed:
            element.attrib.pop("id", None)
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib = {
        "xmlns": SVG,
        "viewBox": f"0 0 {width} {height}",
        "width": width,
        "height": height,
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-description",
        "font-family": "system-ui, sans-serif",
        "stroke-linejoin": "round",
    }
    for place, (tag, text) in enumerate((("title", title), ("desc", alt))):
        element = ElementTree.Element(tag, {"id": f"{name}-{'title' if tag == 'title' else 'description'}"})
        element.text = text
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(given: dict[str, str], name: str) -> Iterator[tuple[str, str]]:
    for key, value in given.items():
        if key == "style":
            pairs = (part.partition(":")[::2] for part in value.split(";"))
            for prop, setting in ((prop.strip(), setting.strip()) for prop, setting in pairs):
                if prop in _ATTRIBUTES:
                    yield prop, _themed(_LONG.sub(_rounded, setting))
        elif key == f"{{{XLINK}}}href":
            yield "href", f"#{name}-{value[1:]}"
        elif key == "id":
            yield "id", f"{name}-{value}"
        elif key == "clip-path":
            yield key, _LOCAL.sub(lambda match: f"url(#{name}-{match[1]})", value)
        elif key == "d":
            yield key, " ".join(_LONG.sub(_rounded, value).split())
        else:
            yield key, _LONG.sub(_rounded, value)


def _pointed_at(attributes: dict[str, str]) -> Iterator[str]:
    yield from (value[1:] for key, value in attributes.items() if key == "href")
    yield from (match for value in attributes.values() for match in _LOCAL.findall(value))


def _themed(value: str) -> str:
    return _HEX.sub(lambda match: THEMED.get(match[0].lower(), match[0]), value)


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def new_figure(height: float, width: float = WIDTH) -> Any:
    """An empty figure; inches. Any, because matplotlib's own types do not tell one kind of axes from another."""
    return Figure(figsize=(width, height), layout="constrained")
