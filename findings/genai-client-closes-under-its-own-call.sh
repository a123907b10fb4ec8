#!/bin/bash
# A Gemini client that is not kept in a variable is closed before its own request is sent.
#
# Expected: `Client(...).models.generate_content(...)` in one expression works, as it does with other
# clients (openai is shown beside it): `models` needs the client, so it keeps it alive.
# What happens: google-genai's client closes itself when nobody refers to it any more, and `models` does
# not. The call ends in "RuntimeError: Cannot send a request, as the client has been closed." and no request
# is made; the same words with the client in a variable work. A helper that returns `Client().models` fails,
# too.
# Matters to: factories, fixtures and one-liners; the error points to a close() that nobody wrote.
# Versions: google-genai 3.6.1, openai 3.57.0, CPython. 2026-11-27.
set -eu
. "$(dirname "$0")/common/install.sh"
install google-genai==3.6.1 openai==3.57.0
python_with_limit <<'EOF'
import openai
from google import genai
from model_server import chat, serve

content = {"role": "model", "parts": [{"text": "Good."}]}
gemini = {"candidates": [{"content": content, "finishReason": "STOP"}]}
url, requests = serve(lambda path, body, count: (200, chat("Good.") if "chat" in path else gemini))
options = {"api_key": "none", "http_options": {"base_url": url}}


def models():
    return genai.Client(**options).models


message = [{"role": "user", "content": "Hello"}]
one_line = openai.OpenAI(base_url=f"{url}/v1", api_key="none").chat.completions.create(
    model="gpt-4o", messages=message
)
print("openai, one expression:", one_line.choices[0].message.content)
client = genai.Client(**options)
kept = client.models.generate_content(model="gemini-2.5-pro", contents="Hello")
print("google-genai, client kept:", kept.text)
assert len(requests) == 2
ways = {"one expression": lambda: genai.Client(**options).models, "returned by a helper": models}
for name, get in ways.items():
    try:
        get().generate_content(model="gemini-2.5-pro", contents="Hello")
    except RuntimeError as error:
        print(f"google-genai, {name}: {type(error).__name__}: {error}")
        assert "client has been closed" in str(error)
    else:
        raise AssertionError(f"{name}: this works now")
assert len(requests) == 2
EOF
