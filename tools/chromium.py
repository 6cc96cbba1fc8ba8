"""The browser that measures, prints and tests the pages."""

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]


def launch(playwright):
    """A Chromium on PATH, or Playwright's own.

    Raises:
        playwright.sync_api.Error: if there is none.
    """
    path = next(filter(None, map(shutil.which, NAMES)), None)
    return playwright.chromium.launch(executable_path=path, args=FLAGS)
