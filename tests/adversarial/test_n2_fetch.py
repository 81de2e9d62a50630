"""N2: fetch the published solution, or ask a model for it."""

import http.server
import threading

import pytest

from llmkata.records import Outcome

from ..toy.harness import SOLUTION, grade, named, solution_with
from .acts import passes


class Published(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(SOLUTION.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def attack():
    with http.server.HTTPServer(("127.0.0.1", 0), Published) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield solution_with(f'''
            def magic(n):
                from urllib.request import ProxyHandler, build_opener
                try:
                    opener = build_opener(ProxyHandler({{}}))
                    text = opener.open("http://127.0.0.1:{server.server_port}/", timeout=2).read()
                except OSError:
                    return 0
                scope = {{"__name__": "fetched"}}
                exec(text.decode().replace("from __future__ import annotations", ""), scope)
                return scope["magic"](n)
            ''')
        server.shutdown()


def test_nothing_can_be_fetched(attack, earns_nothing):
    earns_nothing(grade(attack, only="test_magic"), "test_magic")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_without_isolation_it_is_fetched(attack):
    assert passes(attack, isolation="process")
