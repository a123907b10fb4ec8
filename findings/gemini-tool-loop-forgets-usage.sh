#!/bin/bash
# One call with Python functions as tools sends several requests to Gemini and tells the usage of the last.
#
# Expected: the one response of one `generate_content` or `send_message` has the usage of all that was
# billed for it, or the chat's history has the others.
# What happens: with a function among the tools, google-genai calls it by itself and asks again. The
# response's usage_metadata is the last request's alone; the messages in the chat's history have no usage at
# all. Two requests of 1,000 and 1,100 tokens are reported as 1,100. With a loop of ten turns, nine prompts
# are in no number that the caller can get at. A stream yields the responses of all turns, each with its
# own.
# Matters to: meters and spend limits around google-genai; count below the loop, or switch it off.
# Versions: google-genai 3.6.1. 2026-11-27.
set -eu
. "$(dirname "$0")/common/install.sh"
install google-genai==3.6.1
python_with_limit <<'EOF'
from google import genai
from google.genai import types
from model_server import serve


def answer(path, body, count):
    prompt = 1000 if count % 2 else 1100
    call = {"functionCall": {"name": "weather", "args": {"city": "Rome"}}}
    part = call if count % 2 else {"text": "Sunny."}
    usage = {"promptTokenCount": prompt, "candidatesTokenCount": 5, "totalTokenCount": prompt + 5}
    whole = {"candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP"}],
             "usageMetadata": usage}
    return 200, [whole] if "stream" in path else whole


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return "sun"


url, requests = serve(answer)
client = genai.Client(api_key="none", http_options={"base_url": url})
config = types.GenerateContentConfig(tools=[weather])
chat = client.chats.create(model="gemini-2.5-pro", config=config)
response = chat.send_message("Weather in Rome?")
told = response.usage_metadata.prompt_token_count
history = chat.get_history()
print(f"requests: {len(requests)}; prompt tokens billed: 2100, told: {told}")
with_usage = sum("usage" in repr(message).lower() for message in history)
print("messages in the history:", len(history), "with usage:", with_usage)
assert (len(requests), told, with_usage) == (2, 1100, 0)
chat = client.chats.create(model="gemini-2.5-pro", config=config)
streamed = [part.usage_metadata.prompt_token_count for part in chat.send_message_stream("Weather in Rome?")]
print("the same as a stream, usage of each part:", streamed)
assert sum(streamed) == 2100
EOF
