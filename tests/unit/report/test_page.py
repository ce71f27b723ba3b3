"""The page: whole, self-contained, accessible, and deaf to what strangers write into it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest

from preceptor.report.figures import draw
from preceptor.report.page import render
from preceptor.report.views.headline import basis, headline
from preceptor.report.views.numbers import duration, number, short_spread, signed, significant
from report_dicts import HOSTILE, example, hostile, poor, rich

VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """Elements in order as (tag, attributes, tags around it, text within)."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert not self._open, "unclosed elements"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        around = tuple(self.elements[place][0] for place in self._open)
        self.elements.append((tag, dict(attrs), around, []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open[-1]][0] == tag, f"</{tag}> closes <{self.elements[self._open[-1]][0]}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for place in self._open:
            self.elements[place][3].append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _, _ in self.elements if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [" ".join("".join(text).split()) for name, _, _, text in self.elements if name == tag]


@cache
def whole(kind: str) -> str:
    """A page with its figures, which take seconds to draw."""
    report = {"rich": rich, "poor": poor, "hostile": hostile}[kind]()
    return render(report, draw(report))


def page_of(report: dict[str, Any]) -> str:
    """A page without figures."""
    return render(report, {})


@pytest.fixture
def text() -> str:
    return whole("rich")


@pytest.fixture(params=["rich", "poor", "hostile"])
def page(request: pytest.FixtureRequest) -> Page:
    return Page(whole(request.param))


def test_the_same_report_gives_the_same_page() -> None:
    assert page_of(rich()) == page_of(rich())


def test_sections_are_those_there_is_something_for(text: str) -> None:
    assert Page(text).texts("h2") == [
        "Result", "Warnings", "Models", "Tasks", "MT-Bench", "AlpacaEval", "Task suites", "Forgotten and gained",
        "Training", "Runs",
    ]  # fmt: skip
    assert Page(page_of(poor())).texts("h2") == ["Result", "Warnings", "Runs"]
    anchors = {attributes["href"] for attributes in Page(text).all("a")}
    assert {"#models", "#examples", "#runs"} <= anchors


def test_it_needs_nothing_from_outside(page: Page) -> None:
    for tag, attributes, _, _ in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        assert not {"src", "srcset", "style", "background", "action", "formaction"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        for name, value in attributes.items():
            if name != "xmlns" and re.match(r"\s*(https?:)?//", value or ""):
                assert (tag, name) == ("a", "href")
                assert value is not None
                assert value.startswith("https://arxiv.org/")
    style = "".join(next(text for tag, _, _, text in page.elements if tag == "style"))
    assert "url(" not in style
    assert "@import" not in style
    assert "@font-face" not in style


def test_only_our_own_script_and_style_may_run(page: Page) -> None:
    policy = next(
        each["content"] or "" for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "*" not in policy
    scripts = [(attributes, "".join(text)) for tag, attributes, _, text in page.elements if tag == "script"]
    styles = ["".join(text) for tag, _, _, text in page.elements if tag == "style"]
    assert [attributes.get("type") for attributes, _ in scripts] == ["application/json", None]
    assert len(styles) == 1
    for kind, source in (("script", scripts[1][1]), ("style", styles[0])):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_strangers_text_is_text() -> None:
    text = whole("hostile")
    page = Page(text)
    assert not page.all("img")
    assert len(page.all("script")) == 2
    assert len(page.all("h1")) == len(page.all("title")) - 11
    assert "<h1>owned" not in text
    assert "<svg onload" not in text
    for each in HOSTILE[:2]:
        assert each not in text
    assert "{{ 7 * 7 }}{% raw %}" in text  # and neither 49 nor an error
    shown = " ".join("".join(text) for tag, _, _, text in page.elements if tag == "dd")
    for each in (HOSTILE[0], HOSTILE[1], HOSTILE[4], HOSTILE[5], HOSTILE[7]):
        assert each in shown
    text.encode("utf-8")
    assert not set(text) & set("\x00\x1b\u202e\ud800")


def test_the_data_block_is_json_and_cannot_end_its_script() -> None:
    report = hostile()
    report["models"]["m1"]["general"] |= {"low": float("nan"), "high": float("inf")}
    text = page_of(report)
    block = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', text, re.DOTALL)
    assert block is not None
    assert "<" not in block[1]
    assert "\u2028" not in block[1]
    assert "NaN" not in block[1]
    assert "Infinity" not in block[1]
    data = json.loads(block[1])
    assert data["models"]["m1"]["title"] == HOSTILE[0]
    assert data["models"]["m1"]["general"]["low"] is None


def test_ids_are_unique_and_what_points_at_one_finds_it(page: Page) -> None:
    ids = Counter(attributes["id"] for _, attributes, _, _ in page.elements if attributes.get("id"))
    assert not [name for name, count in ids.items() if count > 1]
    for tag, attributes, _, _ in page.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert set((attributes.get(name) or "").split()) <= set(ids), (tag, attributes)
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in ids


def test_headings_and_landmarks(page: Page) -> None:
    levels = [int(tag[1]) for tag, _, _, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert [len(page.all(tag)) for tag in ("main", "header", "footer", "nav")] == [1, 1, 1, 1]
    assert page.all("html")[0]["lang"] == "en"
    assert all("aria-labelledby" in section for section in page.all("section"))


def test_tables_and_figures_say_what_they_are(page: Page) -> None:
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))
    assert page.all("table")
    assert len(page.texts("caption")) == len(page.all("table"))
    assert all(page.texts("caption"))
    for attributes in page.all("svg"):
        assert attributes["role"] == "img"
        assert attributes["aria-labelledby"]
    inside = Counter(tag for tag, _, around, _ in page.elements if around and around[-1] == "svg")
    assert inside["title"] == inside["desc"] == len(page.all("svg")) == len(page.texts("figcaption"))
    scrolling = [each for each in page.all("div") if each.get("class") == "scroll" and each.get("role") == "region"]
    assert all(
        each.get("tabindex") == "0" and (each.get("aria-label") or each.get("aria-labelledby")) for each in scrolling
    )
    labelled = [tag for tag, _, around, _ in page.elements if tag in ("input", "select") and "label" not in around]
    assert labelled == []


def test_it_can_be_read_without_javascript(text: str) -> None:
    page = Page(text)
    assert not [tag for tag, _, around, _ in page.elements if tag == "button" and "thead" in around]
    assert page.texts("p").count("Question number 3?") == 0
    assert "Question number 29?" in " ".join(page.texts("dd"))
    hidden = [tag for tag, attributes, _, _ in page.elements if "hidden" in attributes]
    assert hidden == ["button", "form", "button"]  # controls that do nothing without the script


def test_the_table_of_models_has_intervals_sources_and_sortable_values(text: str) -> None:
    start = text.index('<table class="sortable">')
    table = Page(text[start : text.index("</table>", start) + len("</table>")])
    assert table.texts("th")[:4] == ["Model", "General", "Domain", "Retention"]
    rows = [text for text in table.texts("tr") if text]
    report = rich()
    first = report["models"]["m0"]["general"]
    assert rows[1].startswith("model 0 m0 reference 2 seeds")
    assert f"{first['score']:.3f} {first['low']:.3f}–{first['high']:.3f}" in rows[1]
    assert "Pareto front" in rows[3]
    assert "Pareto front" not in rows[1]
    assert rows[-1] == "Flip-7B published: arXiv 2406.19112 7.58"
    orders = [cell.get("data-order") for cell in table.all("td")]
    assert str(first["score"]) in orders
    # The reference has no retention of itself, and such a cell has nothing to sort by.
    assert None in orders


def test_examples_have_every_answer_and_who_flipped() -> None:
    report = rich(examples=0)
    report["examples"] = [
        example("forgotten", 7, "What?", {"m0": ("yes", 1.0), "m1": ("no", 0.0), "m2": ("yes", 1.0)}),
        example("gained", 8, "Who?", {"m0": ("no", 0.0), "m1": ("no", 0.0), "m2": ("yes", 1.0), "m9": ("a bit", 0.4)}),
    ]
    page = Page(page_of(report))
    details = [each for each in page.all("details") if each.get("class") == "example"]
    assert [each["data-kind"] for each in details] == ["forgotten", "gained"]
    models = re.findall(r'<option value="(\d+)">(model \d|m9)</option>', page_of(report))
    names = dict(models)
    assert [names[n] for n in (details[0]["data-models"] or "").split()] == ["model 1"]
    assert [names[n] for n in (details[1]["data-models"] or "").split()] == ["model 2", "m9"]
    assert all("open" not in each for each in details)
    summaries = [text for text in page.texts("summary") if "row" in text]
    assert summaries == [
        "forgotten task 0 public row 7 What? by model 1",
        "gained task 0 public row 8 Who? by 2 models",
    ]
    assert '<th scope="row">m9</th><td class="text">a bit</td><td class="verdict">0.40</td>' in page_of(report)
    assert "2 of them are shown" in " ".join(page.texts("p"))


def test_only_some_examples_go_to_paper() -> None:
    page = Page(page_of(rich(examples=60)))
    unprinted = [each for each in page.all("details") if each.get("class") == "example unprinted"]
    assert len(unprinted) == 60 - 2 * 10


# --- sentences and numbers -------------------------------------------------------------------------------------


def _said(report: dict[str, Any]) -> dict[str, str]:
    return {sentence.label: sentence.text for sentence in headline(report)}


def test_the_headline_says_what_was_learnt_gained_and_forgotten() -> None:
    report = rich()
    report["models"]["m2"] |= {
        "general": {"score": 0.95, "low": 0.9, "high": 1.0},
        "domain": {"score": 0.95, "low": 0.9, "high": 1.0},
        "recovery": {"value": 0.99, "low": 0.9, "high": 1.1},
        "retention": {"value": 1.2, "low": 1.1, "high": 1.3},
    }
    report["differences"] = [
        {"measure": "domain", "model": "m2", "than": "m0", "value": 0.5, "low": 0.4, "high": 0.6},
        {"measure": "general", "model": "m2", "than": "m0", "value": -0.01, "low": -0.03, "high": 0.01},
    ]
    said = _said(report)
    assert list(said) == ["Learnt", "Gained", "Forgotten", "Judged"]
    assert said["Learnt"].startswith("kd_both: prediction loss from 3.")
    assert "in 400 steps (1 min 33 s)" in said["Learnt"]
    assert "model 2 scores 0.950 (0.900 to 1.000) on domain rows against" in said["Gained"]
    assert ": higher (+0.500, 0.400 to 0.600)" in said["Gained"]
    assert ": not distinguishable (−0.010, −0.030 to 0.010)" in said["Forgotten"]
    assert "answers that were right and are wrong now: 5.0 % (3.0 to 7.0)" in said["Forgotten"]


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ((0.5, 0.4, 0.6), (0.65, 0.55, 0.75), "not distinguishable (their intervals overlap)"),
        ((0.5, 0.4, 0.6), (0.8, 0.7, 0.9), "lower"),
        ((0.9, 0.85, 0.95), (0.8, 0.7, 0.84), "higher"),
        ((0.9, None, None), (0.8, 0.7, 0.84), "no interval to judge the difference by"),
    ],
)
def test_without_a_paired_difference_the_intervals_decide(ours: Any, theirs: Any, verdict: str) -> None:
    report = rich(models=3)
    names = ("score", "low", "high")
    report["models"]["m2"]["domain"] = dict(zip(names, ours, strict=True))
    report["models"]["m0"]["domain"] = dict(zip(names, theirs, strict=True))
    assert f": {verdict};" in _said(report)["Gained"]


def test_a_report_of_judgments_alone_and_one_of_nothing() -> None:
    report = rich(models=3)
    for entry in report["models"].values():
        entry |= {"general": None, "domain": None, "flips": None}
    report["curves"] = []
    assert list(_said(report)) == ["Judged"]
    assert "MT-Bench model 2 5.20 (4.80 to 5.60), model 0 5.00" in _said(report)["Judged"]
    assert _said(poor()) == {"Nothing yet": "No stage has logged a loss and no model has been scored."}


def test_the_model_named_is_the_one_that_gained_and_kept_most() -> None:
    report = rich(models=5)
    one = {"low": 0.0, "high": 2.0}
    for key, recovery, retention in (("m2", 0.8, 0.99), ("m3", 0.6, 1.3), ("m4", 0.1, 1.0)):
        report["models"][key] |= {"recovery": {"value": recovery, **one}, "retention": {"value": retention, **one}}
    assert _said(report)["Gained"].startswith("model 2 scores")
    assert basis(report).startswith("model 2 is named for its recovery plus retention, the highest of 3 models;")
    for key in ("m2", "m3", "m4"):
        report["models"][key] |= {"recovery": None, "general": {"score": 0.5, "low": 0.4, "high": 0.6}}
    report["models"]["m4"]["domain"] = {"score": 0.99, "low": 0.9, "high": 1.0}
    assert _said(report)["Gained"].startswith("model 4 scores")
    assert "for its mean score" in basis(report)
    assert basis(poor()) == ""


def test_a_report_without_a_reference_says_so() -> None:
    report = rich(models=3)
    report["models"]["m0"]["kind"] = "model"
    assert _said(report)["Gained"].endswith("there is no reference to compare it with.")


def test_numbers() -> None:
    assert number(-0.0004) == "0.000"
    assert number(-1.5, 1) == "−1.5"
    assert number(None) == ""
    assert number(float("nan")) == ""
    assert number(12345, 0) == "12,345"
    assert signed(0.5, 1) == "+0.5"
    assert signed(-0.5, 1) == "−0.5"
    assert short_spread(0.1, 0.2, 1) == "0.1–0.2"
    assert short_spread(-0.1, 0.2, 1) == "−0.1 to 0.2"
    assert [significant(value) for value in (0, 0.0096, 0.38, 5.14, 12.3, 4567)] == [4, 4, 3, 2, 1, 0]
    assert [duration(value) for value in (0.031, 93, 495, 8000, None)] == [
        "0.031 s",
        "1 min 33 s",
        "8 min 15 s",
        "2 h 13 min",
        "",
    ]


# --- colours ---------------------------------------------------------------------------------------------------


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.2."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast_in_both_themes(theme: str) -> None:
    style = files("preceptor.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([a-z-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", style)
    colours = {name: (light, dark)[theme == "dark"] for name, light, dark in pairs}
    assert len(colours) == len(re.findall(r"--[a-z-]+:", style))
    for ground in ("paper", "tint"):
        for name in ("ink", "muted", "accent", "lost", "won"):
            assert _contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    used = set(re.findall(r"(?<!-)\bcolor: var\(--([a-z-]+)\)", style))
    assert used == {"ink", "muted", "accent", "lost", "won"}
    # Marks need 3:1 (WCAG 1.4.11); of Okabe and Ito's palette, orange and sky do not reach it on white, which is why
    # every mark has a shape and every line a name as well.
    for name in ("figure-blue", "figure-vermillion", "figure-green"):
        assert _contrast(colours[name], colours["paper"]) >= 3, name
