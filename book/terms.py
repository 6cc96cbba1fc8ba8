"""The book's index: what a chapter prints in bold is a term that it explains.

Each such term leads from the index to its place, and the search puts that
place first. "rotary position embedding (RoPE)" makes two entries.
"""

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

WORDS = 4  # at most; what is longer is a phrase


def entries(text):
    """The terms in what is printed in bold; none if it is a phrase.

    "Attention" at the beginning of a sentence is the term attention.
    """
    words = text.split()
    if (text[-1] in ".:?!" or not any(map(str.isalpha, text))
            or words[0] in ("The", "To", "Without")):
        return []
    if words[0][1:].islower():
        words[0] = words[0].lower()
    both = re.fullmatch(r"(.+) \((.+)\)", " ".join(words))
    found = both.groups() if both else [" ".join(words)]
    return [term for term in found if len(term.split()) <= WORDS]


class IndexTerms(SphinxTransform):
    """Give each bold term of a chapter an entry in the index."""

    default_priority = 600

    def apply(self):
        if not self.env.docname[0].isdigit():
            return
        for i, strong in enumerate(list(self.document.findall(nodes.strong))):
            terms = entries(strong.astext())
            if not terms:
                continue
            anchor = f"term-{i}"
            index = addnodes.index(entries=[
                ("single", term.replace(";", ","), anchor, "main", None)
                for term in terms])
            place = strong.parent.index(strong)
            strong.parent.insert(place, [
                index, nodes.target("", "", ids=[anchor])])


def setup(app):
    app.add_transform(IndexTerms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
