"""Starts and stops the engines and the router; whatever happens, nothing is left running."""

import ctypes
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

MODEL = "tiny-qwen3"
BLOCK_TOKENS = 32
# 159 of them can be used: 5,088 tokens an engine.
BLOCKS = 160


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def call(port, method, path, body=None, timeout=10.0):
    """(status, headers, bytes)"""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()
    finally:
        connection.close()


def answers(port, path):
    try:
        return call(port, "GET", path, timeout=2)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def wait_until(holds, limit_s, every_s=0.1):
    """Seconds it took, or None."""
    since = time.monotonic()
    while time.monotonic() - since < limit_s:
        if holds():
            return time.monotonic() - since
        time.sleep(every_s)
    return None


def _dies_with_us():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _group(pgid):
    """Processes of a group: [(pid, command line)]"""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[2]) == pgid:
                found.append((int(stat.parent.name), (stat.parent / "cmdline").read_bytes()))
        except (OSError, ValueError):
            continue
    return found


class Process:
    def __init__(self, command, log, env=None, stdout=None):
        self.log = Path(log)
        file = open(log, "ab")
        self.popen = subprocess.Popen(
            command,
            stdout=stdout or file,
            stderr=file,
            env=env,
            preexec_fn=_dies_with_us,
            start_new_session=True,
        )
        file.close()

    def runs(self):
        return self.popen.poll() is None

    def tail(self, lines=15):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self):
        """kill -9 of all its processes; Python's resource tracker lives on to free shared memory."""
        for pid, command in _group(self.popen.pid):
            if b"resource_tracker" not in command:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self.popen.wait()

    def stop(self, limit_s=20.0):
        if self.runs():
            self.popen.terminate()
            try:
                self.popen.wait(limit_s)
            except subprocess.TimeoutExpired:
                pass
        self.kill()
        wait_until(lambda: not _group(self.popen.pid), 3)
        for pid, _ in _group(self.popen.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


class Engine:
    """One vLLM server. Its ports stay the same over restarts."""

    def __init__(self, worker_id, work, reports_port):
        self.worker_id = worker_id
        self.work = work
        self.port, self.events_port, self.replay_port = free_port(), free_port(), free_port()
        self.reports_port = reports_port
        self.process = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self, publisher="zmq"):
        """Publishes over ZMQ and has the plugin on; with "null" there is only the plugin."""
        events = {"enable_kv_cache_events": True, "publisher": publisher}
        if publisher == "zmq":
            events["endpoint"] = f"tcp://*:{self.events_port}"
            events["replay_endpoint"] = f"tcp://127.0.0.1:{self.replay_port}"
            events["topic"] = "kv-events"
        env = {
            **os.environ,
            "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
            "VLLM_SERVER_DEV_MODE": "1",  # for /reset_prefix_cache
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
            "WARMROUTE_URL": f"http://127.0.0.1:{self.reports_port}",
            "WARMROUTE_WORKER_ID": self.worker_id, "WARMROUTE_WORKER_URL": self.url,
            "WARMROUTE_HEARTBEAT_S": "2",
        }  # fmt: skip
        venv = self.work / "venv/bin"
        command = [
            str(venv / "python"), str(venv / "vllm"), "serve", str(self.work / "model"),
            "--served-model-name", MODEL, "--load-format", "dummy", "--dtype", "bfloat16",
            "--host", "127.0.0.1", "--port", str(self.port),
            "--max-model-len", "2048", "--max-num-seqs", "8", "--max-num-batched-tokens", "2048",
            # CPUs do 32, 64 and 128.
            "--block-size", str(BLOCK_TOKENS), "--num-gpu-blocks-override", str(BLOCKS),
            "--enforce-eager", "--enable-prefix-caching", "--enable-prompt-tokens-details",
            "--kv-events-config", json.dumps(events),
        ]  # fmt: skip
        self.process = Process(command, self.work / f"{self.worker_id}.log", env)

    def wait_ready(self, limit_s):
        took = wait_until(lambda: not self.process.runs() or answers(self.port, "/health"), limit_s, 0.5)
        if took is None or not self.process.runs():
            raise RuntimeError(f"engine {self.worker_id} did not start:\n{self.process.tail()}")
        return took

    def reset_cache(self):
        """Empties its cache. Events leave with the next step, so a step is made."""
        assert call(self.port, "POST", "/reset_prefix_cache", timeout=30)[0] == 200
        self.step()

    def step(self):
        body = {"model": MODEL, "prompt": "Hi", "max_tokens": 1}
        assert call(self.port, "POST", "/v1/completions", body, timeout=60)[0] == 200


class Router:
    """warmroute with a generated configuration; keeps its access log by request id."""

    def __init__(self, binary, work, name, engines, reports_port, policy="prefix-aware", kv_events="auto"):
        self.port, self.admin_port, self.metrics_port = free_port(), free_port(), free_port()
        reports = f"reports: {{listen: 127.0.0.1:{reports_port}}}\n" if reports_port else ""
        workers = "".join(
            f'  - {{id: {e.worker_id}, url: "{e.url}", kv_events: {kv_events}}}\n' for e in engines
        )
        self.launch(
            binary,
            work,
            name,
            f"listen: 127.0.0.1:{self.port}\n"
            f"admin: {{listen: 127.0.0.1:{self.admin_port}}}\n"
            f"metrics: {{listen: 127.0.0.1:{self.metrics_port}}}\n"
            f"{reports}policy: {policy}\nworkers:\n{workers}"
            f"models:\n  {MODEL}: {{tokenizer: {work / 'model'}}}\n"
            "health: {interval_ms: 500}\n"
            "log: {format: json}\n",
        )

    def launch(self, binary, work, name, text):
        """Starts it with this configuration."""
        config = work / f"{name}.yaml"
        config.write_text(text)
        log = work / f"{name}.log"
        log.write_bytes(b"")
        self.process = Process([str(binary), "run", "--conf", str(config)], log, stdout=subprocess.PIPE)
        self._lines = {}
        self._arrived = threading.Condition()
        threading.Thread(target=self._read, args=(work / f"{name}.access.log",), daemon=True).start()

    def _read(self, copy):
        with open(copy, "wb") as out:
            for raw in self.process.popen.stdout:
                out.write(raw)
                out.flush()
                try:
                    line = json.loads(raw)
                    key = line["id"]
                except (ValueError, KeyError, TypeError):
                    continue
                with self._arrived:
                    self._lines[key] = line
                    self._arrived.notify_all()

    def line(self, request_id, limit_s=2.0):
        """The access log's line on a request."""
        with self._arrived:
            self._arrived.wait_for(lambda: request_id in self._lines, limit_s)
            return self._lines.get(request_id, {})

    def wait_ready(self):
        if wait_until(lambda: not self.process.runs() or answers(self.admin_port, "/readyz"), 30) is None:
            raise RuntimeError(f"warmroute is not ready:\n{self.process.tail()}")
        if not self.process.runs():
            raise RuntimeError(f"warmroute ended:\n{self.process.tail()}")

    def metrics(self):
        """{name: {worker or "": sum}}"""
        text = call(self.metrics_port, "GET", "/metrics")[2].decode()
        values = {}
        for line in text.splitlines():
            match = re.match(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if match:
                worker = re.search(r'worker="([^"]*)"', match[2] or "")
                of = values.setdefault(match[1], {})
                key = worker[1] if worker else ""
                of[key] = of.get(key, 0.0) + float(match[3])
        return values

    def trust(self):
        return self.metrics().get("warmroute_trust_state", {})

    def stop(self):
        self.process.stop(5)
