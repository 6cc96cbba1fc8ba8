"""The built book in a real Chromium, at the width of a desk and of a phone."""

import base64
import functools
import hashlib
import http.server
import importlib.util
import json
import os
import sys
import threading
from itertools import product
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from playwright.sync_api import Error, sync_playwright
from samples import strings

from lmcourse.decoding.sampling import greedy, next_distribution, sampler
from lmcourse.layers.transformer import TransformerConfig, build_transformer
from lmcourse.tokenizers import ByteBPE
from lmcourse.world import documents
from lmcourse.zoo import world_model

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
chromium = importlib.import_module("chromium")
page_model = importlib.import_module("page_model")
SITE = ROOT / "_site"
PAGES = sorted(p.relative_to(SITE).as_posix() for pattern in
               ("*.html", "api/*.html") for p in SITE.glob(pattern))
WIDTHS = {1280: 900, 390: 844}
DESK = pytest.mark.parametrize("context", [1280], indirect=True)


@pytest.fixture(scope="session")
def base():
    """The address of the book, served from this process."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=SITE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        try:
            browser = chromium.launch(playwright)
        except Error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip("no Chromium on PATH: run sh tools/browser.sh")
        yield browser
        browser.close()


@pytest.fixture(scope="session", params=WIDTHS)
def context(browser, request):
    width = request.param
    phone = width < 500
    context = browser.new_context(
        viewport={"width": width, "height": WIDTHS[width]},
        is_mobile=phone, has_touch=phone,
        reduced_motion="reduce")  # no color is measured while it fades
    yield context
    context.close()


@pytest.fixture
def open_page(context, base):
    """Open a page; complaints collect in the list that comes with it."""
    page = context.new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text)
            if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url)
            if not request.url.startswith((base, "data:", "blob:")) else None)
    page.on("response", lambda response: complaints.append(response.url)
            if response.status >= 400 else None)

    def open_(name):
        page.goto(base + name, wait_until="load")
        return page, complaints

    yield open_
    page.close()


def test_the_book_was_built():
    assert "index.html" in PAGES, "run `make html` first"


WEIGHT = """() => ["navigation", "resource"]
  .flatMap(kind => performance.getEntriesByType(kind))
  .filter(entry => !entry.name.includes("/mathjax/"))
  .reduce((sum, entry) => sum + entry.decodedBodySize, 0)"""


TYPESET = """() => document.querySelectorAll("mjx-container").length
  >= document.querySelectorAll(".math").length"""


AXE = (Path(importlib.util.find_spec("axe_playwright_python").origin).parent
       / "axe.min.js").read_text(encoding="utf-8")
VIOLATIONS = """async rules => {
  const found = await axe.run({
    runOnly: rules.length ? rules : undefined, resultTypes: ["violations"]});
  return found.violations.flatMap(rule => rule.nodes.map(
    node => `${rule.id}: ${node.html.slice(0, 200)}`));
}"""


@pytest.mark.parametrize("name", PAGES)
def test_page(open_page, name):
    page, complaints = open_page(name)
    page.wait_for_function(TYPESET, timeout=20000)
    assert not page.locator("mjx-merror").count(), "MathJax found an error"
    assert complaints == []

    overflow = page.evaluate(
        "() => document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0, f"{overflow} px wider than the window"

    images = page.evaluate(
        "() => [...document.querySelectorAll('article img')].map("
        "i => [i.alt, i.getClientRects().length == 0"
        " || (i.complete && i.naturalWidth > 0), i.src])")
    for alt, decoded, source in images:
        assert decoded, f"image not shown: {source}"
        assert alt and not alt.startswith("_images"), f"no alt: {source}"

    weight = page.evaluate(WEIGHT)
    assert weight <= 1.5e6, f"{weight / 1e6:.2f} MB besides MathJax"

    assert "#|" not in page.locator("main").first.inner_text()
    unlabeled = page.evaluate(
        "() => [...document.querySelectorAll('article :is(input, select,"
        " textarea)')].filter(e => !e.labels?.length && !e.ariaLabel)"
        ".map(e => e.outerHTML)")
    assert unlabeled == [], "form controls without a label"

    # all of axe-core's rules; in the dark theme those about colors
    page.add_script_tag(content=AXE)
    assert page.evaluate(VIOLATIONS, []) == []
    page.evaluate("() => document.documentElement.dataset.theme = 'dark'")
    assert page.evaluate(VIOLATIONS, ["color-contrast"]) == []


@DESK
@pytest.mark.parametrize("name", PAGES)
def test_local_links(open_page, base, name):
    page, _ = open_page(name)
    links = page.evaluate(
        "() => [...document.querySelectorAll('article a[href]')]"
        ".map(a => new URL(a.getAttribute('href'), location).href)")
    for link in links:
        if link.startswith(base):
            path = link[len(base):].split("#")[0].split("?")[0]
            assert (SITE / path).exists(), f"dead link {link}"


def test_search_finds_a_term(open_page):
    page, complaints = open_page("search.html?q=softmax")
    page.wait_for_selector("#search-results li", timeout=15000)
    assert complaints == []


QUERIES = {
    "RoPE": "21_positions", "rotary position embedding": "21_positions",
    "KV cache": "20_attention", "multi-head attention": "20_attention",
    "cross-attention": "20_attention", "GQA": "20_attention",
    "layer normalization": "22_block", "RMSNorm": "22_block",
    "mixture of experts": "22_block", "weight tying": "23_transformer",
    "nucleus sampling": "60_decoding", "temperature": "60_decoding",
    "top-k": "60_decoding", "byte-pair encoding": "11_bpe", "BPE": "11_bpe",
    "WordPiece": "12_wordpiece", "SentencePiece": "13_unigram",
    "out of vocabulary": "10_tokenization", "OOV": "10_tokenization",
    "perplexity": "19_prediction", "cross-entropy": "19_prediction",
    "gradient accumulation": "30_training", "learning rate": "30_training",
    "safetensors": "70_checkpoints", "install": "index",
    "linear probing": "33_transfer", "pretraining": "32_pretraining",
    "masked language modeling": "31_self_supervision",
    "span corruption": "31_self_supervision", "BERT": "42_bert",
    "next-sentence prediction": "31_self_supervision",
    "memory mapping": "34_corpora", "RoBERTa": "43_roberta",
    "ELECTRA": "44_electra", "GGUF": "71_gguf", "quantization": "71_gguf",
    "chat template": "71_gguf", "fine-tuning": "50_finetuning",
    "named entity recognition": "50_finetuning",
    "instruction tuning": "50_finetuning", "rehearsal": "50_finetuning",
    "verbalizer": "51_prompting", "few-shot": "51_prompting",
    "token healing": "51_prompting", "prompt": "51_prompting",
}


@DESK
@pytest.mark.parametrize("query, chapter", QUERIES.items())
def test_search_puts_the_chapter_among_the_first_three(open_page, query,
                                                       chapter):
    page, complaints = open_page(f"search.html?q={quote(query)}")
    page.wait_for_function("() => document.querySelector('#search-results')"
                           ".textContent.includes('finished')")
    found = page.evaluate(
        "() => [...document.querySelectorAll('#search-results li > a')]"
        ".map(link => link.getAttribute('href').split(/[.]html/)[0])")
    assert chapter in list(dict.fromkeys(found))[:3]
    assert complaints == []


@DESK
def test_search_quotes_no_frame(open_page):
    """A snippet is of the text, not of the buttons and menus around it."""
    page, _ = open_page("search.html?q=softmax")
    page.wait_for_selector("#search-results p.context")
    quoted = page.locator("#search-results p.context").all_inner_texts()
    assert quoted and not any("Contents" in text or ".ipynb" in text
                              for text in quoted)


@DESK
def test_docstrings_show_their_first_line(open_page):
    page, _ = open_page("20_attention.html")
    button = page.locator(".unfold").first
    rest = button.locator("xpath=following-sibling::span[1]")
    assert not rest.is_visible()
    button.focus()
    page.keyboard.press("Enter")
    assert rest.is_visible() and "Args:" in rest.inner_text()
    assert button.get_attribute("aria-expanded") == "true"


def test_copy_buttons_can_be_seen_and_reached(open_page):
    """By touch, where nothing hovers, and by the keyboard."""
    page, _ = open_page("20_attention.html")
    button = page.locator("button.copybtn").first
    if page.viewport_size["width"] < 500:
        assert float(button.evaluate(
            "button => getComputedStyle(button).opacity")) > 0.5
    button.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    page.wait_for_function(
        "() => document.activeElement.matches('button.copybtn')"
        " && getComputedStyle(document.activeElement).opacity == 1")


@DESK
def test_the_active_chapter_is_in_sight(open_page):
    page, _ = open_page("84_tokenizer_files.html")
    active = page.locator("#pst-primary-sidebar li.current.active a")
    box, height = active.bounding_box(), page.viewport_size["height"]
    assert 0 <= box["y"] and box["y"] + box["height"] <= height


@DESK
def test_what_is_pointed_at_on_the_map_keeps_its_lines(open_page):
    page, _ = open_page("index.html")
    box = page.locator(".chapter-map .at-20")
    box.focus()
    page.wait_for_function(
        "() => getComputedStyle(document.querySelector("
        "'.edge:not(.from-20, .to-20)')).opacity < 0.2")
    mine = page.locator(".edge.from-20").first
    assert mine.evaluate("edge => getComputedStyle(edge).opacity") == "1"


@DESK
def test_folds_are_named(open_page):
    """The name of a fold is what it says, for screen readers too."""
    page, _ = open_page("20_attention.html")
    names = page.locator("article summary").all_inner_texts()
    assert "Show a solution" in names and "Imports" in names
    assert page.locator("article summary[aria-label]").count() == 0


@pytest.mark.parametrize("name", ["index.html", "20_attention.html",
                                  "60_decoding.html"])
def test_page_can_be_read_without_scripts(browser, base, name):
    """Text, code, docstrings and pictures; formulas as TeX."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(base + name)
    assert page.locator("article h1").first.is_visible()
    for docstring in page.locator("article .sd").all()[:3]:
        assert docstring.is_visible() or docstring.locator(
            "xpath=ancestor::details").count()
    context.close()


ENTRIES = [name for name in PAGES if name.startswith("api/")]


@DESK
@pytest.mark.parametrize("name", ENTRIES)
def test_names_of_a_module_lead_to_their_entries(open_page, name):
    """Each name of the table is a link; entries are not filled with air."""
    page, _ = open_page(name)
    rows = page.evaluate("""() => [...document.querySelectorAll(
      ".api-table tr")].map(row => [row.cells[1].textContent,
      row.querySelector("th a")?.getAttribute("href").slice(1)])""")
    entries = page.evaluate(
        "() => [...document.querySelectorAll('dt.sig')].map(e => e.id)")
    assert len(rows) > 3
    for line, target in rows:
        assert target in entries or line.startswith("An experiment."), line
    assert "Alias for field number" not in page.content()


@DESK
def test_known_names_are_links(open_page):
    """In docstrings, and in a chapter once in each section."""
    page, _ = open_page("api/training.html")
    assert page.locator("dd a.reference:has-text('TrainingConfig')").count()
    page, _ = open_page("32_pretraining.html")
    link = page.locator("article p a:has(code)", has_text="fit").first
    assert link.get_attribute("href") == \
        "api/training.html#lmcourse.training.fit"


def test_the_book_reads_from_the_file_system(context):
    """No server, no network: the pages open as files."""
    page = context.new_page()
    page.goto((SITE / "01_notation.html").as_uri(), wait_until="load")
    page.wait_for_selector("mjx-container", timeout=20000)
    assert page.locator("h1").first.inner_text().startswith("01")
    page.close()


def test_both_themes_and_code_copy(open_page):
    page, _ = open_page("01_notation.html")
    colors = set()
    for theme in ("light", "dark"):
        page.evaluate(
            "t => document.documentElement.dataset.theme = t", theme)
        colors.add(page.evaluate(
            "() => getComputedStyle(document.body).backgroundColor"))
    assert len(colors) == 2
    assert page.locator("button.copybtn").count() > 0


FIGURES = [name for name in PAGES
           if 'class="lmcourse-figure"' in (SITE / name).read_text()]
CONTRAST = """
figure => {
  const light = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(x => x / 255).map(
      x => x <= 0.04 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let ground = figure;
  while (getComputedStyle(ground).backgroundColor == "rgba(0, 0, 0, 0)")
    ground = ground.parentElement;
  const [a, b] = [light(getComputedStyle(figure).color),
    light(getComputedStyle(ground).backgroundColor)].sort((x, y) => x - y);
  return (b + 0.05) / (a + 0.05);
}"""


@pytest.mark.parametrize("name", FIGURES)
def test_moving_figures_can_be_read(open_page, name):
    """Text against its ground as WCAG 2 asks, and nothing cut off."""
    page, _ = open_page(name)
    for theme in ("light", "dark"):
        page.evaluate(
            "t => document.documentElement.dataset.theme = t", theme)
        for figure in page.locator(".lmcourse-figure").all():
            assert figure.evaluate(CONTRAST) >= 4.5, theme
            box = figure.bounding_box()
            assert box["width"] <= page.viewport_size["width"]


SLIDERS = """
figure => [...figure.querySelectorAll("input[type=range]")].map(slider => {
  const sizes = [...slider.parentElement.querySelectorAll("button"), slider]
    .map(e => e.getBoundingClientRect()).map(b => [b.width, b.height]);
  return [slider.name, slider.getAttribute("aria-valuetext"), ...sizes];
})"""


@pytest.mark.parametrize("name", FIGURES)
def test_moving_figures_can_be_held(open_page, name):
    """Each slider has two buttons, large enough, and says what it shows."""
    page, complaints = open_page(name)
    least = 44 if page.viewport_size["width"] < 500 else 24
    for figure in page.locator(".lmcourse-figure").all():
        assert figure.locator(".still").is_hidden()
        for slider, text, *sizes in figure.evaluate(SLIDERS):
            assert text, slider
            assert len(sizes) == 3, slider
            assert min(min(pair) for pair in sizes) >= least, slider
            knob = figure.locator(f"input[name={slider}]")
            back, on = knob.locator("xpath=../button").all()
            texts = [text]
            for button in (back, back, on, on):
                button.click()
                texts.append(knob.get_attribute("aria-valuetext"))
            assert texts[1] != text or texts[3] != text, slider
            assert texts[2] != texts[3], slider
    assert complaints == []


@pytest.mark.parametrize("name", FIGURES)
def test_moving_figures_say_in_words_what_they_show(browser, base, name):
    """Without JavaScript there is a sentence, and nothing that is dead."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(base + name)
    for figure in page.locator(".lmcourse-figure").all():
        assert len(figure.locator(".still").inner_text()) > 40
        assert figure.locator(".moving").is_hidden()
    context.close()


def test_interactive_figure_follows_the_keyboard(open_page):
    page, _ = open_page("01_notation.html")
    figure = page.locator(".lmcourse-figure").first
    slider = figure.locator("input")
    slider.focus()
    assert slider.get_attribute("aria-valuetext") == "est"
    assert figure.locator(".fill").count() == 4
    page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == "low"
    assert figure.locator("output").inner_text() == "low"
    widths = figure.evaluate("figure => [...figure.querySelectorAll('.fill')]"
                             ".map(bar => bar.style.width)")
    assert widths == ["100%", "0%", "0%", "0%"]
    outline = "e => getComputedStyle(document.activeElement).outlineStyle"
    for _ in range(2):
        page.keyboard.press("Tab")
        page.keyboard.press("Shift+Tab")
        assert page.evaluate(outline) == "solid"


def test_knobs_of_decoding_follow_the_keyboard(open_page):
    page, complaints = open_page("60_decoding.html")
    figure = page.locator(".lmcourse-figure").first
    status = figure.locator("[role=status]")
    assert figure.locator(".bar:not(.off)").count() == 5
    figure.locator("input[name=k]").focus()
    page.keyboard.press("End")  # all of them, and the others begin there too
    for name in ("tau", "k", "p"):
        figure.locator(f"input[name={name}]").focus()
        page.keyboard.press("Home")
        assert status.inner_text().startswith("1 of "), name
        page.keyboard.press("End")
        assert not status.inner_text().startswith("1 of "), name
    figure.locator("select").focus()
    before = figure.locator(".rows").inner_text()
    page.keyboard.press("ArrowDown")
    assert figure.locator(".rows").inner_text() != before
    assert complaints == []


MOVE = """
(figure, [tau, k, p, last]) => {
  const find = name => figure.querySelector(name);
  find("input[name=tau]").value = tau;
  find("input[name=k]").value = k;
  find("input[name=p]").value = p;
  find("input[type=checkbox]").checked = last;
  find("select").dispatchEvent(new Event("input", {bubbles: true}));
  return [find("[role=status]").textContent,
          ...[...figure.querySelectorAll(".share")].map(e => e.textContent)];
}"""


def test_knobs_of_decoding_show_what_the_library_computes(open_page):
    page, _ = open_page("60_decoding.html")
    figure = page.locator(".lmcourse-figure").first
    identifier = figure.get_attribute("id")
    data = json.loads(page.locator(f"#{identifier}-data").inner_text())
    for case, (tau, k, p, last) in product(range(len(data["cases"])), [
            (1, 15, 1, False), (0.5, 15, 0.9, False), (2.5, 15, 0.9, False),
            (2.5, 15, 0.9, True), (1.3, 7, 0.8, False), (1.3, 7, 0.8, True),
            (0, 15, 1, False)]):
        figure.locator("select").select_option(index=case)
        status, *shares = figure.evaluate(MOVE, [tau, k, p, last])
        logits = torch.tensor(
            [x for x, n in data["cases"][case]["runs"] for _ in range(n)],
            dtype=torch.double)
        heat = {"temperature": tau}
        cut = {"top_k": [*data["ks"], len(logits)][k], "top_p": p}
        expected = next_distribution(
            logits, sampler(**(cut | heat if last else heat | cut)))
        kept = int((expected > 0).sum())
        assert status.startswith(f"{kept} of {len(logits)} ")
        shown = [float(share.split()[0]) for share in shares]
        percents = (100 * expected[:len(shares)]).tolist()
        assert shown == pytest.approx(percents, abs=0.051)


# the world's model in the page

LIVE = ["index.html", "32_pretraining.html", "60_decoding.html"]


@pytest.fixture(scope="module")
def shipped():
    """What the page's file holds, as torch and this book have it."""
    file = page_model.read()
    raw = base64.b64decode(file["weights"])
    assert hashlib.sha256(raw).hexdigest() == file["sha256"]
    model = build_transformer(TransformerConfig(
        **file["config"], feed_forward="gelu", positions="rotary")).eval()
    numbers, at = np.frombuffer(raw, dtype=np.float16), 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            n = parameter.numel()
            assert file["shapes"].pop(name) == list(parameter.shape)
            parameter.copy_(torch.from_numpy(
                numbers[at:at + n].astype(np.float32)).view_as(parameter))
            at += n
    assert at == len(numbers) and not file["shapes"]
    tokens = [bytes([i]) for i in range(256)]
    pairs = [(a, b) for a, b in file["merges"]]
    merges = []
    for a, b in pairs:
        merges.append((tokens[a], tokens[b]))
        tokens.append(tokens[a] + tokens[b])
    return model, ByteBPE(vocab={token: i for i, token in enumerate(tokens)},
                          merges=merges,
                          special_tokens={"<|endoftext|>": file["end"]})


def test_the_model_in_the_page_is_that_of_the_zoo(shipped):
    """Of the same recipe; and with the same words for the same ids."""
    assert page_model.read()["recipe"] == page_model.recipe()
    assert page_model.PATH.stat().st_size < 2e6
    model, tokenizer = world_model("small")
    assert shipped[1].vocab == tokenizer.vocab
    assert shipped[0].config == model.config


@DESK
def test_the_page_computes_what_torch_computes(open_page, shipped):
    page, complaints = open_page("index.html")
    model, tokenizer = shipped
    for text in documents(4, seed=7):
        ids = tokenizer.encode(text)[:200]
        maps = []
        with torch.no_grad():
            wanted = model(torch.tensor([[1023, *ids]]), maps=maps)[0]
        logits, heads = page.evaluate(
            """async ids => {
              const model = await loadWorld(), logits = [model.forget()];
              for (const id of ids) logits.push(model.read(id));
              return [logits.map(row => [...row]),
                      model.maps.map(layer => layer.at(-1).map(
                        head => [...head]))];
            }""", ids)
        assert (torch.tensor(logits) - wanted).abs().max() < 1e-4
        for found, layer in zip(heads, maps, strict=True):
            assert torch.tensor(found).sub(layer[0, :, -1]).abs().max() < 1e-4
    assert complaints == []


@DESK
def test_the_page_cuts_texts_as_the_tokenizer_does(open_page, shipped):
    _, tokenizer = shipped
    page, _ = open_page("index.html")
    texts = [*documents(50, seed=8), *(
        text for text in strings(400, seed=9) if text.isprintable()),
        "", "Straße 42, isn't it?  Yes\n\n", "日本 🦒"]
    found = page.evaluate(
        """async texts => {
          const {tokenizer} = await loadWorld();
          return texts.map(text => [tokenizer.encode(text),
            tokenizer.decode(tokenizer.encode(text))]);
        }""", texts)
    for text, (ids, again) in zip(texts, found, strict=True):
        assert ids == tokenizer.encode(text), text
        assert again == text


@pytest.mark.parametrize("name", LIVE)
def test_the_model_in_the_page_writes(open_page, shipped, name):
    """By keyboard alone: greedy decoding writes what the library writes."""
    page, complaints = open_page(name)
    model, tokenizer = shipped
    figure = page.locator(".live-model")
    status, rows = figure.locator("[role=status]"), figure.locator(".bar")
    assert rows.count() == 0 and "Type" in status.inner_text()
    figure.locator("[name=prompt]").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("The capital of Denmark is")
    page.wait_for_function("() => document.querySelectorAll("
                           "'.live-model .bar').length == 10")
    before = rows.first.inner_text()
    figure.locator("[name=tau]").focus()
    page.keyboard.press("Home")
    assert rows.first.inner_text().endswith("100.0 %")
    figure.locator("[data-do=step]").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector("
                           "'.live-model .written b')")
    figure.locator("[data-do=write]").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => /ends|no more/.test(document.querySelector("
                           "'.live-model [role=status]').textContent)",
                           timeout=60000)
    prompt = torch.tensor([[1023, *tokenizer.encode(
        "The capital of Denmark is")]])
    text = tokenizer.decode([i for i in greedy(
        model, prompt, max_new_tokens=200, eos_id=1023)[0].tolist()
        if i != 1023])
    assert figure.locator(".written").inner_text() == text
    assert figure.locator("canvas").count() == 8
    figure.locator("[data-do=back]").click()
    figure.locator("[name=tau]").focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert rows.first.inner_text().split()[0] == before.split()[0]
    overflow = page.evaluate(
        "() => document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0
    assert complaints == []
    page.add_script_tag(content=AXE)
    assert page.evaluate(VIOLATIONS, []) == []
    page.evaluate("() => document.documentElement.dataset.theme = 'dark'")
    assert page.evaluate(VIOLATIONS, ["color-contrast"]) == []


@DESK
def test_the_model_runs_in_a_page_that_was_opened_as_a_file(context):
    page = context.new_page()
    page.goto((SITE / "index.html").as_uri(), wait_until="load")
    page.locator(".live-model [data-do=step]").click()
    page.wait_for_selector(".live-model .written b", timeout=20000)
    page.close()
