"""Answers chat requests over HTTP as OpenAI's API does, with the registry's champion: python -m tasks.serve (`make serve`)

    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"model": "unmask-target", "messages": [{"role": "user", "content": "What is 3 + 4?"}], "stream": true}'

Concurrent requests share forwards; a stream sends every finished block (a causal model's: every token). /health, /ready and
/metrics (Prometheus) watch it. When the alias moves, the new version is loaded and takes over, while the old one finishes its
answers. SIGTERM and Ctrl-C end it when the last answer is out. Settings: section `serve` of params.yaml; --port, --host and
--model go before them.
"""

import argparse
import asyncio
import logging
import os
import random
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.environment import quiet, use_threads
from tasks.parameters import check_sections, explain_section, load_params

if TYPE_CHECKING:
    from tasks.serving.settings import ServeConfig

BAD_INPUT = 2
LOG = logging.getLogger("unmask.serve")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 after SIGTERM or Ctrl-C; 2 after one message on stderr about what a person can mend."""
    quiet()
    root = Path.cwd()
    options = parse(arguments, root)
    try:
        return serve(root, options)
    except (ValueError, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return BAD_INPUT


def parse(arguments: list[str] | None, root: Path) -> argparse.Namespace:
    """The command line."""
    section = explain_section(root / "params.yaml", "serve")
    parser = argparse.ArgumentParser(
        prog="python -m tasks.serve",
        description=__doc__,
        epilog=f"Its settings in params.yaml:\n\n{section}" if section else "params.yaml has no section `serve`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", help="NAME@ALIAS or NAME/VERSION of the registry, a folder, a name under data/models"
    )
    parser.add_argument("--host", help="address to listen on; beyond 127.0.0.1 set serve.api_key_variable, too")
    parser.add_argument("--port", type=int, help="0: one that is free; the first line of output names it")
    return parser.parse_args(arguments)


def read_settings(root: Path, options: argparse.Namespace) -> "tuple[ServeConfig, int]":
    """The settings with the command line before them, and the number of threads."""
    from tasks.serving.settings import ServeConfig

    params = load_params(root / "params.yaml")
    check_sections(params, root / "dvc.yaml")
    if not isinstance(params.get("serve"), dict):
        raise ValueError("params.yaml has no section 'serve'. Complete examples: presets/")
    config = ServeConfig.from_section(params["serve"])
    given = {name: value for name in ("model", "host", "port") if (value := getattr(options, name)) is not None}
    threads = params["serve"].get("threads", params.get("threads", 1))
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ValueError(f"params.yaml: threads is {threads!r}; it must be a whole number of at least 1")
    return replace(config, **given), threads


def read_key(config: "ServeConfig") -> str | None:
    """The key that clients must send; ValueError where it was to be in the environment and is not."""
    if config.api_key_variable is None:
        return None
    key = os.environ.get(config.api_key_variable, "")
    if not key:
        raise ValueError(f"serve.api_key_variable names {config.api_key_variable}, which is not set in the environment")
    return key


def serve(root: Path, options: argparse.Namespace) -> int:
    """Finds the model, listens, loads it, answers until a signal."""
    config, threads = read_settings(root, options)
    use_threads(threads)
    key = read_key(config)
    import torch
    import uvicorn

    from tasks.serving.app import make_app
    from tasks.serving.champion import Champion
    from tasks.serving.models import find_source

    torch.set_num_threads(threads)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    source = find_source(root, config.model)
    listener = listen(config)
    champion, failures = Champion(root, config), []

    async def begin() -> None:
        try:
            await champion.start(source)
            print(f"serve: {source.label} is ready", flush=True)
        except Exception as error:
            failures.append(error)
            server.should_exit = True

    app = make_app(champion, begin, key, random.SystemRandom())
    drain = max(1, round(config.drain_seconds))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=drain)
    )
    # uvicorn hands the signals on when it is done: to whom, is ours to say.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: None)
    asyncio.run(server.serve(sockets=[listener]))
    champion.end()
    for error in failures:
        raise error
    LOG.info("ended: every answer that had begun is out")
    return 0


def listen(config: "ServeConfig") -> socket.socket:
    """The socket; its address is said at once."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listener = socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        raise ValueError(f"cannot listen on {config.host}:{config.port} (serve.host, serve.port): {error}") from error
    address, port = listener.getsockname()[:2]
    print(f"serve: http://{f'[{address}]' if ':' in address else address}:{port}/v1", flush=True)
    if not address.startswith("127.") and address != "::1" and config.api_key_variable is None:
        LOG.warning("%s is beyond this machine and no key is asked for: set serve.api_key_variable", address)
    return listener


if __name__ == "__main__":
    sys.exit(main())
