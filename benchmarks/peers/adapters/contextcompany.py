"""contextcompany: the same chain; `end()` posts the step itself and returns with the answer."""

from __future__ import annotations

import json
from collections.abc import Iterable

import contextcompany
import requests

from peers.adapters import Adapter
from peers.records import Record
from peers.wire import tcc
from texts import Texts, chain


class Loopback(Adapter):
    round_steps = 100  # a step takes milliseconds

    def __init__(self, url: str) -> None:
        self.run = contextcompany.run(api_key="key", tcc_url=f"{url}/v1/custom")

    def step(self, texts: Texts) -> None:
        chain(self.run.step(), texts)


class Stubbed(Loopback):
    """`requests.post` does nothing: what is left is building the payload. Not even JSON is encoded."""

    round_steps = 1000
    keeps = False  # but the stub does, for the check

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.posted: list[object] = []
        keep = self.posted.append
        response = requests.Response()
        response.status_code = 200

        def post(url: str, json: object, headers: object, timeout: object) -> requests.Response:
            keep(json)
            return response

        requests.post = post  # type: ignore[assignment]

    def take(self) -> Iterable[Record]:
        posted, self.posted[:] = list(self.posted), []
        return [record for payload in posted for record in tcc(json.dumps(payload).encode())]
