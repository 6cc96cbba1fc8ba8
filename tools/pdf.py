"""The whole book as one PDF: python tools/pdf.py PAGE.html BOOK.pdf.

The page is what Sphinx's `singlehtml` builds. Solutions are printed, since
nobody can open them on paper; other folded code stays in the notebooks.
"""

import os
import sys
from pathlib import Path

import chromium
from playwright.sync_api import sync_playwright

PREPARE = """async () => {
  for (const fold of document.querySelectorAll("details"))
    fold.open = fold.textContent.trim().startsWith("Show a solution");
  // the cards and the map lead to pages; here all chapters are on one
  for (const link of document.querySelectorAll("article a[href]")) {
    const page = /^(\\d\\w+)\\.html$/.exec(link.getAttribute("href"));
    if (page) link.setAttribute("href", `#document-${page[1]}`);
  }
  await MathJax.startup.promise;
}"""
FOOTER = """<div style="width: 100%; text-align: center; font-size: 8px">
<span class="pageNumber"></span></div>"""


def main(source, target):
    with sync_playwright() as playwright:
        browser = chromium.launch(playwright)
        page = browser.new_page(color_scheme="light")
        page.set_default_timeout(600_000)
        page.goto(Path(source).resolve().as_uri(), wait_until="load")
        page.evaluate(PREPARE)
        written = f"{target}.new"
        page.pdf(path=written, format="A4", outline=True, tagged=True,
                 display_header_footer=True, header_template="<span></span>",
                 footer_template=FOOTER,
                 margin=dict.fromkeys(("top", "bottom", "left", "right"),
                                      "18mm"))
        browser.close()
    os.replace(written, target)
    print(f"{target}: {Path(target).stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
