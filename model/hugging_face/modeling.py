"""The network as a `transformers` model: configuration class, `.logits`, `.hidden_states`, and LLaDA2's `generate`.

This file and what it imports of model/network and model/samplers is also what an export carries as its modelling file
(model/hugging_face/bundle.py): it must import nothing else of this repository.
"""

import copy
from dataclasses import fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from model.network.config import NetworkConfig
from model.network.masks import reading_pattern
from model.network.transformer import Transformer
from model.samplers.compatibility import llada2, llada21
from model.samplers.decode import make_decoder

_OF_TRANSFORMERS = ("architectures", "auto_map", "dtype", "name_or_path", "attn_implementation", "return_dict")


class StoredConfig(PretrainedConfig):
    """A config.json as it stands: `values` are its keys, which are written again unchanged."""

    def __init__(self, **values: Any) -> None:
        self.values = {
            key: value for key, value in values.items() if key not in ("name_or_path", "attn_implementation")
        }
        super().__init__(**{key: value for key, value in values.items() if key in _OF_TRANSFORMERS})

    def to_dict(self) -> dict[str, Any]:
        """The keys and the model's type."""
        return {**copy.deepcopy(self.values), "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: nothing of a configuration is left out because it has its default."""
        return self.to_dict()

    def describe(self, network: NetworkConfig) -> None:
        """Sets the attributes that other libraries look for."""
        self.vocab_size, self.hidden_size = network.embedding_rows, network.hidden_size
        self.num_hidden_layers, self.num_attention_heads = network.num_layers, network.num_heads
        self.max_position_embeddings, self.tie_word_embeddings = network.maximum_positions, network.tie_embeddings
        self.mask_token_id, self.eos_token_id, self.pad_token_id = (
            network.mask_token_id, network.eos_token_id, network.pad_token_id,
        )  # fmt: skip


class UnmaskConfig(StoredConfig):
    """Configuration of this project's own layout: the fields of NetworkConfig."""

    model_type = "unmask"

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if values:
            self.describe(self.network())

    def network(self) -> NetworkConfig:
        """The network's sizes and choices; keys that are not among them are refused where a checkpoint is read."""
        known = {field.name for field in fields(NetworkConfig)}
        return NetworkConfig(**{key: value for key, value in self.values.items() if key in known})


class UnmaskForCausalLM(PreTrainedModel):
    """`Transformer` behind the interface of `transformers`. Reading without a mask is the network's own: causal for an
    autoregressive one, bidirectional, or block-causal with its block size."""

    config_class = UnmaskConfig
    base_model_prefix = "network"
    main_input_name = "input_ids"
    _tied_weights_keys: ClassVar[dict[str, str]] = {"network.unembedding.weight": "network.embedding.weight"}
    _no_split_modules: ClassVar[list[str]] = ["Layer"]
    reads_everything = False  # without a mask, whatever the network's attention is

    def __init__(self, config: StoredConfig, network: Transformer | None = None) -> None:
        super().__init__(config)
        self.network = Transformer(config.network()) if network is None else network
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Weights come from a checkpoint, or `Transformer.initialise`."""

    def get_input_embeddings(self) -> torch.nn.Module:
        """The embedding."""
        return self.network.embedding

    def get_output_embeddings(self) -> torch.nn.Module:
        """The head."""
        return self.network.unembedding

    def forward(
        self,
        input_ids: Int[Tensor, "batch rows"],
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "batch rows"] | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        use_cache: bool = False,
    ) -> CausalLMOutput | tuple:
        """Logits of every position in float32, unshifted for diffusion networks, shifted by nature for causal ones.

        `attention_mask`: [batch, rows] with 0 at padding (positions still count it), or [batch, 1, query, key], boolean (True:
        may attend) or additive (0 or a large negative number). `hidden_states`: the embedding, every layer but the last, and the
        normalised final state. `use_cache` does nothing: `generate` has the exact cache.
        """
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        allowed = self._allowed(input_ids, position_ids, attention_mask)
        with _LayerOutputs(self.network, output_hidden_states) as outputs:
            hidden = self.network(input_ids, position_ids, allowed)
        states = (*outputs.states[:-1], hidden) if output_hidden_states else None
        logits = self.network.head(hidden).float()
        if not return_dict:
            return (logits, states) if output_hidden_states else (logits,)
        return CausalLMOutput(logits=logits, hidden_states=states)

    def _allowed(self, input_ids, position_ids, mask: Tensor | None) -> Bool[Tensor, "batch 1 rows rows"]:
        if mask is not None and mask.dim() == 4:
            allowed = mask if mask.dtype == torch.bool else mask > -1.0
            return allowed.to(input_ids.device).expand(input_ids.shape[0], -1, -1, -1)
        config = self.network.config
        kind = "bidirectional" if self.reads_everything else config.attention
        documents = torch.zeros_like(input_ids)
        allowed = reading_pattern(kind, documents, position_ids, config.block_tokens).allowed()
        if mask is None:
            return allowed
        allowed = allowed & mask.bool()[:, None, None, :]
        itself = torch.eye(input_ids.shape[1], dtype=torch.bool, device=input_ids.device)
        return torch.where(allowed.any(-1, keepdim=True), allowed, itself)  # no softmax over nothing

    @torch.no_grad()
    def generate(
        self,
        inputs: Int[Tensor, "batch rows"],
        temperature: float = 0.0,
        block_length: int = 32,
        steps: int = 32,
        gen_length: int = 2048,
        eos_early_stop: bool = False,
        minimal_topk: int = 1,
        threshold: float = 0.95,
        eos_id: int | None = None,
        mask_id: int | None = None,
        editing_threshold: float | None = None,
        max_post_steps: int = 16,
        num_to_transfer: int = 1,
    ) -> Int[Tensor, "batch answer"]:
        """The answers, without the prompts, each through its first EOS; shorter ones are padded with it.

        As LLaDA2.0's own `generate` (arXiv:2512.15745), on this project's decoder; with `editing_threshold` as LLaDA2.1's. A
        causal network answers left to right and reads `gen_length`, `temperature` and `eos_id` only. `eos_id` and `mask_id`: the
        configuration's, where not given.
        """
        config = self.network.config
        ends = (
            eos_id,
            config.eos_token_id,
            config.pad_token_id,
        )  # LLaDA2's config.json names its EOS as pad token only
        config = replace(
            config,
            mask_token_id=config.mask_token_id if mask_id is None else mask_id,
            eos_token_id=next((token for token in ends if token is not None), None),
        )
        network = copy.copy(self.network)  # the same weights
        network.config = config
        if config.attention == "causal":
            options: dict[str, Any] = {"sampling": {"temperature": temperature}}
        elif editing_threshold is not None:
            options = llada21(
                block_length, threshold, editing_threshold, max_post_steps, num_to_transfer, eos_early_stop, temperature
            )
        else:
            options = llada2(steps, gen_length, block_length, threshold, minimal_topk, eos_early_stop, temperature)
        if config.attention == "bidirectional":
            options["cache"] = "none"  # a prefix cache would only approximate it
        answers = make_decoder(network, **options)(inputs.tolist(), gen_length)
        longest = max(len(answer.tokens) for answer in answers)
        padding = config.eos_token_id or 0
        rows = [answer.tokens + [padding] * (longest - len(answer.tokens)) for answer in answers]
        return torch.tensor(rows, device=inputs.device)


class _LayerOutputs:
    """Collects the input of the first layer and the output of every layer while a forward runs."""

    def __init__(self, network: Transformer, wanted: bool) -> None:
        self.layers = network.layers if wanted else []
        self.states: list[Float[Tensor, "batch rows hidden"]] = []

    def __enter__(self) -> "_LayerOutputs":
        self.handles = [layer.register_forward_hook(self._after) for layer in self.layers]
        if self.layers:
            self.handles.append(self.layers[0].register_forward_pre_hook(self._before))
        return self

    def _before(self, layer: torch.nn.Module, arguments: tuple) -> None:
        self.states.append(arguments[0])

    def _after(self, layer: torch.nn.Module, arguments: tuple, output: Tensor) -> None:
        self.states.append(output)

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()
