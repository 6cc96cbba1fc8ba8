"""One check for all families: ours computes what transformers computes."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
import transformers

from lmcourse.checkpoints import load_model, save_model
from lmcourse.models.bert import BertConfig, build_bert, train_pieces
from lmcourse.world import documents

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

LENGTH = 13
EAGER = dict(attn_implementation="eager", experts_implementation="eager")


def drawn(config, *, dtype=torch.float64, by=0.15,
          make=transformers.AutoModelForCausalLM.from_config):
    """A model of transformers, all of its parameters moved, norms too."""
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(0)
    model = make(config).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn(
                parameter.shape, generator=generator).to(dtype))
    return model.eval()


@contextlib.contextmanager
def in_double(model):
    """Keeps the reference from falling to float32 in norms and softmax."""
    kinds = {type(m) for m in model.modules()
             if "RMSNorm" in type(m).__name__}
    for module in model.modules():
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(
                module.scalar_embed_scale, dtype=torch.float64)
    softmax = F.softmax
    with pytest.MonkeyPatch.context() as patch:
        for kind in kinds:
            gemma = kind.__name__.startswith("Gemma")
            patch.setattr(kind, "forward", lambda self, x, gemma=gemma:
                          F.rms_norm(x, self.weight.shape,
                                     self.weight + gemma, self.eps if gemma
                                     else self.variance_epsilon))
        patch.setattr(F, "softmax", lambda x, dim=-1, dtype=None, **rest:
                      softmax(x, dim=dim, **rest))
        yield


def small_pieces():
    """A tokenizer of BERT's kind for documents of the world."""
    return train_pieces([*documents(1500)], vocab_size=500)


def small_encoder(pieces, *, std):
    """A BERT that has learned nothing, for these pieces."""
    return build_bert(BertConfig(
        vocab_size=pieces.vocab_size, max_length=64, d_model=32, n_layers=2,
        n_heads=2, d_ff=64, head="masked_lm", initializer_range=std))


def distance(ours, theirs):
    """The largest difference, relative to the largest number."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def texts(vocab_size):
    """Three texts, one whole, one filled on the left, one on the right."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(vocab_size, (3, LENGTH), generator=generator)
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, :4], mask[2, 9:] = 0, 0
    return input_ids, mask


def check_parity(theirs, folder, *, tolerance=1e-10, cached=True,
                 exactly=contextlib.nullcontext):
    """Logits, gradients, cache and files, in float64.

    `exactly()` is a context in which the reference does not fall to float32.
    """
    theirs.save_pretrained(folder / "theirs")
    ours = load_model(folder / "theirs")
    assert next(ours.parameters()).dtype == torch.float64
    input_ids, mask = texts(theirs.config.vocab_size)
    real = mask.bool()
    places = (mask.cumsum(1) - 1).clamp(min=0)  # as in generate()
    with exactly():
        expected = theirs(input_ids, attention_mask=mask,
                          position_ids=places).logits[real]
        loss_of(expected).backward()
    found = ours(input_ids, attention_mask=mask)[real]
    assert distance(found, expected) < tolerance
    loss_of(found).backward()
    check_files(theirs, ours, folder, input_ids)
    if cached:
        check_cache(ours, input_ids, mask)
    expected = gradients(theirs, folder)
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in ours.named_parameters():
        far = (parameter.grad - expected[name]).abs().max() / scale
        assert far < tolerance, name
    return ours


def loss_of(logits):
    """Something that depends on all logits."""
    return F.cross_entropy(logits, torch.arange(len(logits)) % 50)


def check_files(theirs, ours, folder, input_ids):
    """What we save is what both of us open."""
    save_model(ours, folder / "ours")
    opened = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "ours", **EAGER)
    assert type(opened) is type(theirs)
    again = load_model(folder / "ours")
    assert again.config == ours.config
    for ones, others in [(again, ours), (opened, theirs)]:
        for a, b in zip(ones.parameters(), others.parameters(), strict=True):
            assert torch.equal(a, b)
    with torch.no_grad():
        assert distance(opened(input_ids).logits,
                        theirs(input_ids).logits) < 1e-12


@torch.no_grad()
def check_cache(model, input_ids, mask):
    """Five tokens at a time give what all at once give."""
    cache, parts = model.new_cache(), []
    for ids, part in zip(input_ids.split(5, 1), mask.split(5, 1),
                         strict=True):
        parts.append(model(ids, attention_mask=part, cache=cache))
    whole = model(input_ids, attention_mask=mask)
    real = mask.bool()
    assert distance(torch.cat(parts, dim=1)[real], whole[real]) < 1e-10


def gradients(theirs, folder):
    """Their gradients under our names, through a file and back."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    theirs.save_pretrained(folder / "gradients")
    return dict(load_model(folder / "gradients").named_parameters())
