"""Which model something was made with, as a digest that a later reader can compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from preceptor.models.checkpoint import CONFIG, check_model
from preceptor.system.files import sha256_file, sha256_json

if TYPE_CHECKING:
    from preceptor.recipe import ModelSpec


def model_facts(spec: ModelSpec) -> dict[str, Any]:
    """A model's name, and one SHA-256 over its weights, config and adapter and over how it is loaded.

    Reads every weight file once.

    Raises:
        InputError: as `check_model`.
    """
    checkpoint = check_model(spec)
    files: dict[str, str] = {}
    for part, folder in (("model", checkpoint.folder), ("adapter", checkpoint.adapter)):
        if folder is not None:
            read = [*sorted(folder.glob("*.safetensors")), *folder.glob(CONFIG), *folder.glob("adapter_config.json")]
            files |= {f"{part}/{path.name}": sha256_file(path) for path in read}
    loaded = {"dtype": spec.dtype, "quantization": spec.quantization}
    return {"model": spec.title, "sha256": sha256_json({"files": files, **loaded}), **loaded}
