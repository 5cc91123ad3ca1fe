"""A router as the plugin sees it, written apart from the plugin's own mirror and digest.

Also a program, to look at a real engine: `python3 fake_router.py PORT`, then GET /state.
"""

import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MASK = 2**64 - 1


def reference_mix(block_id):
    z = (block_id + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def reference_sums(copies):
    sums = [0] * 256
    for block_id, count in copies.items():
        m = reference_mix(block_id)
        sums[m >> 56] = (sums[m >> 56] + m * count) % 2**64
    return sums


class Life:
    """What the router believes of one rank of one worker."""

    def __init__(self, epoch):
        self.epoch = epoch
        self.expected = 0
        self.forget()

    def forget(self):
        self.copies = Counter()
        self.parent = {}
        self.tokens = {}

    def store(self, block_id, parent, tokens, copies=1):
        self.copies[block_id] += copies
        self.parent[block_id] = parent
        self.tokens[block_id] = list(tokens)

    def remove(self, block_id):
        self.copies[block_id] -= 1
        if self.copies[block_id] <= 0:
            del self.copies[block_id], self.parent[block_id], self.tokens[block_id]


class FakeRouter:
    def __init__(self, port=0):
        self.lock = threading.Lock()
        self.lives = {}
        self.beats = []
        self.batches = []  # (epoch, seq, events) in order of arrival, repeats left out
        self.seen = Counter()
        self.violations = []
        self.tokens_seen = set()
        self.body_bytes_max = 0
        # Knobs.
        self.admits = True
        self.delay_s = 0.0
        self.answers = []  # [(path, status, headers, body)]: each used once, instead of doing it
        self.ask_resync = False
        self.lose_answers = 0  # do it, then cut the connection
        self.swallow = set()  # numbers of batches that "got lost": acknowledged but not applied
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                outer.seen[self.path] += 1
                outer.body_bytes_max = max(outer.body_bytes_max, length)
                outer.tokens_seen.add(self.headers.get("Authorization"))
                if outer.delay_s:
                    time.sleep(outer.delay_s)
                status, headers, answer = outer.answer(self.path, json.loads(body))
                if outer.lose_answers and self.path == "/v1/events":
                    outer.lose_answers -= 1
                    self.close_connection = True
                    return
                self.reply(status, headers, answer)

            def do_GET(self):
                self.reply(200, {}, outer.summary())

            def reply(self, status, headers, answer):
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args):
                pass

        self.handler = Handler
        self.start(port)

    def start(self, port=0):
        class Server(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True

            def handle_error(self, *args):
                pass

        self.server = Server(("127.0.0.1", port), self.handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path, body):
        with self.lock:
            for index, (at, status, headers, value) in enumerate(self.answers):
                if at == path:
                    del self.answers[index]
                    return status, headers, value
            if path == "/v1/heartbeat":
                return self.heartbeat(body)
            key = (body["worker_id"], body["rank"])
            if not self.admits:
                return 404, {}, {"code": "unknown_worker"}
            if path == "/v1/events":
                return self.events(key, body)
            if path == "/v1/sync":
                return self.sync(key, body)
            return 404, {}, {"code": "not_found"}

    def heartbeat(self, body):
        self.beats.append(body)
        if not self.admits:
            return 404, {}, {"code": "unknown_worker"}
        resync, self.ask_resync = self.ask_resync, False
        return 200, {}, {"ok": True, "joined": False, "resync": resync}

    def events(self, key, body):
        life = self.lives.get(key)
        resync = False
        if life is None or life.epoch != body["epoch"]:
            life = self.lives[key] = Life(body["epoch"])
        if body["seq"] < life.expected:
            return 200, {}, {"repeat": True, "resync": False}
        if body["seq"] in self.swallow:
            return 200, {}, {"repeat": False, "resync": False}
        if body["seq"] > life.expected:
            resync = True
        life.expected = body["seq"] + 1
        self.batches.append((body["epoch"], body["seq"], body["events"]))
        for event in body["events"]:
            self.apply(life, event, resync)
        return 200, {}, {"repeat": False, "resync": resync}

    def apply(self, life, event, lenient):
        if event.get("medium"):
            return
        if event["type"] == "cleared":
            life.forget()
        elif event["type"] == "removed":
            for block_id in event["block_hashes"]:
                if block_id in life.copies:
                    life.remove(block_id)
                elif not lenient:
                    self.violations.append(("removed unknown", block_id))
        else:
            parent, size = event["parent_block_hash"], event["block_size"]
            if len(event["token_ids"]) != size * len(event["block_hashes"]):
                self.violations.append(("tokens", event["block_hashes"]))
            for index, block_id in enumerate(event["block_hashes"]):
                if parent is not None and parent not in life.copies and not lenient:
                    self.violations.append(("parent unknown", block_id))
                life.store(block_id, parent, event["token_ids"][index * size : (index + 1) * size])
                parent = block_id

    def sync(self, key, body):
        life = self.lives.get(key)
        if life is None or life.epoch != body["epoch"]:
            life = self.lives[key] = Life(body["epoch"])
        if "digest" in body:
            digest = body["digest"]
            mine = reference_sums(life.copies)
            differ = [i for i in range(256) if mine[i] != digest["sums"][i]]
            self.seen["digest"] += 1
            if not differ:
                life.expected = body["seq"] + 1
                return 200, {}, {"ok": True, "want": "nothing"}
            if not life.copies:
                return 200, {}, {"ok": True, "want": "snapshot"}
            return 200, {}, {"ok": True, "want": "buckets", "differ": differ}
        if "buckets" in body:
            self.seen["buckets"] += 1
            drop = set(body["buckets"]["list"])
            for block_id in [b for b in life.copies if reference_mix(b) >> 56 in drop]:
                del life.copies[block_id], life.parent[block_id], life.tokens[block_id]
            self.take_blocks(life, body["buckets"]["blocks"], False)
            life.expected = body["seq"] + 1
        else:
            snapshot = body["snapshot"]
            self.seen["snapshot"] += 1
            if snapshot["part"] == 0:
                life.forget()
            self.take_blocks(life, snapshot["blocks"], True)
            if snapshot["last"]:
                life.expected = body["seq"] + 1
        return 200, {}, {"ok": True, "want": "nothing"}

    def take_blocks(self, life, blocks, whole):
        inside = {b["block_hash"] for b in blocks}
        before = set()
        for block in blocks:
            parent = block["parent_block_hash"]
            if len(block["token_ids"]) != block["block_size"]:
                self.violations.append(("block tokens", block["block_hash"]))
            if parent in inside and parent not in before:
                self.violations.append(("child first", block["block_hash"]))
            if whole and parent is not None and parent not in life.copies:
                self.violations.append(("orphan", block["block_hash"]))
            before.add(block["block_hash"])
            life.store(block["block_hash"], parent, block["token_ids"], block["copies"])

    def summary(self):
        with self.lock:
            return {
                "seen": dict(self.seen),
                "violations": self.violations[:20],
                "beats": self.beats[-3:],
                "workers": {
                    f"{worker}/{rank}": {
                        "epoch": life.epoch,
                        "expected": life.expected,
                        "blocks": len(life.copies),
                        "copies": sum(life.copies.values()),
                    }
                    for (worker, rank), life in self.lives.items()
                },
                "last_events": [
                    [{k: (v if k != "token_ids" else len(v)) for k, v in e.items()} for e in batch[2]]
                    for batch in self.batches[-3:]
                ],
            }


if __name__ == "__main__":
    router = FakeRouter(int(sys.argv[1]))
    print(f"fake router on {router.url}", flush=True)
    threading.Event().wait()
