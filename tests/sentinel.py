"""The pocket study made short: the losses of its stages at every step, and the file that remembers them.

    python tests/sentinel.py      writes the file anew, after a change that is meant to change numbers

Such a change raises RESULTS_VERSION in running/identity.py, and docs/decisions.md says why.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from preceptor import run
from preceptor.pocket.shop import make_shop_rows
from preceptor.pocket.study import SCORES, Size, study_recipe
from preceptor.pocket.tasks import make_rows
from preceptor.pocket.write_data import write_rows
from preceptor.recipe import parse_recipe

REFERENCE = Path(__file__).with_name("sentinel.json")
SIZE = Size(steps=40, rows_per_step=32, epochs=1, shop_rows=640, expert_steps=20, align_steps=30)
METHODS = ("sft", "kd_both", "expert", "dae")
SEED = 43
MEASURED = ("loss", "next_token", "logits", "attention", "grad_norm")


def trajectories(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Trains the stages in `folder`; for each stage and quantity its value at every step."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "public.jsonl", make_rows("train", SIZE.rows, SEED, noise=0.15))
    write_rows(folder / "shop.jsonl", make_shop_rows("train", SIZE.shop_rows, SEED))
    document = study_recipe(SEED, SIZE, METHODS)
    del document["stages"][SCORES]
    for dataset in document["data"].values():
        del dataset["test"]
    result = run(parse_recipe(document, folder=folder, overrides=[f"runs_dir={folder}"]), log=lambda line: None)
    return {name: _trajectory(Path(result["directory"], name)) for name in METHODS}


def _trajectory(stage: Path) -> dict[str, list[float]]:
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    return {key: [line[key] for line in steps] for key in MEASURED if key in steps[0]}


def main() -> None:
    """Writes the reference."""
    with tempfile.TemporaryDirectory() as folder:
        found: Any = trajectories(Path(folder))
    rounded = {
        stage: {key: [float(f"{value:.7g}") for value in values] for key, values in quantities.items()}
        for stage, quantities in found.items()
    }
    REFERENCE.write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
