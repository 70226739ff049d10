"""The model: a decoder-only transformer whose components are chosen by :class:`FoundryConfig`.

With the default components its parameter names, shapes and arithmetic are Qwen3's; without ``qk_norm`` they
are Llama's.  So a state dict moves either way and logits agree bit for bit.  This file and what it imports
relatively travel inside every saved checkpoint and work there without the package.

Shapes: B batch, S sequence, H hidden, A attention heads, K key-value heads, D head_dim, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention_backends import eager_attention
from .configuration_foundry import FoundryConfig
from .losses import IGNORE_INDEX, cross_entropy, linear_cross_entropy, shift_labels_left
from .positions import (
    FoundryRotaryEmbedding,
    apply_rotary,
    is_packed,
    next_positions,
    refuse_leaks,
    refuse_positions_beyond_table,
    slice_positions,
)

LOSS_KEYWORDS = ("shift_labels", "num_items_in_batch", "ignore_index")


class FoundryRMSNorm(nn.Module):
    """Root mean square norm (Zhang, Sennrich 2019, arXiv:1910.07467): fp32, scaled in the input's dtype."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.eps)).to(dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


class FoundryLayerNorm(nn.LayerNorm):
    """Layer norm with weight and bias (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, size: int, eps: float):
        super().__init__(size, eps=eps)


NORMS = {"rmsnorm": FoundryRMSNorm, "layernorm": FoundryLayerNorm}


def build_norm(config: FoundryConfig, size: int) -> nn.Module:
    """The norm the configuration names, over the last ``size`` values."""
    return NORMS[config.normalization](size, config.norm_eps)


class FoundryAttention(nn.Module):
    """Causal self-attention with any number of key-value heads (MHA, GQA, MQA)."""

    def __init__(self, config: FoundryConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        query_size = config.num_attention_heads * config.head_dim
        key_value_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)
        self.q_norm = build_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = build_norm(config, config.head_dim) if config.qk_norm else nn.Identity()

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, H) to (B, S, H), and the weights (B, A, S, T) where the backend gives them."""
        head_shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(head_shape)).transpose(1, 2)
        key = self.k_norm(self.k_proj(hidden_states).view(head_shape)).transpose(1, 2)
        value = self.v_proj(hidden_states).view(head_shape).transpose(1, 2)
        if position_embeddings is not None:
            query, key = apply_rotary(query, *position_embeddings), apply_rotary(key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        output = output.reshape(*hidden_states.shape[:-1], -1).contiguous()
        return self.o_proj(output), weights


class FoundryMLP(nn.Module):
    """``swiglu``: down(silu(gate(x)) * up(x)) (Shazeer, arXiv:2002.05202); ``standard``: down(act(up(x)))."""

    def __init__(self, config: FoundryConfig):
        super().__init__()
        self.gated = config.ffn_type == "swiglu"
        if self.gated:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.gated:
            return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class FoundryDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm block: attention and FFN, each added to the residual stream (B, S, H)."""

    def __init__(self, config: FoundryConfig, layer_idx: int):
        super().__init__()
        self.self_attn = FoundryAttention(config, layer_idx)
        self.mlp = FoundryMLP(config)
        self.input_layernorm = build_norm(config, config.hidden_size)
        self.post_attention_layernorm = build_norm(config, config.hidden_size)

    def forward(self, hidden_states: Tensor, **kwargs) -> Tensor:
        attention_output, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attention_output
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class FoundryPreTrainedModel(PreTrainedModel):
    """What transformers needs to know about the family."""

    config_class = FoundryConfig
    config: FoundryConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["FoundryDecoderLayer"]  # noqa: RUF012 - transformers reads plain class attributes
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": FoundryDecoderLayer,
        "attentions": FoundryAttention,
    }

    def __init__(self, config: FoundryConfig, *args, **kwargs):
        config.check_architecture()  # fields may have been set since the configuration was made
        super().__init__(config, *args, **kwargs)

    def save_pretrained(self, *args, **kwargs) -> None:
        """As transformers', from a model under FSDP2 too.

        FSDP2 makes a class of its own on the fly, of which the source would be saved as the custom code, and
        its gathered weights hold a tied head a second time.
        """
        if kwargs.get("state_dict") is not None and self.config.tie_word_embeddings:
            tied = self._tied_weights_keys or {}
            kwargs["state_dict"] = {k: v for k, v in kwargs["state_dict"].items() if k not in tied}
        present = type(self)
        self.__class__ = next(
            kind
            for kind in present.__mro__
            if issubclass(kind, FoundryPreTrainedModel) and not issubclass(kind, FSDPModule)
        )
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            self.__class__ = present


class FoundryModel(FoundryPreTrainedModel):
    """Embedding, blocks and the last norm: token ids (B, S) to hidden states (B, S, H)."""

    def __init__(self, config: FoundryConfig):
        super().__init__(config)
        # No padding_idx: it would freeze that row, and the padding token is the document separator here.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_encoding == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(FoundryDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = build_norm(config, config.hidden_size)
        if config.position_encoding == "rope":
            self.rotary_emb = FoundryRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Run the blocks.

        Positions that start again inside a row mark packed documents, which never see each other.  Packing
        needs a row without cache, so none is made for packed rows or in training.

        Raises:
            ValueError: not exactly one of ``input_ids`` and ``inputs_embeds``; packed rows with a cache or
                padding; positions beyond a learned table.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if is_packed(position_ids, attention_mask):
            refuse_leaks(attention_mask, past_key_values)
            attention_mask, use_cache = None, False  # a mask without padding would hide the packing
        if use_cache and past_key_values is None and not self.training:
            past_key_values = DynamicCache(config=self.config)
        mask = self.build_mask(inputs_embeds, attention_mask, position_ids, past_key_values)
        if position_ids is None:
            position_ids = next_positions(inputs_embeds, past_key_values)
        hidden_states, position_embeddings = self.encode_positions(inputs_embeds, position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def build_mask(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | dict | None,
        position_ids: Tensor | None,
        past_key_values: Cache | None,
    ) -> Any:
        """The mask in the attention backend's own form; None where the backend's causal kernel needs none.

        Only positions the caller gave can mark packed documents.  Without any, nothing has to be read back
        from the GPU, and a compiled graph keeps the causal kernel.
        """
        if isinstance(attention_mask, dict):  # generate() prepared it
            return attention_mask["full_attention"]
        return create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )

    def encode_positions(
        self, hidden_states: Tensor, position_ids: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Add the learned table's rows to (B, S, H), or give the rotations each layer applies."""
        if self.config.position_encoding == "rope":
            return hidden_states, self.rotary_emb(hidden_states, position_ids)
        refuse_positions_beyond_table(position_ids, self.config.max_position_embeddings)
        return hidden_states + self.embed_positions(position_ids), None


class FoundryHead(nn.Linear):
    """The output head (V, H); given labels it returns their loss and never holds all the logits.

    A module of its own, so that hooks which gather its weight (FSDP, ZeRO-3) run for the loss too.
    """

    def forward(self, hidden_states: Tensor, labels: Tensor | None = None, **loss_options) -> Any:
        if labels is None:
            return super().forward(hidden_states)
        return linear_cross_entropy(hidden_states, self.weight, labels, self.bias, **loss_options)


@dataclass
class FoundryOutput(CausalLMOutputWithPast):
    """As transformers', and in training with a z-loss the part of ``loss`` that it is (detached)."""

    z_loss: Tensor | None = None


class FoundryForCausalLM(FoundryPreTrainedModel, GenerationMixin):
    """The model with its output head: token ids (B, S) to logits (B, S, V) or to a loss."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # noqa: RUF012
    _fsdp_plan = {"lm_head": "keep_full_weight"}  # noqa: RUF012

    def __init__(self, config: FoundryConfig):
        super().__init__(config)
        self.model = FoundryModel(config)
        self.lm_head = FoundryHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head; a plain ``nn.Linear`` (from resizing the vocabulary) becomes a FoundryHead."""
        if type(new_embeddings) is nn.Linear:
            new_embeddings.__class__ = FoundryHead  # same state; hooks and initialisation marks stay
        self.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool | None = None,
        **kwargs,
    ) -> FoundryOutput:
        """Logits, and with labels the next-token loss.

        Args:
            labels: (B, S) token ids, -100 where nothing is to be learned; shifted here.
            logits_to_keep: compute the logits of the last so many positions, or of the positions named.
            skip_logits: None skips the logits in training with labels, where the loss comes from
                :func:`linear_cross_entropy`; True skips them whenever there are labels, False never.

        Under tensor parallelism, and where the head has been replaced (quantised, wrapped by an adapter),
        the loss comes from whole logits.  The z-loss is part of the training loss only.  Labels that are
        shifted already come as the keyword ``shift_labels``, as from transformers' context parallelism; not
        as a named argument, since Trainer takes every one with "label" in its name for a key of its batches.
        """
        # What only the loss needs stays out of the layers: a compiled one is compiled again for other keywords.
        loss_options = {name: kwargs.pop(name) for name in LOSS_KEYWORDS if name in kwargs}
        shift_labels = loss_options.pop("shift_labels", None)
        if labels is not None and use_cache is None and past_key_values is None:
            use_cache = False
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = slice_positions(outputs.last_hidden_state, logits_to_keep)
        if shift_labels is None and labels is not None:
            shift_labels = shift_labels_left(labels, loss_options.get("ignore_index", IGNORE_INDEX))
        logits, (loss, z_loss) = self.logits_and_loss(hidden_states, shift_labels, skip_logits, loss_options)
        return FoundryOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            z_loss=z_loss,
        )

    def logits_and_loss(
        self, hidden_states: Tensor, shift_labels: Tensor | None, skip_logits: bool | None, options: dict
    ) -> tuple[Tensor | None, tuple[Tensor | None, Tensor | None]]:
        """Logits, and loss and z-loss, of hidden states (B, S, H) and shifted labels (B, S): what is asked for."""
        if shift_labels is None:
            return self.lm_head(hidden_states), (None, None)
        has_z_loss = self.training and self.config.z_loss_weight > 0
        loss_options = {
            "num_items_in_batch": options.get("num_items_in_batch"),
            "ignore_index": options.get("ignore_index", IGNORE_INDEX),
            "z_loss_weight": self.config.z_loss_weight if has_z_loss else 0.0,
            "return_z_loss": has_z_loss,
        }
        if (self.training if skip_logits is None else skip_logits) and self.head_takes_labels():
            chunk_tokens = self.config.loss_chunk_tokens
            logits = None
            loss = self.lm_head(hidden_states, shift_labels, chunk_tokens=chunk_tokens, **loss_options)
        else:
            logits = self.lm_head(hidden_states)
            loss = cross_entropy(logits, shift_labels, **loss_options)
        return logits, loss if has_z_loss else (loss, None)

    def head_takes_labels(self) -> bool:
        """Whether the head can compute the loss: it is ours and not split over tensor-parallel ranks."""
        return isinstance(self.lm_head, FoundryHead) and not getattr(self, "_tp_size", None)


FoundryModel.register_for_auto_class("AutoModel")
FoundryForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["FoundryForCausalLM", "FoundryModel", "FoundryPreTrainedModel"]
