"""The card (README.md) of a local data set can say where its data lie, and comes from whoever made the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from preceptor.errors import InputError, first_sentence, shown

MAX_CARD = 1 << 20  # bytes
_MAX_VALUES = 10_000


def check_card(folder: Path) -> None:
    """Raises InputError for a folder whose card names data elsewhere, on the network or on this machine.

    The datasets library would fetch or open them, and no recipe has asked for that.
    """
    card = folder / "README.md"
    if not card.is_file():
        return
    with card.open("rb") as file:
        parts = file.read(MAX_CARD).decode(errors="replace").split("---\n", 2)
    for value in _texts(_head(card, parts[1]) if len(parts) == 3 else None):
        if "://" in value or value.startswith(("/", "~")) or ".." in value.split("/"):
            raise InputError(f"{card}: names data outside its folder: {shown(value)}; copy them into the folder")


def _head(card: Path, text: str) -> Any:
    import yaml

    try:
        said = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{card}: its head is not YAML ({first_sentence(error)}); mend or remove it") from None
    return said.get("configs") if isinstance(said, dict) else None


def _texts(value: Any) -> list[str]:
    """The texts anywhere in a value, whose aliases may make a circle."""
    pending, texts = [value], []
    for _ in range(_MAX_VALUES):
        if not pending:
            break
        value = pending.pop()
        if isinstance(value, dict | list):
            pending.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, str):
            texts.append(value)
    return texts
