"""Llama and its relatives compute what transformers computes."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers
from parity import check_parity, distance, drawn, in_double, texts

from lmcourse.checkpoints import load_model
from lmcourse.decoding import greedy
from lmcourse.models.llama import (
    OPEN_DECODERS,
    cache_of_text,
    cache_per_token,
    gated_width,
)

SIZES = dict(vocab_size=97, hidden_size=32, intermediate_size=48,
             num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64,
             initializer_range=0.2, pad_token_id=None)
LLAMA_3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0,
               high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
ALL = "full_attention"
NEAR = "sliding_attention"


def rope(theta=10_000.0, **numbers):
    numbers = {"rope_type": "default", "rope_theta": theta} | numbers
    return dict(rope_parameters=numbers)


# What several families share is turned in one of them, Llama or Qwen 2.
SHARED = [  # all nine: as it is, and with sizes that differ from each other
    {},
    dict(num_key_value_heads=1, head_dim=12, hidden_size=40, vocab_size=53,
         intermediate_size=37, num_hidden_layers=3, rms_norm_eps=1e-3),
]
TURNED = [
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
    dict(use_sliding_window=True, sliding_window=5,
         layer_types=[NEAR, ALL]),
]
GEMMAS = [
    dict(attention_bias=True, tie_word_embeddings=False),
    dict(hidden_activation="gelu", query_pre_attn_scalar=24),
    dict(sliding_window=4, layer_types=[ALL, NEAR]),
    dict(sliding_window=3, layer_types=[NEAR, NEAR],
         final_logit_softcapping=2.0),
    dict(final_logit_softcapping=None, hidden_activation="silu"),
]
FAMILIES = {
    "llama": (transformers.LlamaConfig, {}, TURNED + GATES + [
        dict(attention_bias=True),
        dict(mlp_bias=True, num_key_value_heads=4, head_dim=4)]),
    "mistral": (transformers.MistralConfig, dict(sliding_window=None), [
        dict(sliding_window=4), dict(sliding_window=1), TURNED[0]]),
    "qwen2": (transformers.Qwen2Config, {}, LATE + GATES[:1]),
    "qwen3": (transformers.Qwen3Config, dict(head_dim=8),
              BIASED + LATE[:1] + TURNED[:1]),
    "gemma": (transformers.GemmaConfig, dict(head_dim=8), BIASED + [
        dict(tie_word_embeddings=False, hidden_act="silu"),
        dict(hidden_act="gelu")]),
    "gemma2": (transformers.Gemma2Config,
               dict(head_dim=8, query_pre_attn_scalar=16), GEMMAS + [
                   dict(attn_logit_softcapping=None),
                   dict(attn_logit_softcapping=1.0, num_hidden_layers=3)]),
    "gemma3_text": (transformers.Gemma3TextConfig,
                    dict(head_dim=8, query_pre_attn_scalar=16), GEMMAS + [
                        dict(num_hidden_layers=7, sliding_window=4),
                        dict(rope_parameters={
                            ALL: dict(rope_type="linear", factor=8.0,
                                      rope_theta=1e6),
                            NEAR: dict(rope_type="linear", factor=2.0,
                                       rope_theta=2e3)},
                             layer_types=[NEAR, ALL])]),
    "mixtral": (transformers.MixtralConfig,
                dict(num_local_experts=4, sliding_window=None), [
                    dict(num_experts_per_tok=1, sliding_window=4),
                    dict(num_local_experts=3, num_experts_per_tok=3,
                         hidden_act="gelu", tie_word_embeddings=True)]),
    "qwen3_moe": (transformers.Qwen3MoeConfig,
                  dict(num_experts=4, num_experts_per_tok=2, head_dim=8,
                       moe_intermediate_size=24, norm_topk_prob=True),
                  BIASED + [
                      dict(num_experts=3, num_experts_per_tok=3,
                           norm_topk_prob=False, hidden_act="gelu"),
                      dict(mlp_only_layers=[1], moe_intermediate_size=17),
                      dict(decoder_sparse_step=2, num_experts_per_tok=1,
                           tie_word_embeddings=True),
                      dict(use_sliding_window=True, sliding_window=4)]),
}
CASES = [(family, i) for family, (_, _, knobs) in FAMILIES.items()
         for i in range(len(SHARED + knobs))]


def settings(family, index=0):
    """The library's configuration of a small model with a knob turned."""
    kind, base, knobs = FAMILIES[family]
    return kind(**SIZES | base | (SHARED + knobs)[index])


@pytest.mark.parametrize("family, index", CASES)
def test_parity(family, index, tmp_path):
    theirs = drawn(settings(family, index))
    parameters = getattr(theirs.config, "rope_parameters", {})
    kinds = str(parameters)
    # theirs are float32: scaled angles, and the weights of Mixtral's experts
    rough = "factor" in kinds or family == "mixtral"
    check_parity(theirs, tmp_path, tolerance=1e-5 if rough else 1e-10,
                 # its turns depend on the length, as in transformers
                 cached="longrope" not in kinds,
                 exactly=lambda: in_double(theirs))


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_as_near_to_the_truth_as_theirs(family, tmp_path):
    theirs = drawn(settings(family), dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    input_ids, _ = texts(theirs.config.vocab_size)
    with torch.no_grad():
        truth = load_model(tmp_path, dtype=torch.float64)(input_ids)
        near, far = ((model(input_ids) - truth).square().mean().sqrt()
                     for model in (ours, lambda x: theirs(x).logits))
    assert near < 1.2 * far


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


@pytest.mark.parametrize("numbers", [
    dict(rope_type="dynamic", factor=3.0, max_position_embeddings=8),
    dict(rope_type="longrope", factor=4.0, short_factor=[1.0, 1.5, 2.0, 2.5],
         long_factor=[1.0, 3.0, 5.0, 7.0],
         original_max_position_embeddings=8),
], ids=lambda numbers: numbers["rope_type"])
def test_a_text_that_outgrows_its_length_is_continued_as_by_theirs(
        numbers, tmp_path):
    """From 5 tokens to 21, beyond 8, with a cache; and 5 to 12 at once."""
    numbers = dict(numbers)
    length = numbers.pop("max_position_embeddings", 64)
    theirs = drawn(transformers.LlamaConfig(**SIZES | rope(**numbers) | dict(
        max_position_embeddings=length, eos_token_id=None)))
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    prompt, _ = texts(97)
    prompt = prompt[:, :5]
    written = theirs.generate(prompt, max_new_tokens=16, do_sample=False,
                              output_logits=True, return_dict_in_generate=True)
    found = greedy(ours, prompt, max_new_tokens=16)
    assert torch.equal(found, written.sequences)
    cache, logits = ours.new_cache(), []
    with torch.no_grad():
        for part in found[:, :-1].split([5] + [1] * 15, dim=1):
            logits.append(ours(part, cache=cache)[:, -1])
        for mine, his in zip(logits, written.logits, strict=True):
            assert distance(mine, his) < 1e-5
        past = theirs(found[:, :5]).past_key_values
        his = theirs(found[:, 5:12], past_key_values=past).logits
        cache = ours.new_cache()
        ours(found[:, :5], cache=cache)
        assert distance(ours(found[:, 5:12], cache=cache), his) < 1e-5


def test_several_ends_of_a_text_are_those_of_theirs(tmp_path):
    theirs = drawn(settings("llama"))
    theirs.save_pretrained(tmp_path)
    prompt, _ = texts(97)
    theirs.generation_config.eos_token_id = None
    free = theirs.generate(prompt, max_new_tokens=12, do_sample=False)
    ends = [free[0, 20].item(), free[1, 15].item(), free[2, 17].item()]
    theirs.generation_config.pad_token_id = None
    expected = theirs.generate(prompt, max_new_tokens=12, do_sample=False,
                               eos_token_id=ends)
    found = greedy(load_model(tmp_path), prompt, max_new_tokens=12,
                   eos_id=ends)
    assert torch.equal(found, expected)
    assert not torch.equal(found, free[:, :found.shape[1]])
