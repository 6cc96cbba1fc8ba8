"""The world: the same text everywhere, and nothing in it that is held out."""

import itertools
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmcourse import world
from lmcourse.world import SKILLS, SLIDE, documents, probes

ROOT = Path(__file__).parents[1]
GOLDEN = "d429333098f1b18dd57f798d4b81d727043542f5a5de46c7a7e05cc059d12fe7"
DIGEST = """
import hashlib
from lmcourse.world import SKILLS, documents, probes
digest = hashlib.sha256("\\n".join(documents(2000, seed=5)).encode())
for skill in SKILLS:
    digest.update(repr([tuple(p) for p in probes(skill, 50)]).encode())
print(digest.hexdigest())
"""


def pythons():
    """This Python and the others that are installed here."""
    found = [sys.executable]
    for minor in (11, 12, 13, 14):
        found += map(str, Path.home().glob(
            f".pyenv/versions/3.{minor}.*/bin/python"))
        found += filter(None, [shutil.which(f"python3.{minor}")])
    return [p for p in dict.fromkeys(found) if subprocess.run(
        [p, "--version"], capture_output=True).returncode == 0]


@pytest.mark.parametrize("python", pythons())
def test_the_same_text_in_every_python(python):
    done = subprocess.run([python, "-c", DIGEST], capture_output=True,
                          text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == GOLDEN


def test_more_documents_begin_with_the_same_ones():
    assert list(documents(50)) == list(documents(80))[:50]


def test_seeds_differ():
    assert list(documents(5, seed=1)) != list(documents(5, seed=2))


def test_records_of_the_world():
    assert world.Country("Denmark", "Copenhagen", "Europe",
                         "Danish") in world.COUNTRIES
    assert world.PEOPLE[0] == world.Person("I", "my", "")
    assert world.Person("Anna", "her", "s") in world.OTHERS
    zoo = world.PLACES[0]
    assert zoo == world.Place("zoo", "see", "saw", zoo.singular)
    assert zoo.singular["lions"] == "lion"


def test_slide_forms_occur():
    """What the lecture's six sentences ask can be read in documents."""
    text = "\n".join(documents(30_000))
    for skill, probe in SLIDE.items():
        if skill != "sentiment":
            words = (probe.prompt + probe.right).split()
            assert " ".join(words[-4:]) in text, skill
    assert "on the edge of my seat the whole time." in text


def test_answers_are_true():
    text = "\n".join(documents(20_000))
    for sum_, total in re.findall(r"((?:\d \+ )+\d) = (\d+)\.", text):
        assert sum(map(int, sum_.split(" + "))) == int(total)
    capitals = {c.name: c.capital for c in world.COUNTRIES}
    for name, capital in re.findall(r"capital of (\w+) is (\w+)\.", text):
        assert capitals[name] == capital


@pytest.mark.parametrize("skill", SKILLS)
def test_probes_mirror_each_other(skill):
    pairs = probes(skill, 200)
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert (first.right, first.wrong) == (second.wrong, second.right)
        assert first.right != first.wrong


@pytest.mark.parametrize("skill", SKILLS)
def test_endings_are_one_word_behind_a_space(skill):
    for probe in [SLIDE[skill], *probes(skill, 100)]:
        assert re.fullmatch(r" \w+", probe.right)
        assert re.fullmatch(r" \w+", probe.wrong)
        assert not probe.prompt.endswith(" ")


@pytest.mark.parametrize("skill", ["grammar", "lexical", "sentiment",
                                   "arithmetic"])
def test_held_out_prompts_are_in_no_document(skill):
    text = "\n".join(documents(30_000, seed=9))
    assert not [p for p in probes(skill, 300, seed=1)
                if p.prompt + p.right in text]


def test_held_out_does_not_mind_the_order():
    words = ("3", "8", "5")
    assert {world.held_out(*w) for w in itertools.permutations(words)} == {
        world.held_out(*words)}


def test_vocabulary_size():
    text = " ".join(documents(30_000))
    assert 500 < len(set(re.findall(r"\w+|[^\w\s]", text))) < 2000


def test_pick_shares_sum_to_one():
    for n in (1, 2, 7, 100):
        assert sum(world.pick_shares(n)) == pytest.approx(1)


def test_picks_match_their_shares():
    """Chi-square with 3 degrees of freedom; the seed is fixed."""
    chance, n = world.Chance(1), 40_000
    drawn = [chance.pick(range(4)) for _ in range(n)]
    expected = [n * share for share in world.pick_shares(4)]
    statistic = sum((drawn.count(i) - e) ** 2 / e
                    for i, e in enumerate(expected))
    assert statistic < 16.3  # exceeded by chance once in a thousand seeds


def test_ledger_chooses_as_chance_does():
    plain, ledger = world.Chance(3), world.Ledger(3)
    table = tuple("abcdefg")
    for method, argument in [("pick", table), ("even", table),
                             ("happens", 0.3)] * 20:
        assert (getattr(plain, method)(argument)
                == getattr(ledger, method)(argument))
    assert len(ledger.entries) == 60


def test_price_of_a_document_is_that_of_its_choices():
    """A topic is one of six, and one document in four has a question."""
    for seed in range(30):
        text, nats = world.priced_document(seed)
        assert [text] == list(documents(1, seed))
        asked = math.log(4) if "Question:" in text else math.log(4 / 3)
        assert nats > math.log(6) + asked


@pytest.mark.parametrize("call, message", [
    (lambda: documents(-1), "n=-1: must be an integer, at least 0"),
    (lambda: documents(1.5), "n=1.5: must be an integer, at least 0"),
    (lambda: documents("3"), "n='3': must be an integer, at least 0"),
    (lambda: documents(1, seed=-1), "seed=-1: must be an integer"),
    (lambda: documents(1, seed=0.5), "seed=0.5: must be an integer"),
    (lambda: probes("juggling"), "skill='juggling': must be one of"),
    (lambda: probes("grammar", -2), "n=-2: must be an integer, at least 0"),
    (lambda: probes("grammar", 2.5), "n=2.5: must be an integer"),
    (lambda: world.priced_document(-1), "seed=-1: must be an integer"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
