"""As much of OpenAI's client as README uses, where it is not installed; `nox -s guides` has that."""

from __future__ import annotations

import json
import os
import urllib.request
from types import SimpleNamespace
from typing import Any


class OpenAI:
    def __init__(self) -> None:
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=_create))


def _create(**asked: Any) -> Any:
    request = urllib.request.Request(
        f"{os.environ['OPENAI_BASE_URL']}/chat/completions", json.dumps(asked).encode()
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer, object_hook=lambda found: SimpleNamespace(**found))
