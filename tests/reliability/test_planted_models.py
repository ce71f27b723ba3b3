"""Models and adapters of strangers: what is planted in their folders never runs, and what cannot be is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import toys
from preceptor.errors import InputError
from preceptor.models.checkpoint import check_model
from preceptor.models.config_values import check_sizes
from preceptor.models.headers import TensorInfo
from preceptor.models.load import load_model
from preceptor.models.tokenizers import load_tokenizer, train_tokenizer
from preceptor.recipe import ModelSpec

MODULES = ("evil", "modeling_evil", "configuration_evil", "tokenization_evil")
AUTO = {
    "AutoConfig": "configuration_evil.T",
    "AutoModelForCausalLM": "modeling_evil.T",
    "AutoTokenizer": ["tokenization_evil.T", "tokenization_evil.T"],
}


class Bomb:
    """A pickle of it makes the folder `planted` when it is read."""

    planted = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (Bomb.planted,)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, and an adapter of it."""
    folder = tmp_path_factory.mktemp("good")
    base = toys.llama(0, **{**toys.TINY, "hidden_size": 16, "vocab_size": 40}, bos_token_id=1, eos_token_id=2)
    base.save_pretrained(folder / "model")
    tokenizer = train_tokenizer(["abc def ghi"], vocab_size=40, kind="characters", announce=lambda line: None)
    tokenizer.chat_template = "{{ messages }}"
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder / "adapter")
    for name in ("model", "adapter"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, with Python modules beside the model and the adapter that would make the folder `planted`."""
    monkeypatch.setattr(Bomb, "planted", str(tmp_path / "planted"))
    for name in ("model", "adapter"):
        shutil.copytree(good / name, tmp_path / name)
        for module in MODULES:
            code = f"import os\nos.makedirs({str(tmp_path / 'planted')!r}, exist_ok=True)\n\n\nclass T: pass\n"
            (tmp_path / name / f"{module}.py").write_text(code)
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**value, **changes}))


def said(folder: Path, work: Callable[[], object]) -> str:
    """What `work` is refused with, empty where it is not; nothing planted ran either way."""
    sentence = ""
    try:
        work()
    except InputError as error:
        sentence = str(error).replace(str(folder), "HERE")
    assert not (folder / "planted").exists()
    return sentence


def loaded(folder: Path, **more: Any) -> str:
    return said(folder, lambda: load_model(ModelSpec(path=str(folder / "model"), **more), role="teacher"))


def with_adapter(folder: Path) -> str:
    return loaded(folder, adapter=str(folder / "adapter"))


# --- code -----------------------------------------------------------------------------------------------------------


def test_the_bomb_and_the_code_would_go_off(folder: Path) -> None:
    pickle.loads(pickle.dumps(Bomb()))
    assert (folder / "planted").exists()
    (folder / "planted").rmdir()
    edit(
        folder / "model" / "tokenizer_config.json",
        auto_map={"AutoTokenizer": AUTO["AutoTokenizer"]},
        tokenizer_class="T",
    )
    with pytest.raises(InputError):
        load_tokenizer(ModelSpec(path=str(folder / "model"), trust_remote_code=True))
    assert (folder / "planted").exists()


def test_pickles_beside_the_weights_are_not_read(folder: Path) -> None:
    for part in ("model", "adapter"):
        for name in (
            "pytorch_model.bin",
            "adapter_model.bin",
            "training_args.bin",
            "optimizer.pt",
            "rng_state.pth",
            "vocab.pkl",
        ):
            torch.save(Bomb(), folder / part / name)
    assert with_adapter(folder) == ""
    assert said(folder, lambda: load_tokenizer(ModelSpec(path=str(folder / "model")))) == ""


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("pytorch_model.bin", "holds its weights as a pickle only (pytorch_model.bin), which can run code when read"),
        ("consolidated.00.pth", "holds its weights as a pickle only (consolidated.00.pth), which can run code"),
        (".metadata", "the folder holds no weights (model.safetensors is missing)"),
        ("model.safetensors", "model.safetensors is damaged (it has "),
    ],
)
def test_pickles_in_the_place_of_weights_are_not_read(folder: Path, file: str, sentence: str) -> None:
    (folder / "model" / "model.safetensors").unlink()
    with (folder / "model" / file).open("wb") as stream:
        torch.save({"x": Bomb()}, stream)
    assert loaded(folder).startswith(f"model 'HERE/model': {sentence}")


def test_an_index_that_names_a_pickle_or_a_file_elsewhere(folder: Path) -> None:
    (folder / "model" / "model.safetensors").rename(folder / "x.safetensors")
    torch.save({"x": Bomb()}, folder / "model" / "m.bin")
    for name in ("m.bin", "../x.safetensors", str(folder / "x.safetensors"), ["m.bin"], 5, "no\0file.safetensors"):
        edit(folder / "model" / "model.safetensors.index.json", weight_map={"a": name})
        assert "model.safetensors.index.json" in loaded(folder)


@pytest.mark.parametrize("remote", ["", "stranger/repo--"])
def test_code_that_the_config_names_is_not_run(folder: Path, remote: str) -> None:
    auto = {key: f"{remote}{value}" if isinstance(value, str) else value for key, value in AUTO.items()}
    edit(folder / "model" / "config.json", auto_map=auto)
    assert loaded(folder) == ""  # transformers knows a llama itself
    edit(folder / "model" / "config.json", model_type="evil")
    assert "needs Python code that comes with the model; read that code" in loaded(folder)
    edit(folder / "model" / "config.json", auto_map={"AutoConfig": auto["AutoConfig"]})
    assert "config.json has model_type 'evil'" in loaded(folder)


def test_code_for_tokenizers_processors_and_generation_is_not_run(folder: Path) -> None:
    model = folder / "model"
    edit(model / "processor_config.json", auto_map={"AutoProcessor": "evil.T"}, processor_class="T")
    edit(model / "generation_config.json", custom_generate="./custom_generate")
    (model / "custom_generate").mkdir()
    shutil.copy(model / "evil.py", model / "custom_generate" / "generate.py")
    assert loaded(folder) == ""
    edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": AUTO["AutoTokenizer"]}, tokenizer_class="T")
    read = said(folder, lambda: load_tokenizer(ModelSpec(path=str(model))))
    assert read.startswith("tokenizer of 'HERE/model': needs Python code that comes with the model")


def test_consent_to_the_models_code_is_none_to_the_adapters(folder: Path) -> None:
    auto = {"AutoTokenizer": AUTO["AutoTokenizer"]}
    edit(folder / "adapter" / "tokenizer_config.json", auto_map=auto, tokenizer_class="T")
    (folder / "adapter" / "chat_template.jinja").write_text("{{ bos_token }}")
    spec = ModelSpec(path=str(folder / "model"), adapter=str(folder / "adapter"), trust_remote_code=True)
    assert said(folder, lambda: load_tokenizer(spec)) == ""
    assert load_tokenizer(spec).chat_template == "{{ bos_token }}"
    assert "needs Python code" in said(
        folder, lambda: load_tokenizer(spec.model_copy(update={"trust_remote_code": False}))
    )


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_kernel_of_the_hub(folder: Path, key: str, nested: bool) -> None:
    given: dict[str, Any] = {key: {"": "stranger/kernel"}} if nested else {key: "stranger/kernel@main"}
    edit(folder / "model" / "config.json", **({"text_config": given} if nested else given))
    kernel = "stranger/kernel" if nested else "stranger/kernel@main"
    assert loaded(folder).startswith(
        f"model 'HERE/model': config.json has `{key}` {kernel!r}, which is code on the Hugging Face Hub; "
        "remove the key, or if you trust that code, set `trust_remote_code: true` for this model"
    )


# --- adapters -------------------------------------------------------------------------------------------------------


def test_an_adapter_that_names_others_or_code(folder: Path) -> None:
    config = folder / "adapter" / "adapter_config.json"
    whole = json.loads(config.read_text())
    elsewhere = {"base_model_name_or_path": "stranger/evil", "revision": "x"}
    mapping = {"auto_mapping": {"base_model_class": "T", "parent_library": "evil"}}
    edit(config, **elsewhere, **mapping)
    assert with_adapter(folder) == ""  # the recipe says which model it goes on
    code = {"tokenizer_name_or_path": str(folder / "adapter"), "tokenizer_kwargs": {"trust_remote_code": True}}
    for changes, sentence in (
        (
            {"peft_type": "XLORA", "adapters": {"0": "stranger/x"}, "hidden_size": 16},
            "which reads other adapters that it",
        ),
        (
            {
                "peft_type": "PROMPT_TUNING",
                "num_virtual_tokens": 2,
                "prompt_tuning_init": "TEXT",
                "prompt_tuning_init_text": "x",
                **code,
            },
            "adds prompt tokens",
        ),
        ({"peft_type": "EVIL"}, "('EVIL')"),
        ({"megatron_config": {"x": 1}, "megatron_core": "evil"}, "megatron_core"),
        ({"init_lora_weights": "evil"}, "Unknown initialization"),
        ({"r": 10**9}, "its config has the rank 1000000000, and no tensor of it is longer than 16; copy the adapter's"),
        ({"r": "2"}, "its config has the rank '2'"),
        ({"rank_pattern": {"q_proj": 10**9}}, "its config has the rank 1000000000"),
        ({"r": 0}, "positive integer"),
    ):
        config.write_text(json.dumps({**whole, **changes}))
        assert sentence in with_adapter(folder), changes
    config.write_text("[" * 100_000)
    assert with_adapter(folder).endswith("adapter_config.json is not readable JSON (it is nested too deep); mend it")


# --- values ---------------------------------------------------------------------------------------------------------

BELONG = "; the config and the weights belong to different models"
VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": (
        {"num_hidden_layers": 0},
        "config.json has `num_hidden_layers` 0, which must be from 1 to 2,147,483,647",
    ),
    "a negative number": ({"num_hidden_layers": -1}, "config.json has `num_hidden_layers` -1, which must be from 1"),
    "a billion layers": (
        {"num_hidden_layers": 10**9},
        f"config.json has `num_hidden_layers` 1,000,000,000, and the weights are 21 tensors in all{BELONG}",
    ),
    "fewer layers than there are": (
        {"num_hidden_layers": 1},
        f"9 tensors are in the weights and not in the model that config.json describes, first "
        f"'model.layers.1.input_layernorm.weight'{BELONG}",
    ),
    "a width of 10^12": ({"hidden_size": 10**12}, "config.json has `hidden_size` 1000000000000, which must be from 1"),
    "a large vocabulary": (
        {"vocab_size": 500_000_000},
        "config.json has `vocab_size` 500,000,000 and `hidden_size` 16, a matrix of 8,000,000,000 numbers, and the "
        "weights hold ",
    ),
    "no vocabulary": ({"vocab_size": 0}, "config.json has `vocab_size` 0, which must be from 1"),
    "no heads": ({"num_attention_heads": 0}, "config.json has `num_attention_heads` 0"),
    "no key heads": ({"num_key_value_heads": 0}, "config.json has `num_key_value_heads` 0"),
    "a wide MLP": ({"intermediate_size": 2_000_000_000}, "config.json has `intermediate_size` 2,000,000,000 and"),
    "a text": ({"hidden_size": "16"}, "config.json has `hidden_size` '16'"),
    "true": ({"vocab_size": True}, "config.json has `vocab_size` True"),
    "inside": ({"text_config": {"num_hidden_layers": 10**6}}, "config.json has `num_hidden_layers` 1,000,000"),
    "a list of quantisations": (
        {"quantization_config": [1]},
        "config.json has `quantization_config` [1], which must be",
    ),
    "an unknown quantiser": (
        {"quantization_config": {"quant_method": "evil"}},
        "its quantisation does not work on this",
    ),
    "a rope that is none": ({"rope_parameters": {"rope_type": "os"}}, "could not be loaded ('os')"),
    "an activation that is none": ({"hidden_act": "os.system"}, "could not be loaded ('os.system')"),
    "heads that do not divide": ({"head_dim": None, "num_attention_heads": 3}, "config.json is not valid ("),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_that_cannot_be(folder: Path, case: str) -> None:
    changes, sentence = VALUES[case]
    edit(folder / "model" / "config.json", **changes)
    assert loaded(folder).startswith(f"model 'HERE/model': {sentence}")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_files_nested_too_deep(folder: Path, file: str) -> None:
    (folder / "model" / file).write_text('{"a":' * 100_000)
    sentences = [loaded(folder), said(folder, lambda: load_tokenizer(ModelSpec(path=str(folder / "model"))))]
    assert any(sentences)
    assert all("Traceback" not in sentence for sentence in sentences)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.masked_bias",  # older releases of transformers
        "model.layers.0.self_attn.k_scale",  # of quantisers
        "model.visual.blocks.7.attn.weight",  # a model of images and text, of which the text is read
        "mtp.layers.7.weight",  # for several tokens at once, as Qwen calls them
    ],
)
def test_further_tensors_that_are_no_layers_of_the_decoder_are_accepted(folder: Path, name: str) -> None:
    file = folder / "model" / "model.safetensors"
    save_file({**load_file(file), name: torch.ones(4)}, file, metadata={"format": "pt"})
    assert loaded(folder) == ""


def test_layers_that_predict_several_tokens_are_accepted(folder: Path) -> None:
    """DeepSeek and GLM number them on from the decoder's; any other layer is still one that the config leaves out."""
    file = folder / "model" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "model.layers.2.eh_proj.weight": torch.ones(4)}, file, metadata={"format": "pt"})
    assert "1 tensor is in the weights and not in the model" in loaded(folder)
    edit(folder / "model" / "config.json", num_nextn_predict_layers=1)
    assert loaded(folder) == ""
    save_file({**tensors, "model.layers.3.eh_proj.weight": torch.ones(4)}, file, metadata={"format": "pt"})
    assert "1 tensor is in the weights and not in the model" in loaded(folder)


def test_sizes_of_each_layer() -> None:
    """As Gemma 3n has them; each is looked at."""
    tensors = {str(number): TensorInfo("F32", (8, 8)) for number in range(4)}
    config = {"hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": [16, 8], "num_attention_heads": [2, 1]}
    check_sizes(config, tensors, "m")
    for wrong in ([16, 10**6], [16, 0], [16, "8"], []):
        with pytest.raises(InputError, match=r"m: config\.json has `intermediate_size`"):
            check_sizes({**config, "intermediate_size": wrong}, tensors, "m")


def test_a_pipe_in_the_place_of_a_file(folder: Path) -> None:
    for name, sentence in (
        ("model.safetensors", "the folder holds no weights"),
        ("config.json", "holds no config.json"),
    ):
        (folder / "model" / name).unlink()
        os.mkfifo(folder / "model" / name)
        with pytest.raises(InputError, match=sentence):
            check_model(ModelSpec(path=str(folder / "model")))
