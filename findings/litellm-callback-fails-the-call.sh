#!/bin/bash
# A callback of litellm that cannot be set up makes the first model call of a process fail, and only that.
#
# Expected: logging is beside the point of a call; litellm's own log calls the error "Non-Blocking". With
# the newest litellm and the newest langfuse, success_callback=["langfuse"] records, or says that it does
# not.
# What happens: litellm 1.110.2 refuses langfuse 5 (it wants >=4.7,<5), which pip cannot know, as langfuse
# is no declared dependency. The error is raised out of the first `litellm.completion()`: ImportError, no
# request is sent. The second call and all others are answered, and nothing is recorded or said any more: it
# takes the callback for set up. The check of a deployment fails once and passes when it is tried again.
# Matters to: who upgrades telemetry: one failed request for each worker, then silence. Workers that are
# recycled often fail often.
# Versions: litellm 1.110.2, langfuse 5.0.4. 2026-11-27.
set -eu
. "$(dirname "$0")/common/install.sh"
install litellm==1.110.2 langfuse==5.0.4
export LITELLM_LOCAL_MODEL_COST_MAP=True
python_with_limit <<'EOF'
import logging
import os
import time

from model_server import chat, serve

model, asked = serve(lambda path, body, count: (200, chat("Good.")))
os.environ.update(
    OPENAI_API_KEY="none", OPENAI_BASE_URL=f"{model}/v1",
    LANGFUSE_HOST=model, LANGFUSE_PUBLIC_KEY="pk-lf-none", LANGFUSE_SECRET_KEY="sk-lf-none",
)

import litellm  # reads the environment

words = []
handler = logging.Handler()
handler.emit = lambda record: words.append(record.getMessage())
logging.getLogger("LiteLLM").handlers[:] = [handler]
messages = [{"role": "user", "content": "Hello"}]
print("no callback:", litellm.completion("openai/gpt-4o", messages=messages).choices[0].message.content)
litellm.success_callback = ["langfuse"]
try:
    litellm.completion("openai/gpt-4o", messages=messages)
except ImportError as error:
    print(f"callback langfuse, call 1: ImportError, requests to the model so far: {len(asked)}")
    assert "langfuse" in str(error)
else:
    raise AssertionError("the first call succeeds now")
assert len(asked) == 1
answer = litellm.completion("openai/gpt-4o", messages=messages).choices[0].message.content
print("callback langfuse, call 2:", answer)
deadline = time.monotonic() + 8
while len(asked) == 2 and time.monotonic() < deadline:  # a record would come from another thread
    time.sleep(0.1)
print("requests with records:", len(asked) - 2)
assert [path for path, _, _ in asked] == ["/v1/chat/completions"] * 2
print("the log says Non-Blocking:", any("Non-Blocking" in line for line in words))
assert any("Non-Blocking" in line for line in words)
EOF
