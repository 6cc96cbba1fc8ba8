"""Positions: closed forms, transformers' rotary scalings, bad input."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lmcourse.layers.positions import (
    ROPE_SCALINGS,
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
    rope_frequencies,
    rotate,
    sinusoidal_positions,
)


def test_sinusoids_by_formula():
    table = sinusoidal_positions(torch.arange(50), d_model=12).double()
    for t in (0, 1, 49):
        for i in range(6):
            angle = torch.tensor(t / 10_000 ** (2 * i / 12)).double()
            assert abs(table[t, 2 * i] - angle.sin()) < 1e-5
            assert abs(table[t, 2 * i + 1] - angle.cos()) < 1e-5
    layer = SinusoidalPositions(12)
    assert torch.equal(layer(torch.arange(50)).double(), table)
    with pytest.raises(ValueError, match="d_model=5: must be even"):
        sinusoidal_positions(torch.arange(3), d_model=5)


def test_learned_positions_are_a_table():
    layer = LearnedPositions(6, 4, std=0.5,
                             generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 5], [3, 3]])
    assert torch.equal(layer(positions), layer.weight[positions])


def test_rotation_is_complex_and_depends_on_distance_only():
    draws = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 9, 16, generator=draws)
    rotary = RotaryPositions(16, theta=500.0)
    scores = []
    for first in (0, 30):
        cos, sin = rotary(first + torch.arange(9), length=first + 9)
        scores.append(rotate(q, cos=cos, sin=sin)
                      @ rotate(k, cos=cos, sin=sin).T)
    assert torch.allclose(*scores, atol=1e-4)
    angles = torch.arange(9)[:, None] * rope_frequencies(16, theta=500.0)
    cos, sin = rotary(torch.arange(9), length=9)
    expected = torch.complex(*q.chunk(2, -1)) * torch.exp(1j * angles)
    ours = torch.complex(*rotate(q, cos=cos, sin=sin).chunk(2, -1))
    assert torch.allclose(ours, expected, atol=1e-5)


OLD = {"original_max_position_embeddings": 64}
SCALINGS = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
     "high_freq_factor": 4.0, **OLD},
    {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 0.5,
     "high_freq_factor": 8.0, **OLD},
    {"rope_type": "yarn", "factor": 4.0, **OLD},
    {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0,
     "beta_slow": 2.0, "attention_factor": 1.3, **OLD},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7,
     "mscale_all_dim": 1.2, **OLD},
    {"rope_type": "yarn", "factor": 4.0, "truncate": False, **OLD},
    {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 16,
     "long_factor": [1.0 + i / 4 for i in range(16)], **OLD},
    {"rope_type": "longrope", "factor": 4.0, "attention_factor": 1.1,
     "short_factor": [1.5] * 16, "long_factor": [2.0] * 16, **OLD},
]


@pytest.mark.parametrize("length", [1, 64, 200])
@pytest.mark.parametrize("scaling", SCALINGS,
                         ids=lambda s: f"{s['rope_type']}-{len(s)}")
def test_scalings_equal_those_of_transformers(scaling, length):
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=2, head_dim=32,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": 10_000.0, **scaling})
    expected, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](
        config, "cpu", seq_len=length)
    numbers = dict(scaling)
    if scaling["rope_type"] == "dynamic":
        numbers |= OLD
    ours, our_factor = RotaryPositions(32, scaling=numbers).frequencies(
        length)
    assert torch.allclose(ours, expected, rtol=1e-6, atol=0)
    assert our_factor == pytest.approx(factor)


def test_every_kind_is_covered():
    assert {s["rope_type"] for s in SCALINGS} == set(ROPE_SCALINGS)


@pytest.mark.parametrize("scaling, message", [
    ({"rope_type": "spiral"}, "rope_type='spiral': must be one of linear"),
    ({"factor": 2.0}, "rope_type='default': must be one of"),
    ({"rope_type": "linear"}, r"missing \['factor'\]"),
    ({"rope_type": "linear", "factor": 2.0, "x": 1}, r"unknown \['x'\]"),
    ({"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0],
      "long_factor": [1.0] * 8, **OLD},
     r"short_factor=\[1.0\]: must be a list"),
])
def test_wrong_scalings(scaling, message):
    with pytest.raises(ValueError, match=message):
        RotaryPositions(16, scaling=scaling)


def test_odd_heads():
    with pytest.raises(ValueError, match="d_head=5: must be even"):
        RotaryPositions(5)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["rope_type"])
def test_each_row_is_turned_for_its_own_length(scaling):
    if scaling["rope_type"] == "dynamic":
        scaling = scaling | OLD
    rotary = RotaryPositions(32, scaling=scaling)
    lengths = torch.tensor([3, 64, 65, 200])
    positions = torch.arange(4) + torch.tensor([0, 60, 61, 196])[:, None]
    both = rotary(positions.unsqueeze(1), length=lengths)
    for row, n in enumerate(lengths.tolist()):
        for found, alone in zip(both, rotary(positions[row], length=n),
                                strict=True):
            assert torch.equal(found[row, 0], alone)
