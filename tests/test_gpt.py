"""GPT-1 and GPT-2 give the logits that transformers gives."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import math

import pytest
import torch
import torch.nn.functional as F
import transformers

from lmcourse.layers.transformer import build_transformer
from lmcourse.models.gpt import (
    GPTS,
    count_parameters,
    gpt1_names,
    gpt2_names,
    read_gpt1,
    read_gpt2,
    training_days,
    training_flops,
    write_gpt,
)

transformers.logging.set_verbosity_error()

LENGTH = 13
SIZES = dict(vocab_size=97, n_positions=32, n_embd=32, n_layer=2, n_head=4,
             initializer_range=0.2)
BOTH = [
    {},
    dict(vocab_size=53, n_layer=3),
    dict(n_embd=30, n_head=5),
    dict(n_head=1, n_layer=1),
    dict(n_head=8, n_embd=64),
    dict(n_positions=13),
    dict(layer_norm_epsilon=1e-2),
    dict(tie_word_embeddings=False),
    dict(tie_word_embeddings=False, vocab_size=101, n_embd=24, n_head=3),
    dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.3),
]
GPT1 = [dict(afn=name) for name in ("relu", "silu", "swish", "gelu")]
GPT2 = [
    *(dict(activation_function=name) for name in (
        "relu", "silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh")),
    dict(n_inner=48),
    dict(scale_attn_weights=False),
    dict(n_inner=31, tie_word_embeddings=False, n_layer=3),
]
CASES = [("gpt1", changes) for changes in BOTH + GPT1] + [
    ("gpt2", changes) for changes in BOTH + GPT2]
FAMILIES = {
    "gpt1": (transformers.OpenAIGPTConfig, transformers.OpenAIGPTLMHeadModel,
             read_gpt1, gpt1_names),
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel,
             read_gpt2, gpt2_names),
}


def stored_name(source):
    """The name in the file."""
    name = source if isinstance(source, str) else source[0]
    return name.removesuffix(".T")


def piece(source, stored):
    """What a name of ours stands for in a dict of their tensors."""
    name, part, of = (source, 0, 1) if isinstance(source, str) else source
    tensor = stored[stored_name(source)]
    return (tensor.T if name.endswith(".T") else tensor).chunk(of)[part]


def pair(family, changes, dtype=torch.float32):
    """A random model of the library, and ours with the same weights."""
    make, build, read, names = FAMILIES[family]
    torch.manual_seed(0)
    settings = make(**SIZES | changes)
    theirs = build(settings).eval().to(dtype)
    with torch.no_grad():
        for p in theirs.parameters():  # biases and norms are not all alike
            p.add_(0.1 * torch.randn(p.shape, dtype=dtype))
    config = read(settings.to_dict())
    ours = build_transformer(config).eval().to(dtype)
    stored, used = theirs.state_dict(), set()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(piece(names(config)[name], stored))
            used.add(stored_name(names(config)[name]))
    rest = stored.keys() - used
    assert rest <= {"lm_head.weight"}  # all of theirs has a place in ours
    return theirs, ours


def distance(ours, theirs):
    """The largest difference, relative to the largest number."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def some_ids(vocab_size, batch_size=3, length=LENGTH):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocab_size, (batch_size, length),
                         generator=generator)


@pytest.mark.parametrize("family, changes", CASES, ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5),
                                              (torch.float64, 1e-10)])
def test_logits(family, changes, dtype, tolerance):
    theirs, ours = pair(family, changes, dtype)
    for batch_size in (1, 3):
        ids = some_ids(ours.config.vocab_size, batch_size)
        with torch.no_grad():
            assert distance(ours(ids), theirs(ids).logits) < tolerance


@pytest.mark.parametrize("family, changes", CASES, ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(family, changes, side):
    theirs, ours = pair(family, changes)
    ids = some_ids(ours.config.vocab_size)
    real = torch.ones_like(ids)
    for row, n in enumerate([0, 3, 7]):
        real[row, slice(None, n) if side == "left" else
             slice(LENGTH - n, None)] = 0
    positions = (real.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=real,
                          position_ids=positions).logits
        got = ours(ids, attention_mask=real)
    assert distance(got[real.bool()], expected[real.bool()]) < 1e-5


@pytest.mark.parametrize("family, changes", CASES, ids=str)
def test_gradients(family, changes):
    theirs, ours = pair(family, changes, torch.float64)
    names = FAMILIES[family][3](ours.config)
    ids = some_ids(ours.config.vocab_size)
    their_logits = theirs(ids).logits[:, :-1]  # their loss is in float32
    F.cross_entropy(their_logits.flatten(0, 1),
                    ids[:, 1:].flatten()).backward()
    logits = ours(ids)[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    gradients = {name: parameter.grad
                 for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        gradient = piece(names[name], gradients)
        assert distance(parameter.grad, gradient) < 1e-10, name


@pytest.mark.parametrize("family, changes", CASES, ids=str)
def test_configurations_survive_the_way_out_and_back(family, changes):
    make, _, read, _ = FAMILIES[family]
    config = read(make(**SIZES | changes).to_dict())
    assert read(write_gpt(config)) == config


@pytest.mark.parametrize("read, changes, message", [
    (read_gpt2, dict(scale_attn_by_inverse_layer_idx=True),
     "scale_attn_by_inverse_layer_idx=True: must be False"),
    (read_gpt2, dict(add_cross_attention=True),
     "add_cross_attention=True: must be False"),
    (read_gpt2, dict(reorder_and_upcast_attn=True),
     "reorder_and_upcast_attn=True: must be False"),
    (read_gpt2, dict(activation_function="mish"),
     "activation_function='mish': must be 'gelu_new' or"),
    (read_gpt1, dict(afn="mish"), "afn='mish': must be"),
    (read_gpt1, dict(embd_pdrop=0.2),
     "embd_pdrop=0.2: must be resid_pdrop=0.1"),
    (read_gpt2, dict(n_ctx=16), "n_ctx=16: must be 32"),
])
def test_what_is_not_implemented_is_refused(read, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        read(SIZES | changes)
    assert "\n" not in str(error.value)


def test_dropout_is_taken_over():
    assert read_gpt2(SIZES | dict(resid_pdrop=0.3, embd_pdrop=0.3)
                     ).dropout == 0.3


@pytest.mark.parametrize("name, layers, said, within", [
    ("gpt-1", 12, 117e6, 0.005),
    ("gpt-2", 48, 1.5e9, 0.04),
    ("gpt-3", 96, 175e9, 0.003),
])
def test_the_slide(name, layers, said, within):
    assert GPTS[name].n_layers == layers
    assert abs(count_parameters(GPTS[name]) / said - 1) < within


@pytest.mark.parametrize("name, settings", [
    ("gpt-2-small", {}),
    ("gpt-2-medium", dict(n_embd=1024, n_layer=24, n_head=16)),
    ("gpt-2-large", dict(n_embd=1280, n_layer=36, n_head=20)),
    ("gpt-2", dict(n_embd=1600, n_layer=48, n_head=25)),
])
def test_parameters_are_those_of_the_library(name, settings):
    settings = transformers.GPT2Config(**settings)
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(settings)
    assert count_parameters(GPTS[name]) == theirs.num_parameters()


def test_costs():
    assert training_flops(2, n_tokens=5) == 60
    assert training_days(86400 * 6.0, n_devices=2, peak_flops=10.0,
                         utilization=0.3) == pytest.approx(1.0)
    for part in (0, 1.2, math.nan):
        with pytest.raises(ValueError, match=f"utilization={part}: must be"):
            training_days(1.0, n_devices=1, peak_flops=1.0, utilization=part)
