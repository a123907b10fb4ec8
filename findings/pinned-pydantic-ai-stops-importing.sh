#!/bin/bash
# A pinned pydantic-ai-slim of version 1 can be installed as ever, and can no longer be imported.
#
# Expected: `pip install pydantic-ai-slim==1.30.1` gives what worked when that version was new: its
# dependencies are public APIs, with bounds where they are not.
# What happens: it asks for opentelemetry-api>=1.28 without an upper bound and imports the private module
# opentelemetry._events, which version 1.45 no longer has. pip is content, `pip check` too; `import
# pydantic_ai` ends in ModuleNotFoundError although the program uses no telemetry. With opentelemetry-api
# 1.39.0 it imports.
# Matters to: requirements with pins for direct dependencies only, and images that are built anew.
# Versions: pydantic-ai-slim 1.30.1, opentelemetry-api 1.45.2 and 1.39.0. 2026-11-27.
set -eu
. "$(dirname "$0")/common/install.sh"
install pydantic-ai-slim==1.30.1 opentelemetry-api==1.45.2
"$room/venv/bin/pip" check
if "$room/venv/bin/python" -c 'import pydantic_ai' 2> "$room/error"; then
    echo "it can be imported: not as it was"
    exit 1
fi
tail -1 "$room/error"
grep -q "No module named 'opentelemetry._events'" "$room/error"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check opentelemetry-api==1.39.0 \
    2> "$room/pip.log"
"$room/venv/bin/python" -c 'import pydantic_ai; print("with opentelemetry-api 1.39.0 it is imported")'
