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
from contextlib import suppress
from typing import NoReturn

import psutil
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

LOST_AFTER = 3  # Prefect's server calls a worker OFFLINE then (INACTIVITY_HEARTBEAT_MULTIPLE)
ENDS_AFTER = 2.5
NOT_FOUND = 404
ANSWER_SECONDS = 20.0  # SQLite under load
WAIT_SECONDS = 2.0


def hold(pool: str, worker: str, interval_seconds: float) -> None:
    """Sends heartbeats from a thread of its own, and begins anew once none has been answered for too long."""
    threading.Thread(target=_hold, args=(pool, worker, interval_seconds, _clock()), daemon=True).start()


def _hold(pool: str, worker: str, interval_seconds: float, heard: float) -> None:
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),  # the next heartbeat is the next try
        get_client(sync_client=True, httpx_settings={"timeout": ANSWER_SECONDS}) as client,
    ):
        while _clock() - heard < ENDS_AFTER * interval_seconds:
            sent = _clock()
            try:
                client.send_worker_heartbeat(pool, worker, interval_seconds)
                heard = sent
            except Exception as error:  # whatever went wrong, it was not heard
                if isinstance(error, PrefectHTTPStatusError) and error.response.status_code == NOT_FOUND:
                    heard = sent  # the pool is not made yet, so nobody waits for a heartbeat
                else:
                    print(f"worker: no heartbeat: {error}", file=sys.stderr, flush=True)
            time.sleep(interval_seconds / 6)
    begin_anew("the server has not answered for too long, others will take over")


def begin_anew(reason: str) -> NoReturn:
    """Ends what this worker runs and starts the worker again in its place, which then waits for the server."""
    print(f"worker: {reason}. All runs here end, and the worker begins anew", file=sys.stderr, flush=True)
    server_of_engines = psutil.Process().children()
    for process in [engine for each in server_of_engines for engine in each.children()] + server_of_engines:
        with suppress(psutil.NoSuchProcess):
            process.kill()  # a stage's guard sees that its engine is gone and gives the stage its time to end
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
