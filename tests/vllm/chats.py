"""The requests: chats of several turns, completions, and prompts that push each other out."""

import http.client
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from processes import BLOCK_TOKENS, MODEL, call

WORDS = (
    "time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point "
    "home water room mother area money story fact month lot right study book eye job word business issue "
    "side kind head house service friend father power hour game line end member law car city community name"
).split()


@dataclass
class Outcome:
    """One request, as its client saw it and as the router logged it."""

    at: float
    kind: str
    status: int = 0
    worker: str = ""
    prompt_tokens: int = 0
    cached: int = 0
    predicted: int | None = None
    text: str = ""
    error: str = ""

    @property
    def ok(self):
        return self.status == 200 and not self.error

    @property
    def stale(self):
        """Tokens the router credited and the engine did not have."""
        return max(0, (self.predicted or 0) - self.cached)

    @property
    def is_close(self):
        return self.predicted is not None and abs(self.predicted - self.cached) <= BLOCK_TOKENS


class Client:
    """Sends to a router (or, without one, to an engine)."""

    def __init__(self, port, router=None):
        self.port = port
        self.router = router
        self.outcomes = []

    def send(self, kind, path, body, stream):
        body = {"model": MODEL, "temperature": 0, "ignore_eos": True, **body}
        if stream:
            body.update(stream=True, stream_options={"include_usage": True})
        outcome = Outcome(time.monotonic(), kind)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        request_id = None
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            outcome.status = response.status
            outcome.worker = response.headers.get("X-Router-Backend", "")
            request_id = response.headers.get("X-Request-Id")
            data = response.read()
            if response.status == 200:
                chunks = _events(data) if stream else [json.loads(data)]
                usage = next(c["usage"] for c in reversed(chunks) if c.get("usage"))
                outcome.prompt_tokens = usage["prompt_tokens"]
                outcome.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                outcome.text = "".join(_text(c) for c in chunks)
            else:
                outcome.error = data[:200].decode(errors="replace")
        except (OSError, http.client.HTTPException, ValueError, StopIteration) as error:
            outcome.error = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
        if self.router is not None and request_id is not None:
            outcome.predicted = self.router.line(request_id).get("predicted_tokens")
        self.outcomes.append(outcome)
        return outcome


def _events(data):
    lines = (line[6:] for line in data.decode().splitlines() if line.startswith("data: "))
    return [json.loads(line) for line in lines if line != "[DONE]"]


def _text(chunk):
    if not chunk.get("choices"):
        return ""
    choice = chunk["choices"][0]
    part = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
    return part.get("content") or ""


def word_tokens(port):
    """Ids of whole words. A model of random weights writes what no tokenizer would read back; kept
    to words, what it wrote is cut into the same tokens when it comes back as history."""
    ids = []
    for word in WORDS:
        status, _, data = call(port, "POST", "/tokenize", {"model": MODEL, "prompt": " " + word})
        tokens = json.loads(data)["tokens"] if status == 200 else []
        if len(tokens) == 1:
            ids += tokens
    assert len(ids) > 20, "the tokenizer has these words"
    return ids


def sentence(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words)).capitalize() + "."


class Session:
    """A chat: a common system prompt, own questions, the engine's answers."""

    def __init__(self, index, tokens, seed):
        rng = random.Random(f"{seed} {index}")
        system = random.Random(f"{seed} system")
        self.index = index
        self.tokens = tokens
        self.rng = rng
        self.messages = [{"role": "system", "content": " ".join(sentence(system, 12) for _ in range(8))}]

    def turn(self, client):
        self.messages.append({"role": "user", "content": sentence(self.rng, self.rng.randrange(30, 70))})
        outcome = self.send(client, 24, "chat")
        self.messages.append({"role": "assistant", "content": outcome.text or "Well."})
        return outcome

    def again(self, client, kind):
        """The whole history once more, with a short question: most of it should be cached."""
        messages = [*self.messages, {"role": "user", "content": "And then?"}]
        return self.send(client, 2, kind, messages)

    def send(self, client, max_tokens, kind, messages=None):
        body = {
            "messages": messages or self.messages,
            "max_tokens": max_tokens,
            "allowed_token_ids": self.tokens,
        }
        return client.send(kind, "/v1/chat/completions", body, stream=self.index % 2 == 0)


def chats(client, tokens, seed, count=11, turns=6, together=3, think_s=0.15):
    """All turns of all sessions, some at a time. The first turn of all comes alone, so that the
    system prompt is cached when the others need it. An odd number of sessions: round-robin over two
    workers would otherwise keep each with one of them."""
    sessions = [Session(index, tokens, seed) for index in range(count)]
    sessions[0].turn(client)
    with ThreadPoolExecutor(together) as pool:
        for turn in range(turns):
            todo = sessions[1:] if turn == 0 else sessions
            for _ in pool.map(lambda session: session.turn(client), todo):
                pass
            time.sleep(think_s)
    return sessions


def completions(client, tokens, seed, count=8):
    rng = random.Random(f"{seed} completions")
    documents = [" ".join(sentence(rng, 12) for _ in range(12)) for _ in range(2)]
    for index in range(count):
        prompt = f"{documents[index % 2]}\n\n{sentence(rng, 20)}"
        body = {"prompt": prompt, "max_tokens": 8, "allowed_token_ids": tokens}
        client.send("completion", "/v1/completions", body, stream=index % 4 < 2)


def fresh(client, tokens, kind):
    """A prompt that was never sent before."""
    rng = random.Random()
    messages = [{"role": "user", "content": " ".join(sentence(rng, 12) for _ in range(20))}]
    body = {"messages": messages, "max_tokens": 8, "allowed_token_ids": tokens}
    client.send(kind, "/v1/chat/completions", body, stream=False)


def storm(client, tokens, seed, count=120, together=3):
    """Long prompts, of which many come back: more than fits, so that engines evict all the time."""
    rng = random.Random(f"{seed} storm")
    prompts = [" ".join(sentence(rng, 12) for _ in range(rng.randrange(20, 60))) for _ in range(count // 2)]
    plan = [prompts[min(int(rng.expovariate(0.12)), len(prompts) - 1)] for _ in range(count)]

    def one(prompt):
        messages = [{"role": "user", "content": prompt}]
        body = {"messages": messages, "max_tokens": 8, "allowed_token_ids": tokens}
        client.send("storm", "/v1/chat/completions", body, stream=False)

    with ThreadPoolExecutor(together) as pool:
        list(pool.map(one, plan))
