"""Figures of other people's models as they published them, each with its source: shown on request, beside ours.

They come from other judges, prompts and years, so that they say what is large and what is small, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PAPER = "arXiv 2406.19112"
BOARD = "AlpacaEval 1.0 leaderboard (alpaca_eval_gpt4, github.com/tatsu-lab/alpaca_eval at cd543a1)"
NORMAL = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Published:
    """One model's published figures: MT-Bench from 1 to 10, AlpacaEval win rate and its standard error in percent."""

    title: str
    source: str
    mt_bench: float | None = None
    alpaca_eval: float | None = None
    standard_error: float | None = None


ROWS = (
    Published("Flip-7B α", PAPER, 7.58, 90.17),
    Published("Flip-7B β", PAPER, 7.70, 91.60),
    Published("Flip-2x7B α", PAPER, 7.70, 92.67),
    Published("Flip-2x7B β", PAPER, 7.90, 93.04),
    Published("Mistral-7B-Instruct-v0.2", BOARD, None, 92.78, 0.91),
    Published("Mixtral-8x7B-Instruct-v0.1", BOARD, None, 94.78, 0.78),
)


def published_rows() -> list[dict[str, Any]]:
    """The report's `published`: the key of each in `models`, its title, figures and source."""
    return [
        {
            "model": f"published/{row.title}",
            "title": row.title,
            "mt_bench": row.mt_bench,
            "alpaca_eval": row.alpaca_eval,
            "source": row.source,
        }
        for row in ROWS
    ]


def published_models() -> dict[str, dict[str, Any]]:
    """The same rows as entries of the report's `models`; what was not published is null."""
    return {f"published/{row.title}": _entry(row) for row in ROWS}


def _entry(row: Published) -> dict[str, Any]:
    counts: dict[str, Any] = dict.fromkeys(("rows", "failed", "missing"))
    mt_bench = None
    if row.mt_bench is not None:
        mt_bench = {
            "source": "published",
            "judge": None,
            "score": {"score": row.mt_bench, "low": None, "high": None},
            "turns": {"1": None, "2": None},
            "categories": {},
            **counts,
        }
    alpaca_eval = None
    if row.alpaca_eval is not None:
        half = None if row.standard_error is None else NORMAL * row.standard_error
        alpaca_eval = {
            "source": "published",
            "judge": None,
            "win_rate": row.alpaca_eval,
            "low": None if half is None else row.alpaca_eval - half,
            "high": None if half is None else row.alpaca_eval + half,
            "standard_error": row.standard_error,
            **dict.fromkeys(("wins", "losses", "ties")),
            **counts,
            **dict.fromkeys(("mean_length", "baseline_mean_length")),
        }
    return {
        "title": row.title,
        "kind": "published",
        "source": row.source,
        "mt_bench": mt_bench,
        "alpaca_eval": alpaca_eval,
    }
