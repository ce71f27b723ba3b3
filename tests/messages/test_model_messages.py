"""Wrong models: each gives its one sentence, before any weight is read where that is possible."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import toys
from preceptor.errors import InputError
from preceptor.models.checkpoint import check_model
from preceptor.models.load import load_model
from preceptor.models.tokenizers import load_tokenizer, same_tokenizer, train_tokenizer
from preceptor.recipe import ModelSpec, parse_recipe
from preceptor.stages.context import StageContext
from preceptor.stages.init import build_config


def tiny(width: int = 16, vocabulary: int = 40) -> LlamaForCausalLM:
    return toys.llama(
        0, **{**toys.TINY, "hidden_size": width, "vocab_size": vocabulary}, bos_token_id=1, eos_token_id=2
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def adapter(folder: Path, width: int = 16) -> Path:
    get_peft_model(tiny(width), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    return folder


def edit_config(model: Path, **changes: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def cut(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_header(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50])


def flip_size(model: Path) -> None:
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[5] = 0xFF
    file.write_bytes(bytes(data))


def scramble_header(model: Path) -> None:
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[8:20] = b"x" * 12
    file.write_bytes(bytes(data))


def wrong_shape_in_header(model: Path) -> None:
    file = model / "model.safetensors"
    data = file.read_bytes()
    assert data.count(b"[40,16]") == 2  # embedding and head
    file.write_bytes(data.replace(b"[40,16]", b"[41,16]"))


def pickle_only(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def shard_missing(model: Path) -> None:
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_outside(model: Path) -> None:
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "../other.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def own_code(model: Path) -> None:
    names = {"AutoConfig": "configuration_new.NewConfig", "AutoModelForCausalLM": "modeling_new.New"}
    edit_config(model, model_type="new", auto_map=names)


# what is wrong with the folder: (how it comes about, the sentence after "model 'FOLDER': ")
CHECKED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (
        lambda model: (model / "config.json").unlink(),
        "the folder holds no config.json; give the folder that `save_pretrained` wrote",
    ),
    "config is no JSON": (
        lambda model: (model / "config.json").write_text("{"),
        "config.json is not readable JSON (Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1)); mend it",
    ),
    "config is a list": (
        lambda model: (model / "config.json").write_text("[]"),
        "config.json holds list, not an object; mend it",
    ),
    "unknown architecture": (
        lambda model: edit_config(model, model_type="lama"),
        "config.json has model_type 'lama' (did you mean 'llama'?), which the installed transformers does not know; "
        "correct it or upgrade transformers",
    ),
    "no architecture": (
        lambda model: edit_config(model, model_type=None),
        "config.json has no `model_type`, so its architecture is unknown; add it",
    ),
    "no decoder": (
        lambda model: edit_config(model, model_type="t5"),
        "config.json has model_type 't5', which is no causal language model; give a decoder model such as a llama, "
        "mistral or qwen",
    ),
    "code of its own": (
        own_code,
        "needs Python code that comes with the model; read that code, and if you trust it, set "
        "`trust_remote_code: true` for this model",
    ),
    "no weights": (
        lambda model: (model / "model.safetensors").unlink(),
        "the folder holds no weights (model.safetensors is missing); copy or download the whole folder",
    ),
    "pickle weights": (
        pickle_only,
        "holds its weights as a pickle only (pytorch_model.bin), which can run code when read and is never loaded; "
        "convert it to safetensors with `save_pretrained` on a machine where you trust it",
    ),
    "distributed checkpoint": (
        lambda model: (model / "shard-00001-model-00001-of-00001.safetensors").touch(),
        "holds a distributed checkpoint; save it whole with `save_pretrained` first",
    ),
    "a shard is missing": (
        shard_missing,
        "model-00001-of-00002.safetensors is missing, though model.safetensors.index.json lists it; copy the folder "
        "again",
    ),
    "a shard outside the folder": (
        shard_outside,
        "model.safetensors.index.json names '../other.safetensors', which is no safetensors file beside it",
    ),
    "weights cut short": (
        cut,
        "model.safetensors is damaged (it should have {size:,} bytes and has {short:,}); copy or download the file "
        "again",
    ),
    "header cut short": (
        cut_header,
        "model.safetensors is damaged (it has 50 bytes and its header does not fit in them); copy or download the "
        "file again",
    ),
    "header size flipped": (
        flip_size,
        "model.safetensors is damaged (it has {size:,} bytes and its header does not fit in them); copy or download "
        "the file again",
    ),
    "header scrambled": (
        scramble_header,
        "model.safetensors is damaged (its header is not readable); copy or download the file again",
    ),
    "header contradicts itself": (
        wrong_shape_in_header,
        "model.safetensors is damaged (tensor 'lm_head.weight' does not lie where its header says); copy or download "
        "the file again",
    ),
    "adapter beside a model": (
        lambda model: adapter(model),
        "the folder holds adapter_config.json beside a model; move the adapter to a folder of its own and name that "
        "as `adapter`",
    ),
}


@pytest.mark.parametrize("case", CHECKED)
def test_a_wrong_folder_is_refused_without_reading_weights(case: str, model: Path) -> None:
    spoil, sentence = CHECKED[case]
    size = (model / "model.safetensors").stat().st_size
    spoil(model)
    with pytest.raises(InputError) as caught:
        check_model(ModelSpec(path=str(model)))
    assert str(caught.value) == f"model {str(model)!r}: " + sentence.replace("{size:,}", f"{size:,}").replace(
        "{short:,}", f"{size - 100:,}"
    )


def refusal(spec: ModelSpec, role: Any = "teacher") -> str:
    with pytest.raises(InputError) as caught:
        load_model(spec, role=role)
    message = str(caught.value)
    assert "\n" not in message
    message = message.replace(spec.path, "MODEL")
    return message if spec.adapter is None else message.replace(spec.adapter, "ADAPTER")


def test_missing_folder(tmp_path: Path) -> None:
    assert refusal(ModelSpec(path=str(tmp_path / "none"))) == (
        "model 'MODEL': there is no such folder; give a model folder or a Hub id such as 'org/name'"
    )


def test_a_file_is_no_folder(model: Path) -> None:
    assert refusal(ModelSpec(path=str(model / "model.safetensors"))) == (
        "model 'MODEL': is a file; give the folder that holds config.json and the weights"
    )


def test_a_name_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **options: Any) -> str:
        raise OSError("no connection.\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert refusal(ModelSpec(path="org/name", revision="v2")) == (
        "model 'MODEL': is no folder here, and it could not be fetched from the Hugging Face Hub at revision 'v2' "
        "(no connection); check the name, the network and, for a gated model, `hf auth login`"
    )


def test_missing_tensors(model: Path) -> None:
    edit_weights(model, lambda tensors: tensors.__delitem__("model.layers.0.mlp.up_proj.weight"))
    assert refusal(ModelSpec(path=str(model))) == (
        "model 'MODEL': 1 tensor is missing from the weights, first 'model.layers.0.mlp.up_proj.weight'; the config "
        "and the weights belong to different models"
    )


def test_tensors_of_another_shape(model: Path) -> None:
    edit_config(model, intermediate_size=20)
    assert refusal(ModelSpec(path=str(model))) == (
        "model 'MODEL': 6 tensors are of another shape than config.json says, first "
        "'model.layers.0.mlp.down_proj.weight' ([16, 24] stored, [16, 20] expected); the config and the weights belong "
        "to different models"
    )


def test_config_values_of_the_wrong_type(model: Path) -> None:
    edit_config(model, hidden_act=5)
    message = refusal(ModelSpec(path=str(model)))
    assert message.startswith("model 'MODEL': config.json is not valid (Validation error for field 'hidden_act'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_cuda_device(model: Path) -> None:
    for device_map in ("cuda:0", {"": 0}):
        given = repr("cuda:0" if isinstance(device_map, str) else 0)
        assert refusal(ModelSpec(path=str(model), device_map=device_map)) == (
            f"model 'MODEL': `device_map` asks for {given}, but PyTorch sees no CUDA device here; leave `device_map` "
            "out to run on the CPU"
        )


def test_a_device_that_is_none(model: Path) -> None:
    assert refusal(ModelSpec(path=str(model), device_map="gpu")) == (
        "model 'MODEL': `device_map` names 'gpu', which is no device; accepted are auto, balanced, balanced_low_0, "
        "sequential, cpu, cuda or cuda:N, or a mapping from modules to devices"
    )


def test_an_adapter_on_weights_that_wait_on_disk(model: Path, tmp_path: Path) -> None:
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "disk"}
    places |= {f"model.layers.{layer}": "disk" for layer in range(2)}
    spec = ModelSpec(path=str(model), adapter=str(adapter(tmp_path / "adapter")), device_map=places)
    message = refusal(spec)
    assert message.startswith(
        "adapter 'ADAPTER': could not be put on the model 'MODEL', whose `device_map` leaves weights in main memory or "
        "on disk until they are used ("
    )
    assert message.endswith("); leave the `device_map` out, or merge the adapter into the model first")


@pytest.mark.parametrize("stored", ["bitsandbytes", "gptq"])
def test_a_quantised_checkpoint_is_not_quantised_anew(model: Path, stored: str) -> None:
    edit_config(model, quantization_config={"quant_method": stored, "load_in_4bit": True, "bits": 4})
    assert refusal(ModelSpec(path=str(model), quantization={"load_in_8bit": True})) == (
        f"model 'MODEL': `quantization` is given, but its weights are stored quantised ({stored}) and stay as they "
        "are; leave it out, or give the model that they were made of"
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_quantisation_library_not_installed(model: Path, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"transformers.quantizers.quantizer_bnb_{bits}bit.is_bitsandbytes_available", lambda: False)
    message = refusal(ModelSpec(path=str(model), quantization={f"load_in_{bits}bit": True}))
    assert message.startswith(
        f"model 'MODEL': its quantisation needs a package that is not installed (Using `bitsandbytes` {bits}-bit "
        "quantization requires bitsandbytes: `pip install -U bitsandbytes>="
    )


def test_wrong_quantisation_settings(model: Path) -> None:
    def say(**given: Any) -> str:
        return refusal(ModelSpec(path=str(model), quantization=given)).removeprefix("model 'MODEL': `quantization`")

    assert say(quant_method="int4").startswith(": `quant_method` is 'int4'; accepted are aqlm, ")
    assert say(bnb_4bit_quant_type="nf4").startswith(": `quant_method` is None; accepted are aqlm, ")
    assert say(quant_method="bitsandbytes") == (
        ": bitsandbytes needs exactly one of `load_in_4bit: true` and `load_in_8bit: true`"
    )
    assert refusal(ModelSpec(path=str(model), dtype="float64", quantization={"load_in_4bit": True})) == (
        "model 'MODEL': `quantization`: bitsandbytes quantises no float64 weights; leave out `dtype`, or set it to "
        "float32"
    )
    assert say(load_in_4bit=True, bnb_4bit_quant_typ="nf4") == (
        ": bitsandbytes has no setting 'bnb_4bit_quant_typ' (did you mean 'bnb_4bit_quant_type'?); remove it"
    )


def test_an_adapter_folder_without_adapter(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refusal(ModelSpec(path=str(model), adapter=str(tmp_path / "empty"))) == (
        "adapter 'ADAPTER': the folder holds no adapter (adapter_config.json is missing)"
    )
    assert refusal(ModelSpec(path=str(model), adapter=str(model))).endswith(
        "the folder holds a whole model, no adapter; give it as `path` (adapter_config.json is missing)"
    )


def test_an_adapter_given_as_a_model(tmp_path: Path) -> None:
    assert refusal(ModelSpec(path=str(adapter(tmp_path / "adapter")))) == (
        "model 'MODEL': the folder holds an adapter, not a model; give its base model as `path` and this folder as "
        "`adapter`"
    )


def test_a_pickled_adapter(model: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert refusal(ModelSpec(path=str(model), adapter=str(folder))).startswith(
        "adapter 'ADAPTER': holds its weights as a pickle only (adapter_model.bin)"
    )


def test_an_adapter_for_another_base(model: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", width=32)
    for role in ("student", "teacher"):
        message = refusal(ModelSpec(path=str(model), adapter=str(folder)), role)
        assert message.startswith("adapter 'ADAPTER': does not fit the model 'MODEL' (size mismatch for ")
        assert message.endswith("; give the base model it was trained on")


def test_an_adapter_with_weights_under_other_names(model: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    save_file({name.replace("layers.1", "layers.7"): t for name, t in load_file(file).items()}, file)
    assert refusal(ModelSpec(path=str(model), adapter=str(folder))) == (
        "adapter 'ADAPTER': does not fit the model 'MODEL' (it lacks "
        "'base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight'); give the base model it was trained on"
    )


def test_tokenizer_missing(model: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_tokenizer(ModelSpec(path=str(model)))
    assert str(caught.value) == (
        f"tokenizer of {str(model)!r}: the folder holds none (tokenizer.json is missing); copy the tokenizer's files "
        "beside the model"
    )


def test_tokenizer_unreadable(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"^tokenizer of '.*': could not be read \(.*\); copy its files again$"):
        load_tokenizer(ModelSpec(path=str(model)))


def characters(text: str) -> Any:
    return train_tokenizer([text], vocab_size=100, kind="characters", announce=print)


def test_tokenizers_that_differ() -> None:
    with pytest.raises(InputError) as caught:
        same_tokenizer(characters("abc"), characters("abxyz"))
    assert str(caught.value) == (
        "the student's tokenizer (7 tokens) is not the teacher's (9 tokens): token 6 is 'c' for the student and 'x' "
        "for the teacher; distil between models of one tokenizer, or train the student from `init` with the teacher's"
    )


def test_tokenizers_with_one_vocabulary_that_cut_otherwise() -> None:
    from tokenizers import normalizers

    plain, lower = characters("aA bB tT.,"), characters("aA bB tT.,")
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError) as caught:
        same_tokenizer(plain, lower)
    assert str(caught.value).startswith(
        "the student's tokenizer has the teacher's tokens but cuts text otherwise, for example \"DON'T"
    )


def test_real_tokenizers_that_differ(data_folder: Path) -> None:
    student, same, other = (
        load_tokenizer(ModelSpec(path=str(data_folder / "weights" / name)))
        for name in ("stories260K-hf", "tinystories-bitnet-3M-hf", "babyllama105-hf")
    )
    same_tokenizer(student, same)
    with pytest.raises(
        InputError, match=r"^the student's tokenizer \(512 tokens\) is not the teacher's \(105 tokens\)"
    ):
        same_tokenizer(student, other)


def test_wrong_config_blocks() -> None:
    def say(tokenizer: Any = None, **given: Any) -> str:
        with pytest.raises(InputError) as caught:
            build_config(given, tokenizer, "stages.student")
        return str(caught.value)

    assert say(model_type="lama") == (
        "stages.student.config.model_type: 'lama' is no causal language model of the installed transformers (did you "
        "mean 'llama'?); accepted are for example llama, mistral, mixtral"
    )
    assert say(model_type="llama", hiden_size=8) == (
        "stages.student.config.hiden_size: is not a key of the llama config (did you mean 'hidden_size'?); remove or "
        "correct it"
    )
    assert say(model_type="llama", hidden_size="8") == (
        "stages.student.config: transformers refuses it (Field 'hidden_size' expected int, got str (value: '8')); "
        "correct it"
    )
    assert say(model_type="llama", hidden_size=9, num_attention_heads=2) == (
        "stages.student.config: transformers refuses it (The hidden size (9) is not a multiple of the number of "
        "attention heads (2)); correct it"
    )
    assert say(characters("abc"), model_type="llama", vocab_size=5) == (
        "stages.student.config.vocab_size: is 5, but the tokenizer has 7 tokens; raise it or leave it out"
    )


def test_wrong_tokenizer_training() -> None:
    def say(texts: list[str], **options: Any) -> str:
        with pytest.raises(InputError) as caught:
            train_tokenizer(texts, announce=print, where="stages.student.tokenizer", **options)
        return str(caught.value)

    assert say(["a"], vocab_size=100, kind="bpe") == (
        "stages.student.tokenizer: `vocab_size` is 100, but a byte-level tokenizer has at least 259 tokens; raise it, "
        "or use `kind: characters`"
    )
    assert say(["a"], vocab_size=4, kind="characters") == (
        "stages.student.tokenizer: `vocab_size` is 4, but the special tokens alone are 4"
    )
    assert say([""], vocab_size=300, kind="bpe") == (
        "stages.student.tokenizer: there is no text to train on; name a dataset that has rows"
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no file '{path}'; give a Jinja file's path, or `default`"),
        ("  \n", "'{path}' is empty; give a Jinja template, or `default`"),
        ("{% if %}", "is no valid Jinja chat template (Expected an expression, got 'end of statement block'); mend it"),
    ],
)
def test_wrong_chat_templates(tmp_path: Path, content: str | None, sentence: str) -> None:
    from preceptor.stages.init import execute

    path = tmp_path / "template.jinja"
    if content is not None:
        path.write_text(content)
    characters("abc").save_pretrained(tmp_path / "tokenizer")
    config = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    stage = {"kind": "init", "config": config, "tokenizer": str(tmp_path / "tokenizer"), "chat_template": str(path)}
    recipe = parse_recipe({"name": "a", "runs_dir": str(tmp_path / "runs"), "stages": {"student": stage}})
    with pytest.raises(InputError) as caught:
        execute(recipe.stages["student"], StageContext(recipe, "student", tmp_path, 1, print))
    assert str(caught.value) == "stages.student.chat_template: " + sentence.replace("{path}", str(path))
    assert not (tmp_path / "model").exists()
    shutil.rmtree(tmp_path / "tokenizer")
