#!/bin/bash
# While a tool call streams in, a number that was there goes away again, or has another type.
#
# Expected: a parser of incomplete JSON shows more and more of a document: a key that was there stays, and a
# value keeps its type. Reading the growing text of {"amount": 1250.75, "n": -5, "to": "Ada"} is the test.
# What happens: jiter and pydantic-core (below openai's and instructor's streaming helpers) show amount 1,
# 12, 125, 1250, then no amount at all at the decimal point, then 1250.7: the key goes and comes back. None
# of the amounts shown before the comma says that it is incomplete. json-repair shows n as '' before it is
# -5, and `to` as ''; partialjson shows n as the text '-', and keys that never existed ('', 'amou').
# partial-json-parser goes from int to float. No two families agree on all prefixes.
# Matters to: interfaces and agents that act on arguments before the end of the stream.
# Versions: jiter 0.19.0, pydantic-core 2.50.5, json-repair 0.64.6, partialjson 1.2.0, partial-json-parser
# 0.2.1.1.post7. 2026-11-27.
set -eu
. "$(dirname "$0")/common/install.sh"
install jiter==0.19.0 pydantic-core==2.50.5 json-repair==0.64.6 partialjson==1.2.0 \
    partial-json-parser==0.2.1.1.post7
python_with_limit <<'EOF'
import jiter
import json_repair
import partial_json_parser
import pydantic_core
from partialjson.json_parser import JSONParser

document = '{"amount": 1250.75, "n": -5, "to": "Ada"}'
parsers = {
    "jiter": lambda text: jiter.from_json(text.encode(), partial_mode="trailing-strings"),
    "pydantic-core": lambda text: pydantic_core.from_json(text, allow_partial="trailing-strings"),
    "json-repair": json_repair.loads,
    "partialjson": lambda text: JSONParser().parse(text),
    "partial-json-parser": partial_json_parser.loads,
}
odd = {}
for name, parse in parsers.items():
    before, gone, types, invented = {}, set(), {}, set()
    for end in range(1, len(document) + 1):
        now = parse(document[:end])
        now = now if isinstance(now, dict) else {}
        gone |= set(before) - set(now) - {""}
        invented |= set(now) - {"amount", "n", "to"}
        for key, value in now.items():
            types.setdefault(key, set()).add(type(value).__name__)
        before = now
    assert before == {"amount": 1250.75, "n": -5, "to": "Ada"}
    several = {key: sorted(kinds) for key, kinds in types.items() if len(kinds) > 1}
    odd[name] = (sorted(gone & {"amount", "n", "to"}), several, sorted(invented))
    print(f"{name}: went away {odd[name][0]}, several types {several}, never in the document {odd[name][2]}")
for text in ('{"amount": 1250', '{"amount": 1250.', '{"amount": 1250.7'):
    print(text, "by jiter:", parsers["jiter"](text))
assert odd["jiter"] == odd["pydantic-core"] == (["amount"], {"amount": ["float", "int"]}, [])
assert odd["json-repair"][1]["n"] == ["int", "str"]
assert odd["partialjson"][1]["n"] == ["NoneType", "int", "str"] and "amou" in odd["partialjson"][2]
assert odd["partial-json-parser"] == ([], {"amount": ["float", "int"]}, [])
EOF
