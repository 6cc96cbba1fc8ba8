"""GPT-1 and GPT-2 compute what transformers computes."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import math

import pytest
import torch
import transformers
from parity import check_parity, drawn

from lmcourse.models.family import count_parameters
from lmcourse.models.gpt import (
    GPTS,
    read_gpt1,
    read_gpt2,
    training_days,
    training_flops,
    write_gpt,
)

SIZES = dict(vocab_size=97, n_positions=32, n_embd=32, n_layer=2, n_head=4,
             initializer_range=0.2)
BOTH = [
    {},
    dict(vocab_size=53, n_layer=3, n_embd=30, n_head=5, n_positions=13,
         layer_norm_epsilon=1e-2),
    dict(n_head=1, n_layer=1, resid_pdrop=0.0, embd_pdrop=0.0,
         attn_pdrop=0.3),
    dict(tie_word_embeddings=False, n_embd=24, n_head=3),
]
GPT1 = [dict(afn=name) for name in ("relu", "silu", "swish")]
GPT2 = [
    *(dict(activation_function=name) for name in (
        "relu", "silu", "gelu", "gelu_pytorch_tanh")),
    dict(n_inner=31, scale_attn_weights=False),
]
CASES = [(transformers.OpenAIGPTConfig, changes) for changes in BOTH + GPT1
         ] + [(transformers.GPT2Config, changes) for changes in BOTH + GPT2]
READ = {transformers.OpenAIGPTConfig: read_gpt1,
        transformers.GPT2Config: read_gpt2}


@pytest.mark.parametrize("kind, changes", CASES, ids=str)
def test_parity(kind, changes, tmp_path):
    settings = kind(**SIZES | changes)
    ours = check_parity(drawn(settings, by=0.1), tmp_path)
    config = READ[kind](settings.to_dict())
    assert config == ours.config == READ[kind](write_gpt(config))


@pytest.mark.parametrize("read, changes, message", [
    (read_gpt2, dict(scale_attn_by_inverse_layer_idx=True),
     "scale_attn_by_inverse_layer_idx=True: must be False"),
    (read_gpt2, dict(reorder_and_upcast_attn=True),
     "reorder_and_upcast_attn=True: must be False"),
    (read_gpt2, dict(activation_function="mish"),
     "activation_function='mish': must be 'gelu_new' or"),
    (read_gpt1, dict(afn="mish"), "afn='mish': must be"),
])
def test_what_is_not_implemented_is_refused(read, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        read(SIZES | changes)
    assert "\n" not in str(error.value)


def test_dropout_is_taken_over():
    assert read_gpt2(SIZES | dict(resid_pdrop=0.3)).dropout == 0.3


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
