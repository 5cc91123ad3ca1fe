"""warmroute against two llama-servers: no KV events, so what it knows it learns from the answers.

    tests/vllm/llama.py [--router target/release/warmroute] [--work target/llama]

`make test-llama` runs this. llama-server keeps the last prompt of each slot; more chats than slots
take turns, so most of what a router presumes is gone. The router begins with a cache size that is far
too large. Checked: every answer is fed back, the estimate of the size falls, and stale predictions
become fewer.
"""

import argparse
import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import processes
from chats import Client, sentence
from processes import Process, answers, free_port, wait_until

SLOTS = 2
CONTEXT = 2048
CHATS = 8
TURNS = 6
CONFIGURED_TOKENS = 65536


class Llama:
    def __init__(self, server, model, work, worker_id):
        self.worker_id, self.port = worker_id, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [
            str(server), "-m", str(model), "--host", "127.0.0.1", "--port", str(self.port),
            "-t", "1", "-tb", "1", "-c", str(CONTEXT * SLOTS), "-np", str(SLOTS), "--swa-full",
            "--cache-ram", "0", "--metrics",
        ]  # fmt: skip
        self.process = Process(command, work / f"{worker_id}.log")


def router(binary, work, engines):
    port, admin, metrics = free_port(), free_port(), free_port()
    workers = "".join(
        f'  - {{id: {e.worker_id}, url: "{e.url}", models: ["*"], cache_tokens: {CONFIGURED_TOKENS}}}\n'
        for e in engines
    )
    started = processes.Router.__new__(processes.Router)
    started.port, started.admin_port, started.metrics_port = port, admin, metrics
    started.launch(
        binary,
        work,
        "llama",
        f"listen: 127.0.0.1:{port}\nadmin: {{listen: 127.0.0.1:{admin}}}\n"
        f"metrics: {{listen: 127.0.0.1:{metrics}}}\nlog: {{format: json}}\n"
        f"health: {{interval_ms: 500}}\nworkers:\n{workers}",
    )
    started.wait_ready()
    return started


def chat(client, seed):
    rng = random.Random(seed)
    messages = [{"role": "system", "content": f"You are guide {seed}. " + sentence(rng, 60)}]
    for _ in range(TURNS):
        messages.append({"role": "user", "content": sentence(rng, 25)})
        body = {"messages": messages, "max_tokens": 8}
        outcome = client.send("chat", "/v1/chat/completions", body, stream=rng.random() < 0.5)
        messages.append({"role": "assistant", "content": outcome.text or "Yes."})


def stale_share(outcomes):
    predicted = sum(o.predicted or 0 for o in outcomes)
    return sum(o.stale for o in outcomes) / predicted if predicted else 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--router", default="target/release/warmroute", type=Path)
    parser.add_argument("--work", default="target/llama", type=Path)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    server = next(iter(sorted(work.glob("venv/**/llama-server"))), None)
    model = work / "gemma.gguf"
    if server is None or not model.exists():
        sys.exit(f"no llama-server or model in {work}: run scripts/llama-env.sh {work}")
    engines = [Llama(server, model, work, f"l{n}") for n in range(2)]
    started = None
    try:
        if wait_until(lambda: all(answers(e.port, "/health") for e in engines), 180) is None:
            sys.exit("llama-server does not start: see " + str(work / "l0.log"))
        started = router(arguments.router, work, engines)
        client = Client(started.port, started)
        began = time.monotonic()
        rounds = []
        for part in range(3):
            before = len(client.outcomes)
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda n: chat(client, f"{part}-{n}"), range(CHATS)))
            rounds.append(client.outcomes[before:])
        # The same chats in turns, so that each finds its slot taken.
        before = len(client.outcomes)
        interleaved(client)
        turns = client.outcomes[before:]
        third = len(turns) // 3
        thirds = [turns[:third], turns[third : 2 * third], turns[2 * third :]]
        metrics = started.metrics()
        budget = metrics["warmroute_cache_budget_blocks"]
        fed_back = sum(metrics["warmroute_actual_cached_tokens_total"].values())
        result = {
            "seconds": round(time.monotonic() - began, 1),
            "requests": len(client.outcomes),
            "failed": sum(not o.ok for o in client.outcomes),
            "no_prediction": sum(o.predicted is None for o in client.outcomes),
            "prompt_tokens": sum(o.prompt_tokens for o in client.outcomes),
            "cached_tokens": sum(o.cached for o in client.outcomes),
            "stale_share_of_chats_one_by_one": [round(stale_share(part), 4) for part in rounds],
            "stale_tokens_of_chats_in_turns": [sum(o.stale for o in part) for part in thirds],
            "budget_blocks": budget,
            "configured_blocks": CONFIGURED_TOKENS * 4 // 128,
        }
        print(json.dumps(result, indent=1))
        (work / "results.json").write_text(json.dumps(result, indent=1))
        checks = {
            "no request failed": result["failed"] == 0,
            "every answer was fed back": result["no_prediction"] == 0 and fed_back > 0,
            "one by one, next to nothing is stale": max(map(stale_share, rounds)) <= 0.02,
            "in turns, most of what was stale at first is not predicted any more": sum(
                o.stale for o in thirds[2]
            )
            <= sum(o.stale for o in thirds[0]) / 2,
            "the caches are thought smaller than configured": max(budget.values())
            < result["configured_blocks"] / 2,
        }
        for name, holds in checks.items():
            print("ok  " if holds else "FAIL", name)
        sys.exit(0 if all(checks.values()) else 1)
    finally:
        for process in [e.process for e in engines] + ([started.process] if started else []):
            process.stop(5)


def interleaved(client):
    """Twelve chats, a turn each in turn: four slots cannot keep them."""
    rng = random.Random("interleaved")
    chats = [
        [{"role": "system", "content": f"You are clerk {n}. " + sentence(rng, 60)}] for n in range(12)
    ]
    for _ in range(2 * TURNS):
        for messages in chats:
            messages.append({"role": "user", "content": sentence(rng, 25)})
            body = {"messages": messages, "max_tokens": 8}
            outcome = client.send("interleaved", "/v1/chat/completions", body, stream=True)
            messages.append({"role": "assistant", "content": outcome.text or "Yes."})


if __name__ == "__main__":
    main()
