"""A worker for the systemd tests: answers chats at once, or streams for as long as it is told."""

import http.server
import json
import sys
import time

EVENTS_A_SECOND = 20


class Worker(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/v1/models":
            self.answer({"object": "list", "data": [{"id": "m", "object": "model"}]})
        else:
            self.answer({})

    def do_POST(self):
        ask = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
        if not ask.get("stream"):
            self.answer({"worker": sys.argv[1], "model": ask.get("model")})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for _ in range(int(ask.get("seconds", 1) * EVENTS_A_SECOND)):
            event = {"choices": [{"index": 0, "delta": {"content": "x"}}]}
            self.chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
            time.sleep(1 / EVENTS_A_SECOND)
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, *_):
        """Routers that are killed are what is tested."""


Server(("127.0.0.1", int(sys.argv[2])), Worker).serve_forever()
