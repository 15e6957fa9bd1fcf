"""Our service as its users run it: a process that is asked over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

START_SECONDS = 300
STAGES = ("decode", "detect", "ocr", "merge", "caption", "encode")


class ServiceError(Exception):
    """The service did not start, or answered something else than 200."""


class Service:
    """A running server; ends with the `with` block."""

    def __init__(self, program: Path, options: list[str], log: Path, cores: set[int] | None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [str(program), "serve", "--host", "127.0.0.1", "--port", str(self.port), "--lame-duck", "0s", *options]
        environment = dict(os.environ)
        if cores:
            environment["OMP_NUM_THREADS"] = str(len(cores))
        self.log = log
        with log.open("w") as stderr:
            confine = (lambda: os.sched_setaffinity(0, cores)) if cores else None
            self.process = subprocess.Popen(command, env=environment, stdout=stderr, stderr=stderr, preexec_fn=confine)

    def __enter__(self) -> Service:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.2)
        self.__exit__()
        raise ServiceError(f"the service is not ready; the end of {self.log}:\n{self.log.read_text()[-2000:]}")

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def client(self) -> Client:
        return Client(self.port)

    def throughput(self, body: bytes, clients: int, seconds: float) -> tuple[float, list[float]]:
        """Answers a second from that many clients, each asking again at once, and every answer's milliseconds."""
        times: list[list[float]] = [[] for _ in range(clients)]
        failed: list[Exception] = []
        end = time.perf_counter() + seconds

        def ask(own: list[float]) -> None:
            try:
                client = self.client()
                while time.perf_counter() < end:
                    own.append(client.ask(body)[0])
            except Exception as error:  # noqa: BLE001 - raised again by the caller's thread
                failed.append(error)

        begun = time.perf_counter()
        threads = [threading.Thread(target=ask, args=(own,)) for own in times]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - begun
        if failed:
            raise failed[0]
        every = [value for own in times for value in own]
        return len(every) / took, every


class Client:
    """One connection that stays open."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def parse(self, body: bytes) -> tuple[float, dict[str, Any]]:
        """As `ask`, with the answer read, which is outside of that time."""
        took, answer = self.ask(body)
        return took, json.loads(answer)

    def ask(self, body: bytes) -> tuple[float, bytes]:
        """Milliseconds from the request's first byte to the answer's last, and the answer."""
        begun = time.perf_counter()
        self.connection.request("POST", "/parse", body, {"content-type": "application/json"})
        response = self.connection.getresponse()
        answer = response.read()
        took = (time.perf_counter() - begun) * 1e3
        if response.status != 200:
            raise ServiceError(f"{response.status}: {answer[:300]!r}")
        return took, answer

    def get(self, path: str) -> bytes:
        self.connection.request("GET", path)
        response = self.connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise ServiceError(f"{path}: {response.status}: {answer[:300]!r}")
        return answer
