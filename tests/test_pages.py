"""The built book in a real Chromium, at the width of a desk and of a phone."""

import functools
import http.server
import json
import os
import shutil
import threading
from itertools import product
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Error, sync_playwright

from lmcourse.decoding.sampling import next_distribution, sampler

SITE = Path(__file__).parents[1] / "_site"
PAGES = sorted(p.name for p in SITE.glob("*.html"))
WIDTHS = {1280: 900, 390: 844}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]


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
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path,
                                                 args=FLAGS)
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
        is_mobile=phone, has_touch=phone)
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


@pytest.mark.parametrize("name", PAGES)
def test_page(open_page, name):
    page, complaints = open_page(name)
    page.wait_for_function(
        "() => document.querySelectorAll('mjx-container').length"
        " >= document.querySelectorAll('.math').length", timeout=20000)
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

    assert "#|" not in page.locator("main").first.inner_text()
    unlabeled = page.evaluate(
        "() => [...document.querySelectorAll('article :is(input, select,"
        " textarea)')].filter(e => !e.labels?.length && !e.ariaLabel)"
        ".map(e => e.outerHTML)")
    assert unlabeled == [], "form controls without a label"


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


def test_interactive_figure_follows_the_keyboard(open_page):
    page, _ = open_page("01_notation.html")
    figure = page.locator(".lmcourse-figure").first
    figure.locator("input").focus()
    before = figure.locator("output").inner_text()
    page.keyboard.press("ArrowLeft")
    assert figure.locator("output").inner_text() != before


def test_knobs_of_decoding_follow_the_keyboard(open_page):
    page, complaints = open_page("60_decoding.html")
    figure = page.locator(".lmcourse-figure").first
    status = figure.locator("[role=status]")
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
  find("select").dispatchEvent(new Event("input"));
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
        logits = torch.tensor(data["cases"][case]["logits"],
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
