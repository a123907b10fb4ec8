#!/bin/bash
# An answer from DSPy's cache has no usage, and the full price.
#
# Expected: a repeated question is answered from the cache (it is on by default); its entry in `lm.history`
# has neither usage nor cost, or both.
# What happens: usage is emptied, cost is not. One request to the server and three calls give three entries
# of $0.0055 each, 0.0165 in all, and the token counts of one. `get_lm_usage()` is right: one call with
# tokens, two without.
# Matters to: the usual one-liner that sums `cost` over the history; the more the cache saves, the more it
# is off.
# Versions: dspy 3.4.1, litellm 1.110.2 (its price map of gpt-4o). 2026-11-27.
set -eu
. "$(dirname "$0")/common/install.sh"
install dspy==3.4.1 litellm==1.110.2
export LITELLM_LOCAL_MODEL_COST_MAP=True DSPY_CACHEDIR="$room/cache"
python_with_limit <<'EOF'
import os

from model_server import chat, serve

usage = {"prompt_tokens": 1000, "completion_tokens": 300, "total_tokens": 1300}
reply = "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"
url, requests = serve(lambda path, body, count: (200, chat(reply, usage)))
os.environ.update(OPENAI_API_KEY="none", OPENAI_BASE_URL=f"{url}/v1")

import dspy  # reads the environment

lm = dspy.LM("openai/gpt-4o")
dspy.configure(lm=lm, track_usage=True)
ask = dspy.Predict("question -> answer")
told = [ask(question="Is it so?").get_lm_usage() for _ in range(3)]
costs = [entry["cost"] for entry in lm.history]
tokens = [entry["usage"].get("total_tokens", 0) for entry in lm.history]
print("calls: 3, requests to the server:", len(requests))
print("history: tokens", tokens, "costs", costs, "sum", round(sum(costs), 6))
print("get_lm_usage() has tokens:", [bool(usage) for usage in told])
assert len(requests) == 1
assert tokens == [1300, 0, 0] and [bool(usage) for usage in told] == [True, False, False]
assert costs[0] and costs == [costs[0]] * 3
EOF
