"""What keeps a stage from running twice when a worker and the server lose sight of each other.

A worker whose heartbeats stop coming is taken for dead after LOST_AFTER intervals, and its runs are begun again elsewhere
(flows/worker.py). It may be alive behind a broken link, so it ends its own runs before that: after ENDS_AFTER intervals
without an answer. Between the two lies more than a stage's time to end (flows/guard.py). Both sides count from the same
heartbeat, the worker from before it was sent and the server from when it came, so no clocks are compared.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import psutil
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

LOST_AFTER = 3  # Prefect's server calls a worker OFFLINE then (INACTIVITY_HEARTBEAT_MULTIPLE)
ENDS_AFTER = 2.5
ANSWER_SECONDS = 5.0
WAIT_SECONDS = 2.0


def hold(pool: str, worker: str, interval_seconds: float, lost: Callable[[], object] | None = None) -> threading.Thread:
    """Sends heartbeats from a thread of its own, and calls `lost` once none has been answered for too long."""
    begun = _clock()
    thread = threading.Thread(
        target=_hold, args=(pool, worker, interval_seconds, lost or begin_anew, begun), daemon=True
    )
    thread.start()
    return thread


def _hold(pool: str, worker: str, interval_seconds: float, lost: Callable[[], object], heard: float) -> None:
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),  # the next heartbeat is the next try
        get_client(sync_client=True, httpx_settings={"timeout": ANSWER_SECONDS}) as client,
    ):
        while _clock() - heard < ENDS_AFTER * interval_seconds:
            sent = _clock()
            try:
                client.send_worker_heartbeat(pool, worker, interval_seconds)
                heard = sent
            except PrefectHTTPStatusError:
                heard = sent  # it answered, if not as one would wish: the pool is not made yet
            except Exception:  # whatever else went wrong, it was not heard
                pass
            time.sleep(interval_seconds / 12)
    lost()


def begin_anew() -> NoReturn:
    """Ends what this worker runs and starts the worker again in its place, which then waits for the server."""
    print(
        "worker: the server has not answered for too long; others will take over, so all runs here end now",
        file=sys.stderr,
    )
    for child in psutil.Process().children():
        child.kill()  # an engine's guard sees that and gives the stage its time to end
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def wait_for_server(address: str) -> None:
    """Returns once the server answers; says so once when it does not at first."""
    with get_client(sync_client=True, httpx_settings={"timeout": ANSWER_SECONDS}) as client:
        if (error := client.api_healthcheck()) is None:
            return
        print(f"worker: {address} does not answer ({error}); waiting for it", file=sys.stderr, flush=True)
        while client.api_healthcheck() is not None:
            time.sleep(WAIT_SECONDS)


def _clock() -> float:
    """Seconds that also pass while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
