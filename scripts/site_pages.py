"""A hook of mkdocs: pages of the site that are not files of docs/.

README, CONTRIBUTING and SECURITY come from the repository's root, with their links as the site has them; the page of
commands is what `--help` prints.
"""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from preceptor.cli.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
"""In the repository → on the site, where README would be the first page."""


def on_files(files: Files, config: Any) -> Files:
    """Adds them."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=moved(text)))
    files.append(File.generated(config, "commands.md", content=commands()))
    return files


def moved(text: str) -> str:
    """Links from the root as links from docs/."""

    def target(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        return f"]({PAGES.get(path, path.removeprefix('docs/'))}{anchor})"

    return re.sub(r"\]\(([^)#:\s]+)(#[^)]*)?\)", target, text)


def commands() -> str:
    """Each command with what its `--help` prints in 80 columns."""
    os.environ["COLUMNS"] = "80"
    about = "What `preceptor COMMAND --help` prints. How the first commands go together: [five minutes](index.md)."
    parts = [f"# Commands\n\n{about}"]
    for command in COMMANDS.values():
        shown = textwrap.indent(command.parser().format_help().strip(), "    ")
        parts.append(f"## {command.name}\n\n{command.summary[:1].upper()}{command.summary[1:]}.\n\n{shown}")
    return "\n\n".join(parts) + "\n"
