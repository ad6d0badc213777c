"""The queue of ablation jobs as a Prefect flow; started by flows/ablations.py, which prepares the process."""

from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from flows.ablations import Job, Running, run_job
from flows.stage_process import Outcome


@task(cache_policy=NO_CACHE, persist_result=False)
def run(root: Path, job: Job, running: Running) -> Outcome:
    """One job; every line its stages print is a line of this task's log. A failure is an outcome: the queue goes on."""
    logger = get_run_logger()
    outcome = run_job(root, job, running, logger.info)
    print(f"ablations: {job.name}: {outcome.status} in {outcome.seconds:.0f} s {outcome.reason}", flush=True)
    return outcome


@flow(name="ablations", persist_result=False, log_prints=False)
def _queue(root: Path, todo: list[Job], running: Running) -> int:
    first = [job for job in todo if job.folder == "base"]
    try:
        for job in first:
            if run.with_options(task_run_name=job.name)(root, job, running).status == "failed":
                return len(todo)
        futures = [
            run.with_options(task_run_name=job.name).submit(root, job, running) for job in todo if job not in first
        ]
        return sum(future.result().status == "failed" for future in futures)
    except BaseException:  # a cancellation arrives here, in the main thread; the runner waits for the jobs under way
        running.stop()
        raise


def ablations(root: Path, todo: list[Job], max_parallel: int) -> int:
    """Runs the jobs, the base first and alone; how many failed."""
    queue = _queue.with_options(task_runner=ThreadPoolTaskRunner(max_workers=max_parallel), validate_parameters=False)
    return queue(root, todo, Running())
