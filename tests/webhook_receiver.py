"""A receiver of webhooks on loopback. It verifies each request with the library of the standard."""

from __future__ import annotations

import base64
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks.webhooks import Webhook

WAIT = 60.0
SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes....").decode()
LOOPBACK = {"secrets": {"shop": SECRET}, "webhook_networks": ["127.0.0.0/8", "::1/128"], "webhook_http": True}


class Receiver:
    """Give each request the next of `answers`, and repeat the last one for all later requests.

    An answer is (status, headers) or a function that takes the request handler. `got` has the requests whose signature
    is valid, `bad` the others, and `times` the time of each request.
    """

    def __init__(self, *answers, secret=SECRET, context=None):
        self.answers, self.got, self.bad, self.times = list(answers) or [(204, {})], [], [], []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                receiver.times.append(time.time())
                data = self.rfile.read(int(self.headers["content-length"]))
                try:
                    body = Webhook(secret).verify(data, dict(self.headers.items()))
                    receiver.got.append((self.headers["webhook-id"], self.headers["host"], body))
                except Exception as error:
                    receiver.bad.append((error, dict(self.headers.items())))
                answer = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
                if callable(answer):
                    return answer(self)
                self.send_response(answer[0])
                for name, value in {"content-length": "0", **answer[1]}.items():
                    self.send_header(name, value)
                return self.end_headers()

            do_GET = do_POST

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_):  # most often a client that closed its connection early
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook?x=1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def wait_until(condition):
    """Call `condition` until it returns a true value. Fail after WAIT seconds."""
    give_up_at = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < give_up_at, f"the condition was still false after {WAIT:g} s"
        time.sleep(0.01)
