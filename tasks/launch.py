"""A training stage in several processes of one machine: `processes: 2` in its section, started as `accelerate launch` would.

They share each batch. One process per GPU; on CPUs processes of one thread each are another way to use several cores than
threads (docs/log.md). `distribution: fsdp2` also cuts the network over them.
"""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEYS = ("processes", "distribution")
DISTRIBUTIONS = ("ddp", "fsdp2")  # accelerate/*.yaml
STARTED = "RANK" in os.environ  # this is one of the processes that a launcher started
IS_FIRST = os.environ.get("RANK", "0") == "0"


def processes_of(section: Mapping[str, Any]) -> int:
    """How many processes a stage's section asks for; ValueError for what is no such number or no way to share."""
    number, distribution = section.get("processes", 1), section.get("distribution", DISTRIBUTIONS[0])
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"processes is {number!r}; it must be a whole number of at least 1")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution '{distribution}' must be one of {', '.join(DISTRIBUTIONS)}")
    return number


def launch(module: str, arguments: list[str], section: Mapping[str, Any]) -> int:
    """Runs `python -m MODULE ARGUMENTS` in `processes` processes; the exit code of the first that failed, or 0.

    They end with this process, whatever ends it. ValueError where there are fewer GPUs than processes.
    """
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    number = processes_of(section)
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    elif torch.cuda.device_count() < number:
        raise ValueError(f"processes is {number}, one for each GPU, but there are {torch.cuda.device_count()} GPUs")
    for name in ("multiprocessing.api", "multiprocessing.errors", "agent.server.api"):  # the stage says what was wrong
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    config = Path("accelerate") / f"{section.get('distribution', DISTRIBUTIONS[0])}.yaml"
    options = ["--config_file", str(config), "--num_processes", str(number), "--main_process_port", "0", "-m", module]
    try:
        launch_command(launch_command_parser().parse_args([*options, *arguments]))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


def end_with_parent() -> None:
    """Linux: SIGTERM here when the launcher dies. It starts processes in sessions of their own, where no signal reaches them."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
