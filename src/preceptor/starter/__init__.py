"""A first recipe for the models and data that a user names, with comments that explain each choice.

What is here is looked at, so that the recipe works as it is written: formats, columns and numbers of rows, prompts that
two datasets share, whether the tokenizers agree, the sizes of the models beside this machine's memory. What is on the
Hub is taken as it is named, without any network. Neither torch nor transformers is imported.
"""

from __future__ import annotations

from preceptor.starter.writing import Asked, Started, start

__all__ = ["Asked", "Started", "start"]
