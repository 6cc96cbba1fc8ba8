"""The zoo: presets, scores, and models that are kept."""

import json
import math
import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from damage import sign

from lmcourse.models.bert import EncoderPreset
from lmcourse.models.electra import ElectraPreset
from lmcourse.zoo import base as zoo
from lmcourse.training import TrainingConfig
from lmcourse.world import HARDER, SKILLS, Probe, documents, word_prices

MAKER = "build_transformer"  # what draws the first weights
TINY = zoo.Preset(n_documents=200, vocab_size=400, d_model=16, n_layers=1,
                  n_heads=2, batch_size=2, length=128, steps=3)


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
    {"n_documents": 150}, {"vocab_size": 300}, {"batch_size": 5},
    {"n_heads": 1}, {"n_layers": 2}, {"d_model": 32},
    {"rare_words": ("Anna",)}, {"rare_words": ("Anna",), "n_readings": 9}])
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


def test_probe_scores_read_what_comes_after_the_prompt(tiny):
    _, tokenizer, _ = tiny
    favorite, *_ = tokenizer.encode(" Cop")
    model = Oracle(favorite, tokenizer.vocab_size)
    right, wrong = (tokenizer.decode([i]) for i in (
        favorite, tokenizer.encode(" London")[0]))
    short = Probe("The", right, wrong)
    long = Probe("The capital of Denmark is", wrong, right)
    assert zoo.probe_scores(model, tokenizer, [short]) == (1.0, 1.0)
    share, p = zoo.probe_scores(model, tokenizer, [short, long])
    assert (share, round(p, 6)) == (0.5, 0.5)


def test_an_ending_of_several_tokens_has_their_product(tiny):
    model, tokenizer, _ = tiny
    prompt = tokenizer.encode("The capital of Denmark is")
    ending = tokenizer.encode(" Copenhagen")
    assert len(ending) > 1
    p = model(torch.tensor([prompt + ending]))[0].softmax(dim=-1)
    product = 1.0
    for i, token in enumerate(ending):
        product *= p[len(prompt) - 1 + i, token].item()
    probe = Probe("The capital of Denmark is", " Copenhagen", " London")
    _, score = zoo.probe_scores(model, tokenizer, [probe])
    assert score == pytest.approx(product, rel=1e-4)


def test_excess_pays_each_word_once(tiny):
    """The words' prices add up to the loss of the document."""
    model, tokenizer, _ = tiny
    end = tokenizer.special_tokens["<|endoftext|>"]
    for text in documents(5, seed=8):
        words = zoo.word_excess(model, tokenizer, text)
        ids = torch.tensor([end, *tokenizer.encode(text), end])
        loss = torch.nn.functional.cross_entropy(
            model(ids[None, :-1])[0], ids[1:], reduction="sum").item()
        assert sum(paid for _, paid, _ in words) == pytest.approx(loss, 1e-4)
        assert [(w, t) for w, _, t in words] == word_prices(text)


def test_exams_are_spread_over_the_training():
    assert zoo.exam_steps(120) == [1, *range(10, 121, 10)]
    assert zoo.exam_steps(3) == [0, 1, 2, 3]  # there is no step 0


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
    assert set(zoo.skill_scores(model.train(), tokenizer, n=4)) == {
        *SKILLS, *HARDER}
    assert model.training
    model.eval()


def save(folder, tiny):
    model, tokenizer, history = tiny
    zoo.save_world_model(folder, model=model, tokenizer=tokenizer,
                         record={"loss": history.loss})


def test_saved_model_comes_back(tiny, tmp_path):
    model, tokenizer, _ = tiny
    save(tmp_path / "m", tiny)
    again, words = zoo.load_world_model(tmp_path / "m")
    ids = torch.tensor([words.encode("The capital of Peru is")])
    assert torch.equal(again(ids), model(ids))
    assert words == tokenizer
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_the_library_reads_the_words(tiny, tmp_path):
    """`tokenizer.json` as `tokenizers` opens it: equal ids."""
    tokenizers = pytest.importorskip("tokenizers")
    save(tmp_path / "m", tiny)
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "m/tokenizer.json"))
    for text in [*documents(50, seed=3), "A word that nobody knows: zyzzyva"]:
        assert peer.encode(text).ids == tiny[1].encode(text)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json",
                                  "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_files_are_named(tiny, tmp_path, name, damage):
    save(tmp_path / "m", tiny)
    path = tmp_path / "m" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises((ValueError, OSError)) as error:
        zoo.load_world_model(tmp_path / "m")
    assert (name if damage == "cut" else str(tmp_path)) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_weights_of_another_shape_are_refused(tiny, tmp_path):
    save(tmp_path / "m", tiny)
    path = tmp_path / "m/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "d_ff": 48}))
    sign(tmp_path / "m")
    with pytest.raises(ValueError, match=r"is \(16, 64\), must be \(16, 48\)|"
                                         r"is \(64, 16\), must be \(48, 16\)"):
        zoo.load_world_model(tmp_path / "m")


def test_world_model_trains_once(tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.PRESETS, "tiny", TINY)
    first, _ = zoo.world_model("tiny", folder=tmp_path)
    monkeypatch.setattr(zoo, "fit", None)  # a second run would fail
    second, _ = zoo.world_model("tiny", folder=tmp_path)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    record = zoo.world_record("tiny", folder=tmp_path)
    assert len(record["loss"]) == 3
    assert [*record["exams"]] == [1, 2, 3]
    assert record["exams"][3] == zoo.skill_scores(
        *zoo.world_model("tiny", folder=tmp_path), n=80, seed=1)


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"steps": 2}, {"learning_rate": 1e-3}, {"length": 12},
    {"n_documents": 150}, {"n_documents": 150_000}, {"vocab_size": 300},
    {"batch_size": 5}, {"n_heads": 1}, {"n_layers": 2}, {"d_model": 32},
    {"rare_words": ("Anna",)}])
def test_another_preset_is_another_model(tmp_path, change):
    homes = {zoo._home("gpt", preset, tmp_path)
             for preset in (TINY, TINY, replace(TINY, **change))}
    assert len(homes) == 2


def test_what_decides_the_weights_decides_the_folder(tmp_path, monkeypatch):
    """Other documents, other first weights, other settings, other steps."""
    def home_with(name, value):
        with monkeypatch.context() as patch:
            patch.setattr(zoo, name, value)
            return zoo._home("gpt", TINY, tmp_path)

    def wider(*arguments, **options):
        return TrainingConfig(*arguments, **options | {"betas": (0.9, 0.99)})

    def other_draws(config, *, generator):
        return make(config, generator=generator.manual_seed(5))

    make = getattr(zoo, MAKER)
    newer = replace(zoo.DECODER, version=99)
    homes = [
        zoo._home("gpt", TINY, tmp_path),
        home_with("documents", lambda n, seed: [*documents(n, seed)][::-1]),
        home_with("TrainingConfig", wider),
        home_with(MAKER, other_draws),
        home_with("RECIPES", {"gpt": lambda: newer}),
    ]
    assert len({*homes}) == 5
    assert zoo._home("gpt", TINY, tmp_path) == homes[0]


def test_a_comment_costs_no_training(tmp_path):
    """The key does not read the modules."""
    assert "read_bytes" not in Path(zoo.__file__).read_text()


@pytest.mark.parametrize("name, damage", [
    ("config.json", lambda path: path.write_text("{}")),
    ("record.json", lambda path: path.write_text("{}")),
    ("tokenizer.json", lambda path: path.write_text("{}")),
    ("record.json", lambda path: path.unlink()),
    ("model.safetensors", lambda path: path.write_bytes(b"")),
    ("model.safetensors",
     lambda path: path.write_bytes(flipped(path.read_bytes())))])
def test_a_damaged_model_is_trained_anew(tmp_path, name, damage):
    """And is whole from then on."""
    first, tokenizer = zoo.world_model(TINY, folder=tmp_path)
    (home,) = tmp_path.glob("world-*")
    damage(home / name)
    with pytest.warns(UserWarning, match=f"{name}: .*trained anew$") as told:
        again, words = zoo.world_model(TINY, folder=tmp_path)
    assert len(told) == 1 and words == tokenizer
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(zoo.world_record(TINY, folder=tmp_path)["loss"]) == 3


def flipped(data):
    return data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]


def test_a_place_that_cannot_be_written_to(tiny, tmp_path):
    """It is said before the training, and the model is there all the same."""
    place = tmp_path / "file/cache"
    place.parent.touch()
    said = []
    with pytest.warns(UserWarning) as told:
        model, _ = zoo.world_model(TINY, folder=place)
        said = [str(each.message) for each in told]
    assert "cannot be written to, Not a directory" in said[0]
    assert all("the model is trained and not kept" in each for each in said)
    assert all(map(torch.equal, model.parameters(), tiny[0].parameters()))


def test_a_disk_that_is_full(tmp_path):
    """Nothing is left of the attempt, and the model is returned."""
    code = f"""
import resource, signal, warnings
from pathlib import Path
warnings.simplefilter("error", DeprecationWarning)
from lmcourse.zoo import base as zoo
import sys
sys.path.insert(0, "tests")
from test_zoo import TINY
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
model, _ = zoo.world_model(TINY, folder=Path({str(tmp_path)!r}))
print(sum(p.numel() for p in model.parameters()))
"""
    done = subprocess.run([sys.executable, "-c", code], text=True,
                          capture_output=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0 and int(done.stdout) > 5000
    assert "the model is trained and not kept" in done.stderr
    assert not [*tmp_path.glob("world-*"), *tmp_path.glob(".writing-*")]


def test_a_model_that_may_only_be_read(tmp_path, monkeypatch):
    """A file system that refuses to note the use."""
    def refuse(*_, **__):
        raise OSError("read-only file system")

    zoo.world_model(TINY, folder=tmp_path)
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(zoo, "fit", None)
    zoo.world_model(TINY, folder=tmp_path)


def test_two_processes_ask_at_once(tmp_path):
    code = f"""
from pathlib import Path
from lmcourse.zoo import base as zoo
import sys
sys.path.insert(0, "tests")
from test_zoo import TINY
log, fit = Path({str(tmp_path)!r}) / "log", zoo.fit
def noted(*arguments, **options):
    with open(log, "a") as file:
        file.write("trained\\n")
    return fit(*arguments, **options)
zoo.fit = noted
for seed in range(4):
    zoo.world_model(zoo.replace(TINY, seed=seed), folder=Path(
        {str(tmp_path)!r}))
"""
    both = [subprocess.Popen(
        [sys.executable, "-c", code], text=True, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
        cwd=Path(__file__).parents[1]) for _ in range(3)]
    for process in both:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    homes = [*tmp_path.glob("world-*")]
    assert len(homes) == 4
    assert (tmp_path / "log").read_text() == 4 * "trained\n"
    for home in homes:
        zoo.load_world_model(home)


def test_old_models_are_forgotten(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.PRESETS, "tiny", TINY)
    monkeypatch.setattr(zoo, "_KEPT", 4)
    for age in range(1, 7):
        save(tmp_path / f"world-{age}", tiny)
        then = time.time() - 1000 * age
        os.utime(tmp_path / f"world-{age}", (then, then))
    home = zoo._home("gpt", TINY, tmp_path)
    zoo.world_model("tiny", folder=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        home.name, "world-1", "world-2", "world-3", f".lock-{home.name}"}


def test_killed_while_saving_leaves_no_model(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from lmcourse.zoo import base as zoo
import sys
sys.path.insert(0, "tests")
from test_zoo import TINY
zoo.save_file = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
model, tokenizer, _ = zoo.pretrain(TINY)
zoo.save_world_model(Path({str(tmp_path)!r}) / "m", model=model,
                     tokenizer=tokenizer, record={{}})
"""
    done = subprocess.run([sys.executable, "-c", code],
                          cwd=Path(__file__).parents[1])
    assert done.returncode == -9
    assert not (tmp_path / "m").exists()


# The encoders: what their recipes bring; the rest is as above.

SMALL = dict(n_documents=60, vocab_size=320, d_model=16, n_layers=1,
             n_heads=2, batch_size=2, length=24, steps=3)
READ = dict(next_sentence=False)  # no pairs
RECIPES = {
    "bert": (EncoderPreset(**SMALL), "BertForPreTraining"),
    "roberta": (EncoderPreset(**SMALL, **READ), "RobertaForMaskedLM"),
    "electra": (ElectraPreset(**SMALL, embedding_size=12, generator_width=8,
                              generator_layers=1), "ElectraForPreTraining"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_an_encoder_is_kept_as_the_hub_has_it(tmp_path, monkeypatch, name):
    """Trained once; transformers and tokenizers open what is kept."""
    import tokenizers
    import transformers

    preset, architecture = RECIPES[name]
    model, words = zoo.pretrained(name, preset, folder=tmp_path)
    monkeypatch.setattr(zoo, "fit", None)  # a second run would fail
    again, same = zoo.pretrained(name, preset, folder=tmp_path)
    assert same == words and not again.training
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    record = zoo.pretraining_record(name, preset, folder=tmp_path)
    assert len(record["loss"]) == 3 and [*record["exams"]] == [1, 2, 3]
    (home,) = tmp_path.glob("world-*")
    theirs = getattr(transformers, architecture).from_pretrained(home)
    ids = torch.tensor([words.encode("Anna went to the zoo.",
                                     add_special_tokens=True)])
    with torch.no_grad():
        out, mine = theirs.eval()(ids), model(ids)
        first = out[0]
        mine = mine[0] if isinstance(mine, tuple) else mine
        assert (first - mine).abs().max() < 1e-4
    peer = tokenizers.Tokenizer.from_file(str(home / "tokenizer.json"))
    for text in documents(20, seed=3):
        assert peer.encode(text).ids == words.encode(
            text, add_special_tokens=True)


@pytest.mark.parametrize("name, change", [
    ("bert", {"rate": 0.3}), ("bert", {"static": True}),
    ("bert", {"next_sentence": False}), ("bert", {"seed": 1}),
    ("bert", {"initializer_range": 0.02}), ("bert", {"rate": 0.0}),
    ("electra", {"generator_width": 16}), ("electra", {"weight": 1.0}),
    ("electra", {"generator_layers": 2}), ("electra", {"embedding_size": 16}),
    ("electra", {"generator_learns": False}), ("roberta", {"static": True})])
def test_every_field_of_an_encoders_preset_matters(tmp_path, name, change):
    preset, _ = RECIPES[name]
    homes, losses = set(), []
    for each in (preset, preset, replace(preset, **change)):
        homes.add(zoo._home(name, each, tmp_path))
        ready = zoo.get_recipe(name).prepare(each)
        losses.append(ready.run().loss)
    assert len(homes) == 2
    assert losses[0] == losses[1] != losses[2]
    assert all(map(math.isfinite, losses[2]))


def test_a_damaged_encoder_is_trained_anew(tmp_path):
    preset, _ = RECIPES["electra"]
    first, _ = zoo.pretrained("electra", preset, folder=tmp_path)
    (home,) = tmp_path.glob("world-*")
    (home / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="model.safetensors: .*anew$"):
        again, _ = zoo.pretrained("electra", preset, folder=tmp_path)
    assert all(map(torch.equal, first.parameters(), again.parameters()))


def test_the_generator_is_thrown_away(tmp_path):
    preset, _ = RECIPES["electra"]
    model, _ = zoo.pretrained("electra", preset, folder=tmp_path)
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"embeddings", "layers", "head"}


def test_names_and_presets_are_checked():
    with pytest.raises(ValueError, match="^name='bart': must be one of "
                                         r"\['gpt', 'bert', 'roberta', "):
        zoo.pretrained("bart")
    with pytest.raises(ValueError, match="^preset='huge': must be one of"):
        zoo.pretrained("bert", "huge")
    with pytest.raises(ValueError, match="^next_sentence=True: must be F"):
        zoo.get_recipe("roberta").prepare(RECIPES["bert"][0])
    with pytest.raises(ValueError, match=r"^rate=1.0: must be in \[0, 1\)"):
        zoo.get_recipe("bert").prepare(replace(RECIPES["bert"][0], rate=1.0))
