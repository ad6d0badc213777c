"""Fine-tunes the autoregressive model on conversations: the baseline every diffusion model stands beside.

python -m tasks.finetune_ar
"""

from model.objectives.next_token import NextToken
from tasks.stage import Stage, run_stage
from tasks.training import parent_checkpoint, train_stage


def finetune_ar(stage: Stage) -> None:
    """data/models/pretrain_ar -> data/models/finetune_ar; only the assistant's tokens are graded."""
    parent = parent_checkpoint(stage, "pretrain_ar")
    train_stage(stage, parent.network, NextToken(), NextToken(), "instructions", (), parent.folder)


if __name__ == "__main__":
    run_stage(finetune_ar, "finetune_ar")
