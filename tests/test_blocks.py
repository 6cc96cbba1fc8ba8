"""Norms, feed-forward networks, blocks and experts against oracles."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Qwen3MoeConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.mixtral.modeling_mixtral import (
    load_balancing_loss_func,
)
from transformers.models.qwen3_moe.modeling_qwen3_moe import (
    Qwen3MoeSparseMoeBlock,
)

from lmcourse.layers.attention import MultiHeadAttention
from lmcourse.layers.blocks import (
    BLOCKS,
    CROSS_BLOCKS,
    FEED_FORWARDS,
    Block,
    LayerNorm,
    MixtureOfExperts,
    OffsetRMSNorm,
    PostNormBlock,
    RMSNorm,
    SandwichBlock,
    feed_forward,
    load_balancing_loss,
)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=draws(seed), dtype=torch.double)


@pytest.mark.parametrize("ours, theirs", [
    (LayerNorm(16), nn.LayerNorm(16)),
    (LayerNorm(16, bias=False, eps=1e-3),
     nn.LayerNorm(16, bias=False, eps=1e-3)),
    (RMSNorm(16), nn.RMSNorm(16, eps=1e-6)),
    (RMSNorm(16, eps=1e-2), nn.RMSNorm(16, eps=1e-2)),
])
def test_norms_equal_torchs(ours, theirs):
    ours, theirs = ours.double(), theirs.double()
    for p in ours.parameters():
        p.data = normal(16, seed=7)
    theirs.load_state_dict(ours.state_dict())
    x = 5 * normal(3, 4, 16) + 2
    assert (ours(x) - theirs(x)).abs().max() < 1e-12


def test_offset_norm_equals_gemmas():
    ours, theirs = OffsetRMSNorm(16), Gemma3RMSNorm(16)
    assert (ours.weight == 0).all()
    ours.weight.data = normal(16).float()
    theirs.load_state_dict(ours.state_dict())
    x = normal(3, 16, seed=1).float()
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


ACTS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "reglu": F.relu, "geglu": F.gelu, "swiglu": F.silu,
        "geglu_tanh": lambda x: F.gelu(x, approximate="tanh")}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", FEED_FORWARDS)
def test_feed_forward_by_formula(name, bias):
    ff = feed_forward(name, 6, 10, bias=bias, std=0.5,
                      generator=draws()).double()
    for p in ff.parameters():
        p.data = normal(*p.shape, seed=p.numel())
    x, act = normal(2, 3, 6), ACTS[name]
    zero = torch.zeros(1).double()
    if name.endswith(("glu", "glu_tanh")):
        gate, up = (x @ p.weight.T + (p.bias if bias else zero)
                    for p in (ff.gate_proj, ff.up_proj))
        inner = act(gate) * up
    else:
        up = ff.up_proj
        inner = act(x @ up.weight.T + (up.bias if bias else zero))
    down = ff.down_proj
    expected = inner @ down.weight.T + (down.bias if bias else zero)
    assert (ff(x) - expected).abs().max() < 1e-12


def test_unknown_feed_forward():
    with pytest.raises(ValueError, match="feed_forward='x': must be one of"):
        feed_forward("x", 4, 8, generator=draws())


def test_placements_by_formula():
    x = normal(2, 3, 8)
    f, g = nn.Linear(8, 8).double(), nn.Linear(8, 8).double()

    def norm():
        return LayerNorm(8).double()

    n = norm()
    y = x + f(n(x))
    pre = Block(f, g, norm=norm)
    assert torch.allclose(pre(x), y + g(n(y)))
    y = n(x + f(x))
    assert torch.allclose(PostNormBlock(f, g, norm=norm)(x), n(y + g(y)))
    y = x + n(f(n(x)))
    sandwich = SandwichBlock(f, g, norm=norm)
    assert torch.allclose(sandwich(x), y + n(g(n(y))))
    assert set(BLOCKS.values()) == {Block, PostNormBlock, SandwichBlock}


@pytest.mark.parametrize("kind", BLOCKS.values())
def test_dropout_drops_in_training_only(kind):
    x = normal(2, 3, 8)
    block = kind(nn.Linear(8, 8), nn.Linear(8, 8),
                 norm=lambda: LayerNorm(8), dropout=0.5).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def balance_of(choice):
    """The loss of what a router told."""
    probabilities, chosen = choice
    return load_balancing_loss(probabilities, chosen=chosen)


@pytest.mark.parametrize("renormalize", [True, False])
def test_experts_equal_qwens(renormalize):
    config = Qwen3MoeConfig(
        hidden_size=8, moe_intermediate_size=12, num_experts=6,
        num_experts_per_tok=2, norm_topk_prob=renormalize)
    config._experts_implementation = "eager"
    theirs = Qwen3MoeSparseMoeBlock(config)
    ours = MixtureOfExperts(8, 12, n_experts=6, n_active=2, std=0.5,
                            renormalize=renormalize, generator=draws())
    state = {"gate.weight": ours.router.weight,
             "experts.gate_up_proj": torch.stack(
                 [torch.cat([e.gate_proj.weight, e.up_proj.weight])
                  for e in ours.experts]),
             "experts.down_proj": torch.stack(
                 [e.down_proj.weight for e in ours.experts])}
    theirs.load_state_dict(state)
    x = normal(2, 5, 8).float()
    balance = []
    assert torch.allclose(ours(x, balance=balance), theirs(x), atol=1e-6)
    logits = ours.router(x.flatten(0, 1))
    expected = load_balancing_loss_func((logits,), 6, 2) / 2
    assert torch.allclose(balance_of(balance[0]), expected)


def test_balance_has_a_gradient_that_balances():
    x = normal(64, 8).float() + 1
    experts = MixtureOfExperts(8, 12, n_experts=4, n_active=1, std=0.5,
                               generator=draws())
    optimizer, balance = torch.optim.SGD(experts.router.parameters(),
                                         lr=0.5), []
    for _ in range(201):
        experts(x, balance=balance)
        optimizer.zero_grad()
        balance[-1] = balance_of(balance[-1])
        balance[-1].backward()
        optimizer.step()
    assert balance[-1].item() < min(balance[0].item(), 1.1)


@pytest.mark.parametrize("kind", BLOCKS.values())
def test_a_block_hands_the_list_to_its_router_only(kind):
    def norm():
        return LayerNorm(8)

    x, balance = normal(2, 3, 8).float(), []
    experts = MixtureOfExperts(8, 12, n_experts=4, n_active=2,
                               generator=draws())
    routed = kind(nn.Linear(8, 8), experts, norm=norm)
    dense = kind(nn.Linear(8, 8), nn.Linear(8, 8), norm=norm)
    assert torch.equal(routed(x), routed(x, balance=balance))
    assert torch.equal(dense(x), dense(x, balance=balance))
    assert len(balance) == 1


@pytest.mark.parametrize("placement", CROSS_BLOCKS)
def test_cross_block_by_formula(placement):
    x, source = normal(2, 3, 8), normal(2, 5, 8, seed=1)
    f, g = nn.Linear(8, 8).double(), nn.Linear(8, 8).double()
    look = MultiHeadAttention(8, 2, std=0.5, generator=draws()).double()
    norm = LayerNorm(8).double()
    block = CROSS_BLOCKS[placement](f, look, g, norm=lambda: norm)
    mask = torch.tensor([True, True, False, True, False])
    seen = source[:, mask]
    if placement == "pre":
        y = x + f(norm(x))
        y = y + look(norm(y), source=seen)
        expected = y + g(norm(y))
    else:
        y = norm(x + f(x))
        y = norm(y + look(y, source=seen))
        expected = norm(y + g(y))
    found = block(x, source=source, source_mask=mask[None])
    assert (found - expected).abs().max() < 1e-12


def test_balance_bounds_and_bad_sizes():
    even, turns = torch.full((8, 4), 0.25), torch.arange(8)[:, None] % 4
    assert load_balancing_loss(even, chosen=turns).item() == 1
    for n_active in (0, 3):
        with pytest.raises(ValueError, match=rf"n_active={n_active}: must "
                                             r"be in 1\.\.2"):
            MixtureOfExperts(4, 4, n_experts=2, n_active=n_active,
                             generator=draws())
