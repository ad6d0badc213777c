"""Turns an autoregressive checkpoint into a diffusion network: same weights, a mask token, attention both ways.

python -m tasks.convert_to_diffusion
"""

from model.checkpoints.derive import to_diffusion
from model.checkpoints.store import save_checkpoint
from model.network.transformer import num_parameters
from model.text.tokenizer import add_mask_token, load_tokenizer
from tasks.parameters import check_keys
from tasks.stage import Stage, run_stage
from tasks.training import parent_checkpoint, publish_metrics


def convert_to_diffusion(stage: Stage) -> None:
    """data/models/pretrain_ar -> data/models/convert_to_diffusion. No training happens here."""
    check_keys(stage.name, stage.section, ("block_tokens",), ("start_from",))
    parent = parent_checkpoint(stage, "pretrain_ar")
    tokenizer_folder = stage.work / "tokenizer"
    tokenizer = load_tokenizer(str(parent.folder))
    is_new = tokenizer.mask_token_id is None
    mask = add_mask_token(tokenizer, tokenizer_folder)
    network = to_diffusion(parent.network, "bidirectional", stage.section["block_tokens"], mask, is_new)
    made = stage.work / "checkpoint"
    save_checkpoint(made, network, network.config, tokenizer_folder)
    stage.publish(made, "data/models/convert_to_diffusion")
    publish_metrics(stage, stage.name, {"parameters": num_parameters(network), "mask_token_id": mask})


if __name__ == "__main__":
    run_stage(convert_to_diffusion, "convert_to_diffusion")
