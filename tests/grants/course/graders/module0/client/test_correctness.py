from http.server import BaseHTTPRequestHandler

from llmkata.checks import check, points, task


@task(1)
@points(100)
def test_fetch(submission, server):
    """The body comes back, and the server saw one request for it."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"42 tokens")

        def log_message(self, *_):
            pass

    check(submission.fetch(server.start(Handler) + "/page") == "42 tokens", "the body is '42 tokens'")
    check(seen == ["/page"], "one request for /page", got=seen)
