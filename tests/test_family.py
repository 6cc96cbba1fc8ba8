"""Pages that are understood in full, and the places of parameters."""

import pytest
import torch
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
from lmcourse.models.llama import LLAMA_FAMILIES, LLAMAS


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
