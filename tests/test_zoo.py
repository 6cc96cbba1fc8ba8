"""The zoo: presets, scores, and models that are kept."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmcourse import zoo
from lmcourse.world import SKILLS, Probe

TINY = zoo.Preset(n_documents=200, d_model=16, n_layers=1, n_heads=2,
                  batch_size=4, length=16, steps=3)


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer, history = zoo.pretrain(TINY)
    return model, tokenizer, history


def test_pretrain_is_repeatable(tiny):
    again, _, history = zoo.pretrain(TINY)
    for a, b in zip(tiny[0].parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert history.loss == tiny[2].loss


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"steps": 2}, {"learning_rate": 1e-3}, {"length": 12},
    {"n_documents": 150}, {"batch_size": 5}, {"n_heads": 1},
    {"n_layers": 2}, {"d_model": 32}])
def test_every_field_of_a_preset_matters(tiny, change):
    _, _, history = zoo.pretrain(replace(TINY, **change))
    assert history.loss != tiny[2].loss


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="^preset='huge': must be one of"):
        zoo.get_preset("huge")


@pytest.mark.parametrize("field", ["steps", "length", "d_model"])
def test_preset_fields_are_positive(field):
    with pytest.raises(ValueError, match=f"^{field}=0: must be positive$"):
        replace(TINY, **{field: 0})


@pytest.mark.parametrize("field", ["steps", "batch_size", "seed"])
def test_preset_counts_are_whole(field):
    with pytest.raises(ValueError,
                       match=f"^{field}=2.5: must be a whole number$"):
        replace(TINY, **{field: 2.5})


def test_no_questions_are_refused(tiny):
    model, tokenizer, _ = tiny
    with pytest.raises(ValueError, match="^questions: are none, must be"):
        zoo.probe_scores(model, tokenizer, [])


class Oracle(torch.nn.Module):
    """Gives one token all the probability, after any prompt."""

    def __init__(self, favorite, vocab_size):
        super().__init__()
        scores = torch.zeros(vocab_size)
        scores[favorite] = 50.0
        self.scores = torch.nn.Parameter(scores)

    def forward(self, input_ids):
        return self.scores.expand(*input_ids.shape, -1)


def test_probe_scores_reads_the_last_token_of_each_prompt(tiny):
    _, tokenizer, _ = tiny
    favorite = tokenizer.encode(" Copenhagen")[0]
    model = Oracle(favorite, tokenizer.vocab_size)
    short = Probe("The", " Copenhagen", " London")
    long = Probe("The capital of Denmark is", " London", " Copenhagen")
    assert zoo.probe_scores(model, tokenizer, [short]) == (1.0, 1.0)
    right, p = zoo.probe_scores(model, tokenizer, [short, long])
    assert (right, round(p, 6)) == (0.5, 0.5)


def test_padding_does_not_change_scores(tiny):
    model, tokenizer, _ = tiny
    short = Probe("The capital of Denmark is", " Copenhagen", " London")
    long = Probe("In my free time, I like to run and so on and so on to",
                 " run", " banana")
    _, alone = zoo.probe_scores(model, tokenizer, [short])
    _, other = zoo.probe_scores(model, tokenizer, [long])
    _, both = zoo.probe_scores(model, tokenizer, [short, long])
    assert both == pytest.approx((alone + other) / 2, rel=1e-4)


def test_scores_leave_the_mode_as_it_was(tiny):
    model, tokenizer, _ = tiny
    assert set(zoo.skill_scores(model.train(), tokenizer, n=4)) == {*SKILLS}
    assert model.training
    model.eval()


def test_saved_model_comes_back(tiny, tmp_path):
    model, tokenizer, _ = tiny
    zoo.save_world_model(tmp_path / "m", model=model, tokenizer=tokenizer)
    again, words = zoo.load_world_model(tmp_path / "m")
    ids = torch.tensor([words.encode("The capital of Peru is")])
    assert torch.equal(again(ids), model(ids))
    assert words == tokenizer
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


@pytest.mark.parametrize("name", ["config.json", "words.json",
                                  "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_files_are_named(tiny, tmp_path, name, damage):
    model, tokenizer, _ = tiny
    zoo.save_world_model(tmp_path / "m", model=model, tokenizer=tokenizer)
    path = tmp_path / "m" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=f"{name}: cannot be read") as error:
        zoo.load_world_model(tmp_path / "m")
    assert len(str(error.value).splitlines()) == 1


def test_weights_of_another_shape_are_refused(tiny, tmp_path):
    model, tokenizer, _ = tiny
    zoo.save_world_model(tmp_path / "m", model=model, tokenizer=tokenizer)
    path = tmp_path / "m/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "d_ff": 48}))
    with pytest.raises(ValueError, match=r"is \(16, 64\), must be \(16, 48\)"):
        zoo.load_world_model(tmp_path / "m")


def test_world_model_trains_once(tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.PRESETS, "tiny", TINY)
    first, _ = zoo.world_model("tiny", folder=tmp_path)
    monkeypatch.setattr(zoo, "pretrain", None)  # a second run would fail
    second, _ = zoo.world_model("tiny", folder=tmp_path)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_preset_is_another_model(tmp_path):
    folders = {zoo._home(TINY, tmp_path),
               zoo._home(replace(TINY, seed=1), tmp_path)}
    assert len(folders) == 2


def test_killed_while_saving_leaves_no_model(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from lmcourse import zoo
from tests.test_zoo import TINY
zoo._write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
model, tokenizer, _ = zoo.pretrain(TINY)
zoo.save_world_model(Path({str(tmp_path)!r}) / "m", model=model,
                     tokenizer=tokenizer)
"""
    done = subprocess.run([sys.executable, "-c", code],
                          cwd=Path(__file__).parents[1])
    assert done.returncode == -9
    assert not (tmp_path / "m").exists()
