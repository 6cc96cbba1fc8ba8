"""The whole model: causality, padding, cache, knobs, bad input, parity."""

import dataclasses
import json
from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from lmcourse.layers.attention import (
    KVCache,
    causal_mask,
    prefix_mask,
    sliding_mask,
)
from lmcourse.layers.transformer import (
    Context,
    Transformer,
    TransformerConfig,
    build_embeddings,
    build_encoder_decoder,
    build_transformer,
    by_layer,
)

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
               "attention": ["sliding", "causal"] * 2, "window": 4,
               "attention_softcap": 3.0, "logit_softcap": 4.0,
               "attention_scale": 0.3, "embedding_scale": 32 ** 0.5},
    "gemma3": {**LLAMA, "norm": "rms_offset", "norm_placement": "sandwich",
               "qk_norm": True, "window": 4,
               "attention": ["sliding", "sliding", "causal", "sliding"],
               "rope_theta": [1e4, 1e4, 1e6, 1e4],
               "rope_scaling": [None, None, {"rope_type": "linear",
                                             "factor": 8.0}, None]},
    "mixtral": {**LLAMA, "n_experts": [None, 4] * 2,
                "n_active_experts": [None, 2] * 2, "d_ff": [48, 20] * 2},
}
BY_LENGTH = {  # angles that change when a text is longer than 6 tokens
    "dynamic": {**LLAMA, "rope_scaling": {
        "rope_type": "dynamic", "factor": 3.0,
        "original_max_position_embeddings": 6}},
    "longrope": {**LLAMA, "rope_scaling": {
        "rope_type": "longrope", "factor": 3.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": 6}},
}
VARIANTS |= BY_LENGTH


def ids(*shape, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(61, shape, generator=draws)


def make(variant="gpt2", **options):
    config = TransformerConfig(**by_layer(
        {**BASE, **VARIANTS[variant], **options}))
    return build_transformer(config).double().eval()


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
    whole = model(x, attention_mask=real)
    assert torch.isfinite(whole).all()
    for row in range(3):
        alone = model(x[row][real[row].bool()][None])[0]
        assert (whole[row][real[row].bool()] - alone).abs().max() < 1e-6
    assert torch.equal(model(x, attention_mask=real.bool()), whole)


@pytest.mark.parametrize("variant", [v for v in VARIANTS
                                     if v not in BY_LENGTH])
@pytest.mark.parametrize("padded", [False, True])
def test_cache_equals_whole_at_every_chunk(variant, padded):
    model, x = make(variant), ids(2, 14)
    real = torch.ones(2, 14, dtype=torch.long)
    real[1, :5] = 0
    whole = model(x, attention_mask=real if padded else None)
    for chunk in (1, 5):
        cache, parts = model.new_cache(), []
        for start in range(0, 14, chunk):
            part = slice(start, start + chunk)
            parts.append(model(
                x[:, part], cache=cache,
                attention_mask=real[:, part] if padded else None))
        difference = (torch.cat(parts, dim=1) - whole).abs().max()
        assert difference < 1e-6, (chunk, difference)
        assert cache.length == 14


def test_padding_may_begin_after_the_cache():
    model, x = make("llama"), ids(2, 8)
    real = torch.ones(2, 8, dtype=torch.bool)
    real[1, 6:] = False
    cache = KVCache(4)
    model(x[:, :5], cache=cache)
    late = model(x[:, 5:], attention_mask=real[:, 5:], cache=cache)
    whole = model(x, attention_mask=real)[:, 5:]
    assert (late - whole)[real[:, 5:]].abs().max() < 1e-6


@pytest.mark.parametrize("variant", ["mistral", "gemma2", *BY_LENGTH])
@pytest.mark.parametrize("chunk", [1, 3])
def test_with_a_cache_a_padded_row_is_as_it_is_alone(variant, chunk):
    """Padding on the right, on the left and between, in several calls."""
    model, x = make(variant), ids(3, 18)
    real = torch.ones(3, 18, dtype=torch.bool)
    real[0, 4:9], real[1, :7], real[2, 2:5], real[2, 9:12] = (False,) * 4
    cache, parts = model.new_cache(), []
    for part, some in zip(x.split(chunk, 1), real.split(chunk, 1),
                          strict=True):
        parts.append(model(part, attention_mask=some, cache=cache))
    logits = torch.cat(parts, dim=1)
    for row in range(3):
        alone = one_call_for_each(model, x[row], real[row], chunk)
        assert (logits[row][real[row]] - alone).abs().max() < 1e-6


def one_call_for_each(model, x, real, chunk):
    """The same calls for one row, without its padding."""
    cache, parts = model.new_cache(), []
    for part, some in zip(x.split(chunk), real.split(chunk), strict=True):
        if some.any():
            parts.append(model(part[some][None], cache=cache)[0])
    return torch.cat(parts)


@pytest.mark.parametrize("variant", BY_LENGTH)
def test_keys_keep_their_angles_while_a_text_grows(variant):
    """Up to the old length as read at once; then as with those keys."""
    model, x = make(variant), ids(1, 12)
    whole, cache, parts = model(x), model.new_cache(), []
    for part in x.split(1, dim=1):
        parts.append(model(part, cache=cache))
    found = torch.cat(parts, dim=1)
    assert (found[:, :6] - model(x[:, :6])).abs().max() < 1e-10
    assert (found - whole).abs().max() > 1e-3
    short, late = model.new_cache(), model.new_cache()
    model(x[:, :6], cache=short)
    model(x[:, :6], cache=late)
    at_once = model(x[:, 6:], cache=short)[:, :1]
    first = model(x[:, 6:7], cache=late)
    differs = (first - at_once).abs().max() > 1e-3
    assert differs == (variant == "dynamic")  # longrope has two lengths only


@pytest.mark.parametrize("variant", ["gpt2", "gemma2"])
@pytest.mark.parametrize("trained", ["", "q_proj"])
def test_backward_through_two_cached_calls(variant, trained):
    model, x = make(variant), ids(2, 9)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    learned = [p for p in model.parameters() if p.requires_grad]
    cache = model.new_cache()
    logits = torch.cat([model(part, cache=cache)
                        for part in x.split([4, 1, 4], dim=1)], dim=1)
    found, expected = (torch.autograd.grad(out.square().sum(), learned)
                       for out in (logits, model(x)))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max() + 1e-12


def test_no_gradient_reaches_what_was_forgotten():
    model, x = make("llama"), ids(1, 8)
    cache = model.new_cache()
    forgotten = model.embeddings.tokens(x[:, :6]).detach().requires_grad_()
    model(inputs_embeds=forgotten, cache=cache)
    cache.crop(2)
    with torch.no_grad():
        model(x[:, 2:6], cache=cache)
    model(x[:, 6:], cache=cache).sum().backward()
    assert (forgotten.grad is None
            or forgotten.grad[:, 2:].abs().max() == 0)


def test_an_emptied_cache_takes_another_batch():
    model, x = make("llama"), ids(3, 7)
    real = torch.ones(2, 7, dtype=torch.bool)
    real[1, :3] = False
    cache = model.new_cache()
    model(x[:2], attention_mask=real, cache=cache)
    cache.crop(0)
    assert cache.batch_size is None and cache.n_bytes == 0
    with torch.no_grad():
        assert torch.equal(model(x, cache=cache), model(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_finite_with_padding(variant):
    model, x = make(variant), ids(2, 10)
    real = torch.ones(2, 10, dtype=torch.bool)
    real[1, :4] = False
    model(x, attention_mask=real)[real].logsumexp(-1).sum().backward()
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
    state["embeddings.tokens.weight"] = theirs_state["wte.weight"]
    state["embeddings.positions.weight"] = theirs_state["wpe.weight"]
    names = {"ln_1": "attention_norm", "attn.c_proj": "attention.o_proj",
             "ln_2": "feed_forward_norm", "mlp.c_fc": "feed_forward.up_proj",
             "mlp.c_proj": "feed_forward.down_proj"}
    for name, tensor in theirs_state.items():
        if name.startswith("h."):
            _, layer, *rest, kind = name.split(".")
            piece = ".".join(rest)
            transposed = kind == "weight" and not piece.startswith("ln")
            tensor = tensor.T if transposed else tensor
            if piece != "attn.c_attn":
                state[f"layers.{layer}.{names[piece]}.{kind}"] = tensor
                continue
            for x, part in zip("qkv", tensor.chunk(3), strict=True):
                state[f"layers.{layer}.attention.{x}_proj.{kind}"] = part
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
    padded = model(x, attention_mask=real, mask=full)[:, :5]
    alone = model(x[:, :5], mask=full[:5, :5])
    assert (padded - alone).abs().max() < 1e-10


def test_a_mask_of_ones_own_is_narrowed_by_the_window():
    model, x = make(attention="sliding", window=3), ids(1, 8)
    full = torch.ones(8, 8, dtype=torch.bool)
    assert torch.allclose(model(x, mask=causal_mask(8)), model(x))
    both = causal_mask(8).T | sliding_mask(8, window=3)  # near, or later
    free = make(attention="bidirectional")
    free.load_state_dict(model.state_dict())
    assert torch.allclose(model(x, mask=full), free(x, mask=both))


def with_segments():
    model = make()
    draws = torch.Generator().manual_seed(5)
    model.embeddings = build_embeddings(model.config, n_segments=2, norm=True,
                                        generator=draws).double()
    return model.eval()


def test_embeddings_segments_and_head():
    model, x = with_segments(), ids(2, 6)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]]).expand(2, -1)
    assert torch.equal(model(x), model(x, token_type_ids=segments * 0))
    assert not torch.allclose(model(x), model(x, token_type_ids=segments))
    e = model.embeddings
    total = e.tokens(x) + e.positions.weight[:6] + e.segments(segments)
    found = e(x, positions=torch.arange(6), token_type_ids=segments)
    assert torch.allclose(found, F.layer_norm(total, (32,)))
    embeds = e.tokens(x)
    assert torch.equal(model(inputs_embeds=embeds), model(x))
    with pytest.raises(ValueError, match="token_type_ids=2: must be in 0..1"):
        model(x, token_type_ids=segments + 1)
    with pytest.raises(ValueError, match="token_type_ids: must be None"):
        make()(x, token_type_ids=segments)


@pytest.mark.parametrize("options", [
    {}, {"tie_weights": False}, {"logit_softcap": 2.0},
    {"biases": ("head",), "tie_weights": False}], ids=str)
def test_the_head_gives_logits_and_their_loss(options):
    model, x = make(**options), ids(2, 6)
    if model.head.bias is not None:
        model.head.bias.data += ids(61).double() / 100
    labels = ids(2, 6, seed=1)
    labels[0, 2:] = -100
    hidden = model.hidden_states(x)
    assert torch.equal(model.head(hidden), model(x))
    tied = model.head.weight is model.embeddings.tokens.weight
    assert tied == model.config.tie_weights
    expected = F.cross_entropy(model(x).flatten(0, 1), labels.flatten())
    loss = model.head.loss(hidden, labels=labels)
    assert (loss - expected).abs() < 1e-10
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_tied_head_follows_its_embedding():
    model = make()
    copy = deepcopy(model)
    copy.embeddings.tokens.weight.data *= 2
    assert copy.head.weight is copy.embeddings.tokens.weight
    assert model.head.weight is not copy.head.weight
    names = [n for n, _ in model.named_parameters() if "head" in n]
    assert names == [] and "head.weight" not in model.state_dict()


def test_parts_can_be_exchanged():
    model, x = make(), ids(2, 5)
    shared = Transformer(embeddings=model.embeddings, final_norm=None,
                         layers=[model.layers[0]] * 3)
    hidden = model.embeddings(x, positions=torch.arange(5))
    for _ in range(3):
        hidden = model.layers[0](hidden, context=Context(
            positions=torch.arange(5)))
    assert torch.equal(shared(x), hidden)  # without a head: hidden states
    cache, parts = shared.new_cache(), []
    for part in x.split(2, dim=1):
        parts.append(shared(part, cache=cache))
    assert (torch.cat(parts, dim=1) - hidden).abs().max() < 1e-10
    n = sum(p.numel() for p in model.layers[0].parameters())
    assert sum(p.numel() for p in shared.layers.parameters()) == n


def test_a_bidirectional_stack_reads_a_given_prefix():
    model, x = make(attention="bidirectional"), ids(2, 6)
    pairs = [tuple(torch.randn(2, 4, 3, 8, dtype=torch.double, generator=(
        torch.Generator().manual_seed(2 * i + j))).requires_grad_()
        for j in range(2)) for i in range(4)]
    real = torch.ones(2, 6, dtype=torch.bool)
    real[1, 4:] = False
    cache = KVCache.prefixed(pairs)
    logits = model(x, attention_mask=real, cache=cache)
    alone = model(x[1:, :4], cache=KVCache.prefixed(
        [(key[1:], value[1:]) for key, value in pairs]))
    assert (logits[1:, :4] - alone).abs().max() < 1e-10
    assert (logits - model(x, attention_mask=real)).abs().max() > 1e-3
    logits.sum().backward()
    assert all(x.grad.abs().sum() > 0 for pair in pairs for x in pair)
    with pytest.raises(ValueError, match="bidirectional"):
        model(x, cache=cache)


def test_routers_tell_their_balance():
    model, x, balance = make("mixtral"), ids(2, 6), []
    assert torch.equal(model(x), model(x, balance=balance))
    assert len(balance) == 2 and all(b >= 0.9 for b in balance)
    plain = []
    make()(x, balance=plain)
    assert plain == []


@pytest.mark.parametrize("options", [
    {"n_kv_heads": 1}, {"d_head": 4}, {"attention": "bidirectional"},
    {"attention": "sliding", "window": 3}, {"attention_scale": 0.1},
    {"attention_softcap": 0.1}, {"qk_norm": True}, {"positions": "rotary"},
    {"norm": "rms"}, {"norm_eps": 0.5}, {"norm_placement": "sandwich"},
    {"feed_forward": "relu"}, {"tie_weights": False},
    {"embedding_scale": 3.0}, {"logit_softcap": 0.1},
    {"initializer_range": 0.2}, {"d_ff": 40}, {"feed_forward": "swiglu"},
    {"feed_forward": "swiglu", "n_experts": 3, "n_active_experts": 2},
    {"layers": [{}, {}, {"feed_forward": "relu"}, {}]},
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
    for name, key in (("qkv", "attention.v_proj.bias"),
                      ("ff", "up_proj.bias"), ("head", "head.bias"),
                      ("out", "attention.o_proj.bias"),
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
    ({"layers": [{}]}, "layers has 1 entries: must have n_layers=4"),
    ({"layers": [{"d_model": 8}] * 4}, "layers: 'd_model' must be one of"),
    ({"layers": [{"d_ff": 0}] * 4}, "d_ff=0: must be an integer"),
    ({"layers": [{}, {}, {}, {"attention": "sliding"}]}, "window=None"),
    ({"attention": "sliding"}, "window=None: sliding attention needs"),
    ({"n_experts": 4}, "n_experts=4, n_active_experts=None: experts need"),
    ({"n_experts": 4, "n_active_experts": 2},
     "feed_forward='gelu': experts must be gated"),
    ({"feed_forward": "swiglu", "n_experts": 4, "n_active_experts": 5},
     "n_active=5: must be in 1..4"),
    ({"d_model": 0}, "d_model=0: must be an integer, at least 1"),
    ({"n_layers": 1.5}, "n_layers=1.5: must be an integer"),
    ({"dropout": 1.0}, r"dropout=1.0: must be in \[0, 1\)"),
    ({"positions": "rotary", "d_head": 5}, "d_head=5: must be even"),
])
def test_wrong_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        build_transformer(TransformerConfig(**{**BASE, **options}))


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
        model(x, attention_mask=torch.ones(2, 5))
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
    one, two = (build_transformer(
        config, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert torch.equal(state, torch.get_rng_state())
    tables = [model.embeddings.tokens.weight
              for model in (one, two, build_transformer(config))]
    assert not torch.equal(tables[0], tables[1])
    assert torch.equal(tables[0], tables[2])
    layer = one.layers[3]
    for weight, std in ((one.embeddings.tokens.weight, 0.02),
                        (layer.attention.q_proj.weight, 0.02),
                        (layer.attention.o_proj.weight, 0.02 / 4),
                        (layer.feed_forward.up_proj.weight, 0.02),
                        (layer.feed_forward.down_proj.weight, 0.02 / 4)):
        assert abs(weight.std().item() / std - 1) < 0.05


@pytest.mark.parametrize("variant", VARIANTS)
def test_meta_has_the_same_shapes_and_takes_weights(variant):
    model = make(variant)
    with torch.device("meta"):
        empty = build_transformer(model.config)
    assert all(p.is_meta for p in empty.parameters())
    empty.load_state_dict(model.state_dict(), assign=True)
    x = ids(1, 7)
    assert torch.equal(empty.eval()(x), model(x))


def of_attention(theirs, name):
    """Parameters of torch's attention under our names."""
    yield f"{name}.o_proj.weight", theirs.out_proj.weight
    yield f"{name}.o_proj.bias", theirs.out_proj.bias
    for kind in ("weight", "bias"):
        stacked = getattr(theirs, f"in_proj_{kind}").chunk(3)
        for x, part in zip("qkv", stacked, strict=True):
            yield f"{name}.{x}_proj.{kind}", part


def of_layer(theirs, cross):
    """Parameters of one of torch's layers under our names."""
    yield from of_attention(theirs.self_attn, "attention")
    pieces = {"feed_forward.up_proj": theirs.linear1,
              "feed_forward.down_proj": theirs.linear2,
              "attention_norm": theirs.norm1}
    if cross:
        yield from of_attention(theirs.multihead_attn, "cross_attention")
        pieces |= {"cross_attention_norm": theirs.norm2,
                   "feed_forward_norm": theirs.norm3}
    else:
        pieces["feed_forward_norm"] = theirs.norm2
    for name, module in pieces.items():
        for kind, parameter in module.named_parameters():
            yield f"{name}.{kind}", parameter


def two_stacks(placement):
    """torch's encoder-decoder, and ours with its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.nn.Transformer(
            32, 4, 3, 3, 48, dropout=0.0, batch_first=True,
            norm_first=placement == "pre").double().eval()
        for p in theirs.parameters():
            p.data += 0.1 * torch.randn_like(p)
    ours = build_encoder_decoder(TransformerConfig(**{
        **BASE, "n_layers": 3, "feed_forward": "relu",
        "positions": "sinusoidal", "norm_placement": placement})).double()
    for mine, other in ((ours.encoder, theirs.encoder),
                        (ours.decoder, theirs.decoder)):
        mine.final_norm = other.norm  # torch has it in both placements
        for block, layer in zip(mine.layers, other.layers, strict=True):
            block.load_state_dict(dict(of_layer(layer, mine is ours.decoder)))
    return theirs, ours.eval()


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("padded", [False, True])
def test_encoder_decoder_equals_torchs(placement, padded):
    theirs, ours = two_stacks(placement)
    x, y = ids(2, 9), ids(2, 6, seed=1)
    read, said = (torch.ones_like(z, dtype=torch.bool) for z in (x, y))
    if padded:
        read[1, 5:], said[1, 4:] = False, False
    embedded = [ours.encoder.embeddings(z, positions=torch.arange(
        z.shape[1])) for z in (x, y)]
    expected = theirs(*embedded, tgt_mask=~causal_mask(6),
                      src_key_padding_mask=~read,
                      memory_key_padding_mask=~read,
                      tgt_key_padding_mask=~said)
    masks = {"attention_mask": read, "decoder_attention_mask": said}
    found = ours.hidden_states(x, decoder_input_ids=y,
                               **(masks if padded else {}))
    assert (found - expected)[said].abs().max() < 1e-10
    logits = ours(x, decoder_input_ids=y, **(masks if padded else {}))
    assert torch.equal(logits, ours.head(found))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_an_encoder_decoder_writes_step_by_step():
    _, model = two_stacks("pre")
    x, y, maps = ids(2, 9), ids(2, 6, seed=1), []
    real = torch.ones_like(x)
    real[0, 7:] = 0
    whole = model(x, decoder_input_ids=y, attention_mask=real,
                  source_maps=maps)
    assert len(maps) == 3 and maps[0].shape == (2, 4, 6, 9)
    assert (maps[0][0, :, :, 7:] == 0).all()
    source = model.encoder.hidden_states(x, attention_mask=real)
    cache = model.decoder.new_cache()
    parts = [model.decoder(part, source=source, source_mask=real,
                           cache=cache) for part in y.split(2, dim=1)]
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-10


def test_norms_on_both_sides_know_no_source():
    with pytest.raises(ValueError, match="norm_placement='sandwich'"):
        build_encoder_decoder(TransformerConfig(
            **BASE, norm_placement="sandwich"))
