"""Clients of a service under load, well-behaved and not."""

from __future__ import annotations

import base64
import http.client
import json
import random
import select
import time
from collections import Counter
from dataclasses import dataclass, field

from hawkeye_bench.about import ROOT

SCREENS = sorted((ROOT / "inference/export/testdata/screens").glob("*.png"))

SLOWLY = 8.0
"""Seconds that a slow client takes to send its request, or to read its answer: the service waits longer."""

PIECES = 20
"""In which a slow client does so."""

PATIENCE = 300
"""Seconds until a client that hears nothing counts as not answered. The service's own limit is shorter."""

LONGEST_REST = 3.0
"""Seconds between a 429 and the next try, whatever Retry-After says: the load is to last."""


@dataclass(frozen=True)
class Kind:
    """How a client behaves."""

    upload: bool = False
    sends_slowly: bool = False
    reads_slowly: bool = False
    hangs_up: bool = False


KINDS = {
    "json": Kind(),
    "upload": Kind(upload=True),
    "slow-sender": Kind(sends_slowly=True),
    "slow-reader": Kind(reads_slowly=True),
    "hang-up": Kind(hangs_up=True),
}


@dataclass
class Tally:
    """What became of requests."""

    sent: int = 0
    answered: int = 0
    refused: int = 0
    hung_up: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Any other status, and what is no answer; by text."""
    milliseconds: list[float] = field(default_factory=list)
    """Of what was answered, by clients that are quick."""
    answers: set[tuple[int, bool, str]] = field(default_factory=set)
    """Every answer that differs: number of the screenshot, whether its text was asked for, `elements`."""

    @staticmethod
    def of(tallies: list[Tally]) -> Tally:
        """The sum."""
        total = Tally()
        for tally in tallies:
            total.sent += tally.sent
            total.answered += tally.answered
            total.refused += tally.refused
            total.hung_up += tally.hung_up
            total.errors += tally.errors
            total.milliseconds += tally.milliseconds
            total.answers |= tally.answers
        return total


class HungUp(Exception):
    """The client left on purpose."""


class Asker:
    """A client that asks until it is time; each has its own order of screenshots."""

    def __init__(self, kind: Kind, port: int, pictures: list[bytes], seed: int) -> None:
        self.kind, self.port, self.pictures = kind, port, pictures
        self.choose = random.Random(seed)
        self.tally = Tally()
        self.connection: http.client.HTTPConnection | None = None

    def repeat(self, end: float) -> None:
        """Until `time.monotonic()` is `end`; what was begun is waited for."""
        # Not all at the same moment.
        time.sleep(self.choose.uniform(0, 1))
        while time.monotonic() < end:
            number, ocr = self.choose.randrange(len(self.pictures)), self.choose.random() < 0.5
            self.tally.sent += 1
            begun = time.perf_counter()
            try:
                status, rest, answer = self.ask(self.pictures[number], ocr)
            except HungUp:
                self.tally.hung_up += 1
                self.drop()
                continue
            except (OSError, http.client.HTTPException) as error:
                self.tally.errors[f"{type(error).__name__}: {error}"[:200]] += 1
                self.drop()
                time.sleep(1)
                continue
            if status == 200:
                self.tally.answered += 1
                self.tally.answers.add((number, ocr, elements(answer)))
                if not (self.kind.sends_slowly or self.kind.reads_slowly):
                    self.tally.milliseconds.append((time.perf_counter() - begun) * 1e3)
            elif status == 429:
                self.tally.refused += 1
                time.sleep(self.choose.uniform(0.5, 1) * min(rest, LONGEST_REST))
            else:
                self.tally.errors[f"{status}: {answer[:150].decode(errors='replace')}"] += 1
                time.sleep(1)

    def drop(self) -> None:
        if self.connection:
            self.connection.close()
            self.connection = None

    def ask(self, picture: bytes, ocr: bool) -> tuple[int, float, bytes]:
        """Status, seconds of Retry-After, body."""
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        path, content_type, body = self.request(picture, ocr)
        self.connection.putrequest("POST", path)
        self.connection.putheader("content-type", content_type)
        self.connection.putheader("content-length", str(len(body)))
        self.connection.endheaders()
        complete = self.send(body)
        response = self.connection.getresponse()
        answer = self.read(response)
        if response.will_close or not complete:
            self.drop()
        return response.status, float(response.headers.get("retry-after") or 0), answer

    def request(self, picture: bytes, ocr: bool) -> tuple[str, str, bytes]:
        """Path, content type, body; now and then without the annotated picture."""
        picture_too = self.choose.random() < 0.8
        if self.kind.upload:
            head = '--cut\r\ncontent-disposition: form-data; name="file"; filename="shot.png"\r\ncontent-type: image/png\r\n\r\n'
            path = f"/parse/upload?include_ocr={str(ocr).lower()}&include_som={str(picture_too).lower()}"
            return path, "multipart/form-data; boundary=cut", head.encode() + picture + b"\r\n--cut--\r\n"
        asked = {"image": base64.b64encode(picture).decode(), "include_ocr": ocr, "include_som": picture_too}
        return "/parse", "application/json", json.dumps(asked).encode()

    def send(self, body: bytes) -> bool:
        """Whether all of it was sent."""
        assert self.connection is not None and self.connection.sock is not None
        socket = self.connection.sock
        if self.kind.hangs_up:
            # At the headers, in the midst of the body, or after all of it: then it is in the queue, or on the device.
            part = self.choose.choice((0.0, 0.5, 1.0, 1.0))
            socket.sendall(body[: int(part * len(body))])
            time.sleep(self.choose.uniform(0, 4))
            raise HungUp
        if not self.kind.sends_slowly:
            socket.sendall(body)
            return True
        size = -(-len(body) // PIECES)
        for start in range(0, len(body), size):
            # An answer before the end of the body is a refusal: who goes on sending may never see it.
            if select.select([socket], [], [], SLOWLY / PIECES)[0]:
                return False
            socket.sendall(body[start : start + size])
        return True

    def read(self, response: http.client.HTTPResponse) -> bytes:
        if not self.kind.reads_slowly:
            return response.read()
        pieces = []
        size = max(1, (response.length or 0) // PIECES)
        while piece := response.read(size):
            pieces.append(piece)
            time.sleep(SLOWLY / PIECES)
        return b"".join(pieces)


def elements(answer: bytes) -> str:
    """What must be the same each time: where elements are and what they say. Of a captioner's words only whether there are some: where two
    are as good as each other, they depend on the other crops of the batch."""
    told = []
    for element in json.loads(answer)["elements"]:
        captioned = element["source"] == "box_yolo_content_yolo"
        told.append((element["bbox"], element["type"], bool(element["caption"]) if captioned else element["content"]))
    return json.dumps(told)


def health(port: int) -> float:
    """Milliseconds until /health says that all is well; infinite when it does not."""
    begun = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        well = json.loads(response.read())["status"] == "healthy"
    except (OSError, http.client.HTTPException, ValueError):
        well = False
    finally:
        connection.close()
    return (time.perf_counter() - begun) * 1e3 if well else float("inf")
