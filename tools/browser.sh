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

log=$(mktemp)
trap 'rm -f "$log"' EXIT
left=${LOCK_WAIT:-600}  # seconds to wait for other users of apt, in all

# apt itself waits for dpkg's lock at most, not for those of lists and archives
patiently() {
    until LC_ALL=C "$@" >"$log" 2>&1; do
        grep -q "get lock\|Unable to lock" "$log" && [ "$left" -gt 0 ] || return 1
        echo "Waiting up to $left s: $(grep -m 1 "lock" "$log")"
        sleep 5
        left=$((left - 5))
    done
}
why() {
    echo "$1 failed; the last lines of what it said:"
    tail -n 8 "$log" | sed 's/^/    /'
}
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "Installing Debian's chromium for the page tests"
    patiently apt-get update -q \
        && patiently apt-get install -y -q -o DPkg::Lock::Timeout=60 chromium \
        || why "apt-get"
    command -v chromium >/dev/null && exit 0
fi
"$PYTHON" -m playwright install chromium >"$log" 2>&1 || why "playwright install"
browser_of_playwright && exit 0
echo "No Chromium on PATH, and none could be installed: the page tests cannot run."
[ "${CI:-}" != true ]
