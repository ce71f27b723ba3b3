"""Spec of the stage that writes rows with a model."""

from __future__ import annotations

from typing import Annotated, Literal

from preceptor.recipe.base import Spec, Text, Whole1, real
from preceptor.recipe.models import Model


class GenerateStage(Spec):
    """A model writes rows: answers to a dataset's prompts, or text from the beginning-of-sequence token."""

    kind: Literal["generate"]
    model: Model
    """Who writes."""
    prompts: Text | None = None
    """A dataset whose prompts are answered; None: text from the beginning of a sequence."""
    rows: Whole1
    """How many rows to write."""
    max_new_tokens: Whole1 = 256
    """Tokens of a row; a prompt's are not counted."""
    temperature: Annotated[float, real(0.0)] = 1.0
    """Divides the logits before a token is drawn; 0 takes the most probable token each time."""
    top_p: Annotated[float, real(0.0, 1.0, above=True)] = 1.0
    """Draws among the fewest tokens whose probabilities sum to at least this; 1 is all tokens."""
    batch_size: Whole1 = 32
    """Rows written at once; changes speed and memory only."""
