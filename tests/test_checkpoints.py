"""Files of checkpoints: whole, damaged, in pieces, missing."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import test_llama
import torch
import transformers
from parity import EAGER, drawn
from safetensors.torch import load_file, safe_open, save_file
from torch import nn

from lmcourse.checkpoints import (
    FAMILIES,
    find_checkpoint,
    load_model,
    read_header,
    register,
    save_model,
    write_tensors,
)
from lmcourse.files import MANIFEST
from lmcourse.layers.transformer import TransformerConfig, build_transformer
from lmcourse.models.family import (
    essential_fields,
    read_config,
    write_config,
)
from lmcourse.models.llama import LLAMA, OPEN_DECODERS, total_and_active

CONFIG = TransformerConfig(vocab_size=50, max_length=32, d_model=16,
                           n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24,
                           **LLAMA)
INPUT_IDS = torch.arange(10)[None]


def family_of(name):
    """The family of a published configuration."""
    kind = {"gemma-2-": "gemma2", "gemma-3-": "gemma3_text",
            "qwen3-30": "qwen3_moe", "qwen3-23": "qwen3_moe"}.get(
                name[:8], name.split("-")[0])
    return next(f for f in FAMILIES.values() if f.model_type == kind)


@pytest.fixture
def folder(tmp_path):
    """A small Llama, saved."""
    save_bare(build_transformer(CONFIG).eval(), tmp_path / "model")
    return tmp_path / "model"


def save_bare(model, folder, **options):
    """Without a manifest, as files from elsewhere."""
    save_model(model, folder, **options)
    (folder / MANIFEST).unlink()


def edit(folder, **changes):
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in settings.items()
                                if v != "DELETE"}))


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refuses(folder, *words, error=ValueError):
    with pytest.raises(error) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# Settings

@pytest.mark.parametrize("changes,words", [
    (dict(quantization_config={"bits": 4}), ["quantization_config"]),
    (dict(partial_rotary_factor=0.5), ["partial_rotary_factor=0.5"]),
    (dict(use_sliding_window=True), ["use_sliding_window=True"]),
    (dict(layer_types=["full_attention"] * 2), ["layer_types"]),
    (dict(is_encoder_decoder=True), ["is_encoder_decoder=True", "False"]),
    (dict(hidden_act="quick_gelu"), ["hidden_act='quick_gelu'", "silu"]),
    (dict(mlp_bias="yes"), ["mlp_bias='yes'"]),
    (dict(model_type="mamba"), ["model_type='mamba'", "llama"]),
    (dict(model_type="DELETE"), ["model_type=None"]),
    (dict(architectures=["LlamaForMultipleChoice"]),
     ["LlamaForMultipleChoice", "LlamaForCausalLM"]),
    (dict(hidden_size="DELETE"), ["hidden_size is missing"]),
    (dict(hidden_size="16"), ["hidden_size='16'"]),
    (dict(num_key_value_heads=3), ["n_kv_heads=3", "n_heads=4"]),
    (dict(rope_scaling={"rope_type": "spiral"}), ["rope_type='spiral'"]),
    (dict(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
     ["low_freq_factor", "is missing"]),
    (dict(rope_scaling={"type": "linear", "factor": 2.0, "twist": 1}),
     ["twist=1"]),
])
def test_a_knob_that_is_not_understood_is_refused(folder, changes, words):
    edit(folder, **changes)
    refuses(folder, "config.json", *words)


def test_other_families_refuse_by_name(tmp_path):
    for name, changes, words in [
        ("gemma-3-1b", dict(attn_logit_softcapping=50.0),
         ["attn_logit_softcapping=50.0"]),
        ("gemma-2-2b", dict(use_bidirectional_attention=True),
         ["use_bidirectional_attention=True"]),
        ("gemma-2-2b", dict(layer_types=["full_attention"]),
         ["layer_types has 1 entries", "26"]),
        ("qwen2-0.5b", dict(layer_types=["linear_attention"] * 24),
         ["linear_attention"]),
        ("mixtral-8x7b", dict(shared_expert_intermediate_size=8),
         ["shared_expert_intermediate_size=8"]),
    ]:
        with torch.device("meta"):
            model = build_transformer(OPEN_DECODERS[name])
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        family = family_of(name)
        settings = write_config(family, model.config)
        (folder / "config.json").write_text(json.dumps(
            settings | {"model_type": family.model_type} | changes))
        refuses(folder, "config.json", *words)


def test_config_that_is_no_object(folder):
    (folder / "config.json").write_text("[]")
    refuses(folder, "config.json", "object")
    (folder / "config.json").write_text("{")
    refuses(folder, "config.json", "JSON")
    (folder / "config.json").unlink()
    refuses(folder, "config.json", error=FileNotFoundError)


DELETED = object()


def unusual(value):
    """Other values for a key of config.json: possible ones and nonsense."""
    if isinstance(value, bool):
        return [not value, DELETED]
    if isinstance(value, int):
        return [2 * value, -1, DELETED]
    if isinstance(value, float):
        return [value + 0.37, "x", DELETED]
    if isinstance(value, str):
        return ["unusual", DELETED]
    if isinstance(value, list):
        return [value[::-1] + ["unusual"], value[::-1], 5, DELETED]
    if isinstance(value, dict):
        inner = [value | {key: "x"} for key in value if key != "rope_type"]
        return [value | {"unusual": 1}, 5, DELETED, *inner]
    return [7, "x"]  # None


TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id"}
NOT_IN_THE_LOGITS = TOKENS | {
    "dtype", "id2label", "initializer_range", "attn_pdrop", "return_dict",
    "embd_pdrop", "attention_dropout", "router_jitter_noise",
    "summary_activation", "summary_first_dropout", "summary_type",
    "summary_proj_to_labels", "summary_use_proj", "pretraining_tp",
    "output_router_logits", "router_aux_loss_coef"}


GPT_SIZES = dict(vocab_size=97, n_embd=32, n_layer=2, n_head=4,
                 n_positions=64)
CARDS = {"gpt2": transformers.GPT2Config(**GPT_SIZES),
         "openai-gpt": transformers.OpenAIGPTConfig(**GPT_SIZES)} | {
    name: test_llama.settings(name) for name in test_llama.FAMILIES}
# read by one function for all of Llama's relatives, or for both GPTs
SAME = {"gpt2": set(), "llama": set(), "openai-gpt": {
    "n_embd", "n_layer", "n_head", "n_positions", "layer_norm_epsilon",
    "resid_pdrop", "embd_pdrop", "vocab_size", "tie_word_embeddings"}}
SAME_AS_LLAMA = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
    "max_position_embeddings", "attention_dropout"}
# of no family: tested in two of them
OF_ALL = NOT_IN_THE_LOGITS | set(
    transformers.PretrainedConfig().to_dict()) | {"use_cache"}


@pytest.mark.parametrize("name", CARDS)
def test_each_key_is_honored_or_refused_by_name(name, tmp_path):
    """Each key of the library's config in turn gets an unusual value."""
    config = CARDS[name]
    drawn(config, dtype=torch.float32).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    known = config.to_dict() | written | {"hovercraft": "eels"}
    done = SAME.get(name, SAME_AS_LLAMA)
    if name not in ("gpt2", "llama"):
        done = done | OF_ALL - {"tie_word_embeddings", "model_type",
                                "architectures"}
    for key in known.keys() - done:
        for other in unusual(known[key]):
            changed = written | {key: other}
            if other is DELETED:
                changed.pop(key)
            path.write_text(json.dumps(changed))
            honored_or_refused(tmp_path, key, other)


def honored_or_refused(folder, key, value):
    try:
        ours = load_model(folder)
    except ValueError as error:
        message = str(error)
        assert message.startswith(str(folder)) and "\n" not in message
        named = key in message or str(value) in message
        in_dict = isinstance(value, dict) and any(k in message for k in value)
        shapes = "config.json asks for" in message or "missing" in message
        tied = key == "tie_word_embeddings" and "ties them" in message
        gone = value is DELETED  # another key contradicts the default
        assert named or in_dict or shapes or tied or gone, (
            key, value, message)
        return
    try:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            folder, **EAGER).eval()
        with torch.no_grad():
            expected = theirs(INPUT_IDS).logits
    except Exception as error:  # they are stricter: an int is no float there
        assert key in NOT_IN_THE_LOGITS or type(value) is int, (
            key, value, error)
        return
    with torch.no_grad():
        far = (ours(INPUT_IDS) - expected).abs().max() / expected.abs().max()
    assert far < 1e-5, (key, value, far)


# Tensors

NORM = "model.layers.1.input_layernorm.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def test_missing_tensor(folder):
    edit_tensors(folder, lambda tensors: tensors.pop(QUERY))
    refuses(folder, QUERY, "(16, 16)", "missing")


def test_extra_tensor(folder):
    edit_tensors(folder, lambda tensors: tensors.update(
        {"model.layers.2.surprise": torch.zeros(3, 5)}))
    refuses(folder, "model.safetensors", "surprise", "(3, 5)")


def test_wrong_shapes_are_both_named(folder):
    edit_tensors(folder, lambda tensors: tensors.update(
        {QUERY: torch.zeros(12, 16)}))
    refuses(folder, "model.safetensors", QUERY, "(12, 16)", "(16, 16)")


def test_heads_that_only_sum_up_are_noticed(folder):
    """Six query heads and one key head have as many rows as four and two."""
    edit(folder, num_attention_heads=6, num_key_value_heads=1, head_dim=4)
    refuses(folder, QUERY, "(16, 16)", "(24, 16)")


def test_cut_short(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for length in (0, 5, 100, len(content) - 1):
        path.write_bytes(content[:length])
        refuses(folder, "model.safetensors")
    path.write_bytes(b"\x10" + bytes(7) + b"no json at all!!" + bytes(50))
    refuses(folder, "model.safetensors", "cut short", "JSON")


def test_any_damage_is_an_error_or_harmless(folder):
    """Bytes of the header changed, bytes missing: refused, or all the same."""
    expected = load_model(folder)(INPUT_IDS)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    first = 8 + int.from_bytes(content[:8], "little")
    chance = random.Random(0)
    for number in range(150):
        damaged = bytearray(content)
        if number % 4 == 0:
            del damaged[chance.randrange(len(content)):]
        else:
            for _ in range(number % 4):
                damaged[chance.randrange(first)] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            model = load_model(folder)
        except ValueError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
        else:
            assert torch.equal(model(INPUT_IDS), expected)


@pytest.mark.parametrize("text", [
    "[]", "null", '"x"', "[" * 50_000, '{"x":' * 50_000, '{"x": null}',
    '{"x": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}',
    '{"x": {"dtype": "F32", "shape": [1e9], "data_offsets": [0, 4]}}',
    '{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}',
    '{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}',
    '{"x": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}}',
], ids=lambda text: text[:60])
def test_header_that_is_something_else(folder, text):
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode()
                     + bytes(100))
    refuses(folder)
    (folder / "config.json").write_text(text)
    refuses(folder, "config.json")


@pytest.mark.parametrize("entry", [
    {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [2]},
    {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
    [],
])
def test_header_that_contradicts_itself(tmp_path, entry):
    text = json.dumps({"x": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ValueError, match="model.safetensors: is damaged"):
        read_header(path)


def test_numbers_that_are_not_read(folder):
    edit_tensors(folder, lambda tensors: tensors.update(
        {NORM: torch.zeros(16, dtype=torch.int32)}))
    refuses(folder, "model.safetensors", "I32", "F32")


def test_mixed_number_formats_need_a_choice(folder):
    edit_tensors(folder, lambda tensors: tensors.update(
        {NORM: tensors[NORM].bfloat16()}))
    refuses(folder, "dtype=None", "BF16")
    model = load_model(folder, dtype=torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_rotary_buffers_of_old_files_are_skipped(folder):
    expected = load_model(folder)(INPUT_IDS)
    edit_tensors(folder, lambda tensors: tensors.update(
        {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}))
    assert torch.equal(load_model(folder)(INPUT_IDS), expected)


def test_tied_head_may_be_repeated_but_not_differ(tmp_path):
    config = TransformerConfig(**vars(CONFIG) | dict(tie_weights=True))
    save_bare(build_transformer(config), tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update(
        {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    load_model(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update(
        {"lm_head.weight": tensors["lm_head.weight"] + 1}))
    refuses(tmp_path, "lm_head.weight", "embed_tokens")


def test_files_of_the_bare_model(tmp_path):
    config = TransformerConfig(**vars(CONFIG) | dict(tie_weights=True))
    save_bare(build_transformer(config), tmp_path)
    expected = load_model(tmp_path)(INPUT_IDS)
    path = tmp_path / "model.safetensors"
    save_file({name.removeprefix("model."): tensor
               for name, tensor in load_file(path).items()}, path)
    assert torch.equal(load_model(tmp_path)(INPUT_IDS), expected)


# Several files

def test_shards_and_their_index(folder, tmp_path):
    model = load_model(folder)
    sharded = tmp_path / "sharded"
    save_model(model, sharded, shard_bytes=3000)
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert torch.equal(load_model(sharded)(INPUT_IDS), model(INPUT_IDS))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(sharded)
    assert torch.allclose(theirs(INPUT_IDS).logits, model(INPUT_IDS),
                          atol=1e-5)
    save_model(model, sharded)  # the old layout goes
    assert [path.name for path in sharded.glob("model*")] == [
        "model.safetensors"]


@pytest.mark.parametrize("change,words", [
    (lambda index: index["weight_map"].update({QUERY: "gone.safetensors"}),
     ["gone.safetensors"]),
    (lambda index: index["weight_map"].update({QUERY: "../x.safetensors"}),
     ["../x.safetensors"]),
    (lambda index: index["weight_map"].update(
        {"nowhere": index["weight_map"][QUERY]}), ["nowhere"]),
    (lambda index: index.pop("weight_map"), ["weight_map"]),
    (lambda index: index.update(weight_map={QUERY: 7}), ["7"]),
])
def test_an_index_that_lies(folder, change, words):
    save_bare(load_model(folder), folder, shard_bytes=9000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    refuses(folder, path.name, *words)


def test_pickles_are_refused_unopened(folder):
    class Bomb:
        def __reduce__(self):
            return (exit, ("opened",))

    (folder / "model.safetensors").unlink()
    refuses(folder, "model.safetensors", error=FileNotFoundError)
    path = folder / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(Bomb()))
    refuses(folder, "pytorch_model.bin", "pickle", "save_pretrained")


# Into a model that is there

def quietly(folder, into):
    with pytest.warns(UserWarning) as told:
        model = load_model(folder, into=into)
    assert len(told) == 1 and "\n" not in str(told[0].message)
    assert told[0].filename == __file__
    return model, str(told[0].message)


def test_a_body_with_a_head_of_its_own(folder):
    source, model = load_model(folder), build_transformer(CONFIG)
    model.head = nn.Linear(16, 3)
    before = model.head.weight.clone()
    embedding = model.get_parameter("embeddings.tokens.weight")
    same, message = quietly(folder, model)
    assert same is model and not model.training
    assert model.fresh == ("head.weight", "head.bias")
    assert model.unused == ("lm_head.weight",)
    assert all(name in message for name in model.fresh + model.unused)
    assert torch.equal(model.head.weight, before)
    assert model.get_parameter("embeddings.tokens.weight") is embedding
    for name, parameter in source.named_parameters():
        if not name.startswith("head."):
            assert torch.equal(model.get_parameter(name), parameter), name


def test_into_a_model_in_which_all_fits(folder, recwarn):
    model = load_model(folder, into=build_transformer(CONFIG).double())
    assert not recwarn and model.fresh == model.unused == ()
    assert next(model.parameters()).dtype == torch.float64
    assert torch.equal(model.float()(INPUT_IDS),
                       load_model(folder)(INPUT_IDS))


def test_only_what_the_files_lack_stays_fresh(folder):
    edit_tensors(folder, lambda tensors: (tensors.pop(QUERY),
                                          tensors.pop("lm_head.weight")))
    tied = TransformerConfig(**vars(CONFIG) | dict(tie_weights=True))
    model, message = quietly(folder, build_transformer(tied))
    assert len(model.fresh) == 1 and model.fresh[0] in message
    assert model.fresh == ("layers.0.attention.q_proj.weight",)
    assert model.unused == ()


@pytest.mark.parametrize("changes, words", [
    (dict(rope_theta=77.0), ["rope_theta", "77.0"]),  # no shape tells it
    (dict(n_heads=2), ["n_heads"]), (dict(n_layers=1), ["n_layers"]),
    (dict(vocab_size=60), ["vocab_size=50", "60"]),
])
def test_into_another_body_is_refused(folder, changes, words):
    model = build_transformer(TransformerConfig(**vars(CONFIG) | changes))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError) as caught:
        load_model(folder, into=model)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)
    assert all(map(torch.equal, before, model.parameters()))


def test_into_refuses_what_it_cannot_fill(folder):
    with torch.device("meta"):
        empty = build_transformer(CONFIG)
    for options, message in [
            (dict(into=empty), "into: .*meta device"),
            (dict(into=nn.Linear(2, 2)), "into: its config is a NoneType"),
            (dict(into=build_transformer(CONFIG), device="cpu"), "device=cpu"),
            (dict(into=build_transformer(CONFIG), dtype=torch.float64),
             "dtype=torch.float64")]:
        with pytest.raises(ValueError, match=message):
            load_model(folder, **options)
    model = build_transformer(CONFIG)
    before = [p.clone() for p in model.parameters()]
    edit_tensors(folder, lambda tensors: tensors.update(
        {NORM: torch.zeros(15)}))
    with pytest.raises(ValueError, match="input_layernorm"):
        load_model(folder, into=model)
    assert all(map(torch.equal, before, model.parameters()))


def test_a_strange_head_is_not_saved_as_the_usual_one(folder, tmp_path):
    model = load_model(folder)
    model.head = nn.Linear(16, 50)
    with pytest.raises(ValueError, match="head.bias has shape .50,."):
        save_model(model, tmp_path / "m")


# Saving

def test_what_is_written_is_what_safetensors_reads(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {str(dtype): torch.randn(7, 5, generator=generator).to(dtype)
               for dtype in (torch.float64, torch.float32, torch.float16,
                             torch.bfloat16)}
    tensors["view"] = tensors["torch.float32"].T[1:3]
    write_tensors(tmp_path / "x", tensors)
    assert all(torch.equal(tensor, tensors[name])
               for name, tensor in load_file(tmp_path / "x").items())
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(read_header(tmp_path / "x"))
    with pytest.raises(ValueError, match="ids: .*int64"):
        write_tensors(tmp_path / "y", {"ids": torch.arange(3)})


def test_an_interrupted_save_leaves_the_old_files(folder, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lmcourse.files.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        save_model(build_transformer(CONFIG), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


# of one shape in all files; the angles tell them apart, and so do the weights
VERSIONS = [replace(CONFIG, rope_theta=theta) for theta in (10.0, 20.0)]
KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
from lmcourse.checkpoints import save_model
from lmcourse.layers.transformer import TransformerConfig, build_transformer

torch.set_num_threads(1)  # the processes below are forks

def counted(function):
    def call(*arguments):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return function(*arguments)
    return call

def save(how, when):
    global left
    left = when
    if how == "step":
        for name in ("replace", "unlink", "fsync"):
            setattr(os, name, counted(getattr(os, name)))
    save_model(new, folder, shard_bytes=int(sys.argv[3]))

old, new = (build_transformer(
    TransformerConfig(**config),
    generator=torch.Generator().manual_seed(number))
    for number, config in enumerate(VERSIONS))
for how, when in KILLS:
    folder = Path(sys.argv[1]) / f"{how} {when}"
    save_model(old, folder, shard_bytes=int(sys.argv[2]))
    (folder / "README.md").write_text("mine")
    (folder / "model-backup.safetensors").write_text("mine")
    child = os.fork()
    if child == 0:
        save(how, when)
        os._exit(0)
    if how == "time":
        time.sleep(when)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""
KILLS = [*(("step", n) for n in range(0, 60, 3)),
         *(("time", n / 1000) for n in range(1, 21, 3))]


def version(number):
    draws = torch.Generator().manual_seed(number)
    return build_transformer(VERSIONS[number], generator=draws).eval()


def which_version(folder):
    """0 or 1: all of the folder is of this version."""
    model = load_model(folder)
    number = VERSIONS.index(model.config)
    assert all(map(torch.equal, model.parameters(),
                   version(number).parameters()))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert torch.allclose(theirs(INPUT_IDS).logits, model(INPUT_IDS),
                          atol=1e-5)
    return number


@pytest.mark.parametrize("before, after", [
    (10 ** 9, 10 ** 9), (3000, 3000), (10 ** 9, 3000), (3000, 10 ** 9),
    (3000, 2000)])
def test_killed_while_saving_over_an_old_model(tmp_path, before, after):
    """27 kills at renamings, deletions, syncs and moments, with one file or
    several before and after: the old model or the new one, here and in the
    other library.
    """
    program = KILLED.replace("KILLS", repr(KILLS)).replace(
        "VERSIONS", repr([*map(vars, VERSIONS)]))
    subprocess.run([sys.executable, "-c", program, str(tmp_path), str(before),
                    str(after)], check=True, cwd=Path(__file__).parents[1])
    seen = {}
    for folder in tmp_path.iterdir():
        seen[folder.name] = which_version(folder)
        assert (folder / "README.md").read_text() == "mine"
        assert (folder / "model-backup.safetensors").exists()
    assert len(seen) == len(KILLS)
    steps = [seen[f"step {n}"] for how, n in KILLS if how == "step"]
    assert steps == sorted(steps) and {*steps} == {0, 1}


FULL = """
import resource, signal, sys
sys.path.insert(0, "tests")
from test_checkpoints import save_model, version
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # bytes of a file
save_model(version(1), sys.argv[1])
"""


def test_a_disk_that_is_full(tmp_path):
    """The old model stays, and nothing half is left beside it."""
    save_model(version(0), tmp_path, shard_bytes=3000)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)],
                          capture_output=True, text=True,
                          cwd=Path(__file__).parents[1])
    assert done.returncode == 1 and "File too large" in done.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert which_version(tmp_path) == 0


@pytest.mark.parametrize("pattern", [
    "config.json", "model-00001-*", "model-00004-*", "model.*", MANIFEST])
def test_a_flipped_bit_is_noticed(tmp_path, pattern):
    """Any of 40 bits of each file."""
    save_model(version(0), tmp_path / "m", shard_bytes=3000)
    (path,) = (tmp_path / "m").glob(pattern)
    name, draws = path.name, random.Random(pattern)
    content = path.read_bytes()
    for _ in range(40):
        damaged = bytearray(content)
        damaged[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError) as error:
            load_model(tmp_path / "m")
        assert name in str(error.value)
        assert len(str(error.value).splitlines()) == 1
    path.write_bytes(content)
    load_model(tmp_path / "m")


def test_a_config_edited_by_hand(tmp_path):
    save_model(version(0), tmp_path)
    edit(tmp_path, rope_theta=20.0)
    refuses(tmp_path, "config.json: has changed since it was written; if that "
                      f"was meant, delete {tmp_path / MANIFEST}")
    (tmp_path / MANIFEST).unlink()
    assert load_model(tmp_path).config.rope_theta == 20.0


def test_model_type_is_kept_chosen_or_refused(folder, tmp_path):
    model = load_model(folder)
    assert model.settings["model_type"] == "llama"
    save_model(model, tmp_path / "m", model_type="mistral")
    again = load_model(tmp_path / "m")
    assert again.config == model.config
    save_model(again, tmp_path / "n")
    assert load_model(tmp_path / "n").settings["model_type"] == "mistral"
    with pytest.raises(ValueError, match="gemma'.*cannot say"):
        save_model(model, tmp_path / "o", model_type="gemma")
    with pytest.raises(ValueError, match="model_type='bird'"):
        save_model(model, tmp_path / "o", model_type="bird")
    odd = build_transformer(TransformerConfig(50, 32, 16, 1, 4, 24,
                                              positions="sinusoidal"))
    with pytest.raises(ValueError, match="no family"):
        save_model(odd, tmp_path / "o")


def test_token_ids_survive(folder, tmp_path):
    edit(folder, eos_token_id=[3, 4], pad_token_id=0)
    save_model(load_model(folder), tmp_path / "again")
    settings = json.loads((tmp_path / "again/config.json").read_text())
    assert settings["eos_token_id"] == [3, 4]


@pytest.mark.parametrize("name", OPEN_DECODERS)
def test_named_configurations_can_be_said(name):
    """Each published configuration has words in its family."""
    family, config = family_of(name), OPEN_DECODERS[name]
    again = read_config(family, write_config(family, config))
    assert essential_fields(again) == essential_fields(config)


# Memory, devices, the Hub

def test_peak_memory(tmp_path):
    """Loading takes little more than the weights, in any number format."""
    config = TransformerConfig(60_000, 64, 512, 4, 8, 2048, **LLAMA)
    save_model(build_transformer(config), tmp_path, shard_bytes=10 ** 8)
    script = """
import pathlib, re, resource, sys, torch
from lmcourse.checkpoints import load_model
load_model(sys.argv[1])  # of one layer: libraries are warm now
def peak():
    status = pathlib.Path("/proc/self/status")
    if not status.exists():  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage's maximum would be the parent's, which comes along
    return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) * 1024
before = peak()
model = load_model(sys.argv[2], dtype=getattr(torch, sys.argv[3]))
weights = sum(p.nbytes for p in model.parameters())
print((peak() - before) / weights)
"""
    small = tmp_path / "small"
    save_model(build_transformer(CONFIG), small)
    for dtype in ("float32", "bfloat16"):
        run = subprocess.run([sys.executable, "-c", script, small, tmp_path,
                              dtype], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert 0.9 < float(run.stdout) < 1.2, dtype


def test_the_device_is_respected(folder):
    model = load_model(folder, device="meta")
    assert all(p.is_meta for p in model.parameters())
    assert not load_model(folder).training


def test_hub_offline_in_an_empty_script(tmp_path):
    """Nothing else has imported the parts of huggingface_hub by then."""
    script = "from lmcourse.checkpoints import load_model; load_model('gpt2')"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("FileNotFoundError: gpt2: is no folder, is not ")
    assert str(tmp_path) in last and "works offline" in last


def test_hub_offline_and_cached(folder, tmp_path, monkeypatch):
    constants = huggingface_hub.constants
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as caught:
        load_model("someone/something")
    message = str(caught.value)
    assert "models--someone--something" in message
    assert "folder" in message and "\n" not in message
    home = cache / "models--someone--something"
    commit = "0" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text(commit)
    (home / "snapshots").mkdir()
    (home / "snapshots" / commit).symlink_to(folder)
    assert find_checkpoint("someone/something").name == commit
    assert torch.equal(load_model("someone/something")(INPUT_IDS),
                       load_model(folder)(INPUT_IDS))


def test_a_name_that_is_neither(folder, tmp_path, monkeypatch):
    refuses(tmp_path / "not/there/at all", error=FileNotFoundError)
    refuses(folder / "config.json", error=FileNotFoundError)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"lmcourse\[hub\]"):
        load_model("someone/something")


# Published sizes

@pytest.mark.parametrize("name, total", [
    ("llama-1-7b", 6_738_415_616), ("llama-1-13b", 13_015_864_320),
    ("llama-1-33b", 32_528_943_616), ("llama-1-65b", 65_285_660_672),
    ("llama-2-7b", 6_738_415_616), ("llama-2-13b", 13_015_864_320),
    ("llama-2-70b", 68_976_648_192), ("llama-3.1-8b", 8_030_261_248),
    ("llama-3.1-70b", 70_553_706_496), ("llama-3.1-405b", 405_853_388_800),
    ("llama-3.2-1b", 1_235_814_400), ("llama-3.2-3b", 3_212_749_824),
    ("mistral-7b", 7_241_732_096), ("qwen2-0.5b", 494_032_768),
    ("qwen2-1.5b", 1_543_714_304), ("qwen2-7b", 7_615_616_512),
    ("qwen2-72b", 72_706_203_648), ("qwen3-0.6b", 596_049_920),
    ("qwen3-1.7b", 1_720_574_976), ("qwen3-4b", 4_022_468_096),
    ("qwen3-8b", 8_190_735_360), ("qwen3-14b", 14_768_307_200),
    ("qwen3-32b", 32_762_123_264), ("gemma-2b", 2_506_172_416),
    ("gemma-7b", 8_537_680_896), ("gemma-2-2b", 2_614_341_888),
    ("gemma-2-9b", 9_241_705_984), ("gemma-2-27b", 27_227_128_320),
    ("gemma-3-1b", 999_885_952), ("gemma-3-4b", 3_880_263_168),
    ("gemma-3-12b", 11_766_034_176), ("gemma-3-27b", 27_009_346_304),
    ("mixtral-8x7b", 46_702_792_704),
    pytest.param("qwen3-30b-a3b", 30_532_122_624,  # in chapter 41 as well
                 marks=pytest.mark.nightly),
])
def test_published_parameter_counts(name, total):
    assert total_and_active(OPEN_DECODERS[name])[0] == total


def test_a_family_is_known_once_it_is_registered(monkeypatch):
    family = FAMILIES["GPT2LMHeadModel"]
    monkeypatch.delitem(FAMILIES, "GPT2LMHeadModel")
    register(family)
    assert FAMILIES["GPT2LMHeadModel"] is family
