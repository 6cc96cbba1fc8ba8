#!/bin/sh
# Find a Chromium for the page tests, or install one.
# Order: on PATH, Debian's package where we may install it, Playwright's own.
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done
browser_of_playwright() {
    "$PYTHON" - <<'PY'
import os
import sys
from playwright.sync_api import sync_playwright
with sync_playwright() as p:
    sys.exit(not os.path.exists(p.chromium.executable_path))
PY
}
browser_of_playwright && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "Installing Debian's chromium for the page tests"
    (apt-get update -q && apt-get install -y -q chromium) >/dev/null 2>&1
    command -v chromium >/dev/null && exit 0
fi
"$PYTHON" -m playwright install chromium >/dev/null 2>&1 \
    && browser_of_playwright && exit 0
echo "No Chromium on PATH, and none could be installed: the page tests cannot run."
[ "${CI:-}" != true ]
