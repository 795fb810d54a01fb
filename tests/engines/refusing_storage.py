"""A server that refuses what is to be stored there, as a busy one does, or one with other keys."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["Storage", "storage"]


class Storage(BaseHTTPRequestHandler):
    """As much of S3 as an upload needs, once it has stopped to refuse."""

    refusal: tuple[int, str] | None = None
    objects: dict[str, bytes] = {}  # noqa: RUF012 - shared by all requests
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._refuse():
            Storage.objects[self.path.partition("?")[0]] = body
            self._answer(200)

    def do_HEAD(self) -> None:
        if not self._refuse():
            found = Storage.objects.get(self.path)
            self._answer(404 if found is None else 200, length=len(found or b""))

    def do_GET(self) -> None:
        if not self._refuse():
            self._answer(404)

    def _refuse(self) -> bool:
        if Storage.refusal is None:
            return False
        status, code = Storage.refusal
        text = f"<Error><Code>{code}</Code><Message>not now</Message></Error>".encode()
        self._answer(status, text)
        return True

    def _answer(self, status: int, text: bytes = b"", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text) if length is None else length))
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Tue, 24 Nov 2026 12:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def storage() -> Iterator[str]:
    """Run a server that refuses or takes uploads, as `Storage.refusal` says; yield its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Storage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
