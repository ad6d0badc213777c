"""Stands for a program that flows/forking.py forks: python -S -E flows/fork_client.py SOCKET -m MODULE [ARGUMENT ...]

Hands its environment, folder and streams over, passes signals on, and ends with the program's exit code. Where no server answers,
or it refuses, the program is started afresh in the place of this process. Standard library only: it starts in milliseconds.
"""

import json
import os
import signal
import socket
import sys
from contextlib import suppress

KILLED = 128 + 9


def main(address: str, arguments: list[str]) -> int:
    """The program's exit code (128 + signal when one ended it); KILLED when its server has gone, and with it the program."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
            request = json.dumps({"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()})  # noqa: PTH109
            body = request.encode()
            socket.send_fds(connection, [len(body).to_bytes(8, "big")], [0, 1, 2])
            connection.sendall(body)
            answers = connection.makefile("r")
            program, _, group = answers.readline().partition(" ")
        except OSError:
            program = ""
        if not program.isdigit():
            os.execv(sys.executable, [sys.executable, *arguments])
        listen(int(program), hears_itself=group.strip() == "shared")
        return int(answers.readline() or KILLED)


def listen(program: int, hears_itself: bool) -> None:
    """What this process is told is for the program; one of the same process group has heard it already."""

    def pass_on(number: int, _frame: object) -> None:
        with suppress(ProcessLookupError):  # its exit code is on its way
            os.kill(program, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_IGN if hears_itself else pass_on)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
