"""What clients do to a service that is made up, and when a soak fails."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hawkeye_bench import clients
from hawkeye_bench.clients import KINDS, Asker, Tally, elements, health
from hawkeye_bench.verdict import Seen, judge, table

ANSWER = {
    "elements": [
        {"bbox": [1, 2, 3, 4], "type": "text", "content": "Save", "caption": "Save", "source": "box_ocr_content_ocr"},
        {"bbox": [5, 6, 7, 8], "type": "icon", "content": "a cat", "caption": "a cat", "source": "box_yolo_content_yolo"},
    ]
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    status = 200
    early = False
    """Answers before the body has come."""
    bodies: list[int] = []

    def do_POST(self) -> None:
        if not self.early:
            try:
                self.bodies.append(len(self.rfile.read(int(self.headers["content-length"]))))
            except OSError:
                return
        self.answer(json.dumps(ANSWER).encode())

    def do_GET(self) -> None:
        self.answer(b'{"status": "healthy"}')

    def answer(self, data: bytes) -> None:
        self.send_response(self.status)
        self.send_header("content-length", str(len(data)))
        self.send_header("retry-after", "1")
        if self.early:
            self.close_connection = True
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr(clients, "SLOWLY", 0.2)
    monkeypatch.setattr(clients, "LONGEST_REST", 0.1)
    monkeypatch.setattr(Handler, "bodies", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(server: ThreadingHTTPServer, kind: str, seconds: float = 1.4) -> Tally:
    asker = Asker(KINDS[kind], server.server_address[1], [b"a picture" * 100], seed=1)
    asker.repeat(time.monotonic() + seconds)
    asker.drop()
    return asker.tally


@pytest.mark.parametrize("kind", ["json", "upload", "slow-sender", "slow-reader"])
def test_answers_are_counted(kind: str, server: ThreadingHTTPServer) -> None:
    tally = run(server, kind)
    assert tally.sent == tally.answered == len(Handler.bodies) > 1
    assert not tally.errors and len({told for _, _, told in tally.answers}) == 1


def test_a_client_that_hangs_up_is_no_error(server: ThreadingHTTPServer) -> None:
    tally = run(server, "hang-up", 3)
    assert tally.sent == tally.hung_up > 0
    assert not tally.errors


@pytest.mark.parametrize(("status", "kind"), [(429, "json"), (429, "slow-sender"), (504, "json")])
def test_a_refusal_is_told_from_an_error(status: int, kind: str, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "status", status)
    tally = run(server, kind)
    errors = sum(tally.errors.values())
    assert (tally.refused, errors) == ((tally.sent, 0) if status == 429 else (0, tally.sent))


def test_a_slow_sender_reads_an_early_answer(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "status", 429)
    monkeypatch.setattr(Handler, "early", True)
    tally = run(server, "slow-sender")
    assert tally.refused == tally.sent > 0


def test_nobody_listens() -> None:
    asker = Asker(KINDS["json"], 1, [b"a picture"], seed=1)
    asker.repeat(time.monotonic() + 1.2)
    assert sum(asker.tally.errors.values()) == asker.tally.sent > 0
    assert health(1) == float("inf")


def test_health(server: ThreadingHTTPServer) -> None:
    assert health(server.server_address[1]) < 1000


def test_captions_may_differ_in_words_only() -> None:
    def told(caption: str | None, content: str) -> str:
        icon = ANSWER["elements"][1] | {"caption": caption}
        return elements(json.dumps({"elements": [ANSWER["elements"][0] | {"content": content}, icon]}).encode())

    assert told("a cat", "Save") == told("a dog", "Save")
    assert told(None, "Save") != told("a dog", "Save") != told("a dog", "Safe")


def good() -> Seen:
    tally = Tally(sent=10, answered=6, refused=3, hung_up=1, milliseconds=[5.0] * 6, answers={(0, True, "[]"), (0, False, "[]")})
    metrics = {
        'hawkeye_parse_requests_total{outcome="Parsed"}': 7.0, 'hawkeye_parse_requests_total{outcome="Busy"}': 3.0,
        "hawkeye_parse_requests_held": 0.0,
    }  # fmt: skip
    rss = [(float(second), 100.0 + min(second, 10) * 20) for second in range(30)]
    return Seen(30, {"json": tally}, rss, [3.0] * 30, 0, metrics, 0)


def broken(seen: Seen) -> list[str]:
    return [rule.text.split()[0] for rule in judge(seen) if not rule.held]


def test_a_good_run_keeps_every_rule() -> None:
    seen = good()
    assert broken(seen) == []
    text = table(seen, judge(seen))
    assert "| json | 10 | 6 | 3 | 1 | 0 | 5 | 5 |" in text and "FAIL" not in text
    json.dumps(seen.document())


def test_each_rule_can_break() -> None:
    seen = good()
    seen.kinds["json"].errors = Counter({"504: late": 1})
    seen.kinds["json"].refused -= 1
    assert broken(seen) == ["no"]
    seen = good()
    seen.waiting, seen.kinds["json"].answered = 1, 5
    assert "every" in broken(seen)
    for parsed, held in ((5.0, 0.0), (8.0, 0.0), (7.0, 1.0)):
        seen = good()
        seen.metrics |= {'hawkeye_parse_requests_total{outcome="Parsed"}': parsed, "hawkeye_parse_requests_held": held}
        assert broken(seen) == ["the"]
    seen = good()
    seen.kinds["json"].answers.add((0, True, "[1]"))
    assert broken(seen) == ["a"]
    seen = good()
    seen.rss = [(second, value * (1.06 if second >= 20 else 1)) for second, value in seen.rss]
    assert broken(seen) == ["resident"]
    seen.rss = []
    assert broken(seen) == ["resident"]
    seen = good()
    seen.health.append(float("inf"))
    assert broken(seen) == ["/health"]
    seen = good()
    seen.exit_code = 1
    assert broken(seen) == ["SIGTERM"]
