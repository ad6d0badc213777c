"""A configuration that no network can have is refused with the value and the rule; a saved one comes back equal."""

import json

import pytest

from model.network.config import NetworkConfig
from model.network.rotary import RotaryScaling

SIZES = {"vocabulary_size": 20, "hidden_size": 16, "num_layers": 3, "num_heads": 2, "feed_forward_size": 24}
MIXTURE = SIZES | {
    "num_experts": 8, "experts_per_token": 2, "num_expert_groups": 4, "groups_per_token": 2, "expert_feed_forward_size": 8,
}  # fmt: skip
YARN = {"kind": "yarn", "factor": 4.0, "original_maximum_positions": 32}


@pytest.mark.parametrize(
    "values, words",
    [
        (SIZES | {"attention": "sideways"}, "network.attention 'sideways' must be one of causal"),
        (SIZES | {"norm": "layer"}, "network.norm 'layer' must be one of rms"),
        (SIZES | {"attention_bias": True}, "network.attention_bias 'True' must be one of none"),
        (SIZES | {"query_key_norm_place": "never"}, "must be one of before_rotary"),
        (SIZES | {"hidden_size": 15}, "network.hidden_size 15 must be a multiple"),
        (SIZES | {"num_layers": 0}, "network.num_layers 0 must be a whole number of at least 1"),
        (SIZES | {"num_layers": "3"}, "network.num_layers '3' must be a whole number"),
        (SIZES | {"rotary_fraction": 0.4}, "must be even and above 0, and is 3"),
        (SIZES | {"rotary_fraction": 2.0}, "must be even and above 0, and is 16"),
        (SIZES | {"embedding_size": 19}, "network.embedding_size 19 must be at least"),
        (SIZES | {"eos_token_id": 20}, "network.eos_token_id 20 is not among the 20 rows"),
        (SIZES | {"experts_per_token": 2}, "network.experts_per_token 2 needs network.num_experts"),
        (MIXTURE | {"num_expert_groups": 3}, "must be a multiple of network.num_expert_groups 3"),
        (MIXTURE | {"num_expert_groups": 8, "groups_per_token": 8}, "scored by its best two"),
        (MIXTURE | {"experts_per_token": 5}, "network.experts_per_token 5 is more than the 4 experts"),
        (MIXTURE | {"expert_feed_forward_size": 0}, "network.expert_feed_forward_size 0 must be at least 1"),
        (MIXTURE | {"num_dense_layers": 3}, "network.num_dense_layers 3 must be below 3 layers"),
        (SIZES | {"rotary_scaling": YARN | {"kind": "dynamic"}}, "'dynamic' must be one of linear, yarn, llama3"),
        (SIZES | {"rotary_scaling": YARN | {"factor": 0.5}}, "factor 0.5 must be at least 1"),
        (SIZES | {"rotary_scaling": YARN | {"beta_slow": 40}}, "beta_fast 32.0 must be above beta_slow 40"),
        (SIZES | {"rotary_scaling": YARN | {"speed": 1}}, "unknown key(s) in network.rotary_scaling: speed"),
        (SIZES | {"rotary_scaling": {"kind": "yarn", "factor": 2.0}}, "yarn needs original_maximum_positions"),
        (SIZES | {"colour": 1}, "unknown key(s) in the network configuration: colour"),
    ],
)  # fmt: skip
def test_what_no_network_can_have_is_refused(values, words):
    with pytest.raises(ValueError) as error:
        NetworkConfig.from_dict(values)
    assert words in str(error.value)


def test_a_configuration_survives_json():
    config = NetworkConfig.from_dict(MIXTURE | {"rotary_scaling": YARN})
    assert config.rotary_scaling == RotaryScaling("yarn", 4.0, 32)
    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
