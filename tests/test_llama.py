"""Llama and its relatives give the logits that transformers gives."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import torch.nn.functional as F
import transformers

from lmcourse.checkpoints import load_model, save_model
from lmcourse.models.llama import (
    OPEN_DECODERS,
    cache_of_text,
    cache_per_token,
    gated_width,
)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

LENGTH = 13
SIZES = dict(vocab_size=97, hidden_size=32, intermediate_size=48,
             num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64,
             initializer_range=0.2)
LLAMA_3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0,
               high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
ALL = "full_attention"
NEAR = "sliding_attention"


def rope(theta=10_000.0, **numbers):
    numbers = {"rope_type": "default", "rope_theta": theta} | numbers
    return dict(rope_parameters=numbers)


SHARED = [  # knobs of all nine families
    {},
    dict(num_key_value_heads=4, vocab_size=101),
    dict(num_key_value_heads=1, head_dim=16),
    dict(head_dim=6, rms_norm_eps=1e-3),
    dict(num_attention_heads=8, num_key_value_heads=2, num_hidden_layers=3),
    dict(hidden_size=40, head_dim=12, intermediate_size=37, vocab_size=53),
    dict(num_hidden_layers=1, max_position_embeddings=16),
]
TURNED = [  # for those with one kind of rope in all layers
    rope(500_000.0),
    rope(rope_type="linear", factor=3.0),
    rope(**LLAMA_3),
    rope(**YARN),
    rope(**YARN, attention_factor=1.3, beta_fast=16.0, beta_slow=2.0,
         truncate=False),
    rope(**YARN, mscale=0.7, mscale_all_dim=1.1),
    rope(rope_type="dynamic", factor=2.0),
    rope(rope_type="longrope", factor=4.0, short_factor=[1.0, 1.5, 2.0, 2.5],
         long_factor=[1.0, 3.0, 5.0, 7.0],
         original_max_position_embeddings=8),
]
BIASED = [dict(attention_bias=True)]
GATES = [dict(hidden_act=name, tie_word_embeddings=True) for name in
         ("gelu", "gelu_pytorch_tanh", "relu")]
LATE = [  # Qwen's windows
    dict(use_sliding_window=True, sliding_window=4, max_window_layers=1),
    dict(use_sliding_window=True, sliding_window=3, max_window_layers=0),
    dict(use_sliding_window=True, sliding_window=5,
         layer_types=[NEAR, ALL]),
]
GEMMAS = BIASED + [
    dict(tie_word_embeddings=False),
    dict(hidden_activation="gelu", query_pre_attn_scalar=24),
    dict(sliding_window=4),
    dict(sliding_window=1, layer_types=[ALL, NEAR]),
    dict(sliding_window=3, layer_types=[NEAR, NEAR]),
    dict(final_logit_softcapping=None, hidden_activation="silu"),
    dict(final_logit_softcapping=2.0, sliding_window=5),
]
EXPERTS = [
    dict(num_experts_per_tok=1),
    dict(num_local_experts=5, num_experts_per_tok=3),
    dict(num_local_experts=3, num_experts_per_tok=3, hidden_act="gelu"),
]
FAMILIES = {
    "llama": (transformers.LlamaConfig, {}, SHARED + TURNED + BIASED + GATES
              + [dict(mlp_bias=True),
                 dict(mlp_bias=True, attention_bias=True, head_dim=4)]),
    "mistral": (transformers.MistralConfig, dict(sliding_window=None),
                SHARED + TURNED[:4] + GATES + [
                    dict(sliding_window=4), dict(sliding_window=1),
                    dict(sliding_window=12, head_dim=16),
                    dict(sliding_window=64)]),
    "qwen2": (transformers.Qwen2Config, {},
              SHARED + TURNED[:4] + GATES + LATE),
    "qwen3": (transformers.Qwen3Config, dict(head_dim=8),
              SHARED + TURNED[:4] + BIASED + GATES + LATE),
    "gemma": (transformers.GemmaConfig, dict(head_dim=8),
              SHARED + TURNED[:4] + BIASED + [
                  dict(tie_word_embeddings=False), dict(hidden_act="silu"),
                  dict(hidden_act="gelu")]),
    "gemma2": (transformers.Gemma2Config,
               dict(head_dim=8, query_pre_attn_scalar=16),
               SHARED[:4] + SHARED[6:] + TURNED[:4] + GEMMAS + [
                   dict(attn_logit_softcapping=None),
                   dict(attn_logit_softcapping=1.0, num_key_value_heads=1),
                   dict(num_hidden_layers=3)]),
    "gemma3_text": (transformers.Gemma3TextConfig,
                    dict(head_dim=8, query_pre_attn_scalar=16),
                    SHARED[:4] + SHARED[6:] + GEMMAS + [
                        dict(num_hidden_layers=7, sliding_window=4),
                        dict(rope_parameters={
                            ALL: dict(rope_type="linear", factor=8.0,
                                      rope_theta=1e6),
                            NEAR: dict(rope_type="default",
                                       rope_theta=1e4)},
                             layer_types=[NEAR, ALL]),
                        dict(rope_parameters={
                            ALL: dict(rope_type="default", rope_theta=5e5),
                            NEAR: dict(rope_type="linear", factor=2.0,
                                       rope_theta=2e3)},
                             layer_types=[NEAR, ALL])]),
    "mixtral": (transformers.MixtralConfig,
                dict(num_local_experts=4, sliding_window=None),
                SHARED + TURNED[:2] + EXPERTS + [
                    dict(sliding_window=4), dict(hidden_act="relu"),
                    dict(tie_word_embeddings=True)]),
    "qwen3_moe": (transformers.Qwen3MoeConfig,
                  dict(num_experts=4, num_experts_per_tok=2, head_dim=8,
                       moe_intermediate_size=24, norm_topk_prob=True),
                  SHARED + TURNED[:2] + BIASED + EXPERTS[:1] + [
                      dict(num_experts=3, num_experts_per_tok=3,
                           norm_topk_prob=False, hidden_act="gelu"),
                      dict(mlp_only_layers=[0]),
                      dict(mlp_only_layers=[1], moe_intermediate_size=17),
                      dict(decoder_sparse_step=2),
                      dict(use_sliding_window=True, sliding_window=4),
                      dict(norm_topk_prob=False),
                      dict(tie_word_embeddings=True)]),
}
CASES = [(family, i) for family, (_, _, knobs) in FAMILIES.items()
         for i in range(len(knobs))]


def reference(family, index, *, dtype=torch.float32):
    """A model of transformers with all of its parameters drawn."""
    kind, base, knobs = FAMILIES[family]
    config = kind(**SIZES | dict(pad_token_id=None) | base | knobs[index])
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(index)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    generator = torch.Generator().manual_seed(index)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.15 * drawn.to(dtype))
    return model.eval()


def texts(vocab_size):
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(vocab_size, (3, LENGTH), generator=generator)
    right = torch.ones(3, LENGTH, dtype=torch.long)
    right[1, 9:], right[2, 4:] = 0, 0
    return input_ids, [None, right, right.flip(1)]


def distance(ours, theirs, real=None):
    if real is not None:
        ours, theirs = ours[real.bool()], theirs[real.bool()]
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


class InDouble:
    """Keeps the reference from falling to float32 in norms and softmax."""

    def __init__(self, model):
        self.kinds = {type(m) for m in model.modules()
                      if "RMSNorm" in type(m).__name__}
        for module in model.modules():
            if hasattr(module, "scalar_embed_scale"):
                module.embed_scale = torch.tensor(
                    module.scalar_embed_scale, dtype=torch.float64)

    def __enter__(self):
        self.kept = {kind: kind.forward for kind in self.kinds}
        self.softmax = F.softmax
        for kind in self.kinds:
            gemma = kind.__name__.startswith("Gemma")
            kind.forward = lambda self, x, gemma=gemma: F.rms_norm(
                x, self.weight.shape, self.weight + gemma,
                self.eps if gemma else self.variance_epsilon)

        def softmax(x, dim=-1, dtype=None, **rest):
            return self.softmax(x, dim=dim, **rest)
        F.softmax = softmax

    def __exit__(self, *_):
        for kind, forward in self.kept.items():
            kind.forward = forward
        F.softmax = self.softmax


@pytest.mark.parametrize("family,index", CASES)
def test_logits_and_saved_files(family, index, tmp_path):
    theirs = reference(family, index)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    input_ids, masks = texts(theirs.config.vocab_size)
    with torch.no_grad():
        for mask in masks:
            expected = theirs(input_ids, attention_mask=mask).logits
            found = ours(input_ids, attention_mask=mask)
            assert distance(found, expected, mask) < 1e-5
        plain = ours(input_ids[:1])
        assert distance(plain, theirs(input_ids[:1]).logits) < 1e-5
    save_model(ours, tmp_path / "ours")
    again = load_model(tmp_path / "ours")
    opened = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager",
        experts_implementation="eager")
    assert type(opened) is type(theirs)
    with torch.no_grad():
        assert torch.equal(again(input_ids[:1]), plain)
        assert torch.equal(opened(input_ids).logits,
                           theirs(input_ids).logits)


@pytest.mark.parametrize("family,index", CASES)
def test_logits_and_gradients_in_float64(family, index, tmp_path):
    theirs = reference(family, index, dtype=torch.float64)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert next(ours.parameters()).dtype == torch.float64
    scaled = any(ours.config.at(i).rope_scaling
                 for i in range(ours.config.n_layers))
    # theirs are float32: scaled angles, and the weights of Mixtral's experts
    tolerance = 1e-5 if scaled or family == "mixtral" else 1e-10
    input_ids, _ = texts(theirs.config.vocab_size)
    with InDouble(theirs):
        expected = theirs(input_ids).logits
        loss_of(expected, input_ids).backward()
    found = ours(input_ids)
    loss_of(found, input_ids).backward()
    assert distance(found, expected) < tolerance
    gradients = dict(stacked_gradients(theirs, ours))
    scale = max(grad.abs().max() for grad in gradients.values())
    for name, parameter in ours.named_parameters():
        far = (parameter.grad - gradients[name]).abs().max() / scale
        assert far < tolerance, name


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_as_near_to_the_truth_as_theirs(family, tmp_path):
    theirs = reference(family, 0).bfloat16()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.embeddings.tokens.weight.dtype == torch.bfloat16
    input_ids, _ = texts(theirs.config.vocab_size)
    with torch.no_grad():
        truth = load_model(tmp_path, dtype=torch.float64)(input_ids)
        near, far = ((model(input_ids) - truth).square().mean().sqrt()
                     for model in (ours, lambda x: theirs(x).logits))
    assert near < 1.2 * far


def loss_of(logits, input_ids):  # theirs would fall to float32
    return F.cross_entropy(logits[:, :-1].flatten(0, 1),
                           input_ids[:, 1:].flatten())


def stacked_gradients(theirs, ours):
    """Their gradients under our names, through a file and back."""
    import tempfile
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        yield from load_model(folder).named_parameters()


def test_all_families_have_twelve_configurations():
    for family, (_, _, knobs) in FAMILIES.items():
        assert len(knobs) >= 12, family


def test_what_a_conversation_weighs():
    """By hand: keys and values, layers, heads, their width, bytes."""
    llama, gemma = OPEN_DECODERS["llama-3.1-8b"], OPEN_DECODERS["gemma-3-4b"]
    assert cache_per_token(llama) == 2 * 32 * 8 * 128 * 2
    assert cache_per_token(llama, bytes_per_number=4) == 2 ** 18
    assert cache_of_text(llama, 100) == 100 * cache_per_token(llama)
    kept = 5 * 5000 + 29 * 1024  # five layers of 34 see everything
    assert cache_of_text(gemma, 5000) == kept * 2 * 4 * 256 * 2


@pytest.mark.parametrize("d_model, multiplier, multiple_of, d_ff", [
    (4096, 1.0, 256, 11008), (8192, 1.0, 256, 22016),  # Llama 1
    (4096, 1.3, 1024, 14336), (8192, 1.3, 4096, 28672)])  # Llama 3
def test_gated_width_as_published(d_model, multiplier, multiple_of, d_ff):
    assert gated_width(d_model, multiplier=multiplier,
                       multiple_of=multiple_of) == d_ff
