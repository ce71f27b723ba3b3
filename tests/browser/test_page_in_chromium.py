"""The page in a real browser: no errors, no requests, no sideways scroll, and controls that do what they say.

Chromium is driven from its command line alone. What a reader would do is done by a script added to a copy of the page,
allowed by its hash in the page's own policy, and its findings are read from the dumped document.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import toy_runs
from preceptor.report import write_report
from preceptor.report.figures import draw
from preceptor.report.page import render
from report_dicts import hostile, poor, rich

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on this machine (looked for chromium, google-chrome, chrome)"
    ),
]
SECONDS = 120


@cache
def page(kind: str) -> str:
    long = "checkpoints/a-rather-long-name-of-a-checkpoint/student-{}"
    report = {
        "rich": rich,
        "poor": poor,
        "hostile": hostile,
        "many": lambda: rich(models=22, tasks=6, examples=400, name=long),
    }[kind]()
    return render(report, draw(report))


def with_script(text: str, script: str) -> str:
    """A copy of the page in which `script` runs last, its policy in force but for this."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert text.count("script-src ") == 1
    return text.replace("script-src ", f"script-src 'sha256-{digest}' ").replace(
        "</body>", f"<script>{script}</script></body>"
    )


class Browser:
    """Chromium with a profile of its own, and a server that remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages: dict[str, str] = {}
        self.asked: list[str] = []
        browser = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                browser.asked.append(self.headers.get("Host", "") + self.path)
                found = browser.pages.get(self.path)
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write((found or "").encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def open(self, pages: Mapping[str, str], *options: str) -> tuple[str, list[str]]:
        """The dumped document of the first of `pages` {path: text}, and what was written to the console."""
        assert CHROMIUM is not None
        self.pages, self.asked = dict(pages), []
        done = subprocess.run(
            [
                CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--disable-background-networking", "--disable-component-update", "--no-first-run",
                "--disable-features=NetworkTimeServiceQuerying", "--hide-scrollbars",
                # Every name leads to our server, so a request to anywhere would be seen there.
                f"--host-resolver-rules=MAP * 127.0.0.1:{self.server.server_port}",
                f"--user-data-dir={self.folder / 'profile'}", "--enable-logging=stderr", "--v=0",
                "--virtual-time-budget=5000", *(options or ("--dump-dom",)), self.origin + next(iter(pages)),
            ],
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    def findings(self, kind: str, script: str) -> Any:
        """What `script`, an expression, gives in the page."""
        added = f"document.body.dataset.findings = JSON.stringify({script});"
        dumped, console = self.open({"/page.html": with_script(page(kind), added)})
        assert console == []
        found = re.search(r'<body data-findings="([^"]*)"', dumped)
        assert found is not None, dumped[-500:]
        return json.loads(html.unescape(found[1]))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    found = Browser(tmp_path)
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_an_error_and_a_request_would_be_seen(browser: Browser) -> None:
    text = "<body><img src='http://example.org/x.png'><script>console.error('seen')</script></body>"
    _, console = browser.open({"/page.html": text})
    assert any("seen" in line for line in console)
    assert "example.org/x.png" in browser.asked


@pytest.mark.parametrize("kind", ["rich", "poor", "hostile", "many"])
def test_it_opens_without_errors_and_asks_for_nothing(browser: Browser, kind: str) -> None:
    browser.open({"/empty.html": "<title>empty</title>"})
    own = {each for each in browser.asked if not each.startswith("127.0.0.1")}  # what Chromium asks for itself
    dumped, console = browser.open({"/page.html": page(kind)})
    here = browser.origin.removeprefix("http://")
    assert console == []
    assert {each.partition("?")[0] for each in browser.asked} - {each.partition("?")[0] for each in own} <= {
        f"{here}/page.html",
        f"{here}/favicon.ico",
    }
    assert "</footer>" in dumped


def test_no_stranger_runs_anything(browser: Browser) -> None:
    found = browser.findings(
        "hostile",
        """({
          title: document.title, scripts: document.scripts.length, images: document.images.length,
          h1: document.querySelectorAll("h1").length,
          handlers: [...document.querySelectorAll("*")].filter(
            (each) => [...each.attributes].some((attribute) => attribute.name.startsWith("on"))).length,
          models: Object.keys(JSON.parse(document.getElementById("report-data").textContent).models).length,
        })""",
    )
    assert found["title"].startswith("</script><script>document.title='owned'</script>")
    assert (found["scripts"], found["images"], found["h1"], found["handlers"]) == (3, 0, 1, 0)
    assert found["models"] == 11


def test_a_strangers_run_runs_nothing(browser: Browser, tmp_path: Path) -> None:
    """From its files to the browser: names, answers, warnings, the recipe and folders are all markup."""
    write_report([toy_runs.hostile_run(tmp_path)], tmp_path / "out", log=lambda line: None)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    added = """document.body.dataset.findings = JSON.stringify([document.title, document.scripts.length,
      document.images.length, document.querySelectorAll("h1").length,
      performance.getEntriesByType("resource").length]);"""
    dumped, console = browser.open({"/page.html": with_script(text, added)})
    found = re.search(r'<body data-findings="([^"]*)"', dumped)
    assert found is not None, dumped[-500:]
    title, *counts = json.loads(html.unescape(found[1]))
    assert "owned" not in title
    assert counts == [3, 0, 1, 0]
    assert console == []
    dumped, console = browser.open({"/page.html": text})
    assert (console, dumped.count("<script")) == ([], 2)


@pytest.mark.parametrize("kind", ["rich", "many", "hostile", "poor"])
@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_scrolls_sideways_but_tables_and_figures_in_their_boxes(
    browser: Browser, kind: str, width: int
) -> None:
    # The smallest window of a headless browser is wider than a phone; a frame can be any width.
    host = f"""<body><iframe src="/page.html" width="{width}" height="900"></iframe><script>
      addEventListener("load", async () => {{
        const inner = document.querySelector("iframe").contentDocument;
        for (const each of inner.querySelectorAll("details")) each.open = true;
        await new Promise((done) => setTimeout(done, 500));
        const boxes = [...inner.querySelectorAll(".scroll")];
        document.body.dataset.findings = JSON.stringify({{
          inside: inner.documentElement.clientWidth, wide: inner.documentElement.scrollWidth,
          stops: boxes.filter((box) => box.hasAttribute("tabindex")
            && (box.tabIndex === 0) !== (box.scrollWidth > box.clientWidth)).length,
          scrolling: boxes.filter((box) => box.scrollWidth > box.clientWidth).length,
          small: [...inner.querySelectorAll("button, select, input, summary")].filter(
            (each) => each.checkVisibility() && each.getBoundingClientRect().height < 15).length,
        }});
      }});
    </script></body>"""
    dumped, console = browser.open({"/host.html": host, "/page.html": page(kind)})
    found = json.loads(html.unescape(re.search(r'<body data-findings="([^"]*)"', dumped)[1]))  # type: ignore[index]
    assert console == []
    assert found["inside"] == width
    assert found["wide"] <= width
    assert found["small"] == 0
    assert found["stops"] == 0
    if width == 375 and kind != "poor":
        assert found["scrolling"] > 3


def test_a_table_sorts_both_ways_and_empty_cells_stay_last(browser: Browser) -> None:
    found = browser.findings(
        "rich",
        """(() => {
          const table = document.querySelector("table.sortable");
          const column = (n) => [...table.tBodies[0].rows].map((row) => row.cells[n].dataset.order ?? null);
          const heads = [...table.tHead.rows[0].cells];
          const state = () => heads.map((head) => head.getAttribute("aria-sort"));
          const general = () => heads[1].querySelector("button").click();
          const result = { before: column(1) };
          general(); result.down = column(1); result.down_state = state();
          general(); result.up = column(1); result.up_state = state();
          heads[0].querySelector("button").click(); result.names = column(0); result.names_state = state();
          heads[0].querySelector("button").focus();
          result.focused = document.activeElement.tagName;
          return result;
        })()""",
    )
    values = sorted((float(value) for value in found["before"] if value is not None), reverse=True)
    assert [None if value is None else float(value) for value in found["down"]] == [*values, None]
    assert [None if value is None else float(value) for value in found["up"]] == [*values[::-1], None]
    assert found["before"] not in (found["down"], found["up"])
    assert (found["down_state"][1], found["up_state"][1]) == ("descending", "ascending")
    assert found["names"] == sorted(found["names"])
    assert found["names_state"][:2] == ["ascending", None]
    assert found["focused"] == "BUTTON"


def test_examples_are_found_by_words_kind_task_and_model(browser: Browser) -> None:
    found = browser.findings(
        "many",
        """(() => {
          const shown = () => [...document.querySelectorAll(".example")].filter((each) => !each.hidden);
          const seen = () => shown().filter((each) => each.checkVisibility()).length;
          const more = document.getElementById("filter-more");
          const count = () => document.getElementById("filter-count").textContent;
          const set = (name, value) => {
            const field = document.getElementById(`filter-${name}`);
            field.value = value;
            field.dispatchEvent(new Event("input", { bubbles: true }));
          };
          const result = { hidden: document.getElementById("filter").hidden, all: [shown().length, count()] };
          result.seen = [seen(), more.textContent, more.hidden];
          more.click(); result.more = [seen(), document.activeElement.querySelector(".lead").textContent];
          set("text", "NUMBER 399?"); result.words_seen = [seen(), more.hidden];
          result.words = shown().map((each) => each.querySelector(".lead").textContent);
          set("text", "no such words"); result.none = [shown().length, count()];
          const all = (from) => [...new Set(shown().map(from))];
          set("text", ""); set("kind", "gained"); result.gained = all((each) => each.dataset.kind);
          result.gained_count = shown().length;
          set("task", "1"); result.task = all((each) => each.querySelector(".where").firstChild.data.trim());
          set("task", ""); set("kind", ""); set("model", "1"); result.model = shown().length;
          result.by = all((each) => each.querySelector(".by").textContent);
          result.printed = shown().filter((each) => !each.classList.contains("unprinted")).length;
          const mark = (each) => getComputedStyle(each.querySelector(".kind"), "::before").content;
          result.marks = [mark(shown()[0])]; shown()[0].open = true; result.marks.push(mark(shown()[0]));
          shown()[0].open = false;
          result.open = document.querySelectorAll(".example[open]").length;
          return result;
        })()""",
    )
    assert found["hidden"] is False
    assert found["all"] == [400, "400 of 400"]
    assert found["seen"] == [25, "Show 100 more", False]
    assert found["more"] == [125, "Question number 25?"]
    assert found["words_seen"] == [1, True]
    assert found["words"] == ["Question number 399?"]
    assert found["none"] == [0, "0 of 400"]
    assert (found["gained"], found["gained_count"]) == (["gained"], 200)
    assert found["task"] == ["task 1"]
    # Model 1 flips every row, model 2 the gained ones, where the reference is wrong.
    assert found["model"] == 200
    assert found["by"] == ["by 2 models"]
    assert found["printed"] == 10
    assert found["open"] == 0
    assert found["marks"] == ['"▸ "', '"▾ "']


def test_the_theme_turns_and_is_kept_nowhere(browser: Browser) -> None:
    found = browser.findings(
        "rich",
        """(() => {
          const button = document.getElementById("theme");
          const colours = () => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
            getComputedStyle(document.querySelector("svg text")).fill];
          const result = { named: [button.textContent, button.hidden], light: colours() };
          button.click(); result.dark = colours(); result.named_dark = button.textContent;
          button.click(); result.again = colours();
          result.kept = [localStorage.length, sessionStorage.length, document.cookie];
          return result;
        })()""",
    )
    assert found["named"] == ["Dark", False]
    assert found["named_dark"] == "Light"
    assert found["light"] == found["again"]
    assert all(light != dark for light, dark in zip(found["light"], found["dark"], strict=True))
    assert found["kept"] == [0, 0, ""]


def test_paper_gets_what_is_folded_but_not_every_example(browser: Browser) -> None:
    found = browser.findings(
        "many",
        """(() => {
          const open = () => document.querySelectorAll("details[open]").length;
          const before = open();
          dispatchEvent(new Event("beforeprint"));
          const during = [open(), document.querySelectorAll(".example[open]").length,
            document.querySelectorAll("details:not([open]):not(.unprinted)").length];
          dispatchEvent(new Event("afterprint"));
          return { before, during, after: open() };
        })()""",
    )
    assert (found["before"], found["after"]) == (0, 0)
    assert found["during"][0] > 20
    assert found["during"][1:] == [20, 0]
    browser.open({"/page.html": page("rich")}, f"--print-to-pdf={browser.folder / 'page.pdf'}")
    assert (browser.folder / "page.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("width", [375, 1280])
def test_it_can_be_photographed(browser: Browser, width: int) -> None:
    picture = browser.folder / "page.png"
    browser.open({"/page.html": page("rich")}, f"--screenshot={picture}", f"--window-size={width},2000")
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (2000, width)
    assert 0.01 < (pixels < 128).mean() < 0.5  # text on paper, and not a blank or a black page
