#!/bin/bash
# Asked for retries, litellm replaces the server's error by one about a missing package.
#
# Expected: num_retries=2 tries three times and then raises the last error, as without it.
# What happens: retries are done by tenacity, which litellm does not install. Without it the first failure
# of the server turns into a bare `Exception: tenacity import failed`. A handler for ServiceUnavailableError
# no longer catches it. For a model of Anthropic one request is sent, not three; for one of OpenAI three,
# since there the client's own retries are told the number, too. All is well until the first day that the
# provider is busy.
# Matters to: fallbacks and retry rules by type of error.
# Versions: litellm 1.110.2 in an environment of its own. 2026-11-27.
set -eu
. "$(dirname "$0")/common/install.sh"
install litellm==1.110.2
export LITELLM_LOCAL_MODEL_COST_MAP=True
python_with_limit <<'EOF'
import importlib.util
import logging
import os

from model_server import serve

busy = {"error": {"message": "busy", "type": "server_error"}}
url, requests = serve(lambda path, body, count: (503, busy))
os.environ.update(OPENAI_API_KEY="none", OPENAI_BASE_URL=f"{url}/v1", ANTHROPIC_API_KEY="none")

import litellm  # reads the environment

logging.disable(logging.CRITICAL)
litellm.suppress_debug_info = True
print("tenacity is installed:", importlib.util.find_spec("tenacity") is not None)
messages = [{"role": "user", "content": "Hello"}]
seen = {}
for model, more in (("openai/gpt-4o", {}), ("anthropic/claude-opus-4-6", {"api_base": url})):
    for retries in (0, 2):
        requests.clear()
        try:
            litellm.completion(model, messages=messages, num_retries=retries, **more)
        except Exception as error:
            seen[model, retries] = (type(error).__name__, len(requests))
            print(f"{model}, num_retries={retries}: {type(error).__name__}: {str(error)[:60]};",
                  f"requests {len(requests)}")
assert seen["openai/gpt-4o", 0] == ("ServiceUnavailableError", 1)
assert seen["anthropic/claude-opus-4-6", 0] == ("ServiceUnavailableError", 1)
assert seen["openai/gpt-4o", 2] == ("Exception", 3)
assert seen["anthropic/claude-opus-4-6", 2] == ("Exception", 1)
EOF
