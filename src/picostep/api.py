"""
The functions that concern the whole process: settings, waiting, counting.

Recording itself is compiled, in `_records`.
"""

from __future__ import annotations

from picostep import recorder
from picostep.config import Settings
from picostep.errors import ArgumentError, ArgumentTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from os import PathLike
    from typing import Any

__all__ = ["configure", "flush", "shutdown", "stats"]


def configure(
    *,
    to: str | Iterable[str] | None = None,
    api_key: str | None = None,
    tcc_url: str | None = None,
    dir: str | None = None,
    exporter: str | None = None,
    disabled: bool | None = None,
    ring_bytes: int | None = None,
    batch_records: int | None = None,
    batch_bytes: int | None = None,
    exit_timeout: float | None = None,
    misuse: str | None = None,
    prices: Mapping[str | tuple[str, str], Mapping[str, Any]] | str | PathLike[str] | None = None,
    send_computed_cost: bool | None = None,
) -> None:
    """
    Set what the environment does not say, or says otherwise. Optional; best called once, at start.

    What is left out comes from the environment, then from the defaults: a second call does not add to the
    first. Runs and steps that exist keep their destination.

    Args:
        to: One sink or several: `"tcc"`, `"stdout"`, `"jsonl:PATH"`, `"store:PATH"`, `"store"`, or one that
            is installed. Else `PICOSTEP_TO`; else The Context Company when there is a key, the local store
            when there is none.

        api_key: Key of The Context Company; else `TCC_API_KEY`.

        tcc_url: Whole endpoint for runs, steps and tool calls; else `TCC_URL`.

        dir: Directory in which the ring directory is made; else `PICOSTEP_DIR`; else `/dev/shm` on Linux.

        exporter: `"process"` (default), `"thread"`, `"external"` (`picostep export` runs beside the host) or
            `"off"`; else `PICOSTEP_EXPORTER`.

        disabled: Record nothing; else `PICOSTEP_DISABLED`.

        ring_bytes: Size of a ring, 256 KiB to 1 GiB, rounded down to a power of two; else
            `PICOSTEP_RING_BYTES`; else 16 MiB.

        batch_records: Most records in a batch, 1 to 65,536; else `PICOSTEP_BATCH_RECORDS`; else 512.

        batch_bytes: Bytes at which a batch is closed, 1 KiB to 64 MiB; else `PICOSTEP_BATCH_BYTES`; else 1
            MiB.

        exit_timeout: Longest wait at the exit of the process, in seconds; else `PICOSTEP_EXIT_TIMEOUT`; else
            2.

        misuse: `"raise"`, or `"log"` to count wrong calls, log the first of each kind, and otherwise ignore
            them; else `PICOSTEP_MISUSE`.

        prices: Prices of one's own, which win over the price table: a mapping from a model or `(provider,
            model)`, or the name of a TOML or JSON file; `picostep.prices.Overrides` describes both. Else the
            file named by `PICOSTEP_PRICES`.

        send_computed_cost: Also send The Context Company the costs that picostep computed, where none was
            set; else `PICOSTEP_SEND_COMPUTED_COST`. By default not: the service prices steps itself.

    Raises:
        ConfigError: A setting cannot be used; nothing is changed.
    """
    recorder.configure(
        Settings.resolve(
            to=to,
            api_key=api_key,
            tcc_url=tcc_url,
            dir=dir,
            exporter=exporter,
            disabled=disabled,
            ring_bytes=ring_bytes,
            batch_records=batch_records,
            batch_bytes=batch_bytes,
            exit_timeout=exit_timeout,
            misuse=misuse,
            prices=prices,
            send_computed_cost=send_computed_cost,
        )
    )


def flush(timeout: float | None = None) -> bool:
    """
    Wait until all that was accepted before this call is delivered or durably stored.

    Args:
        timeout: Seconds; 30 when None.

    Returns:
        Whether it is. False leaves everything as it is: nothing is lost by not waiting.

    Raises:
        ArgumentTypeError, ArgumentError: `timeout` is not a number ≥ 0.
    """
    return recorder.flush(_seconds(timeout, "flush"))


def shutdown(timeout: float | None = None) -> bool:
    """
    Flush, then give up this process's rings. What is not delivered by then stays for an exporter to take.

    Recording afterwards is allowed and opens new rings. Not needed at exit: a process that ends waits by
    itself.

    Args:
        timeout: Seconds; 30 when None.

    Returns:
        Whether everything was delivered or durably stored in time.

    Raises:
        ArgumentTypeError, ArgumentError: `timeout` is not a number ≥ 0.
    """
    return recorder.shutdown(_seconds(timeout, "shutdown"))


def stats() -> dict[str, Any]:
    """
    Return this process's counters, in records.

    Returns:
        recorded: Calls of `end()`, `error()`, `send_*()` and feedback that were to be recorded.

        accepted: Of these, in the ring, ever: they survive the death of the process.

        delivered: Of these, taken by every sink.

        in_ring: Of these, still waiting. At any moment accepted = delivered + in_ring + the drops that
            happened after acceptance.

        dropped: By reason. Before acceptance: `ring_full`, `no_ring`. After it: `rejected` by the backend,
            `encode_error`, `corrupt`.

        shed: Accepted without bodies, as the ring was filling up.

        shortened: Accepted with a text cut, as the record was larger than a quarter of the ring.

        untracked_runs: Runs that are not reported if the process dies before they end, as too many were open
            at once, or there is no ring in shared memory.

        last_error: What the exporter last failed with, or None.

        misuse: Wrong calls by exception, in the mode `misuse="log"`.

        price_table_errors: How many refreshed price tables this process found that it could not use.

        rings: The same for each ring, with its destination and exporter.
    """
    return recorder.stats()


def _seconds(timeout: float | None, where: str) -> float:
    if timeout is None:
        return recorder.FLUSH_TIMEOUT
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise ArgumentTypeError(
            f"{where}(): timeout must be a number of seconds, not {type(timeout).__name__}"
        )
    if not 0 <= timeout < float("inf"):
        raise ArgumentError(f"{where}(): timeout must be ≥ 0 and finite, not {timeout}")
    return float(timeout)
