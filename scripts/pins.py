"""Print constraints.txt: the exact versions of everything the package and its tested extras need.

Only what `preceptor[dev,bench,docs]` reaches is listed, so tools that happen to lie in the environment
are not pinned. Local version labels (`+cpu`) are cut off: which build of torch is installed is the
machine's matter.
"""

from __future__ import annotations

import re
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

OLDEST = (3, 10)
TESTED_EXTRAS = ("dev", "bench", "docs")
BUILD = ("hatchling", "editables")


def reachable(name: str, extras: tuple[str, ...], found: dict[str, str]) -> None:
    """Collect the installed version of every distribution `name[extras]` needs on this machine."""
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        key = canonicalize_name(requirement.name)
        if key in found and not requirement.extras:
            continue
        found[key] = metadata.version(key)
        reachable(key, tuple(requirement.extras), found)


def line(name: str, version: str) -> str:
    """One constraint, with a marker where that version left the oldest Python we support behind."""
    wanted = SpecifierSet(metadata.metadata(name).get("Requires-Python") or "")
    pin = f"{name}=={re.sub(r'[+].*', '', version)}"
    major, minor = OLDEST
    if wanted.contains(f"{major}.{minor}.99"):
        return pin
    newer = next(m for m in range(minor + 1, 99) if wanted.contains(f"{major}.{m}.99"))
    return f'{pin} ; python_version >= "{major}.{newer}"'


def main() -> None:
    """Walk the requirements and print them sorted."""
    found: dict[str, str] = {}
    reachable("preceptor", TESTED_EXTRAS, found)
    for name in BUILD:
        found[name] = metadata.version(name)
        reachable(name, (), found)
    found.pop("preceptor", None)
    print("# The exact versions the tests pass with (Python 3.11), written by `make pins`.")
    for name in sorted(found):
        print(line(name, found[name]))


if __name__ == "__main__":
    main()
