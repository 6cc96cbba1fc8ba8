"""Files that were changed, and manifests that say otherwise."""

import hashlib

from lmcourse.files import MANIFEST, read_json, write_json


def sign(folder):
    """A new manifest, as if the files had been written as they are."""
    manifest = read_json(folder / MANIFEST)
    manifest["sha256"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in manifest["sha256"]}
    write_json(folder / MANIFEST, manifest)
