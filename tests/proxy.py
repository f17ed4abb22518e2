"""An HTTP proxy before a real S3 server that fails requests as networks and servers do."""

import http.client
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Fault = Literal["500", "403", "silence", "reset", "answer lost"]
WRITES = ("PUT", "POST", "DELETE")


@dataclass
class Rule:
    """Which of the writing requests fail, counted from 1, and how.

    ``silence`` answers nothing and keeps the connection; ``reset`` breaks it before anything is
    forwarded; ``answer lost`` forwards, and breaks it then. ``last`` None: all from the first on.
    """

    fault: Fault
    first: int
    last: int | None
    reads: bool = False
    """Whether GET and HEAD count too."""
    only: str = ""
    """Requests with this in their path; others neither fail nor count."""
    every: int = 1
    """With 2 every other one: each fails once, and its repetition does not."""


class Proxy:
    """Forwards every request to ``target``, but those a rule is for."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target).netloc
        self.rule: Rule | None = None
        self.dropped = ""
        self.writes = self.requests = 0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "Proxy":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def fault(self, method: str, path: str) -> str | None:
        """What becomes of the next request."""
        with self.lock:
            if self.rule is not None and self.rule.only not in path:
                return None
            self.requests += 1
            self.writes += method in WRITES
            rule = self.rule
            if rule is None or not (rule.reads or method in WRITES):
                return None
            number = self.requests if rule.reads else self.writes
            late = rule.last is not None and number > rule.last
            spared = (number - rule.first) % rule.every
            return None if number < rule.first or late or spared else rule.fault

    def begin(self, rule: Rule | None) -> None:
        """Count from 1 again, under another rule."""
        with self.lock:
            self.rule, self.writes, self.requests = rule, 0, 0


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.fault(self.command, self.path)
            if fault == "silence":
                proxy.closing.wait(30)
            if fault in ("silence", "reset"):
                self._break()
            elif fault in ("500", "403"):
                self._answer(int(fault), [], b"<Error><Code>Injected</Code></Error>")
            else:
                status, headers, answer = self._forward(body)
                if fault == "answer lost":
                    self._break()
                else:
                    self._answer(status, headers, answer)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

        def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(proxy.target, timeout=30)
            headers = {k: v for k, v in self.headers.items() if k.lower() != proxy.dropped.lower()}
            connection.request(self.command, self.path, body, {**headers, "Connection": "close"})
            response = connection.getresponse()
            kept = [
                (k, v)
                for k, v in response.getheaders()
                if k.lower() not in ("connection", "transfer-encoding")
                and (k.lower() != "content-length" or self.command == "HEAD")
            ]
            answer = response.read()
            connection.close()
            return response.status, kept, answer

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            with suppress(OSError):  # the client has given up
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else body)

        def _break(self) -> None:
            """RST, as from a machine that has lost the connection."""
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.connection.close()

    return Handler
