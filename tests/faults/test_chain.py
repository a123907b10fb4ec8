"""Exporter, collector, Kafka, with the files of docs/deploy, while the collector is restarted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("confluent_kafka")
pytest.importorskip("rotel")

from chain import Acknowledged, Kafka, Rotel, settings
from oracle import Host, Oracle, check_totals, sample, times, wait_for_no_rings
from proxy import Proxy
from support import wait_until

RATE = times(400, 2000)  # steps a second
STEPS = times(2000, 100_000)
LARGE = times(5, 100)  # others, of 400 KB, which are larger messages than Kafka takes by default
AT_RISK = 5.0  # seconds that rotel may have something in memory only


@pytest.fixture
def kafka() -> Iterator[Kafka]:
    cluster = Kafka()
    yield cluster
    cluster.stop()


@pytest.fixture
def rotel(kafka: Kafka, tmp_path: Path) -> Iterator[Rotel]:
    collector = Rotel(kafka.brokers, tmp_path / "rotel.log")
    yield collector
    collector.stop()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_collector_restarted(ring_base: Path, kafka: Kafka, rotel: Rotel, how: signal.Signals) -> None:
    """
    picostep goes on until the collector has said yes to every step, and so it has.

    Told to end, rotel brings to Kafka what it had said yes to. Killed, it loses what it had only in memory.
    """
    acknowledged, oracle = Acknowledged(rotel, STEPS // 2, how), Oracle(kafka)
    with Proxy(rotel.port) as proxy:
        proxy.set(acknowledged)
        env = {**settings("picostep.env"), "PICOSTEP_DIR": str(ring_base), "PICOSTEP_TO": f"otlp:{proxy.url}"}
        hosts = [
            Host(env, "paced", 1, "kilobyte", RATE, STEPS / RATE, 120),
            Host(env, "some", 2, "large", LARGE),
        ]
        try:
            wait_until(lambda: acknowledged.ended, STEPS / RATE + 60.0, "half of it")
            rotel.wait()
            wait_until(lambda: any(ring["in_spool"] for ring in sample(ring_base)), 30.0, "what waits")
            rotel.start()
            for host in hosts:
                oracle.expect(host.finish(STEPS / RATE + 200.0))
        finally:
            for host in hosts:
                host.close()
        wait_for_no_rings(ring_base, 60.0)
        counted = check_totals(ring_base)
        assert counted["accepted"] == len(oracle.promised) == STEPS + LARGE
        assert acknowledged.at.keys() == oracle.promised
        at_risk = set()
        if how == signal.SIGKILL:
            late = acknowledged.ended - AT_RISK
            at_risk = {step for step, at in acknowledged.at.items() if late < at <= acknowledged.ended}
        wait_until(lambda: oracle.missing() <= at_risk, 60.0, "what Kafka must have")
        oracle.check_nothing_altered()
    print(
        f"\n{how.name}: {len(oracle.promised)} steps, all acknowledged; "
        f"{len(oracle.missing())} lost in rotel, {oracle.repeated()} came twice; "
        f"{kafka.count} messages of up to {kafka.largest:,} bytes"
    )
