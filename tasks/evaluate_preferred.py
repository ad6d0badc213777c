"""Optional: measures what `prefer` made, exactly as `evaluate` measures the others and with its settings.

python -m tasks.evaluate_preferred --instance finetune_diffusion
"""

from dataclasses import replace

from tasks.evaluate import main
from tasks.parameters import check_keys
from tasks.stage import Stage, run_stage


def evaluate_preferred(stage: Stage) -> None:
    """data/models/prefer_<instance> -> data/metrics/evaluate/prefer_<instance>.json, data/samples/prefer_<instance>.jsonl."""
    check_keys("evaluate_preferred", stage.section, ())
    main(replace(stage, instance=f"prefer_{stage.instance}", section=stage.params["evaluate"]))


if __name__ == "__main__":
    run_stage(evaluate_preferred, "evaluate_preferred")
