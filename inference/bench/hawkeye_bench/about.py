"""What was measured, with what, on what: goes into every report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


def commit() -> str:
    """What was built: `HAWKEYE_COMMIT`, where it was built elsewhere."""
    if told := os.environ.get("HAWKEYE_COMMIT"):
        return told
    asked = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def command(module: str, options: list[str]) -> str:
    """How to repeat it. Files are named, but not where they lie: reports are published."""
    return shlex.join(["python", "-m", module, *(Path(option).name if os.path.isabs(option) else option for option in options)])


def processor() -> dict[str, Any]:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return {"cpu": found[1] if found else platform.machine(), "cores": os.cpu_count()}


def versions(*names: str) -> dict[str, str]:
    """Of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), **found}
