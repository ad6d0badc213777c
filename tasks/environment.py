"""The process environment of everything this project starts: nobody is told about it, and nothing waits for a network."""

import os
import sys

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # the UI's job runners take 2 GB and serve features that are not used here
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # a store that is away must not hold up training: records wait on disk
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DVC_NO_ANALYTICS": "1",
    "GIT_PYTHON_REFRESH": "quiet",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


def quiet() -> None:
    """Telemetry off in this process and its children; what the person has set stays."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # it was imported first and has read its switch already
        constants.HF_HUB_DISABLE_TELEMETRY = True


def use_threads(threads: int) -> None:
    """Every numerical library computes with `threads` threads: the number changes the last bits of sums, so it is a parameter."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)  # for libraries still to be loaded
    if "numpy" in sys.modules:
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
