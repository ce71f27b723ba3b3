"""The report: a run directory in which one file is a stranger's, made into a page without figures."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import toy_runs
from fuzz.scaffold import Target
from preceptor.report.page import render
from preceptor.report.read import named_apart, read_run
from preceptor.report.sources import places
from preceptor.report.summary import summarise
from preceptor.system.files import json_text

FILES = (
    "scores/scores.json",
    "scores/stage.json",
    "kd/stage.json",
    "kd/metrics.jsonl",
    "scores/predictions/dae.jsonl",
    "recipe.yaml",
    "dae/stage.json",
)


class Page(HTMLParser):
    """What would run or be loaded: scripts, handlers, frames, and addresses that are not within the page."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.wrong: list[str] = []
        self.policy = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append(dict(attrs))
        if tag in ("iframe", "object", "embed", "base", "img", "svg", "link", "foreignobject"):
            self.wrong.append(tag)
        if tag == "meta" and ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"] or ""
        for name, value in attrs:
            ours = name != "href" or (value or "").startswith(("#", "https://arxiv.org/"))
            if name.startswith("on") or name in ("src", "srcdoc", "style", "action", "formaction") or not ours:
                self.wrong.append(f"{name}={value!a}")


def check(data: bytes, folder: Path) -> str:
    """The first byte says which file the others are."""
    changed = FILES[data[0] % len(FILES)] if data else FILES[0]
    run = folder / "toy"
    for name, content in _run().items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(data[1:] if name == changed else content)
    report = summarise(named_apart([read_run(place) for place in places(run)]), title=None, published=False)
    report["figures"] = []
    json.loads(json_text(report).encode())
    text = render(report, {})
    text.encode()
    page = Page()
    page.feed(text)
    page.close()
    assert page.wrong == []
    assert [each.get("type") for each in page.scripts] == ["application/json", None]
    assert page.policy.startswith("default-src 'none'; script-src 'sha256-")
    return text


@cache
def _run() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        run = toy_runs.whole_run(Path(name) / "toy")
        files = [path for path in run.rglob("*") if path.is_file()]
        return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


TARGET = Target(
    name="report",
    check=check,
    seeds=[bytes([number]) + _run()[name] for number, name in enumerate(FILES)],
    words=[
        b"</script><script>x</script>", b"<img src=x onerror=x>", b'\\" onload=\\"x', b"javascript:x", b"<!--", b"]]>",
        b"\\u2028", b"\\u0000", b"\\ud800", b"1e308", b"-1e308", b"NaN", b"Infinity", b"{{ 7*7 }}", b"../../x",
        b"&a [*a,*a]",
    ],
)  # fmt: skip
