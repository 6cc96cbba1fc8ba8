"""The world's model in a page: the directive `{live-model}`.

`static/world.js` computes and draws, `static/world-model.js` has the weights.
In a notebook the line `<!-- live-model -->` stands for the directive, so that
Jupyter and Colab show nothing there.
"""

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from lmcourse.figures import Interactive, choice, slider

LAYERS, HEADS = 2, 4
CONTROLS = (
    '<label class="control"><span>prompt</span><textarea name="prompt" '
    'rows="2" spellcheck="false">I went to the zoo to see</textarea></label>'
    '<div class="control"><span>text</span>'
    '<button type="button" data-do="step">One token more</button>'
    '<button type="button" data-do="write">Write on</button>'
    '<button type="button" data-do="back">Back to the prompt</button></div>'
    + '<p class="written"></p><p role="status">Type, or press a button: the '
      'model (1.4 MB) is loaded then.</p>'
    + slider("tau", "temperature τ", stop=3, step=0.05, value=1, jump=2)
    + slider("k", "top-k: k", stop=8, value=8)
    + slider("p", "top-p: p", start=0.01, stop=1, step=0.01, value=0.9,
             jump=5)
    + '<p>What may come next. Outlined: the model; filled: after the knobs.'
      '</p><div class="rows"></div>'
    + choice("head", "marked in the text", {
        f"{layer} {head}": f"what head {head + 1} of layer {layer + 1} looks "
                           "at" for layer in range(LAYERS)
        for head in range(HEADS)})
    + '<div class="heads"></div>')
STILL = ("With a script the world's model would run here: a text that grows, "
         "the probabilities of the next token, and each head's attention.")


class LiveModel(SphinxDirective):
    """Put the model where the directive stands."""

    def run(self):
        figure = Interactive(
            CONTROLS, data={}, still=STILL,
            script="worldFigure({root, value, find, make, say, bars});")
        return [nodes.raw("", '<script src="_static/world.js"></script>'
                          f'<div class="live-model">{figure.html}</div>',
                          format="html")]


def setup(app):
    app.add_directive("live-model", LiveModel)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
