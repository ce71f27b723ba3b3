"""AlpacaEval's win rate from annotations, with its standard error, its interval, and what it leaves out.

The definition is that of the package `alpaca-eval`: a preference p counts p − 1 for the model, a tie one half, and the
win rate is their mean in percent. Ties are 1.5, and 0 in older files. Rows without a preference are in no mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preceptor.evaluation.alpaca_eval.files import OFFICIAL_INSTRUCTIONS, Annotation
from preceptor.evaluation.bootstrap import Array, Estimate, resampled_sums

_TASK = "alpaca_eval"  # names the draws of the bootstrap
LONGER = 1.2
"""A model whose answers are that many times as long as the baseline's is warned about."""


def win(preference: float) -> float:
    """What a preference counts for the model: 0 to 1, a tie (1.5, or 0 in older files) one half."""
    return 0.5 if preference == 0 else preference - 1


@dataclass(frozen=True)
class Annotated:
    """One model's annotations and where they come from: "ours", "outputs file" or "annotations file".

    `changed` is how many of `twice` rows judged in both orders got another verdict in the second.
    """

    annotations: Sequence[Annotation]
    source: str
    changed: int | None = None
    twice: int | None = None

    @property
    def judge(self) -> str | None:
        """The annotator, in what is written here template and judge's model; None where the file names none."""
        return (self.annotations[0].annotator or None) if self.annotations else None

    def wins(self) -> dict[str, float]:
        """What each judged row counts, by instruction."""
        return {each.instruction: win(each.preference) for each in self.annotations if each.preference is not None}


def summarise(
    models: Mapping[str, Annotated],
    instructions: Sequence[str],
    *,
    reference: str | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Entries of the models, paired differences to one of them, and warnings, as docs/judges.md describes them.

    Args:
        models: by name; their annotations are against one baseline.
        instructions: all that are asked.
        reference: the model the others are compared with; the first where it is None or has no annotations. Models
            that another annotator judged are not compared with it.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    entries = {name: _entry(each, len(instructions), seed=seed, resamples=resamples) for name, each in models.items()}
    against = reference if reference in models else next(iter(models), None)
    differences = []
    if against is not None:
        base = models[against].wins()
        for name, each in models.items():
            if name == against or each.judge != models[against].judge:
                continue
            found = _difference(each.wins(), base, instructions, seed, resamples)
            if found is not None:
                differences.append({"model": name, "than": against, **found})
    return entries, differences, _warnings(entries, differences, len(instructions))


def _entry(model: Annotated, asked: int, *, seed: int, resamples: int) -> dict[str, Any]:
    values_n = np.array(list(model.wins().values()))
    rows = len(values_n)
    estimate = None
    if rows:
        drawn = resampled_sums(values_n[:, None], task=_TASK, seed=seed, resamples=resamples)[:, 0] / rows
        estimate = Estimate.of(100 * float(values_n.mean()), 100 * drawn, rows)
    wins, losses = int((values_n > 0.5).sum()), int((values_n < 0.5).sum())
    return {
        "source": model.source,
        "judge": model.judge,
        "win_rate": None if estimate is None else estimate.score,
        "low": None if estimate is None else estimate.low,
        "high": None if estimate is None else estimate.high,
        "standard_error": 100 * float(values_n.std(ddof=1)) / rows**0.5 if rows > 1 else None,
        "discrete_win_rate": 100 * (wins + (rows - wins - losses) / 2) / rows if rows else None,
        "wins": wins,
        "losses": losses,
        "ties": rows - wins - losses,
        "rows": rows,
        "failed": sum(each.preference is None for each in model.annotations),
        "missing": asked - len(model.annotations),
        "order_changed": model.changed,
        "both_orders": model.twice,
        "mean_length": _mean_length([each.output_2 for each in model.annotations]),
        "baseline_mean_length": _mean_length([each.output_1 for each in model.annotations]),
    }


def _mean_length(texts: Sequence[str]) -> float:
    return float(np.mean([len(text) for text in texts])) if texts else 0.0


def _difference(
    wins: Mapping[str, float], base: Mapping[str, float], instructions: Sequence[str], seed: int, resamples: int
) -> dict[str, Any] | None:
    """Paired over the instructions judged for both, in percentage points; None where there are none."""
    common = [each for each in instructions if each in wins and each in base]
    if not common:
        return None
    gain_n: Array = np.array([wins[each] - base[each] for each in common])
    drawn = resampled_sums(gain_n[:, None], task=_TASK, seed=seed, resamples=resamples)[:, 0] / len(common)
    found = Estimate.of(100 * float(gain_n.mean()), 100 * drawn, len(common))
    return {"value": found.score, "low": found.low, "high": found.high, "rows": len(common)}


def _warnings(entries: Mapping[str, Any], differences: Sequence[Mapping[str, Any]], asked: int) -> list[str]:
    found = []
    if entries and asked < OFFICIAL_INSTRUCTIONS:
        found.append(
            f"{asked:,} instructions are fewer than the {OFFICIAL_INSTRUCTIONS} of the published boards, so that the "
            "win rates cannot be set beside those there"
        )
    for name, entry in entries.items():
        if entry["failed"]:
            found.append(
                f"{name}: {entry['failed']:,} of {asked:,} preferences could not be read from the judge's answers and "
                "are left out of the win rate"
            )
        if entry["missing"]:
            found.append(
                f"{name}: {entry['missing']:,} of {asked:,} instructions have no annotation; the win rate is over the "
                "others"
            )
        ours, baseline = entry["mean_length"], entry["baseline_mean_length"]
        if baseline and ours > LONGER * baseline:
            found.append(
                f"{name}: its answers are {ours / baseline:.1f} times as long as the baseline's ({ours:,.0f} "
                f"characters on average against {baseline:,.0f}), and judges prefer longer answers; see the "
                "length-controlled win rate before calling it better"
            )
        if entry["both_orders"] and entry["order_changed"]:
            found.append(
                f"{name}: the verdict changed with the order of the two answers on {entry['order_changed']:,} of "
                f"{entry['both_orders']:,} instructions"
            )
    for each in differences:
        if each["low"] is None or each["low"] <= 0 <= each["high"]:
            interval = "too few for an interval"
            if each["low"] is not None:
                interval = f"95 % interval {each['low']:+.2f} to {each['high']:+.2f}"
            found.append(
                f"{each['model']} and {each['than']} are not distinguishable: their win rates differ by "
                f"{each['value']:+.2f} points over {each['rows']:,} common instructions, {interval}"
            )
    return found
