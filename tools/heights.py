"""What of a page is code, and how long one scrolls without a sentence.

    python tools/heights.py _site          # the five worst
    python tools/heights.py _site --all

For each chapter, at 1280 pixels: the share of the page's height that is open
code, and the longest run of code (in pixels; a window shows 900) between two
sentences or figures. Folded code and printed output count as neither.
"""

import sys
from pathlib import Path

import chromium
from playwright.sync_api import Error, sync_playwright

PARTS = """() => {
  const article = document.querySelector("article.bd-article");
  const parts = [];
  const walk = element => {
    for (const child of element.children) {
      const height = child.getBoundingClientRect().height;
      if (height < 2) continue;
      if (child.matches("details")) continue;
      else if (child.matches(".cell_input, div.highlight"))
        parts.push(["code", height]);
      else if (child.matches(".cell_output"))
        parts.push([child.querySelector("img, svg, .lmcourse-figure")
          ? "figure" : "output", height]);
      else if (child.matches("p, ul, ol, dl, table, blockquote, figure,"
          + " .math, .admonition, svg, .pst-scrollable-table-container"))
        parts.push(["prose", height]);
      else walk(child);
    }
  };
  walk(article);
  return [article.getBoundingClientRect().height, parts];
}"""


def measure(page, path):
    """The share of code, and the longest run of it in pixels."""
    page.goto(path.resolve().as_uri(), wait_until="load")
    height, parts = page.evaluate(PARTS)
    longest = run = 0
    for kind, pixels in parts:
        if kind == "code":
            run += pixels
            longest = max(longest, run)
        elif kind != "output":
            run = 0
    code = sum(pixels for kind, pixels in parts if kind == "code")
    return code / height, longest


def main(site, *options):
    with sync_playwright() as playwright:
        try:
            browser = chromium.launch(playwright)
        except Error:
            print("no Chromium on PATH: the pages are not measured")
            return
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        found = {path.stem: measure(page, path)
                 for path in sorted(Path(site).glob("[0-9]*.html"))}
        browser.close()
    order = sorted(found, key=found.get, reverse=True)
    print("code   longest run   chapter")
    for stem in order if "--all" in options else order[:5]:
        share, run = found[stem]
        print(f"{share:4.0%} {run:10.0f} px   {stem}")


if __name__ == "__main__":
    main(*sys.argv[1:])
