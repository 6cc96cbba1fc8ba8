"""Attention against loops and torch; masks, shared heads, the cache."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lmcourse.layers.attention import (
    KVCache,
    MultiHeadAttention,
    attention,
    attention_loop,
    attention_weights,
    cache_bytes,
    causal_mask,
    head_sizes,
    linear,
    prefix_mask,
    sliding_mask,
)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=draws(seed), dtype=torch.double)


MASKS = {
    "all": torch.ones(7, 7, dtype=torch.bool),
    "causal": causal_mask(7),
    "sliding": sliding_mask(7, window=3),
    "prefix": prefix_mask(7, prefix=4),
}


@pytest.mark.parametrize("name", MASKS)
def test_fused_equals_loop_and_torch(name):
    mask = MASKS[name]
    q, k, v = normal(3, 2, 2, 7, 8)
    fused = attention(q, key=k, value=v, mask=mask)
    shown = attention_weights(q, key=k, mask=mask) @ v
    torch_says = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    for b in range(2):
        for h in range(2):
            loop = attention_loop(q[b, h], key=k[b, h], value=v[b, h],
                                  mask=mask)
            assert (fused[b, h] - loop).abs().max() < 1e-12
    assert (shown - fused).abs().max() < 1e-12
    assert (torch_says - fused).abs().max() < 1e-6


def test_masks_by_definition():
    for t in range(7):
        for s in range(7):
            assert MASKS["causal"][t, s] == (s <= t)
            assert MASKS["sliding"][t, s] == (t - 3 < s <= t)
            assert MASKS["prefix"][t, s] == (s <= t or s < 4)
    assert torch.equal(causal_mask(2, past=5), MASKS["causal"][5:])
    assert torch.equal(sliding_mask(2, window=3, past=5),
                       MASKS["sliding"][5:])


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_row_that_sees_nothing_is_zero_and_has_a_gradient(softcap, groups):
    mask = causal_mask(5)
    mask[2] = False
    q = normal(2, 4, 5, 8).requires_grad_()
    k, v = (normal(2, groups, 5, 8, seed=s).requires_grad_() for s in (1, 2))
    output = attention(q, key=k, value=v, mask=mask, softcap=softcap)
    assert (output[:, :, 2] == 0).all()
    output.square().sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


def test_scale_and_softcap_change_the_scores_as_defined():
    q, k, v = normal(3, 1, 1, 4, 8)
    scores = q @ k.transpose(-1, -2) * 0.7
    scaled = attention(q, key=k, value=v, scale=0.7)
    assert (scaled - scores.softmax(-1) @ v).abs().max() < 1e-12
    capped = attention(q, key=k, value=v, scale=0.7, softcap=0.5)
    expected = (0.5 * (scores / 0.5).tanh()).softmax(-1) @ v
    assert (capped - expected).abs().max() < 1e-12
    causal = attention(q, key=k, value=v, softcap=0.5, causal=True)
    masked = attention(q, key=k, value=v, softcap=0.5, mask=causal_mask(4))
    assert torch.equal(causal, masked)


def copied(theirs):
    """The state of our layer, from one of torch's."""
    state = {f"o_proj.{kind}": p
             for kind, p in theirs.out_proj.named_parameters()}
    kinds = {"weight": theirs.in_proj_weight, "bias": theirs.in_proj_bias}
    for kind, stacked in kinds.items():
        if stacked is not None:
            state |= {f"{name}_proj.{kind}": part for name, part in
                      zip("qkv", stacked.chunk(3), strict=True)}
    return state


@pytest.mark.parametrize("batch_first_bias", [True, False])
def test_layer_equals_torchs_with_copied_weights(batch_first_bias):
    theirs = nn.MultiheadAttention(24, 4, bias=batch_first_bias,
                                   batch_first=True).double()
    biases = ("qkv", "out") if batch_first_bias else ()
    ours = MultiHeadAttention(24, 4, biases=biases,
                              generator=draws()).double()
    if batch_first_bias:
        theirs.in_proj_bias.data += 0.1
        theirs.out_proj.bias.data += 0.1
    ours.load_state_dict(copied(theirs))
    x = normal(2, 6, 24)
    for mask in (causal_mask(6), None):
        forbidden = None if mask is None else ~mask
        expected, their_maps = theirs(x, x, x, attn_mask=forbidden,
                                      average_attn_weights=False)
        maps = []
        output = ours(x, mask=mask, maps=maps)
        assert (output - expected).abs().max() < 1e-12
        assert (maps[0] - their_maps).abs().max() < 1e-12
        assert torch.equal(ours(x, mask=mask), output)


def test_every_option_of_the_layer_changes_something():
    x = normal(1, 5, 16)

    def layer(**options):
        made = MultiHeadAttention(16, 4, std=0.5, generator=draws(),
                                  **options).double()
        return made(x, causal=True)

    plain = layer()
    for options in ({"n_kv_heads": 2}, {"d_head": 8}, {"scale": 0.1},
                    {"softcap": 0.5}, {"norm": nn.RMSNorm},
                    {"out_std": 0.1}):
        assert not torch.allclose(layer(**options), plain), options
    made = MultiHeadAttention(16, 4, biases=("out",), generator=draws())
    assert made.q_proj.bias is None and made.o_proj.bias is not None


def test_a_source_gives_keys_and_values():
    theirs = nn.MultiheadAttention(24, 4, batch_first=True).double()
    ours = MultiHeadAttention(24, 4, generator=draws()).double()
    ours.load_state_dict(copied(theirs))
    x, source, maps = normal(2, 5, 24), normal(2, 8, 24, seed=1), []
    real = torch.ones(2, 8, dtype=torch.bool)
    real[1, 5:] = False
    expected, _ = theirs(x, source, source, key_padding_mask=~real)
    found = ours(x, source=source, mask=real[:, None, None], maps=maps)
    assert (found - expected).abs().max() < 1e-12
    assert maps[0].shape == (2, 4, 5, 8)


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("mask", [None, causal_mask(5)], ids=str)
def test_a_bias_is_added_to_the_scaled_scores(softcap, mask):
    q, k, v = (x.requires_grad_() for x in normal(3, 2, 4, 5, 8))
    bias = normal(4, 5, 5, seed=1).requires_grad_()
    scores = q @ k.transpose(-1, -2) * 0.7 + bias
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    expected = scores.softmax(-1) @ v
    options = {"scale": 0.7, "softcap": softcap, "bias": bias}
    found = attention(q, key=k, value=v, mask=mask, **options)
    shown = attention_weights(q, key=k, mask=mask, **options) @ v
    assert (found - expected).abs().max() < 1e-12
    assert (shown - expected).abs().max() < 1e-12
    parts = [torch.autograd.grad(x.square().sum(), (q, k, v, bias))
             for x in (expected, found)]
    for ours, theirs in zip(*parts, strict=True):
        assert (ours - theirs).abs().max() < 1e-10
    if mask is not None:
        causal = attention(q, key=k, value=v, causal=True, **options)
        assert (causal - found).abs().max() < 1e-12


def test_a_bias_with_a_row_that_sees_nothing():
    q, mask = normal(1, 2, 4, 8), causal_mask(4)
    mask[2] = False
    found = attention(q, key=q, value=q, mask=mask, bias=normal(4, 4))
    assert (found[:, :, 2] == 0).all() and torch.isfinite(found).all()


def test_a_bias_may_be_computed_from_queries_and_keys():
    layer = MultiHeadAttention(16, 4, n_kv_heads=2, std=0.5,
                               generator=draws()).double()
    x, table = normal(2, 6, 16), normal(6, 4)

    def bias(query, *, key):
        assert query.shape == (2, 4, 6, 4) and key.shape == (2, 2, 6, 4)
        return query @ table.T

    maps = []
    layer(x, bias=bias, maps=maps)
    query = layer.q_proj(x).view(2, 6, 4, 4).transpose(1, 2)
    layer(x, bias=query @ table.T, maps=maps)
    layer(x, maps=maps)
    assert torch.equal(maps[0], maps[1])
    assert (maps[0] - maps[2]).abs().max() > 1e-3


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_dropped_weights_are_made_up_for(softcap):
    layer = MultiHeadAttention(16, 2, dropout=0.5, softcap=softcap, std=0.5,
                               generator=draws()).double()
    x = normal(1, 5, 16)
    mean = 0
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        assert not torch.equal(layer(x), layer(x))
        for _ in range(2000):
            mean = mean + layer(x) / 2000
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert (mean - layer(x)).abs().max() < 0.1 * layer(x).abs().max()


@pytest.mark.parametrize("sizes, message", [
    ((10, 3), "n_heads=3: must divide d_model=10"),
    ((12, 4, 3), "n_kv_heads=3: must divide n_heads=4"),
    ((12, 4, 0), "n_kv_heads=0: must divide n_heads=4"),
])
def test_heads_that_do_not_fit(sizes, message):
    with pytest.raises(ValueError, match=message):
        head_sizes(*sizes)


def test_causal_excludes_a_mask_and_other_lengths():
    q = normal(1, 1, 4, 8)
    with pytest.raises(ValueError, match="causal=True"):
        attention(q, key=q, value=q, mask=causal_mask(4), causal=True)
    with pytest.raises(ValueError, match="T=2, S=4"):
        attention(q[:, :, :2], key=q, value=q, causal=True)


@pytest.mark.parametrize("chunk", [1, 100])
def test_cache_grows_beyond_its_room(chunk):
    layer = MultiHeadAttention(16, 4, n_kv_heads=2, std=0.5,
                               generator=draws()).double()
    x = normal(2, 130, 16)
    cache, parts = KVCache(1), []
    with torch.no_grad():
        for part in x.split(chunk, dim=1):
            mask = causal_mask(part.shape[1], past=cache.length)
            parts.append(layer(part, mask=mask,
                               remember=partial(cache.append, 0)))
            cache.advance(part.shape[1])
    whole = layer(x, causal=True)
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-12
    assert cache.n_bytes == cache_bytes(
        n_layers=1, n_kv_heads=2, d_head=4, length=130, batch_size=2,
        bytes_per_number=8)


def test_cache_crops_and_selects():
    cache = KVCache(1)
    assert cache.batch_size is None and cache.n_bytes == 0
    key = normal(3, 1, 5, 2)
    cache.append(0, key=key, value=-key)
    cache.advance(5, real=torch.ones(3, 5, dtype=torch.bool))
    cache.crop(2)
    cache.select(torch.tensor([2, 0]))
    assert cache.batch_size == 2 and cache.real.shape == (2, 2)
    keys, values = cache.append(0, key=key[:2, :, :1], value=key[:2, :, :1])
    assert torch.equal(keys[:, :, :2], key[[2, 0], :, :2])
    assert torch.equal(values[:, :, :2], -key[[2, 0], :, :2])
    with pytest.raises(ValueError, match=r"length=3: must be in 0\.\.2"):
        cache.crop(3)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_prefix_can_be_learned(batch_size):
    layer = MultiHeadAttention(8, 2, std=0.5, generator=draws()).double()
    for p in layer.parameters():
        p.requires_grad_(False)
    pair = [normal(batch_size, 2, 3, 4, seed=s).requires_grad_()
            for s in (1, 2)]
    cache = KVCache.prefixed([pair])
    assert cache.length == cache.given == 3
    assert cache.batch_size == batch_size
    x = normal(batch_size, 5, 8)
    found = layer(x, remember=partial(cache.append, 0))
    query, key, value = (
        p(x).view(batch_size, 5, 2, 4).transpose(1, 2)
        for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    expected = attention(query, key=torch.cat([pair[0], key], dim=2),
                         value=torch.cat([pair[1], value], dim=2))
    expected = layer.o_proj(expected.transpose(1, 2).flatten(-2))
    assert (found - expected).abs().max() < 1e-12
    grads = torch.autograd.grad(found.sum(), pair)
    for ours, theirs in zip(grads, torch.autograd.grad(
            expected.sum(), pair), strict=True):
        assert (ours - theirs).abs().max() < 1e-12


def test_linear_draws_only_from_its_generator():
    state = torch.get_rng_state()
    one, two = (linear(300, 200, generator=draws(3)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.weight, two.weight)
    assert abs(one.weight.std().item() / 0.02 - 1) < 0.02
    assert (one.bias == 0).all()
    with torch.device("meta"):
        assert linear(3, 2, generator=draws()).weight.is_meta
