"""Progress lines on stderr, so that stdout stays free for results."""

import sys
import time

_START = time.monotonic()


def say(message: str) -> None:
    """Prints one line with the seconds since start."""
    print(f"[{time.monotonic() - _START:6.1f}s] {message}", file=sys.stderr, flush=True)
