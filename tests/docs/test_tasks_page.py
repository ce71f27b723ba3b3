"""The task file that docs/tasks.md shows is one: its recipe finds it, and a model is asked it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from snippets import FENCE, ROOT, snippets

PAGE = ROOT / "docs" / "tasks.md"


def indented_blocks() -> list[str]:
    """The page's blocks that are no recipes, Python or commands: a task file, and a row of its data."""
    text = FENCE.sub("", PAGE.read_text(encoding="utf-8"))
    found = re.findall(r"(?:^ {4}[^\n]*\n)+", text, re.MULTILINE)
    return [re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in found]


def test_the_task_file_and_its_recipe_run(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install '.[eval]'")
    import torch

    import toys
    from preceptor.evaluation.tasks import check_tasks, run_tasks
    from preceptor.models.save import save_model
    from preceptor.models.tokenizers import train_tokenizer
    from preceptor.recipe import EvaluateStage, ModelSpec, load_recipe

    task, row = indented_blocks()
    (tmp_path / "my_tasks").mkdir()
    (tmp_path / "my_tasks" / "till.yaml").write_text(task)
    other = {**json.loads(row), "answer": 1}
    (tmp_path / "my_tasks" / "till.jsonl").write_text(row + json.dumps(other) + "\n")
    (recipe,) = [snippet.text for snippet in snippets("yaml") if snippet.place.startswith("docs/tasks.md")]
    (tmp_path / "recipe.yaml").write_text(recipe)
    stage = load_recipe(tmp_path / "recipe.yaml").stages["scores"]
    assert isinstance(stage, EvaluateStage)
    assert stage.tasks is not None
    # The task on the Hub is left to people with a network.
    spec = stage.tasks.model_copy(update={"include": [str(tmp_path / "my_tasks")], "names": ["till"]})
    check_tasks(spec)
    tokenizer = train_tokenizer(
        ["User: Assistant:\n\n", *map(str, other.values())], vocab_size=90, kind="characters", announce=print
    )
    sizes = {**toys.TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    save_model(toys.llama(0, **sizes), tokenizer, tmp_path / "model", dtype=torch.float32)
    found = run_tasks({"student": ModelSpec(path=str(tmp_path / "model"))}, spec, directory=tmp_path)
    entry = found["models"]["student"]["till"]
    assert (entry["metric"], entry["value"], entry["rows"]) == ("acc", 0.5, 2)  # one right, one wrong
