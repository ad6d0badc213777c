"""Checkpoints: what goes in comes out, whole or not at all, and what does not fit is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints.derive import first_and_last_layers, layer_subset, to_diffusion
from model.checkpoints.store import load_checkpoint, save_checkpoint
from model.network.config import NetworkConfig
from model.network.masks import AttentionPattern
from model.network.transformer import Transformer, num_parameters


def network(tied: bool = True, layers: int = 4) -> Transformer:
    config = NetworkConfig(
        vocabulary_size=12, hidden_size=8, num_layers=layers, num_heads=2, feed_forward_size=16, tie_embeddings=tied
    )
    net = Transformer(config)
    net.initialise(torch.Generator().manual_seed(0))
    return net.eval()


@pytest.fixture
def saved(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer.json").write_text("{}")

    def save(net):
        save_checkpoint(tmp_path / "model", net, net.config, tmp_path / "tokenizer")
        return tmp_path / "model"

    return save


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_network_loads_bit_for_bit(saved, tied):
    net = network(tied)
    folder = saved(net)
    saved(net)  # over an older one
    loaded = load_checkpoint(folder)
    assert loaded.config == net.config and (folder / "tokenizer.json").exists()
    for name, value in net.state_dict().items():
        assert torch.equal(value, loaded.network.state_dict()[name]), name
    assert (loaded.network.unembedding.weight is loaded.network.embedding.weight) == tied


def test_what_does_not_fit_is_named(saved):
    folder = saved(network())
    tensors = load_file(folder / "model.safetensors")
    tensors["extra"] = tensors.pop("norm.weight")
    tensors["embedding.weight"] = tensors["embedding.weight"][:5].contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError) as error:
        load_checkpoint(folder)
    for part in ("missing norm.weight", "unexpected extra", "embedding.weight has shape (5, 8)"):
        assert part in str(error.value)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"colour": 1}))
    with pytest.raises(ValueError, match="colour"):
        load_checkpoint(folder)
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_checkpoint(folder.parent)


def test_conversion_copies_every_weight_and_appends_a_mask_row():
    net = network()
    converted = to_diffusion(net, "bidirectional", 4, 12)
    assert converted.config.vocabulary_size == 13 and converted.config.mask_token_id == 12
    tokens, positions = torch.arange(10)[None], torch.arange(10)[None]
    pattern = AttentionPattern("causal", torch.zeros_like(tokens), positions)
    old, new = (model.head(model(tokens, positions, pattern)) for model in (net, converted))
    assert torch.equal(old, new[..., :12])


def test_a_layer_subset_is_a_deep_copy_of_the_first_and_last_layers():
    net = network()
    draft = layer_subset(net, first_and_last_layers(4, 2))
    assert torch.equal(draft.layers[1].feed_forward.down.weight, net.layers[3].feed_forward.down.weight)
    with torch.no_grad():
        draft.layers[0].feed_forward.down.weight.zero_()
    assert net.layers[0].feed_forward.down.weight.abs().sum() > 0
    assert num_parameters(draft) < num_parameters(net)
    with pytest.raises(ValueError, match="even number"):
        first_and_last_layers(4, 3)


def mixture(layers: int = 6) -> Transformer:
    net = Transformer(
        NetworkConfig(
            vocabulary_size=12, hidden_size=8, num_layers=layers, num_heads=2, feed_forward_size=16, num_experts=4,
            experts_per_token=2, expert_feed_forward_size=4, num_dense_layers=1, embedding_size=14,
        )
    )  # fmt: skip
    net.initialise(torch.Generator().manual_seed(1))
    for layer in net.layers[1:]:
        layer.feed_forward.router.expert_bias.normal_(generator=torch.Generator().manual_seed(2))
    return net.to(torch.bfloat16)


def test_a_mixture_is_converted_and_subset_with_its_routers_bias_and_its_dense_layers():
    net = mixture()
    draft = layer_subset(net, first_and_last_layers(6, 4))
    assert [draft.config.is_mixture(index) for index in range(4)] == [False, True, True, True]
    assert torch.equal(draft.layers[3].feed_forward.router.expert_bias, net.layers[5].feed_forward.router.expert_bias)
    converted = to_diffusion(net, "bidirectional", 4, 14)
    assert converted.config.embedding_rows == 15 and converted.embedding.weight.dtype == torch.bfloat16
    for name, value in net.state_dict().items():
        assert torch.equal(converted.state_dict()[name][: value.shape[0]], value), name
