#!/bin/bash
# What watches or fakes httpx sees nothing of openai 3, and says nothing about it.
#
# Expected: openai is the textbook user of httpx; the instrumentation of httpx makes a span of its requests
# and sends a traceparent, and the mock library respx answers them.
# What happens: openai 3 (and anthropic 2) have moved to httpx2, a package and a logger of another name.
# With httpx installed for other reasons, the instrumentation switches on without a word, makes spans of
# plain httpx only, and the model server gets no traceparent: traces end at the client. respx lets the
# request through to the real server although everything should be mocked: a test suite starts to spend
# money. vcrpy 9.4.2 knows httpx2 and records it, so the answer to "is httpx2 faked?" differs by library.
# Matters to: whoever upgrades openai and keeps tracing, mocks or a rule for the logger "httpx".
# Versions: openai 3.57.0, httpx 0.28.1, httpx2 2.16.2, opentelemetry-instrumentation-httpx 0.66b2,
# opentelemetry-sdk 1.45.2, respx 0.23.1, vcrpy 9.4.2. 2026-11-27.
set -eu
. "$(dirname "$0")/common/install.sh"
install openai==3.57.0 httpx==0.28.1 httpx2==2.16.2 opentelemetry-sdk==1.45.2 \
    opentelemetry-instrumentation-httpx==0.66b2 respx==0.23.1 vcrpy==9.4.2
python_with_limit "$room/cassette.yaml" <<'EOF'
import logging
import sys

import httpx
import openai
import respx
import vcr
from model_server import chat, serve
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

loggers = set()
handler = logging.Handler()
handler.emit = lambda record: loggers.add(record.name)
logging.basicConfig(level=logging.INFO, handlers=[handler])
url, requests = serve(lambda path, body, count: (200, chat("from the server")))
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")


def ask():
    return client.chat.completions.create(model="gpt-4o", messages=[]).choices[0].message.content


with respx.mock(base_url=url, assert_all_called=False) as mock:
    mock.post("/v1/chat/completions").mock(return_value=httpx.Response(200, json=chat("from the mock")))
    plain = httpx.post(f"{url}/v1/chat/completions", json={}).json()["choices"][0]["message"]["content"]
    answer = ask()
print(f"respx: httpx gets the answer {plain!r}, openai {answer!r}")
assert (plain, answer, len(requests)) == ("from the mock", "from the server", 1)

with vcr.use_cassette(sys.argv[1]) as cassette:
    ask()
print("vcrpy: requests of openai that it has recorded:", len(cassette))
assert len(cassette) == 1

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
HTTPXClientInstrumentor().instrument(tracer_provider=provider)
loggers.clear()
seen = {}
for name, call in (("httpx", lambda: httpx.post(f"{url}/plain", json={})), ("openai", ask)):
    spans.clear()
    call()
    seen[name] = (len(spans.get_finished_spans()), "traceparent" in requests[-1][2])
    print(f"instrumentation of httpx, call by {name}: spans {seen[name][0]}, traceparent {seen[name][1]}")
assert seen == {"httpx": (1, True), "openai": (0, False)}
print("loggers that wrote a line for each request:", sorted(loggers))
assert loggers == {"httpx", "httpx2"}
EOF
