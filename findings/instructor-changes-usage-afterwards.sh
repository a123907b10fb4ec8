#!/bin/bash
# Instructor writes the running sum of all attempts into responses that others still hold.
#
# Expected: each attempt of a validated call has a response with its own usage, and the last one's usage may
# be told as a sum.
# What happens: after each attempt instructor puts the sum so far into that attempt's response object. At
# the moment of its hook "completion:response" every attempt says 110 tokens, as the server did; when the
# call is over the same three objects say 110, 220 and 330. Who keeps responses and counts later, as queues
# do, gets 660 instead of 330. A price with a limit by prompt size sees the sum as one long prompt.
# Matters to: recorders and callbacks that read usage after the call, and bills with tiers.
# Versions: instructor 1.17.0, openai 3.3.0 (the newest that it can be installed with). 2026-11-27.
set -eu
. "$(dirname "$0")/common/install.sh"
install instructor==1.17.0 openai==3.3.0
python_with_limit <<'EOF'
import instructor
import openai
from model_server import chat, serve
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


def answer(path, body, count):
    age = '"unknown"' if count < 3 else "5"
    return 200, chat(None, tool=("Person", f'{{"name": "Ada", "age": {age}}}'))


url, requests = serve(answer)
client = instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none"))
kept, at_once = [], []


def note(response):
    kept.append(response)
    at_once.append(response.usage.total_tokens)


client.on("completion:response", note)
messages = [{"role": "user", "content": "Ada is five."}]
person = client.chat.completions.create(
    model="gpt-4o", response_model=Person, messages=messages, max_retries=3
)
later = [response.usage.total_tokens for response in kept]
print("attempts:", len(requests), "result:", person)
print("usage seen by the hook:", at_once, "sum", sum(at_once))
print("usage of the same objects after the call:", later, "sum", sum(later))
assert (len(requests), at_once, later) == (3, [110, 110, 110], [110, 220, 330])
EOF
