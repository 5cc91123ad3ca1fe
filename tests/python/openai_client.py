"""The OpenAI client against the router. `openai_client.py BASE_URL SCENARIO [FILE]`.

Prints nothing but failures; the exit status decides.
"""

import asyncio
import pathlib
import sys
import time

import openai

BASE_URL, SCENARIO = sys.argv[1:3]
MODEL = "sim-model"
LONG = {"max_tokens": 4000, "extra_body": {"ignore_eos": True}}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
    },
}


def client(**options):
    options = {"max_retries": 0, "timeout": 20, **options}
    return openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key="none", **options)


def user(text):
    return {"role": "user", "content": text}


def signal():
    """Tells the test that we have come so far."""
    pathlib.Path(sys.argv[3]).write_text("here")


def raises(kind, act):
    try:
        act()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def matched(headers):
    matched, total = headers["x-router-matched"].split("/")
    return int(matched), int(total)


def chats():
    with client() as c:
        answer = c.chat.completions.create(model=MODEL, messages=[user("hello")], max_tokens=9)
        assert answer.choices[0].message.role == "assistant", answer
        assert answer.choices[0].message.content, answer
        assert answer.choices[0].finish_reason == "length", answer
        assert answer.usage.completion_tokens == 9, answer
        assert answer.model == MODEL, answer

        parts = list(
            c.chat.completions.create(
                model=MODEL,
                messages=[user("hello")],
                max_tokens=9,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
        assert text == answer.choices[0].message.content, text
        assert parts[-1].usage.completion_tokens == 9 and parts[-1].choices == [], parts[-1]
        assert sum(p.usage is not None for p in parts) == 1
        finish = [p.choices[0].finish_reason for p in parts if p.choices]
        assert finish[-1] == "length" and set(finish[:-1]) == {None}, finish

        with c.chat.completions.stream(model=MODEL, messages=[user("hi")]) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
        assert "content.delta" in kinds and final.choices[0].message.content, kinds


def tools():
    with client() as c:
        messages = [user("please call the tool")]
        answer = c.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL])
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls", answer
        call = choice.message.tool_calls[0]
        assert call.function.name == "look_up" and "query" in call.function.arguments, call
        messages.append(choice.message)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "it is sunny"})
        messages.append(user("and now in words"))
        raw = c.chat.completions.with_raw_response.create(
            model=MODEL, messages=messages, tools=[TOOL]
        )
        answer = raw.parse()
        assert answer.choices[0].message.content, answer
        assert matched(raw.headers)[0] > 0, dict(raw.headers)

        parts = list(
            c.chat.completions.create(
                model=MODEL, messages=messages[:1], tools=[TOOL], tool_choice="required", stream=True
            )
        )
        calls = [p.choices[0].delta.tool_calls for p in parts if p.choices]
        arguments = "".join(c[0].function.arguments or "" for c in calls if c)
        assert arguments == call.function.arguments, arguments


def content_parts():
    pixel = "data:image/png;base64,iVBORw0KGgo="
    content = [
        {"type": "text", "text": "what is this?" + " really?" * 50},
        {"type": "image_url", "image_url": {"url": pixel}},
    ]
    with client() as c:
        last = 0
        for turn in range(2):
            raw = c.chat.completions.with_raw_response.create(
                model=MODEL, messages=[user(content)], max_tokens=4
            )
            assert raw.parse().choices[0].message.content
            assert matched(raw.headers)[1] > 2, dict(raw.headers)
            assert (matched(raw.headers)[0] > last) == (turn == 1), dict(raw.headers)


def completions():
    with client() as c:
        for prompt, count in [
            ("once upon a time", 1),
            (["one", "two", "three"], 3),
            ([1, 2, 3, 4, 5], 1),
            ([[1, 2], [3, 4]], 2),
        ]:
            answer = c.completions.create(model=MODEL, prompt=prompt, max_tokens=3)
            assert len(answer.choices) == count, (prompt, answer)
            assert all(choice.text for choice in answer.choices), answer
        parts = list(c.completions.create(model=MODEL, prompt="once", max_tokens=3, stream=True))
        assert len([p for p in parts if p.choices and p.choices[0].text]) == 3, parts
        answer = c.completions.create(model=MODEL, prompt="once", n=2, max_tokens=3)
        assert [choice.index for choice in answer.choices] == [0, 1], answer


def responses():
    with client() as c:
        try:
            answer = c.responses.create(model=MODEL, input="hello")
        except openai.NotFoundError:
            return  # The engine has no such endpoint, and says so itself.
        assert answer.output_text


def models():
    with client() as c:
        listed = c.models.list()
        assert [model.id for model in listed] == [MODEL], listed
        assert c.models.retrieve(MODEL).owned_by == "warmroute-sim"
        error = raises(openai.NotFoundError, lambda: c.models.retrieve("none/such"))
        assert error.code == "model_not_found", error


def headers():
    with client() as c:
        seen = set()
        for turn in range(4):
            raw = c.chat.completions.with_raw_response.create(
                model=MODEL, messages=[user("the same story " * 60)], max_tokens=2
            )
            seen.add(raw.headers["x-router-backend"])
            assert len(raw.headers["x-request-id"]) == 32
            assert raw.headers["x-router-reason"] == ("prefix" if turn else "no-match"), turn
            hit, total = matched(raw.headers)
            assert hit == (total if turn else 0) and total > 5, (turn, hit, total)
            assert raw.parse()._request_id == raw.headers["x-request-id"]
        assert len(seen) == 1 and seen <= {"e0", "e1"}, seen
        with c.chat.completions.with_streaming_response.create(
            model=MODEL, messages=[user("hello")], stream=True
        ) as raw:
            assert raw.headers["x-router-backend"] in {"e0", "e1"}
            lines = [line for line in raw.iter_lines() if line]
            assert lines[-1] == "data: [DONE]", lines[-3:]


def errors():
    with client() as c:

        def ask(**more):
            body = {"model": MODEL, "messages": [user("hello")], **more}
            return c.chat.completions.create(**body)

        error = raises(openai.NotFoundError, lambda: ask(model="other"))
        assert error.code == "model_not_found" and error.param == "model", error
        assert error.type.endswith("_error"), error
        assert MODEL in error.message, error
        assert error.request_id, error
        error = raises(openai.BadRequestError, lambda: ask(temperature=-1))
        assert "temperature" in error.message, error
        error = raises(openai.BadRequestError, lambda: ask(messages=[]))
        error = raises(
            openai.APIStatusError, lambda: ask(messages=[user("x" * 300_000)])
        )
        assert error.status_code == 413 and error.code == "body_too_large", error


async def many():
    options = {"max_retries": 0, "timeout": 20}
    async with openai.AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key="none", **options) as c:

        async def one(nth):
            text = ""
            stream = await c.chat.completions.create(
                model=MODEL, messages=[user(f"story {nth}")], max_tokens=12, stream=True
            )
            async for part in stream:
                text += part.choices[0].delta.content or ""
            return text

        texts = await asyncio.gather(*[one(nth) for nth in range(50)])
        assert all(len(text) == 48 for text in texts), [len(text) for text in texts]
        assert len(set(texts)) == 50, "somebody got another's answer"


def leaves_early():
    with client() as c:
        stream = c.chat.completions.create(
            model=MODEL, messages=[user("tell me all")], stream=True, **LONG
        )
        for nth, part in enumerate(stream):
            assert part.choices
            if nth == 3:
                break
        stream.close()
        signal()
        # The client is fine afterwards.
        assert c.chat.completions.create(model=MODEL, messages=[user("hello")], max_tokens=2)


def dies():
    """The worker dies in the middle of a stream; the test kills it when we say so."""
    with client() as c:
        stream = c.chat.completions.create(
            model=MODEL, messages=[user("tell me all")], stream=True, **LONG
        )
        text = next(p for p in stream if p.choices[0].delta.content)
        assert text
        signal()

        def rest():
            for _ in stream:
                pass

        error = raises(openai.APIError, rest)
        assert error.code == "worker_failed", (error, error.code)


def no_worker():
    with client() as c:
        ask = lambda c: c.chat.completions.create(model=MODEL, messages=[user("hello")])
        error = raises(openai.InternalServerError, lambda: ask(c))
        assert error.status_code == 503 and error.code == "no_worker", error
        assert error.response.headers["retry-after"] == "2", error.response.headers
        assert isinstance(error, openai.APIStatusError)
        # The client obeys it.
        start = time.monotonic()
        raises(openai.InternalServerError, lambda: ask(c.with_options(max_retries=1)))
        assert time.monotonic() - start >= 1.9, "came back too soon"


def main():
    if SCENARIO == "all":
        chats()
        tools()
        content_parts()
        completions()
        responses()
        models()
        headers()
        errors()
    elif SCENARIO == "many":
        asyncio.run(many())
    elif SCENARIO == "leaves-early":
        leaves_early()
    elif SCENARIO == "dies":
        dies()
    elif SCENARIO == "no-worker":
        no_worker()
    else:
        raise SystemExit(f"unknown scenario {SCENARIO}")


main()
