"""Renders pages/*.html to screens/*.png with Debian's chromium. The PNGs are committed: tests need no browser.

Needs the packages chromium, fonts-dejavu-core and fonts-liberation. Usage: python3 render.py [NAME...]
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZE = re.compile(r'<meta name="screen-size" content="(\d+)x(\d+)">')
MAX_BYTES = 200_000
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--disable-lcd-text",
    "--font-render-hinting=none",
)


def render(page: Path, target: Path) -> None:
    """One page at the size that its `screen-size` meta tag gives."""
    found = SIZE.search(page.read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit(f"{page.name}: no screen-size meta tag")
    width, height = int(found[1]), int(found[2])
    with tempfile.TemporaryDirectory() as profile:
        command = ["chromium", *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        command += [f"--screenshot={target}", page.as_uri()]
        # A HOME of its own, too: chromium keeps crash reports there whatever the profile is.
        environment = {**os.environ, "HOME": profile}
        quiet = subprocess.DEVNULL
        subprocess.run(command, check=True, timeout=120, stdout=quiet, stderr=quiet, env=environment)
    data = target.read_bytes()
    # A PNG's header chunk holds width and height at bytes 16 to 23.
    if struct.unpack(">II", data[16:24]) != (width, height):
        raise SystemExit(f"{target.name}: chromium drew {struct.unpack('>II', data[16:24])}, not {(width, height)}")
    if len(data) > MAX_BYTES:
        raise SystemExit(f"{target.name}: {len(data)} bytes, more than {MAX_BYTES}")
    print(f"{target.name}: {width}x{height}, {len(data)} bytes")


def main() -> None:
    (HERE / "screens").mkdir(exist_ok=True)
    names = sys.argv[1:] or sorted(page.stem for page in (HERE / "pages").glob("*.html"))
    for name in names:
        render(HERE / "pages" / f"{name}.html", HERE / "screens" / f"{name}.png")


if __name__ == "__main__":
    main()
