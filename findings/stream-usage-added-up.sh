#!/bin/bash
# Three frameworks add up the usage of each chunk of a stream; the prompt is counted once a chunk.
#
# Expected: a server that repeats its usage in every chunk (vLLM and SGLang on request, xAI and Perplexity
# always) reports the state so far; the last word counts, as with the clients of openai and litellm.
# What happens: a stream of 5 chunks and a last one with the usage alone, 100 tokens in and 5 out, becomes
# 600 in and 20 out (1+2+3+4+5+5) with pydantic-ai, langchain and agno, the cached tokens six times too;
# pydantic-ai's cost follows. The longer the answer, the more often the prompt is paid on paper. openai's
# own accumulator says 100 and 5.
# Matters to: whoever meters, limits or bills by what the framework says of an OpenAI-compatible server.
# Versions: pydantic-ai-slim 2.68.0, langchain-openai 1.7.4, agno 3.1.10, openai 3.57.0. 2026-11-27.
set -eu
. "$(dirname "$0")/common/install.sh"
install 'pydantic-ai-slim[openai]==2.68.0' langchain-openai==1.7.4 agno==3.1.10 openai==3.57.0
python_with_limit <<'EOF'
import asyncio
import os

from model_server import chunk, serve


def usage(completion):
    details = {"cached_tokens": 40}
    return {"prompt_tokens": 100, "completion_tokens": completion, "total_tokens": 100 + completion,
            "prompt_tokens_details": details}


events = [chunk(f"word{i} ", usage(i), "stop" if i == 5 else None) for i in range(1, 6)]
events += [chunk(None, usage(5)), "[DONE]"]
url, requests = serve(lambda path, body, count: (200, events))
os.environ.update(OPENAI_API_KEY="none", OPENAI_BASE_URL=f"{url}/v1", AGNO_TELEMETRY="false")


def by_openai():
    import openai
    messages = [{"role": "user", "content": "Hello"}]
    with openai.OpenAI().chat.completions.stream(model="gpt-4o", messages=messages) as stream:
        said = stream.until_done().get_final_completion().usage
    return said.prompt_tokens, said.completion_tokens


def by_pydantic_ai():
    from pydantic_ai import Agent

    async def ask():
        async with Agent("openai-chat:gpt-4o").run_stream("Hello") as answer:
            await answer.get_output()
            return answer.usage

    said = asyncio.run(ask())
    return said.input_tokens, said.output_tokens


def by_langchain():
    from langchain_openai import ChatOpenAI
    chunks = list(ChatOpenAI(model="gpt-4o").stream("Hello", stream_usage=True))
    whole = chunks[0]
    for piece in chunks[1:]:
        whole += piece
    return whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"]


def by_agno():
    from agno.agent import Agent
    from agno.models.openai import OpenAIChat
    agent = Agent(model=OpenAIChat("gpt-4o"), telemetry=False)
    *_, last = agent.run("Hello", stream=True, yield_run_output=True)
    return last.metrics.input_tokens, last.metrics.output_tokens


counts = {}
for ask in (by_openai, by_pydantic_ai, by_langchain, by_agno):
    counts[ask.__name__] = ask()
    print(f"{ask.__name__}: tokens in {counts[ask.__name__][0]}, out {counts[ask.__name__][1]}")
assert len(requests) == 4
assert counts.pop("by_openai") == (100, 5)
assert set(counts.values()) == {(600, 20)}
EOF
