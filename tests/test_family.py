"""Pages that are understood in full, and the places of parameters."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers
from published import OLD_DEFAULTS, PUBLISHED
from torch import nn

from lmcourse.layers.transformer import TransformerConfig
from lmcourse.models.family import (
    Asked,
    Family,
    Stored,
    count_parameters,
    essential_fields,
    find_place,
    read_choice,
    read_config,
    read_number,
    write_config,
)
from lmcourse.models.gpt import GPT2_NAMES, GPT_FAMILIES, GPTS
from lmcourse.models.llama import LLAMA_FAMILIES, LLAMAS, OPEN_DECODERS

FAMILIES = {f.model_type: f for f in GPT_FAMILIES + LLAMA_FAMILIES}


def test_what_was_asked_for():
    page = Asked({"a": 1, "b": 2, "c": None})
    assert page["a"] == 1 and page.get("c", 5) is None
    assert page.get("d", 4) == 4 and len(page) == 3
    assert page.asked == {"a", "c", "d"}


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", None,
                                   float("inf"), float("nan")])
def test_a_count_is_a_whole_number_above_zero(value):
    with pytest.raises(ValueError, match=r"n=.*must be a whole number"):
        read_number({"n": value}, "n", kind=int)


def test_a_missing_key_has_its_first_value():
    assert read_choice({}, "x", "a", "b") == "a"
    assert read_number({}, "x", None) is None
    assert read_number({"x": 0.0}, "x", 1.0, 0.0) == 0.0
    with pytest.raises(KeyError):
        read_number({}, "x")


def test_a_part_of_a_stored_tensor():
    generator = torch.Generator().manual_seed(0)
    parts = [nn.Linear(4, 6) for _ in range(3)]
    fused = torch.cat([part.weight for part in parts])
    bias = torch.randn(18, generator=generator)
    x = torch.randn(2, 4, generator=generator)
    whole = x @ fused.T + bias
    for i, out in enumerate(whole.chunk(3, dim=1)):
        place = Stored("c", part=(i, 3), transposed=True)
        weight = place.take(fused.T.contiguous())
        assert place.stored_shape(weight.shape) == (4, 18)
        assert place.stored_shape((6,)) == (18,)
        assert torch.allclose(x @ weight.T + place.take(bias), out,
                              atol=1e-6)
        assert torch.equal(Stored("c", (i, 3)).take(fused), weight)


def test_places():
    names = {"layers.*.experts.*.up": "h.*.e.*.w3", "head": "lm_head"}
    assert find_place(names, "layers.3.experts.12.up.weight") == Stored(
        "h.3.e.12.w3.weight")
    assert find_place(names, "head.bias").name == "lm_head.bias"
    assert find_place(names, "layers.3.up.weight") is None
    place = find_place(GPT2_NAMES, "layers.11.attention.v_proj.weight")
    assert place == Stored("transformer.h.11.attn.c_attn.weight",
                           part=(2, 3), transposed=True)


def test_each_family_has_a_name_of_its_own():
    families = GPT_FAMILIES + LLAMA_FAMILIES
    assert len({f.architecture for f in families}) == len(families) == 11


def test_a_family_of_another_class():
    """Configurations need not be those of the Transformer."""
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Size:
        width: int
        dropout: float = 0.0

    family = Family(
        "line", "Line", lambda page: Size(read_number(page, "w", kind=int)),
        lambda config: {"w": config.width, "unknown": 1}, {"*": "*"},
        build=lambda config: nn.Linear(config.width, 1), config=Size)
    assert read_config(family, {"w": 3, "architectures": ["Line"]}) == Size(3)
    assert write_config(family, Size(3, dropout=0.1)) == {"w": 3}
    assert essential_fields(Size(3)) == {"width": 3}
    assert count_parameters(Size(3), build=family.build) == 4
    with pytest.raises(ValueError, match="w is missing"):
        read_config(family, {})
    with pytest.raises(ValueError, match="v=2: is not known"):
        read_config(family, {"w": 3, "v": 2})


def test_essential_fields_tell_models_apart():
    config = LLAMAS["llama-3.2-1b"]
    fields = vars(config)
    assert essential_fields(config) == essential_fields(
        TransformerConfig(**fields | {"dropout": 0.1}))
    for change in ({"rope_theta": 1.0}, {"attention": "sliding", "window": 3},
                   {"biases": ("qkv",)}, {"attention_scale": 1.0}):
        assert essential_fields(config) != essential_fields(
            TransformerConfig(**fields | change)), change
    assert count_parameters(GPTS["gpt-2-small"]) == 124_439_808


# Files as they were published


def read_published(settings):
    return read_config(FAMILIES[settings["model_type"]], settings)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_read_in_old_and_new_spelling(name):
    old = PUBLISHED[name]
    new = transformers.AutoConfig.for_model(**old)
    config = read_published(old)
    assert read_published(OLD_DEFAULTS | old) == config
    assert read_published(new.to_dict()) == config
    assert read_published(new.to_diff_dict()) == config
    if name in OPEN_DECODERS:
        assert essential_fields(config) == essential_fields(
            OPEN_DECODERS[name])


def test_the_published_files_are_of_all_families():
    assert {f["model_type"] for f in PUBLISHED.values()} == FAMILIES.keys()
    assert len(PUBLISHED) == 68


OF_EACH_FAMILY = {kind: settings for settings in PUBLISHED.values()
                  for kind in [settings["model_type"]]}


@pytest.mark.parametrize("kind", OF_EACH_FAMILY)
@pytest.mark.parametrize("key, value", [
    ("hovercraft", "eels"), ("hovercraft", None), ("hidden_dropouts", 0.0),
    ("is_encoder_decoder", True), ("add_cross_attention", True),
    ("tie_encoder_decoder", True), ("cross_attention_hidden_size", 64),
    ("pruned_heads", {"0": [1, 2]}), ("quantization_config", {"bits": 4}),
])
def test_what_may_change_a_number_is_refused_in_each_family(kind, key, value):
    with pytest.raises(ValueError, match=f"^{key}="):
        read_published(OF_EACH_FAMILY[kind] | {key: value})


@pytest.mark.parametrize("kind, key, value", [
    ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ("gpt2", "reorder_and_upcast_attn", True),
    ("gpt2", "scale_attn_weights", "no"),
    ("gpt2", "layer_norm_epsilon", 0.0),
    ("llama", "rope_interleaved", True),
    ("llama", "layer_types", ["full_attention"]),
    ("gemma", "hidden_activation", "relu"),
    ("gemma2", "hidden_act", "relu"),
    ("gemma2", "sliding_window_size", 2048),
    ("gemma3_text", "hidden_act", "silu"),
    ("gemma3_text", "attn_logit_softcapping", 50.0),
    ("qwen2", "use_mrope", True),
    ("qwen2", "dual_chunk_attention_config", {"chunk_size": 262144}),
    ("qwen3_moe", "shared_expert_intermediate_size", 5632),
    ("qwen3_moe", "qkv_bias", True),
    ("qwen3_moe", "use_qk_norm", False),
])
def test_what_decides_in_one_family_is_refused_by_name(kind, key, value):
    with pytest.raises(ValueError, match=f"^{key}="):
        read_published(OF_EACH_FAMILY[kind] | {key: value})


def test_what_decides_is_taken_over():
    gpt2 = PUBLISHED["gpt2"]
    unscaled = read_published(gpt2 | {"scale_attn_weights": False})
    assert unscaled.attention_scale == 1.0
    rough = read_published(gpt2 | {"layer_norm_epsilon": 1e-2})
    assert rough.norm_eps == 1e-2


def test_a_family_may_ask_for_what_others_must_have_off():
    family = Family("pair", "Pair", lambda page: read_choice(
        page, "is_encoder_decoder", True), dict, {})
    assert read_config(family, {"is_encoder_decoder": True}) is True


def test_noise_of_training_is_no_reason_to_refuse():
    for kind, key in [("gpt2", "embd_pdrop"), ("gpt2", "attn_pdrop"),
                      ("openai-gpt", "embd_pdrop"),
                      ("llama", "attention_dropout"),
                      ("mixtral", "router_jitter_noise"),
                      ("qwen3_moe", "router_aux_loss_coef")]:
        settings = OF_EACH_FAMILY[kind]
        assert read_published(settings | {key: 0.3}) == read_published(
            settings), key
