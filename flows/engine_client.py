"""Stands for one engine that flows/engines.py forks: python -S -E flows/engine_client.py SOCKET

A worker starts this in the place of `python -m prefect.engine`: it hands its environment, folder and outputs over, passes signals
on and ends with the engine's exit code. Standard library only, so that it starts in milliseconds.
"""

import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

KILLED = 137


def main(address: str) -> int:
    """The engine's exit code (128 + signal when one ended it); KILLED when the server of engines is gone."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        request = json.dumps({"environment": dict(os.environ), "folder": str(Path.cwd())}).encode()
        socket.send_fds(connection, [len(request).to_bytes(8, "big")], [1, 2])
        connection.sendall(request)
        with connection.makefile("r") as answers:
            engine = int(answers.readline() or 0)

            def pass_on(number: int, _frame: object) -> None:
                with suppress(ProcessLookupError):
                    os.kill(engine, number)

            if engine:
                signal.signal(signal.SIGTERM, pass_on)
                signal.signal(signal.SIGINT, pass_on)
            return int(answers.readline() or KILLED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
