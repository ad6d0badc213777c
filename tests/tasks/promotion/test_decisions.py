"""The log of decisions: lines are whole, only added, and tell who was champion before."""

import random
import subprocess
import sys
from pathlib import Path

from tasks.promotion.decisions import LOG, PROMOTED, REFUSED, ROLLED_BACK, append, champion_before, read

MODEL = "unmask-target"


def move(action: str, before: str, after: str, model: str = MODEL) -> dict[str, str]:
    return {"action": action, "model": model, "from": before, "to": after}


def test_many_processes_add_whole_lines_and_a_torn_one_spoils_no_other(tmp_path: Path) -> None:
    append(tmp_path, {"action": REFUSED, "reasons": ["ü" * 50]})
    with (tmp_path / LOG).open("ab") as stream:
        stream.write(b'{"action": "promo')  # the machine went down here
    script = (
        "import sys; from pathlib import Path; from tasks.promotion.decisions import append\n"
        "for n in range(40): append(Path(sys.argv[1]), {'action': 'x', 'who': sys.argv[2], 'n': n, 'pad': 'y' * 3000})\n"
    )
    root = Path(__file__).resolve().parents[3]
    writers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(who)], cwd=root) for who in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    entries = read(tmp_path)
    assert [entry["reasons"] for entry in entries[:1]] == [["ü" * 50]]
    assert sorted((entry["who"], entry["n"]) for entry in entries[1:]) == [
        (str(w), n) for w in range(3) for n in range(40)
    ]
    assert all(entry["time"].endswith("Z") for entry in entries)


def test_going_back_retraces_the_promotions_however_they_were_mixed_with_rollbacks() -> None:
    rng = random.Random(0)
    for _ in range(50):
        entries, stack, newest = [], ["1"], 1
        for _ in range(rng.randrange(1, 15)):
            if rng.random() < 0.4 and len(stack) > 1:
                taken = stack.pop()
                entries.append(move(ROLLED_BACK, taken, stack[-1]))
            else:
                newest += 1
                chosen = rng.choice([str(newest), *(set(map(str, range(1, newest))) - {stack[-1]})])
                entries.append(move(PROMOTED, stack[-1], chosen))
                stack.append(chosen)
            entries += [move(REFUSED, "9", "10"), move(PROMOTED, "1", "7", "unmask-target-cap")]
            assert champion_before(entries, MODEL, stack[-1]) == (stack[-2] if len(stack) > 1 else None)
    assert champion_before([move(PROMOTED, "1", "2")], MODEL, "3") is None  # somebody moved the alias by hand
