"""What stands behind an exporter on the road to many machines: a collector, rotel, and Kafka."""

from __future__ import annotations

import gzip
import signal
import socket
import subprocess
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData

from proxy import Exchange
from receiver import ATTRIBUTES, Arrival, arrivals, items_of
from support import free_port, wait_until

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
TOPIC = "otlp_traces"


def settings(name: str) -> dict[str, str]:
    """The variables of a file in docs/deploy."""
    lines = (DEPLOY / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


class Kafka:
    """
    librdkafka's mock cluster, and a consumer that reads all of a topic.

    The cluster keeps the last 5 MB of each partition: the consumer has to keep up, and finds out if it did
    not. It lives as long as the producer that it belongs to.

    Attributes:
        brokers: Addresses, as every client takes them.

        count, largest: Messages so far, and the bytes of the largest.
    """

    def __init__(self) -> None:
        self._cluster = Producer({"test.mock.num.brokers": 3, "log_level": 0})
        found = self._cluster.list_topics(TOPIC, timeout=10)
        self.brokers = ",".join(f"{each.host}:{each.port}" for each in found.brokers.values())
        self._consumer = Consumer(
            {
                "bootstrap.servers": self.brokers,
                "group.id": "chain",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 10,
                "message.max.bytes": 8 << 20,
            }
        )
        partitions = found.topics[TOPIC].partitions
        self._consumer.assign([TopicPartition(TOPIC, number, 0) for number in partitions])
        self._next = dict.fromkeys(partitions, 0)
        self._messages: list[Message] = []
        self.count = self.largest = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._consume, name="kafka")
        self._thread.start()

    def take(self) -> list[Arrival]:
        """Return the steps that have arrived since the last call."""
        taken, self._messages = self._messages, []
        found = []
        for message in taken:
            partition, offset, value = message.partition(), message.offset(), message.value()
            assert offset == self._next[partition], f"{self._next[partition]} to {offset} were not consumed"
            self._next[partition] = offset + 1
            self.count += 1
            self.largest = max(self.largest, len(value))
            found += arrivals([step_of(span) for span in spans_of(value)], partition, offset)
        return found

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._consumer.close()

    def _consume(self) -> None:
        while not self._over.is_set():
            for message in self._consumer.consume(100, 0.05):
                if message.error() is None:
                    self._messages.append(message)


class Rotel:
    """
    The collector, with the settings of docs/deploy/rotel.env.

    Args:
        brokers: Of Kafka.

        log: File for what it says.
    """

    def __init__(self, brokers: str, log: Path) -> None:
        package = find_spec("rotel")
        assert package
        assert package.origin
        self._command = [str(Path(package.origin).with_name("rotel-agent")), "start"]
        self.port = free_port()
        self._env = {
            **settings("rotel.env"),
            "ROTEL_OTLP_HTTP_ENDPOINT": f"127.0.0.1:{self.port}",
            "ROTEL_OTLP_GRPC_ENDPOINT": f"127.0.0.1:{free_port()}",
            "ROTEL_KAFKA_EXPORTER_BROKERS": brokers,
        }
        self._log = log.open("wb")
        self._process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, env=self._env, stdout=self._log, stderr=self._log, start_new_session=True
        )
        wait_until(self._listens, 20.0, "rotel")

    def signal(self, how: signal.Signals) -> None:
        self._process.send_signal(how)

    def wait(self) -> None:
        """Wait until it has ended."""
        self._process.wait(30)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _listens(self) -> bool:
        assert self._process.poll() is None, f"rotel ended: {Path(self._log.name).read_text()}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Acknowledged:
    """
    What a collector has said yes to, and when: for a proxy, instead of `passing`.

    As soon as that is so many steps the collector gets a signal, before anybody knows of its last answer: the
    worst moment, as what it said yes to last is hardly on its way to Kafka.

    Attributes:
        at: `time.monotonic()` of the answer that was first, for each step.

        ended: When the signal was sent; 0.0 before.
    """

    def __init__(self, collector: Rotel, after: int, how: signal.Signals) -> None:
        self.at: dict[str, float] = {}
        self.ended = 0.0
        self._collector = collector
        self._after = after
        self._how = how

    async def __call__(self, exchange: Exchange) -> None:
        answer = await exchange.forward()
        now = time.monotonic()
        if answer.startswith(b"HTTP/1.1 200 "):
            for step in items_of(gzip.decompress(await exchange.body())):
                self.at.setdefault(step["step_id"], now)
            if not self.ended and len(self.at) >= self._after:
                self.ended = now
                self._collector.signal(self._how)
        await exchange.send(answer)


def spans_of(body: bytes) -> list[Span]:
    return [
        span
        for resource in TracesData.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def step_of(span: Span) -> dict[str, Any]:
    """What a span was recorded as, as far as `digest` asks."""
    values = {item.key: getattr(item.value, str(item.value.WhichOneof("value"))) for item in span.attributes}
    step = {field: values[name] for field, name in ATTRIBUTES.items() if name in values}
    return {"end_time": span.end_time_unix_nano / 1e9, **step}
