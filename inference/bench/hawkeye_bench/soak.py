"""Overlapping load from many clients on a service of our own, for minutes; fails when one of the rules is broken: `make soak-inference`.

Most clients ask again as soon as they are answered; some send slowly, some read slowly, some hang up. A 429 is an answer, too.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from hawkeye_bench.about import ROOT, command, commit, processor, versions
from hawkeye_bench.clients import KINDS, SCREENS, Asker, Tally, health
from hawkeye_bench.service import Service
from hawkeye_bench.verdict import Seen, judge, rss_mib, table

MIX = {"json": 44, "upload": 8, "slow-sender": 4, "slow-reader": 2, "hang-up": 6}
"""Clients of each kind."""

GRACE = 180
"""Seconds within which the last requests must be answered; longer than the service's own limit."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="hawkeye_bench.soak", description=__doc__)
    parser.add_argument("--program", type=Path, required=True, help="the built hawkeye-inference")
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="a bundle with a captioner; one for tests is allowed")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--out", type=Path, default=ROOT / "out/bench/soak.json")
    arguments, options = parser.parse_known_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    log = arguments.out.with_suffix(".log")
    with Service(arguments.program, ["--bundle", str(arguments.bundle), "--allow-test-bundle", *options], log, None) as service:
        seen = soak(service, arguments.seconds)
    seen.exit_code = service.process.returncode
    rules = judge(seen)
    text = table(seen, rules)
    report = {
        "commit": commit(), "command": command("hawkeye_bench.soak", sys.argv[1:]), "machine": processor(), "versions": versions("torch"),
        "clients": MIX, **seen.document(), "rules": [{"rule": rule.text, "held": rule.held, "found": rule.found} for rule in rules],
    }  # fmt: skip
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{text}\n\n{arguments.out} (the service's log: {log})")
    return int(not all(rule.held for rule in rules))


def soak(service: Service, seconds: float) -> Seen:
    """Lets the clients loose for that long, and waits until the last of them is answered."""
    pictures = [path.read_bytes() for path in SCREENS]
    end = time.monotonic() + seconds
    kinds = [kind for kind, count in MIX.items() for _ in range(count)]
    askers = [Asker(KINDS[kind], service.port, pictures, number) for number, kind in enumerate(kinds)]
    threads = [threading.Thread(target=asker.repeat, args=(end,), daemon=True) for asker in askers]
    for thread in threads:
        thread.start()
    seen = Seen(seconds)
    begun = time.monotonic()
    for _ in every_second(end):
        seen.rss.append((time.monotonic() - begun, rss_mib(service.process.pid)))
        seen.health.append(health(service.port))
    deadline = time.monotonic() + GRACE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    seen.waiting = sum(thread.is_alive() for thread in threads)
    for kind in MIX:
        seen.kinds[kind] = Tally.of([asker.tally for asker, own in zip(askers, kinds, strict=True) if own == kind])
    # Those that hung up last are noticed at the next stage of their parse.
    while time.monotonic() < deadline:
        seen.metrics = metrics(service)
        if seen.metrics["hawkeye_parse_requests_held"] == 0:
            break
        time.sleep(1)
    return seen


def every_second(end: float) -> Iterator[None]:
    while (left := end - time.monotonic()) > 0:
        yield
        time.sleep(min(1.0, left))


def metrics(service: Service) -> dict[str, float]:
    """The service's own counts, by series."""
    text = service.client().get("/metrics").decode()
    found = re.findall(r"^(hawkeye_parse_requests\S*|hawkeye_slow_clients\S*) (\S+)$", text, re.MULTILINE)
    return {series: float(value) for series, value in found}


if __name__ == "__main__":
    sys.exit(main())
