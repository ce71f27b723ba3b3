"""The pages as pages: links and anchors lead somewhere, figures exist, code fits a terminal, the site builds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from snippets import FENCE, PAGES, ROOT, Snippet, snippets

LINK = re.compile(r"\]\((?P<path>[^)#:\s]*)(?:#(?P<anchor>[^)\s]*))?\)")
BACKTICKED_PATH = re.compile(r"`((?:src|docs|tests|benchmarks|examples|recipes|scripts)/[\w./-]+)`")
IDS = {"ids": lambda page: str(page.relative_to(ROOT))}


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What the headings of a page can be linked by, as GitHub and mkdocs agree."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", PAGES, **IDS)
def test_links_anchors_and_paths_lead_somewhere(page: Path) -> None:
    missing = []
    for link in LINK.finditer(prose(page)):
        target = page.parent / link["path"] if link["path"] else page
        if not target.exists() or (
            link["anchor"] and (target.suffix != ".md" or link["anchor"] not in anchors(target))
        ):
            missing.append(link[0])
    shown = [path for path in BACKTICKED_PATH.findall(prose(page)) if not path.startswith("benchmarks/out")]
    # The how-to about a new loss names the file that a reader would write.
    missing += [path for path in shown if not (ROOT / path).exists() and "hellinger" not in path]
    assert not missing


@pytest.mark.parametrize("page", PAGES, **IDS)
def test_a_page_begins_with_what_it_is_for(page: Path) -> None:
    title, first = re.split(r"\n\s*\n", page.read_text(encoding="utf-8").strip(), maxsplit=2)[:2]
    assert title.startswith("# ")
    assert "\n" not in title
    assert re.match(r"[*\w`\[]", first), f"{page.name}: begins with {first[:40]!r}"


@pytest.mark.parametrize("snippet", [s for s in snippets() if s.language != "json"], ids=lambda s: s.place)
def test_code_fits_a_terminal_of_80_columns(snippet: Snippet) -> None:
    assert not [line for line in snippet.text.splitlines() if len(line) > 80]


def test_nothing_is_left_to_be_filled_in() -> None:
    marked = [
        f"{p.name}: {n}" for p in PAGES for n, line in enumerate(p.read_text("utf-8").splitlines(), 1) if "TBD" in line
    ]
    assert not marked


def test_the_page_of_all_keys_is_what_the_specs_say() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "recipe_reference.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_page_is_reached_and_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs mkdocs: pip install '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = (tmp_path / "overview.html").read_text(encoding="utf-8")
    assert 'href="results.html"' in built  # a link of the README, as the site has it
    assert 'src="figures/pocket_losses.png"' in built
