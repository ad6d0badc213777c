"""Programs that are forked: they do what a fresh start would, and end with whoever stands for them, and their server."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.forks import ADDRESS, LIBRARIES, command, serving
from flows.guard import GRACE_SECONDS
from tasks.environment import QUIET
from tests.conftest import ROOT
from tests.flows.test_pipeline import descendants, wait_for
from tests.flows.test_stage_process import guarded, wait_until_gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are forked on Linux only")

WHERE = "import os, sys; print(os.getpid(), os.getppid(), flush=True)\n"
TRAINS = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
import numpy, torch
from dataclasses import replace
from threadpoolctl import threadpool_info
from tasks.environment import use_threads
use_threads(int(sys.argv[3]))
from training_example import CONFIG, fingerprint, fresh_network, trainer, write_rows
work = Path(sys.argv[2])
wide = fresh_network(replace(CONFIG, hidden_size=256, feed_forward_size=512, num_heads=4))
run = trainer(work / "run", write_rows(work / "rows", 64), network=wide, steps=3, batch_rows=32)
run.run()
matrix = numpy.random.default_rng(0).normal(size=(500, 500))
threads = {(each["internal_api"], each["num_threads"]) for each in threadpool_info()}
print(fingerprint(run), (matrix @ matrix).sum().hex(), torch.get_num_threads(), sorted(threads))
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for programs, which are started as modules in it, and an environment that a server and programs share."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)


def write_stage(folder: Path, text: str) -> None:
    """The program tasks.one."""
    (folder / "tasks").mkdir()
    (folder / "tasks/__init__.py").touch()
    write(folder / "tasks", "one", text)


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("-m", *arguments),
        cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(command("-m", *arguments), cwd=folder, stdout=subprocess.PIPE, text=True)


def server_of(process: int = 0) -> int:
    """The server of stages that this process, or another one, has started."""
    found = descendants(process or os.getpid())
    return next(each for each in found if "flows.fork_server" in Path(f"/proc/{each}/cmdline").read_text().split("\0"))


@pytest.fixture
def quick(programs: Path) -> Iterator[Path]:
    with serving(ROOT, libraries=()):
        yield programs


def test_a_forked_program_has_the_arguments_folder_streams_and_exit_code_of_a_fresh_one(quick: Path) -> None:
    write(
        quick,
        "program",
        "import os, sys; print(sys.argv[1:], os.getcwd(), sys.path[0], __name__); sys.exit(sys.argv[1])",
    )
    forked, address = run(quick, "program", "so what"), os.environ.pop(ADDRESS)
    fresh = run(quick, "program", "so what")
    os.environ[ADDRESS] = address
    assert (forked.stdout, forked.stderr, forked.returncode) == (fresh.stdout, fresh.stderr, fresh.returncode)
    assert (forked.stderr, forked.returncode) == ("so what\n", 1)
    write(quick, "program", "undefined")
    failed = run(quick, "program")
    assert failed.returncode == 1
    assert "NameError: name 'undefined' is not defined" in failed.stderr


def test_code_that_has_changed_is_read_again_and_two_forks_draw_different_numbers(programs: Path) -> None:
    with serving(ROOT, libraries=("numpy", "torch")):
        wait_for(lambda: has_loaded(programs, "torch"), 120)
        draws = "import random, numpy, torch; print(random.random(), numpy.random.random(), torch.rand(1).item())"
        write(programs, "program", "from model.atomic import locked; " + draws)
        drawn = {number for _ in range(2) for number in run(programs, "program").stdout.split()}
        assert len(drawn) == 6
        write(programs, "program", "print('changed')")
        assert run(programs, "program").stdout == "changed\n"


def test_python_inside_a_fork_is_forked_beside_it_for_stages_only(quick: Path) -> None:
    write_stage(quick, WHERE + "sys.exit(7)")
    shell = "python -m tasks.one; echo $?; python -c 'import os; print(os.getppid())'"
    write(
        quick, "program", f"import subprocess; {WHERE}print(subprocess.check_output({shell!r}, shell=True, text=True))"
    )
    ids = run(quick, "program").stdout.split()
    program, guard, stage, its_parent, code, fresh_ones_parent = map(int, ids)
    assert (its_parent, code) == (guard, 7)
    assert fresh_ones_parent not in (guard, program, stage)


def test_where_variables_that_libraries_read_differ_a_program_is_started_afresh(quick: Path) -> None:
    write(quick, "program", WHERE)
    assert int(run(quick, "program", HF_HOME="/elsewhere").stdout.split()[1]) == os.getpid()
    assert int(run(quick, "program", CUDA_VISIBLE_DEVICES="").stdout.split()[1]) != os.getpid()


@pytest.mark.parametrize("library", ["threads", "driver"])
def test_a_server_that_cannot_fork_faithfully_says_so_and_programs_are_started_afresh(
    programs: Path, capfd: pytest.CaptureFixture[str], library: str
) -> None:
    write(programs, "threads", "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()")
    (programs / "libcuda.so.1").write_bytes(bytes(4096))
    write(
        programs,
        "driver",
        "import mmap; file = open('libcuda.so.1'); kept = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)",
    )
    write(programs, "program", WHERE)
    with serving(programs, libraries=(library,)):
        server = server_of()
        assert not wait_until_gone([server], 60)
        assert int(run(programs, "program").stdout.split()[1]) == os.getpid()
    assert "stages are started afresh: " in capfd.readouterr().err


def test_a_program_hears_sigterm_and_goes_with_who_stands_for_it_or_with_its_server(quick: Path) -> None:
    write(
        quick,
        "program",
        "import time, signal, sys; from pathlib import Path; signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n"
        + WHERE
        + "try: time.sleep(300)\nfinally: Path('ended').write_text('well')",
    )
    told = start(quick, "program")
    ids = list(map(int, told.stdout.readline().split()))
    told.terminate()
    assert told.wait(20) == 128 + signal.SIGTERM
    assert (quick / "ended").read_text() == "well"
    assert not wait_until_gone(ids, 10)

    killed = start(quick, "program")
    ids = list(map(int, killed.stdout.readline().split()))
    killed.kill()
    assert not wait_until_gone(ids, 10)

    orphan = start(quick, "program")
    ids = list(map(int, orphan.stdout.readline().split()))
    os.kill(server_of(), signal.SIGKILL)
    assert orphan.wait(20) == 128 + signal.SIGKILL
    assert not wait_until_gone(ids, 10)
    write(quick, "program", WHERE)
    assert int(run(quick, "program").stdout.split()[1]) == os.getpid()


def test_a_killed_stage_ends_as_killed_and_a_killed_program_takes_what_it_started_along(quick: Path) -> None:
    write_stage(quick, WHERE + "import time; time.sleep(300)")
    write(
        quick, "program", f"import os, subprocess; {WHERE}os._exit(subprocess.call('python -m tasks.one', shell=True))"
    )
    for victim, code in (("stage", 137), ("program", 137), ("guard", 137)):
        process = start(quick, "program")
        program, guard = map(int, process.stdout.readline().split())
        stage = int(process.stdout.readline().split()[0])
        os.kill({"stage": stage, "program": program, "guard": guard}[victim], signal.SIGKILL)
        assert process.wait(20) == code, victim
        assert not wait_until_gone([program, guard, stage], 10), victim


@pytest.mark.slow
def test_what_ignores_sigterm_is_killed_before_its_outer_guard_would_give_up(quick: Path, tmp_path: Path) -> None:
    write(
        quick, "program", f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{WHERE}time.sleep(300)"
    )
    outer = guarded("true", tmp_path)[:4] + command("-m", "program")
    process = subprocess.Popen(outer, cwd=quick, stdout=subprocess.PIPE, text=True, start_new_session=True)
    ids = list(map(int, process.stdout.readline().split()))
    began = time.monotonic()
    process.terminate()
    process.wait(2 * GRACE_SECONDS)
    assert not wait_until_gone(ids, 2)
    assert time.monotonic() - began > GRACE_SECONDS - 2


@pytest.mark.slow
def test_a_forked_training_makes_the_bytes_of_a_fresh_one_with_the_threads_it_was_given(programs: Path) -> None:
    write(programs, "program", TRAINS)
    example = str(ROOT / "tests/model/training")

    def made(how: str, threads: str) -> str:
        done = run(programs, "program", example, str(programs / how / threads), threads)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with serving(ROOT):
        wait_for(lambda: has_loaded(programs, LIBRARIES[-1]), 300)
        forked = [made("forked", threads) for threads in "12"]
    assert forked == [made("fresh", threads) for threads in "12"]
    assert "('openmp', 2)" in forked[1]
    assert "('openblas', 2)" in forked[1]


def has_loaded(folder: Path, library: str) -> bool:
    write(folder, "probe", "import sys; print(sys.argv[1] in sys.modules)")
    return run(folder, "probe", library).stdout == "True\n"
