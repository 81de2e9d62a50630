"""A grader's HTTP server that the submission can reach and nothing else: it serves, and counts, out here.

With the grant ``server`` the listening socket was made inside the worker's own network and passed out.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from llmkata.outside.link import Link

from .budgets import NotJudged

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """The fixture ``server``: ``server.start(handler_class)`` -> base URL as the submission sees it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._running: list[ThreadingHTTPServer] = []

    def start(self, handler: type[BaseHTTPRequestHandler]) -> str:
        """Serve with ``handler`` (an ``http.server`` handler class) until the check ends -> ``http://127.0.0.1:port``.

        Raises NotJudged where the host cannot give the grant.
        """
        from http.server import ThreadingHTTPServer

        listener = self._link.listener()
        if listener is None:
            raise NotJudged("needs the grant 'server', which this host cannot give")
        server = ThreadingHTTPServer(listener.getsockname()[:2], handler, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self._running.append(server)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    def stop(self) -> None:
        """Stop serving; the socket inside stays, so that a later check can be served again."""
        for server in self._running:
            server.shutdown()
            server.server_close()
        self._running = []
