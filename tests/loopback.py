"""A chat server on loopback, for tests of what asks an endpoint."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ftlab.models.engines import Endpoint, endpoint

Reply = tuple[int, dict, str | bytes]  # status, headers, body


def good(text: Any, finish: str | None = "stop", **message) -> Reply:
    """Return a reply of the protocol."""
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text, **message},
    }
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return 200, {}, json.dumps(body)


@contextmanager
def chat_server(reply: Callable[[dict, dict, str], Reply]) -> Iterator[Endpoint]:
    """Serve replies.

    Args:
        reply: Called with the request, its headers and its path.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802  name of the library
            size = int(self.headers["Content-Length"])
            request = json.loads(self.rfile.read(size))
            status, more, body = reply(request, self.headers, self.path)
            body = body.encode() if isinstance(body, str) else body
            self.send_response(status)
            sizes = {"Content-Type": "application/json", "Content-Length": str(len(body))}
            for name, value in (sizes | more).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that has hung up
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield endpoint(f"api:m@http://127.0.0.1:{server.server_port}/v1")
    finally:
        server.shutdown()


def echo_server():
    """Serve every question back as its answer."""
    return chat_server(lambda request, headers, path: good(request["messages"][-1]["content"]))
