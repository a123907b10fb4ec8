#!/bin/bash
# Gateways and frameworks give one answer of Anthropic the same field names and different meanings.
#
# Expected: a library with one usage type for all providers fills it by one rule: either the prompt contains
# the cached tokens (OpenAI's rule) or it does not (Anthropic's). Field names or the total tell which.
# What happens: Anthropic bills 100 new, 1,800 cached and 248 written prompt tokens. any-llm says prompt
# 2148, cached 1800, written 248. aisuite has the same class of usage as for OpenAI, prompt 100 of which
# 1800 are cached, and no writes. agno says input 100 and cache read 1800 for Anthropic, and for OpenAI
# input 1000 that contain cache read 640: one class, both rules. The total is input plus output in all
# three, so it tells nothing.
# Matters to: prices computed from such objects; "cached is a part of prompt" goes negative or is ten times
# off.
# Versions: any-llm-sdk 1.40.2, aisuite 0.2.0, agno 3.1.10, anthropic 0.125.0, openai 3.57.0. 2026-11-27.
set -eu
. "$(dirname "$0")/common/install.sh"
install any-llm-sdk==1.40.2 aisuite==0.2.0 agno==3.1.10 anthropic==0.125.0 openai==3.57.0
python_with_limit <<'EOF'
import logging
import os

from model_server import chat, serve

claude = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-opus-4-6",
    "stop_reason": "end_turn",
    "content": [{"type": "text", "text": "Good."}],
    "usage": {"input_tokens": 100, "output_tokens": 50,
              "cache_read_input_tokens": 1800, "cache_creation_input_tokens": 248},
}
gpt = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050,
       "prompt_tokens_details": {"cached_tokens": 640}}
answers = {"/v1/messages": claude, "/v1/chat/completions": chat("Good.", gpt)}
url, requests = serve(lambda path, body, count: (200, answers[path.partition("?")[0]]))
os.environ.update(OPENAI_API_KEY="none", OPENAI_BASE_URL=f"{url}/v1")
os.environ.update(ANTHROPIC_API_KEY="none", ANTHROPIC_BASE_URL=url, AGNO_TELEMETRY="false")
logging.disable(logging.WARNING)

import agno.agent  # the three read the environment
import agno.models.anthropic
import agno.models.openai
import aisuite
import any_llm

messages = [{"role": "user", "content": "Hello"}]
seen = {}


def note(name, prompt, cached, written, output, total):
    seen[name] = (prompt, cached, written, output, total)
    print(f"{name}: prompt {prompt}, cached {cached}, written {written}, output {output}, total {total}")


usage = any_llm.completion(model="anthropic:claude-opus-4-6", messages=messages, api_base=url).usage
details = usage.prompt_tokens_details
note("any-llm, Anthropic", usage.prompt_tokens, details.cached_tokens, details.cache_write_tokens,
     usage.completion_tokens, usage.total_tokens)
suite = aisuite.Client({"anthropic": {"base_url": url}})
usage = suite.chat.completions.create(model="anthropic:claude-opus-4-6", messages=messages).usage
note("aisuite, Anthropic", usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens,
     getattr(usage.prompt_tokens_details, "cache_write_tokens", None), usage.completion_tokens,
     usage.total_tokens)
for name, model in (("agno, Anthropic", agno.models.anthropic.Claude("claude-opus-4-6")),
                    ("agno, OpenAI", agno.models.openai.OpenAIChat("gpt-4o"))):
    usage = agno.agent.Agent(model=model, telemetry=False).run("Hello").metrics
    note(name, usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens,
         usage.output_tokens, usage.total_tokens)
assert seen["any-llm, Anthropic"] == (2148, 1800, 248, 50, 2198)
assert seen["aisuite, Anthropic"] == (100, 1800, None, 50, 150)
assert seen["agno, Anthropic"] == (100, 1800, 248, 50, 150)
assert seen["agno, OpenAI"] == (1000, 640, 0, 50, 1050)
EOF
