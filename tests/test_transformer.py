"""The whole model: causality, padding, cache, knobs, bad input, parity."""

import dataclasses
import json

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from lmcourse.layers.attention import KVCache, causal_mask, prefix_mask
from lmcourse.layers.transformer import Transformer, TransformerConfig

BASE = {"vocab_size": 61, "max_length": 40, "d_model": 32, "n_layers": 4,
        "n_heads": 4, "d_ff": 48, "initializer_range": 0.1}
LLAMA = {"positions": "rotary", "norm": "rms", "feed_forward": "swiglu",
         "biases": (), "tie_weights": False}
VARIANTS = {
    "gpt2": {},
    "post": {"norm_placement": "post"},
    "sinusoidal": {"positions": "sinusoidal", "feed_forward": "relu"},
    "none": {"positions": "none", "biases": ("qkv", "head")},
    "llama": {**LLAMA, "n_kv_heads": 2},
    "llama3": {**LLAMA, "rope_scaling": {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
    "mistral": {**LLAMA, "attention": "sliding", "window": 5},
    "qwen3": {**LLAMA, "qk_norm": True, "d_head": 12, "n_kv_heads": 1},
    "gemma2": {**LLAMA, "norm": "rms_offset", "norm_placement": "sandwich",
               "feed_forward": "geglu_tanh", "tie_weights": True,
               "attention": ("sliding", "causal") * 2, "window": 4,
               "attention_softcap": 3.0, "logit_softcap": 4.0,
               "attention_scale": 0.3, "embedding_scale": 32 ** 0.5},
    "gemma3": {**LLAMA, "norm": "rms_offset", "norm_placement": "sandwich",
               "qk_norm": True, "window": 4,
               "attention": ("sliding", "sliding", "causal", "sliding"),
               "rope_theta": (1e4, 1e4, 1e6, 1e4),
               "rope_scaling": (None, None, {"rope_type": "linear",
                                             "factor": 8.0}, None)},
    "mixtral": {**LLAMA, "n_experts": 4, "n_active_experts": 2,
                "d_expert": 20,
                "feed_forward": ("swiglu", "experts") * 2},
}


def ids(*shape, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(61, shape, generator=draws)


def make(variant="gpt2", **options):
    config = TransformerConfig(**{**BASE, **VARIANTS[variant], **options})
    return Transformer(config).double().eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_later_tokens_do_not_change_earlier_logits(variant):
    model, x = make(variant), ids(2, 12)
    y = torch.cat([x[:, :7], (x[:, 7:] + 1) % 61], dim=1)
    before, after = model(x), model(y)
    assert (before[:, :7] - after[:, :7]).abs().max() < 1e-10
    assert (before[:, 7] - after[:, 7]).abs().max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(variant, side):
    model, x = make(variant), ids(3, 12)
    real = torch.ones(3, 12, dtype=torch.long)
    for row, n in ((1, 4), (2, 7)):
        real[row, slice(0, n) if side == "left" else slice(12 - n, 12)] = 0
    whole = model(x, real)
    assert torch.isfinite(whole).all()
    for row in range(3):
        alone = model(x[row][real[row].bool()][None])[0]
        assert (whole[row][real[row].bool()] - alone).abs().max() < 1e-6
    assert torch.equal(model(x, real.bool()), whole)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("padded", [False, True])
def test_cache_equals_whole_at_every_chunk(variant, padded):
    model, x = make(variant), ids(2, 14)
    real = torch.ones(2, 14, dtype=torch.long)
    real[1, :5] = 0
    whole = model(x, real if padded else None)
    for chunk in (1, 2, 3, 5, 13, 14):
        cache, parts = KVCache(4), []
        for start in range(0, 14, chunk):
            part = slice(start, start + chunk)
            parts.append(model(x[:, part], real[:, part] if padded else None,
                               cache=cache))
        difference = (torch.cat(parts, dim=1) - whole).abs().max()
        assert difference < 1e-6, (chunk, difference)
        assert cache.length == 14


def test_padding_may_begin_after_the_cache():
    model, x = make("llama"), ids(2, 8)
    real = torch.ones(2, 8, dtype=torch.bool)
    real[1, 6:] = False
    cache = KVCache(4)
    model(x[:, :5], cache=cache)
    late = model(x[:, 5:], real[:, 5:], cache=cache)
    assert (late - model(x, real)[:, 5:])[real[:, 5:]].abs().max() < 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_finite_with_padding(variant):
    model, x = make(variant), ids(2, 10)
    real = torch.ones(2, 10, dtype=torch.bool)
    real[1, :4] = False
    model(x, real)[real].logsumexp(-1).sum().backward()
    for p in model.parameters():
        assert p.grad is None or torch.isfinite(p.grad).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_maps_are_the_weights_in_use(variant):
    model, x, maps = make(variant), ids(2, 9), []
    with_maps = model(x, maps=maps)
    assert (with_maps - model(x)).abs().max() < 1e-10
    assert len(maps) == 4 and maps[0].shape == (2, 4, 9, 9)
    assert torch.allclose(maps[-1].sum(-1), torch.ones(2, 4, 9).double())
    assert (maps[0].triu(1) == 0).all()


def test_equals_gpt2_of_transformers():
    theirs = GPT2LMHeadModel(GPT2Config(
        vocab_size=61, n_positions=40, n_embd=32, n_layer=2, n_head=4,
        bos_token_id=0, eos_token_id=0)).double().eval()
    ours = make(n_layers=2, d_ff=128, feed_forward="gelu_tanh")
    state, theirs_state = {}, theirs.transformer.state_dict()
    state["embedding.weight"] = theirs_state["wte.weight"]
    state["positions.weight"] = theirs_state["wpe.weight"]
    names = {"ln_1": "attention_norm", "attn.c_attn": "attention.qkv",
             "attn.c_proj": "attention.out", "ln_2": "feed_forward_norm",
             "mlp.c_fc": "feed_forward.up", "mlp.c_proj": "feed_forward.down"}
    for name, tensor in theirs_state.items():
        if name.startswith("h."):
            _, layer, *rest, kind = name.split(".")
            piece = ".".join(rest)
            transposed = kind == "weight" and not piece.startswith("ln")
            state[f"layers.{layer}.{names[piece]}.{kind}"] = (
                tensor.T if transposed else tensor)
    for kind in ("weight", "bias"):
        state[f"final_norm.{kind}"] = theirs_state[f"ln_f.{kind}"]
    ours.load_state_dict(state)
    x = ids(2, 20)
    assert (ours(x) - theirs(x).logits).abs().max() < 1e-10


def test_encoder_sees_both_sides_and_refuses_a_growing_cache():
    model, x = make(attention="bidirectional"), ids(1, 8)
    y = x.clone()
    y[0, -1] = (y[0, -1] + 1) % 61
    assert (model(x)[0, 0] - model(y)[0, 0]).abs().max() > 1e-6
    cache = KVCache(4)
    model(x, cache=cache)
    with pytest.raises(ValueError, match="bidirectional"):
        model(x, cache=cache)


def test_a_mask_of_ones_own_replaces_the_rules_but_not_the_padding():
    model, x = make(), ids(2, 8)
    same = model(x, mask=causal_mask(8))
    assert (same - model(x)).abs().max() < 1e-10
    prefix = model(x, mask=prefix_mask(8, prefix=4))
    assert (prefix[:, 0] - same[:, 0]).abs().max() > 1e-6
    real = torch.ones(2, 8, dtype=torch.bool)
    real[:, 5:] = False
    full = torch.ones(8, 8, dtype=torch.bool)
    padded = model(x, real, mask=full)[:, :5]
    alone = model(x[:, :5], mask=full[:5, :5])
    assert (padded - alone).abs().max() < 1e-10


def test_embeddings_segments_and_head():
    model, x = make(n_segments=2, embedding_norm=True), ids(2, 6)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]]).expand(2, -1)
    assert torch.equal(model(x), model(x, None, segments * 0))
    assert not torch.allclose(model(x), model(x, None, segments))
    embeds = model.embedding(x)
    assert torch.equal(model(inputs_embeds=embeds), model(x))
    hidden = model.hidden_states(x)
    assert torch.equal(model.logits(hidden), model(x))
    assert torch.equal(model(x), F.linear(hidden, model.embedding.weight))
    with pytest.raises(ValueError, match="token_type_ids=2: must be in 0..1"):
        model(x, None, segments + 1)
    with pytest.raises(ValueError, match="token_type_ids: must be None"):
        make()(x, None, segments)


@pytest.mark.parametrize("options", [
    {"n_kv_heads": 1}, {"d_head": 4}, {"attention": "bidirectional"},
    {"attention": "sliding", "window": 3}, {"attention_scale": 0.1},
    {"attention_softcap": 0.1}, {"qk_norm": True}, {"positions": "rotary"},
    {"norm": "rms"}, {"norm_eps": 0.5}, {"norm_placement": "sandwich"},
    {"feed_forward": "relu"}, {"tie_weights": False},
    {"embedding_scale": 3.0}, {"embedding_norm": True},
    {"logit_softcap": 0.1}, {"initializer_range": 0.2}, {"n_segments": 2},
    {"positions": "rotary", "rope_theta": 100.0},
    {"positions": "rotary", "rope_scaling": {"rope_type": "linear",
                                             "factor": 3.0}},
], ids=str)
def test_every_option_changes_the_logits(options):
    x = ids(1, 8)
    base = {"positions": "rotary"} if len(options) > 1 and (
        "positions" in options) else {}
    assert not torch.allclose(make(**base)(x), make(**options)(x))


def test_biases_and_dropout():
    for name, key in (("qkv", "attention.qkv.bias"), ("ff", "up.bias"),
                      ("out", "attention.out.bias"), ("head", "head_bias"),
                      ("norm", "final_norm.bias")):
        keys = make(biases=(name,)).state_dict()
        assert [k for k in keys if k.endswith("bias")]
        assert any(k.endswith(key) for k in keys), name
    assert not any("bias" in k for k in make(biases=()).state_dict())
    model, x = make(dropout=0.3), ids(1, 6)
    assert torch.equal(model(x), model(x))
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("options, message", [
    ({"n_heads": 5}, "n_heads=5: must divide d_model=32"),
    ({"n_kv_heads": 3}, "n_kv_heads=3: must divide n_heads=4"),
    ({"norm": "batch"}, "norm='batch': must be one of layer, rms"),
    ({"positions": "gps"}, "positions='gps': must be one of learned"),
    ({"attention": "random"}, "attention='random': must be one of causal"),
    ({"norm_placement": "up"}, "norm_placement='up': must be one of pre"),
    ({"feed_forward": "swish"}, "feed_forward='swish': must be one of relu"),
    ({"biases": ("key",)}, "biases='key': must be one of qkv"),
    ({"attention": ("causal",)}, "attention has 1 entries: must have one"),
    ({"attention": "sliding"}, "window=None: sliding attention needs"),
    ({"feed_forward": "experts"}, "n_experts=None, n_active_experts=None"),
    ({"d_model": 0}, "d_model=0: must be an integer, at least 1"),
    ({"n_layers": 1.5}, "n_layers=1.5: must be an integer"),
    ({"dropout": 1.0}, r"dropout=1.0: must be in \[0, 1\)"),
    ({"positions": "rotary", "d_head": 5}, "d_head=5: must be even"),
])
def test_wrong_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        Transformer(TransformerConfig(**{**BASE, **options}))


def test_wrong_inputs():
    model, x = make(), ids(2, 6)
    with pytest.raises(ValueError, match=r"input_ids=61: must be in 0\.\.60"):
        model(torch.tensor([[61]]))
    with pytest.raises(ValueError, match="input_ids=-1"):
        model(torch.tensor([[-1]]))
    with pytest.raises(TypeError, match="input_ids: must be int64 or int32"):
        model(torch.tensor([[0.5]]))
    for shape in ((1, 0), (0, 1), (3,)):
        with pytest.raises(ValueError, match="input_ids of shape .*one token"):
            model(torch.zeros(shape, dtype=torch.long))
    with pytest.raises(ValueError, match="length=41: must be at most max_len"):
        model(ids(1, 41))
    with pytest.raises(ValueError, match=r"attention_mask of shape \(2, 5\)"):
        model(x, torch.ones(2, 5))
    cache = KVCache(4)
    model(x, cache=cache)
    with pytest.raises(ValueError, match="input_ids has 1 rows: the cache"):
        model(x[:1], cache=cache)
    with pytest.raises(ValueError, match="length=41"):
        model(ids(2, 35), cache=cache)


@pytest.mark.parametrize("variant", VARIANTS)
def test_configuration_survives_json(variant):
    config = make(variant).config
    text = json.dumps(dataclasses.asdict(config))
    assert TransformerConfig(**json.loads(text)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.d_model = 3


def test_initialization_is_gpt2s_and_leaves_chance_alone():
    state = torch.get_rng_state()
    config = TransformerConfig(vocab_size=500, max_length=64, d_model=128,
                               n_layers=8, n_heads=4, d_ff=512)
    one, two = (Transformer(config, generator=torch.Generator().manual_seed(
        s)) for s in (0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(one.embedding.weight, two.embedding.weight)
    assert torch.equal(one.embedding.weight,
                       Transformer(config).embedding.weight)
    layer = one.layers[3]
    for weight, std in ((one.embedding.weight, 0.02),
                        (layer.attention.qkv.weight, 0.02),
                        (layer.attention.out.weight, 0.02 / 4),
                        (layer.feed_forward.up.weight, 0.02),
                        (layer.feed_forward.down.weight, 0.02 / 4)):
        assert abs(weight.std().item() / std - 1) < 0.05


@pytest.mark.parametrize("variant", VARIANTS)
def test_meta_has_the_same_shapes_and_takes_weights(variant):
    model = make(variant)
    with torch.device("meta"):
        empty = Transformer(model.config)
    assert all(p.is_meta for p in empty.parameters())
    empty.load_state_dict(model.state_dict(), assign=True)
    x = ids(1, 7)
    assert torch.equal(empty.eval()(x), model(x))
