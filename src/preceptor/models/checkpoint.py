"""What a model folder holds, read from its config and its safetensors headers alone.

A wrong path, a pickle checkpoint or a file cut short by a full disk must be refused in a second and before
a run writes anything, not after the other model of the stage took minutes to load. Nothing here reads a
weight.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from preceptor.errors import InputError, accepted, did_you_mean, first_sentence, shown
from preceptor.models.config_values import check_kernels, check_sizes
from preceptor.models.headers import TensorInfo, read_header
from preceptor.models.quantization import check_quantization

if TYPE_CHECKING:
    from preceptor.recipe import ModelSpec

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
# Only what loading needs, so that a repository's second copy of its weights (consolidated*.safetensors,
# *.bin, onnx/…) is not fetched. Python files come along for models whose code the recipe trusts; nothing
# runs them else.
_FETCHED = (
    "*.json",
    "model*.safetensors",
    "adapter_model*.safetensors",
    "*.model",
    "*.txt",
    "*.jinja",
    "*.py",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class Checkpoint:
    """A model folder that is whole: its `config.json` and the header of every weight file.

    `adapter` is the folder of the PEFT adapter that goes with it, if any.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo] = field(repr=False)
    adapter: Path | None = None

    @property
    def parameters(self) -> int:
        """Elements in the weight files; a tied head counts once, packed quantised weights as stored."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of most elements, whatever `config.json` says; float32 if there is none."""
        counts: Counter[torch.dtype] = Counter()
        for tensor in self.tensors.values():
            if tensor.dtype in _DTYPES:
                counts[_DTYPES[tensor.dtype]] += math.prod(tensor.shape)
        return counts.most_common(1)[0][0] if counts else torch.float32


def check_model(spec: ModelSpec) -> Checkpoint:
    """Checks a model and its adapter without reading a weight; a Hub id is fetched into the cache first.

    Raises:
        InputError: no such folder, no config, an architecture this transformers does not know or that needs
            code the recipe does not trust, pickle weights only, a safetensors file that is cut or damaged,
            an adapter folder that holds no adapter, a device that is not there, or a quantisation that cannot
            work here.
    """
    where = f"model {spec.path!r}"
    folder = locate(spec.path, spec.revision, where=where)
    if not (folder / CONFIG).is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            raise InputError(
                f"{where}: the folder holds an adapter, not a model; give its base model as `path` "
                "and this folder as `adapter`"
            )
        raise InputError(f"{where}: the folder holds no {CONFIG}; give the folder that `save_pretrained` wrote")
    if (folder / ADAPTER_CONFIG).is_file():
        # transformers would apply such an adapter on loading without a word.
        raise InputError(
            f"{where}: the folder holds {ADAPTER_CONFIG} beside a model; move the adapter to a folder of "
            "its own "
            "and name that as `adapter`"
        )
    config = _read_json(folder / CONFIG, where)
    _check_architecture(config, spec, where)
    if not spec.trust_remote_code:
        check_kernels(config, where)
    check_devices(spec.device_map, where)
    check_quantization(spec, config)
    tensors: dict[str, TensorInfo] = {}
    for file in _weight_files(folder, where):
        tensors |= read_header(file, where)
    check_sizes(config, tensors, where)
    adapter = None if spec.adapter is None else check_adapter(spec.adapter)
    return Checkpoint(folder, config, tensors, adapter)


def check_adapter(path: str) -> Path:
    """Returns the folder of a PEFT adapter after checking its config and its weight file's header.

    Raises:
        InputError: no such folder, no adapter in it, pickle weights only, or a damaged weight file.
    """
    where = f"adapter {path!r}"
    folder = locate(path, None, where=where)
    if not (folder / ADAPTER_CONFIG).is_file():
        what = "a whole model, no adapter; give it as `path`" if (folder / CONFIG).is_file() else "no adapter"
        raise InputError(f"{where}: the folder holds {what} ({ADAPTER_CONFIG} is missing)")
    _read_json(folder / ADAPTER_CONFIG, where)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"{where}: {_no_weights(folder, ADAPTER_WEIGHTS)}")
    read_header(folder / ADAPTER_WEIGHTS, where)
    return folder


def source_dtype(spec: ModelSpec) -> torch.dtype:
    """The dtype a model's weights are stored in, by the safetensors headers (the base's, with an adapter)."""
    return check_model(spec).dtype


def locate(path: str, revision: str | None, *, where: str) -> Path:
    """The local folder of a model or adapter; of a Hub id, safetensors, configs and tokenizer are fetched.

    Raises:
        InputError: it is neither a folder nor a Hub repository that can be read.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{where}: is a file; give the folder that holds {CONFIG} and the weights")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path):
        raise InputError(f"{where}: there is no such folder; give a model folder or a Hub id such as 'org/name'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=list(_FETCHED)))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        at = "" if revision is None else f" at revision {revision!r}"
        raise InputError(
            f"{where}: is no folder here, and it could not be fetched from the Hugging Face Hub{at} "
            f"({first_sentence(error)}); check the name, the network and, for a gated model, `hf auth login`"
        ) from error


def check_devices(device_map: str | dict[str, Any] | None, where: str) -> None:
    """Refuses a device that this machine does not have, and words that are no device.

    Raises:
        InputError: naming the device and what is accepted.
    """
    if device_map is None:
        return
    strategies = ("auto", "balanced", "balanced_low_0", "sequential")
    if isinstance(device_map, str):
        if device_map in strategies:
            return
        devices: Iterable[Any] = [device_map]
    else:
        devices = device_map.values()
    for device in devices:
        if device == "disk":
            continue
        name = f"cuda:{device}" if isinstance(device, int) else str(device)
        try:
            parsed = torch.device(name)
        except RuntimeError:
            raise InputError(
                f"{where}: `device_map` names {device!r}, which is no device; accepted are "
                f"{accepted([*strategies, 'cpu', 'cuda', 'cuda:N'])}, or a mapping from modules to devices"
            ) from None
        if parsed.type == "cuda" and not torch.cuda.is_available():
            raise InputError(
                f"{where}: `device_map` asks for {device!r}, but PyTorch sees no CUDA device here; "
                "leave `device_map` out to run on the CPU"
            )
        if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
            raise InputError(
                f"{where}: `device_map` asks for {device!r}, but there are {torch.cuda.device_count()} "
                "CUDA devices, "
                "counted from 0"
            )


def _check_architecture(config: dict[str, Any], spec: ModelSpec, where: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    own_code = isinstance(config.get("auto_map"), dict) and "AutoModelForCausalLM" in config["auto_map"]
    if own_code and (spec.trust_remote_code or kind not in CONFIG_MAPPING):
        if spec.trust_remote_code:
            return
        raise InputError(
            f"{where}: needs Python code that comes with the model; read that code, and if you trust it, "
            "set `trust_remote_code: true` for this model"
        )
    if not isinstance(kind, str):
        raise InputError(f"{where}: {CONFIG} has no `model_type`, so its architecture is unknown; add it")
    if kind not in CONFIG_MAPPING:
        raise InputError(
            f"{where}: {CONFIG} has model_type "
            f"{shown(kind)}{did_you_mean(kind, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}, "
            "which the installed transformers does not know; correct it or upgrade transformers"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(
            f"{where}: {CONFIG} has model_type {kind!r}, which is no causal language model; "
            "give a decoder model such as a llama, mistral or qwen"
        )


def _weight_files(folder: Path, where: str) -> list[Path]:
    if any(folder.glob("shard-*-model-*.safetensors")):
        # transformers reads these through torch.distributed.checkpoint, whose index is a pickle.
        raise InputError(f"{where}: holds a distributed checkpoint; save it whole with `save_pretrained` first")
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        raise InputError(f"{where}: {_no_weights(folder, WEIGHTS)}")
    weight_map = _read_json(folder / WEIGHTS_INDEX, where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{where}: {WEIGHTS_INDEX} lists no weights; copy or download the folder again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not name.endswith(".safetensors") or Path(name).name != name:
            raise InputError(f"{where}: {WEIGHTS_INDEX} names {shown(name)}, which is no safetensors file beside it")
        if not (folder / name).is_file():
            raise InputError(f"{where}: {name} is missing, though {WEIGHTS_INDEX} lists it; copy the folder again")
    return [folder / name for name in names]


def _no_weights(folder: Path, wanted: str) -> str:
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern) if file.is_file())
    pickles = [name for name in pickles if name not in ("training_args.bin", "optimizer.pt", "scheduler.pt")]
    if pickles:
        return (
            f"holds its weights as a pickle only ({pickles[0]}), which can run code when read and is "
            "never loaded; "
            "convert it to safetensors with `save_pretrained` on a machine where you trust it"
        )
    return f"the folder holds no weights ({wanted} is missing); copy or download the whole folder"


def _read_json(file: Path, where: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise InputError(f"{where}: {file.name} is not readable JSON (it is nested too deep); mend it") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{where}: {file.name} is not readable JSON ({first_sentence(error)}); mend it") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: {file.name} holds {type(value).__name__}, not an object; mend it")
    return value
