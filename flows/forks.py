"""Starts stages as forks of a process that has loaded the libraries they use: loading them is most of what a short stage costs.

`serving` starts the server (flows/fork_server.py) for a run, flows/engines.py for a worker. Where there is none, `command` starts
programs afresh.
"""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CLIENT = Path(__file__).with_name("fork_client.py")
ADDRESS = "UNMASK_FORKS"  # where the server of stages listens
# Modules, or module:attribute where a package loads what is asked for; in the order in which a run wants them.
LOOKING = (  # what a look at the world and at the registry loads
    "dvc.cli.parser",
    "dvc.repo.index",
    "dvc.repo.reproduce",
    "dvc.repo.fetch",
    "dvc.repo.plots",
    "dvc.ignore",
    "dvc.scm",
    "dvc.repo.artifacts",
    "dvc.utils.strictyaml",
    "scmrepo.git",
    "networkx",
    "mlflow.tracking",
    "sqlalchemy.dialects.sqlite",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
)
LIBRARIES = (
    *LOOKING,
    "torch",
    "safetensors.torch",
    "accelerate",
    "transformers:PreTrainedTokenizerFast",
    "torch._dynamo",
    "lm_eval.evaluator",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "mlflow.pyfunc",
)


def command(*arguments: str) -> list[str]:
    """What starts `python ARGUMENTS`: forked, where a server listens."""
    address = os.environ.get(ADDRESS)
    return [sys.executable, *(["-S", "-E", str(CLIENT), address] if address else []), *arguments]


@contextmanager
def serving(root: Path, libraries: Sequence[str] = LIBRARIES) -> Iterator[None]:
    """Stages that this process starts in the body are forked, where that can be; one server serves those who ask again inside."""
    if ADDRESS in os.environ or sys.platform != "linux":
        yield
        return
    with tempfile.TemporaryDirectory(prefix="unmask-forks-") as folder, listening(folder) as listener:
        server = start_server(listener, root, libraries=libraries)
        listener.close()  # when the server goes, nobody is to wait for it
        os.environ[ADDRESS] = address_in(folder)
        try:
            yield
        finally:
            del os.environ[ADDRESS]
            server.terminate()
            server.wait()


def address_in(folder: str) -> str:
    """The socket of a server that has a folder of its own, which only this user can enter."""
    return f"{folder}/socket"


def listening(folder: str) -> socket.socket:
    """A socket that answers there; who connects before there is a server waits for it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address_in(folder))
    listener.listen(64)
    return listener


def start_server(
    listener: socket.socket, root: Path, idle_seconds: float = 0.0, libraries: Sequence[str] = LIBRARIES
) -> "subprocess.Popen[bytes]":
    """A server of stages on `listener`: it ends with this process, and after `idle_seconds` (0: never) in which nobody asked."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.fork_server", str(listener.fileno()), str(idle_seconds), *libraries],
        cwd=root,
        stdin=subprocess.DEVNULL,
        pass_fds=[listener.fileno()],
        start_new_session=True,  # the keyboard speaks to who started it
    )
