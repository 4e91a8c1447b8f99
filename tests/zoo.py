"""Real architectures, tiny: float64, evaluation mode, random weights, each with a batch of at least three examples."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from cases import randn, seeded
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from tpv.model.batches import call_model
from tpv.testing.float64 import Float64Everywhere


@dataclass(frozen=True)
class Architecture:
    """``build`` and ``batch`` as a user would write them; ``model()`` is what to test, inside ``context()``."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Any]
    forward: Callable[[nn.Module, Any], Any] | None = None
    widen: bool = False
    """Whether the model casts to float32 by itself. The mode keeps torch from fused paths, and ``torch.compile`` traces it."""

    def context(self) -> AbstractContextManager[Any]:
        """In which to run the model."""
        return Float64Everywhere() if self.widen else nullcontext()

    def model(self) -> nn.Module:
        torch.manual_seed(3)
        model = lively(self.build().double().eval())
        with self.context():
            settle_statistics(model, lambda: (self.forward or call_model)(model, self.batch()))
        return model


@torch.no_grad()
def lively(model: nn.Module) -> nn.Module:
    """Parameters away from their defaults: none zero, one or tiny."""
    generator = seeded(7)
    for p in model.parameters():
        if p.numel() == 1 or p.std() < 0.05:
            noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.copy_(noise / p[0].numel() ** 0.5 if p.ndim > 1 else p + 0.2 * noise)
    return model


@torch.no_grad()
def settle_statistics(model: nn.Module, run: Callable[[], Any]) -> None:
    """BatchNorm's statistics near those of the batch, as after training, so that no signal fades on its way."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.train()
    if norms:
        run()
    for norm in norms:
        norm.eval()
        norm.running_mean.add_(0.2 * norm.running_var.sqrt())
        norm.running_var.mul_(1.5)


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face transformers, from a configuration
# ---------------------------------------------------------------------------------------------------------------------

VOCABULARY = 13
IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BLOCKS = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
TEXT = BLOCKS | {"max_position_embeddings": 16, "vocab_size": VOCABULARY, "num_labels": 3}
CAUSAL = BLOCKS | {"max_position_embeddings": 16} | IDS
GROUPED = CAUSAL | {"num_key_value_heads": 1}
GPT2 = IDS | {"n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
STACK = {"layers": 2, "attention_heads": 2, "ffn_dim": 12}
TWO_STACKS = (
    IDS
    | {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in STACK.items()}
    | {"d_model": 8, "decoder_start_token_id": 1}
)
PATCHES = {"image_size": 8, "patch_size": 4, "num_labels": 3}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "num_labels": 3}
PYRAMID = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "hidden_sizes": [8, 12],
    "patch_sizes": [3, 3],
    "strides": [4, 2],
    "num_labels": 3,
}


def hugging(kind: str, **settings: Any) -> Callable[[], nn.Module]:
    """``transformers.<kind>`` from its own configuration class."""

    def build() -> nn.Module:
        cls = getattr(importlib.import_module("transformers"), kind)
        return cls(cls.config_class(**settings))

    return build


def hf(name: str, kind: str, batch: Callable[[], Any], forward: Any = None, **settings: Any) -> Architecture:
    return Architecture(name, hugging(kind, **settings), batch, forward, widen=True)


def tokens(n: int = 3, length: int = 5, seed: int = 0) -> Tensor:
    """(n, length) without the special tokens 0, 1, 2."""
    return torch.randint(3, VOCABULARY, (n, length), generator=seeded(seed))


def text() -> dict[str, Tensor]:
    return {"input_ids": tokens()}


def padded(pad: int = 0, side: str = "right") -> dict[str, Tensor]:
    """Examples of 5, 3 and 4 tokens."""
    mask = (torch.arange(5) < torch.tensor([[5], [3], [4]])).long()
    mask = mask.flip(1) if side == "left" else mask
    return {"input_ids": tokens().masked_fill(mask == 0, pad), "attention_mask": mask}


def translation() -> dict[str, Tensor]:
    return padded() | {"decoder_input_ids": tokens(3, 4, seed=1)}


def image(size: int = 8) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"pixel_values": randn(3, 3, size, size)}


def matching(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The similarity of each image with its own caption."""
    return model(**batch).logits_per_image.diagonal().unsqueeze(1)


def uncached(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    """LeViT in evaluation mode keeps indexed parameters from its first forward pass; here they are gathered in each."""
    for module in model.modules():
        getattr(module, "attention_bias_cache", {}).clear()
    return model(**batch)


def forecast(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).prediction_outputs


# fmt: off
ENCODERS = [
    hf("BERT", "BertForSequenceClassification", padded, **TEXT),
    hf("BERT, masked tokens", "BertForMaskedLM", padded, **TEXT, attn_implementation="eager"),
    hf("DistilBERT", "DistilBertForSequenceClassification", padded, **TEXT, dim=8, hidden_dim=12, n_layers=2, n_heads=2),
    hf("RoBERTa", "RobertaForSequenceClassification", lambda: padded(1), **TEXT, pad_token_id=1),
    hf("ALBERT", "AlbertForSequenceClassification", padded, **TEXT, embedding_size=6),
    hf("ELECTRA", "ElectraForPreTraining", padded, **TEXT, embedding_size=6),
    hf("DeBERTa-v2", "DebertaV2ForTokenClassification", padded, **TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"],
       position_buckets=4, norm_rel_ebd="layer_norm", share_att_key=True),
    hf("ModernBERT", "ModernBertForSequenceClassification", padded, **CAUSAL | {"num_hidden_layers": 3}, local_attention=4, num_labels=3,
       cls_token_id=1, sep_token_id=2),
    hf("MPNet", "MPNetForSequenceClassification", lambda: padded(1), **TEXT),
    hf("SqueezeBERT", "SqueezeBertForSequenceClassification", padded, **TEXT, embedding_size=8, q_groups=2, k_groups=2, output_groups=2),
    hf("FNet", "FNetForSequenceClassification", text, **TEXT),
    hf("XLNet", "XLNetForTokenClassification", padded, **IDS, d_model=8, n_layer=2, n_head=2, d_inner=12, num_labels=2),
    hf("Longformer", "LongformerForTokenClassification", lambda: padded(1), **TEXT, attention_window=4, pad_token_id=1),
    hf("CANINE", "CanineForTokenClassification", padded, **TEXT, num_hash_functions=2, num_hash_buckets=12, downsampling_rate=2,
       local_transformer_stride=4, bos_token_id=1, eos_token_id=2),
]

DECODERS = [
    hf("GPT-2", "GPT2LMHeadModel", text, **GPT2),
    hf("GPT-2, classification", "GPT2ForSequenceClassification", padded, **GPT2, num_labels=3, attn_implementation="eager"),
    hf("GPT-J", "GPTJForCausalLM", text, **GPT2, rotary_dim=2),
    hf("GPT-NeoX", "GPTNeoXForCausalLM", text, **CAUSAL),
    hf("OPT", "OPTForCausalLM", padded, **CAUSAL, word_embed_proj_dim=6, ffn_dim=12),
    hf("BLOOM", "BloomForCausalLM", padded, **IDS, hidden_size=8, n_layer=2, n_head=2),
    hf("Falcon", "FalconForCausalLM", text, **CAUSAL, alibi=False),
    hf("Llama", "LlamaForCausalLM", padded, **GROUPED | {"num_attention_heads": 4, "num_key_value_heads": 2}),
    hf("Mistral", "MistralForCausalLM", text, **GROUPED, sliding_window=3),
    hf("Qwen2", "Qwen2ForCausalLM", lambda: padded(side="left"), **GROUPED, attn_implementation="eager"),
    hf("Qwen3", "Qwen3ForCausalLM", text, **GROUPED, head_dim=6),
    hf("Gemma", "GemmaForCausalLM", text, **GROUPED, head_dim=4),
    hf("Gemma 2", "Gemma2ForCausalLM", text, **GROUPED, head_dim=4, sliding_window=3, query_pre_attn_scalar=4, attn_implementation="eager"),
    hf("Gemma 3", "Gemma3ForCausalLM", text, **GROUPED, head_dim=4, sliding_window=3, query_pre_attn_scalar=4),
    hf("Phi", "PhiForCausalLM", text, **CAUSAL, qk_layernorm=True),
    hf("Mixtral", "MixtralForCausalLM", text, **GROUPED, num_local_experts=4, num_experts_per_tok=2, experts_implementation="eager"),
    hf("Qwen2-MoE", "Qwen2MoeForCausalLM", padded, **GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=6,
       shared_expert_intermediate_size=6, norm_topk_prob=True, experts_implementation="batched_mm"),
    hf("OLMoE", "OlmoeForCausalLM", text, **GROUPED, num_experts=4, num_experts_per_tok=2, experts_implementation="eager"),
    hf("DeepSeek-V3", "DeepseekV3ForCausalLM", text, **CAUSAL, num_key_value_heads=2, q_lora_rank=6, kv_lora_rank=4, qk_rope_head_dim=2,
       qk_nope_head_dim=4, v_head_dim=4, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=6,
       first_k_dense_replace=1, experts_implementation="eager"),
    hf("Mamba", "MambaForCausalLM", text, **IDS, hidden_size=8, state_size=4, num_hidden_layers=2, time_step_rank=2),
    hf("Mamba-2", "Mamba2ForCausalLM", text, **IDS, hidden_size=8, state_size=4, num_hidden_layers=2, num_heads=4, head_dim=4, n_groups=1,
       chunk_size=2),
    hf("RecurrentGemma", "RecurrentGemmaForCausalLM", text, **GROUPED, lru_width=8, attention_window_size=4,
       block_types=["recurrent", "attention"]),
    hf("LFM2", "Lfm2ForCausalLM", text, **GROUPED, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
]

ENCODER_DECODERS = [
    hf("T5", "T5ForConditionalGeneration", translation, **IDS, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2,
       relative_attention_num_buckets=6),
    hf("BART", "BartForConditionalGeneration", translation, **TWO_STACKS, max_position_embeddings=16),
    hf("Whisper", "WhisperForConditionalGeneration", lambda: {"input_features": randn(3, 5, 12), "decoder_input_ids": tokens(3, 4)},
       **TWO_STACKS, num_mel_bins=5, max_source_positions=6, max_target_positions=8),
]

VISION = [
    hf("ViT", "ViTForImageClassification", image(), **BLOCKS, **PATCHES),
    hf("DeiT", "DeiTForImageClassificationWithTeacher", image(), **BLOCKS, **PATCHES, attn_implementation="eager"),
    hf("BEiT", "BeitForImageClassification", image(), **BLOCKS, **PATCHES, use_relative_position_bias=True),
    hf("DINOv2", "Dinov2ForImageClassification", image(), **BLOCKS, **PATCHES, mlp_ratio=2, use_swiglu_ffn=True),
    hf("VideoMAE", "VideoMAEForVideoClassification", lambda: {"pixel_values": randn(3, 4, 3, 8, 8)}, **BLOCKS, **PATCHES, num_frames=4),
    hf("Swin", "SwinForImageClassification", image(16), image_size=16, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 2],
       window_size=4, mlp_ratio=2.0, num_labels=3),
    hf("ConvNeXt", "ConvNextForImageClassification", image(16), **STAGES, patch_size=2, num_stages=2),
    hf("ConvNeXt-v2", "ConvNextV2ForImageClassification", image(16), **STAGES, patch_size=2, num_stages=2),
    hf("MobileNetV2", "MobileNetV2ForImageClassification", image(32), depth_multiplier=0.05, min_depth=8, depth_divisible_by=8,
       expand_ratio=2, finegrained_output=False, num_labels=3),
    hf("ResNet", "ResNetForImageClassification", image(16), **STAGES, layer_type="basic"),
    hf("ResNet, bottleneck", "ResNetForImageClassification", image(16), **STAGES, layer_type="bottleneck"),
    hf("RegNet", "RegNetForImageClassification", image(16), **STAGES, groups_width=4, layer_type="y"),
    hf("EfficientNet", "EfficientNetForImageClassification", image(16), width_coefficient=0.25, depth_coefficient=1.0, hidden_dim=320,
       in_channels=[32, 32], out_channels=[32, 48], kernel_sizes=[3, 5], strides=[1, 2], num_block_repeats=[1, 2], expand_ratios=[1, 2],
       depthwise_padding=[], num_labels=3),
    hf("SegFormer", "SegformerForSemanticSegmentation", image(16), **PYRAMID, sr_ratios=[2, 1], num_attention_heads=[1, 2],
       mlp_ratios=[2, 2], decoder_hidden_size=8),
    hf("PoolFormer", "PoolFormerForImageClassification", image(16), **PYRAMID, padding=[1, 1], mlp_ratio=2.0),
    hf("MobileViT", "MobileViTForImageClassification", image(32), image_size=32, hidden_sizes=[8, 8, 8], output_stride=8, mlp_ratio=1.5,
       neck_hidden_sizes=[4, 4, 4, 8, 8, 8, 8], num_attention_heads=2, num_labels=3),
    hf("LeViT", "LevitForImageClassification", image(32), uncached, image_size=32, hidden_sizes=[8, 12], num_attention_heads=[2, 2],
       depths=[1, 1], key_dim=[4, 4], mlp_ratio=[2, 2], attention_ratio=[2, 2], num_labels=3,
       down_ops=[["Subsample", 4, 2, 4, 2, 2], [""]]),
]

SENSES = [
    hf("Wav2Vec2", "Wav2Vec2ForSequenceClassification", lambda: {"input_values": randn(3, 60)}, **BLOCKS, conv_dim=[6, 6],
       conv_kernel=[5, 3], conv_stride=[3, 2], num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
       classifier_proj_size=6, num_labels=3),
    hf("AST", "ASTForAudioClassification", lambda: {"input_values": randn(3, 12, 8)}, **BLOCKS, patch_size=4, num_mel_bins=8, max_length=12,
       frequency_stride=4, time_stride=4, num_labels=3),
    hf("CLIP", "CLIPModel", lambda: padded(2) | image()(), matching, projection_dim=6, text_config=CAUSAL, vision_config=BLOCKS | PATCHES),
    hf("PatchTST", "PatchTSTForPrediction", lambda: {"past_values": randn(3, 12, 2)}, forecast, num_input_channels=2, context_length=12,
       prediction_length=4, patch_length=4, patch_stride=4, d_model=8, num_hidden_layers=2, num_attention_heads=2, ffn_dim=12, loss="mse"),
]
# fmt: on


# ---------------------------------------------------------------------------------------------------------------------
# Plain PyTorch, as people write it
# ---------------------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """The mean state of a recurrent network."""

    def __init__(self, cell: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.rnn = cell(3, 5, batch_first=True, **settings)
        self.head = nn.Linear(10 if settings.get("bidirectional") else 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(1))


class Encoder(nn.Module):
    """nn.TransformerEncoder behind a batch-first interface, averaged over what is no padding."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.axis = 1 if settings.get("batch_first") else 0
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 12, **settings), 2, enable_nested_tensor=self.axis == 1
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.encoder(x.transpose(1, self.axis), src_key_padding_mask=mask).transpose(1, self.axis)
        x = x if mask is None else x.masked_fill(mask.unsqueeze(-1), 0)
        return self.head(x.mean(1))


class Attending(nn.Module):
    """nn.MultiheadAttention with a key padding mask, keys and values of their own width, and a learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(2, 8))
        self.attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, add_bias_kv=True, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        found, _ = self.attention(self.query.expand(len(x), -1, -1), x, x, key_padding_mask=mask)
        return self.head(self.norm(found).flatten(1))


class NanoGPT(nn.Module):
    """Position embeddings from ``arange``, pre-norm blocks with one packed projection, a tied head."""

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
            self.attention, self.out = (
                nn.Linear(width, 3 * width, bias=False),
                nn.Linear(width, width, bias=False),
            )
            self.mlp = nn.Sequential(
                nn.Linear(width, 2 * width, bias=False), nn.GELU(), nn.Linear(2 * width, width, bias=False)
            )

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in self.attention(self.ln_1(x)).chunk(3, -1)
            )
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).flatten(2))
            return x + self.mlp(self.ln_2(x))

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(8, width)
        self.blocks = nn.ModuleList(self.Block(width, 2) for _ in range(2))
        self.ln = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


class RawParameters(nn.Module):
    """Parameters without modules: a class token, positions, an einsum, ``@``, a scalar scale, a bias added by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 6, 4))
        self.heads = nn.Parameter(torch.randn(2, 4, 3) / 2)
        self.mix, self.bias, self.scale = (
            nn.Parameter(torch.randn(6, 5)),
            nn.Parameter(torch.randn(5)),
            nn.Parameter(torch.tensor(0.7)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        x = torch.einsum("ntd,hde->nhte", x, self.heads).tanh().transpose(1, 2).flatten(2)
        return self.scale * (x[:, 0] @ self.mix + self.bias).exp().log1p()


class Sharing(nn.Module):
    """One module under two names, one weight in two modules, and a linear weight used transposed as a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again = self.first
        self.second.weight = self.first.weight
        self.code = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.again(self.first(x).tanh()).tanh()).tanh()
        return F.linear(self.code(x).tanh(), self.code.weight.t())


class MixerBlock(nn.Module):
    def __init__(self, patches: int, channels: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.across = nn.Sequential(nn.Linear(patches, 6), nn.GELU(), nn.Linear(6, patches))
        self.within = nn.Sequential(nn.Linear(channels, 10), nn.GELU(), nn.Linear(10, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm_1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm_2(x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 2, stride=2)
        self.blocks = nn.Sequential(MixerBlock(16, 6), MixerBlock(16, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Patches(nn.Module):
    """A convolutional stem that ends in BatchNorm, read as tokens: torch 2.13 on a CPU differentiates it wrongly for one example alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 2, stride=2, bias=False), nn.BatchNorm2d(6))
        self.blocks = nn.Sequential(MixerBlock(9, 6), nn.LayerNorm(6), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down_1, self.down_2, self.up = conv_block(2, 4), conv_block(4, 6), conv_block(8, 4)
        self.upsample = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down_1(x)
        low = self.down_2(F.max_pool2d(high, 2))
        return self.head(self.up(torch.cat([self.upsample(low), high], 1)))


class DenseNet(nn.Module):
    """Norm before convolution, every layer reading the concatenation of all before it."""

    def __init__(self, growth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        widths = [4 + growth * i for i in range(3)]
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(w), nn.ReLU(inplace=True), nn.Conv2d(w, growth, 3, padding=1, bias=False)
            )
            for w in widths
        )
        self.norm, self.head = nn.BatchNorm2d(4 + 3 * growth), nn.Linear(4 + 3 * growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(
            F.adaptive_avg_pool2d(F.relu(self.norm(torch.cat(features, 1)), inplace=True), 1).flatten(1)
        )


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = conv_block(3, 6), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 2, 1), nn.SiLU(), nn.Conv2d(2, 6, 1), nn.Sigmoid()
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.conv(x))
        return self.head(x * self.gate(x))


class InPlaceResiduals(nn.Module):
    """``out += shortcut`` and ``relu_`` between convolutions, instance and group norms, a shortcut with its own convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv_1, self.conv_2 = (
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.Conv2d(6, 6, 3, padding=1),
        )
        self.norm_1, self.norm_2 = nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x))
        out = self.norm_2(self.conv_2(F.relu_(self.norm_1(self.conv_1(x)))))
        out += self.shortcut(x)
        return self.head(out.relu_().mean((2, 3)))


class Siamese(nn.Module):
    """One tower on two inputs, read by their difference and product."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 5)
        )
        self.head = nn.Linear(10, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.tower(left), self.tower(right)
        return self.head(torch.cat([(a - b).abs(), a * b], 1))


class DeepSets(nn.Module):
    """A set of points, folded into the batch for one network and pooled for the other; absent points are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5))
        self.set = nn.Sequential(nn.PReLU(), nn.Linear(5, 2))

    def forward(self, points: Tensor, present: Tensor) -> Tensor:
        each = self.point(points.flatten(0, 1)).unflatten(0, points.shape[:2])
        return self.set((each * present.unsqueeze(-1)).sum(1))


class GraphNet(nn.Module):
    """Two rounds of message passing on dense graphs, with an edge network on all pairs of nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.node, self.edge = nn.Linear(3, 4), nn.Sequential(nn.Linear(8, 4), nn.Tanh())
        self.update = nn.GRUCell(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        n, size, _ = nodes.shape
        h = self.node(nodes)
        for _ in range(2):
            pairs = torch.cat(
                [h.unsqueeze(2).expand(-1, -1, size, -1), h.unsqueeze(1).expand(-1, size, -1, -1)], -1
            )
            messages = (adjacency.unsqueeze(-1) * self.edge(pairs)).sum(2)
            h = self.update(messages.flatten(0, 1), h.flatten(0, 1)).unflatten(0, (n, size))
        return self.head(h.sum(1))


class Pair(nn.Module):
    """nn.Bilinear on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.join = nn.Linear(3, 4), nn.Linear(5, 4), nn.Bilinear(4, 4, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.join(self.left(left).tanh(), self.right(right).tanh())


class Bags(nn.Module):
    """nn.EmbeddingBag, weighted sums and maxima over the same bag."""

    def __init__(self) -> None:
        super().__init__()
        self.sum, self.max = (
            nn.EmbeddingBag(VOCABULARY, 4, mode="sum"),
            nn.EmbeddingBag(VOCABULARY, 4, mode="max", padding_idx=0),
        )
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        return self.head(
            torch.cat([self.sum(tokens, per_sample_weights=weights), self.max(tokens)], 1).tanh()
        )


class PartlyCompiled(nn.Module):
    """A compiled block between two ordinary layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.compiler.reset()
        self.stem = nn.Linear(4, 6)
        self.block = torch.compile(
            nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)), backend="eager"
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.block(x))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3))


def compiled() -> nn.Module:
    torch.compiler.reset()
    return torch.compile(mlp(), backend="eager")


def compiled_in_place() -> nn.Module:
    torch.compiler.reset()
    model = mlp()
    model.compile(backend="eager")
    return model


def peft(name: str, kind: str, base: Architecture, task: str, **settings: Any) -> Architecture:
    """An adapter on a frozen base."""

    def build() -> nn.Module:
        library = importlib.import_module("peft")
        with warnings.catch_warnings(action="ignore"):
            return library.get_peft_model(base.build(), getattr(library, kind)(task_type=task, **settings))

    return Architecture(name, build, base.batch, widen=True)


def masked(length: int = 5, width: int = 4) -> dict[str, Tensor]:
    return {"x": randn(3, length, width), "mask": torch.arange(length) >= torch.tensor([[5], [3], [4]])}


def decoder() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(4, 24), nn.ReLU(), nn.Unflatten(1, (6, 2, 2))),
        *(nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(nn.ConvTranspose2d(4, 1, 3, stride=2, padding=1, output_padding=1), nn.Tanh()),
    )


def normalized(
    conv: Callable[[nn.Module], nn.Module], linear: Callable[[nn.Module], nn.Module]
) -> Callable[[], nn.Module]:
    """A convolution and a linear layer with reparametrized weights."""

    def build() -> nn.Module:
        with warnings.catch_warnings(action="ignore"):  # nn.utils.weight_norm is deprecated and in use
            return nn.Sequential(
                conv(nn.Conv1d(2, 4, 3)), nn.LeakyReLU(0.2), nn.Flatten(), linear(nn.Linear(16, 3))
            )

    return build


def orthogonal_layers() -> nn.Module:
    return nn.Sequential(
        orthogonal(nn.Linear(4, 4)), nn.Tanh(), orthogonal(nn.Linear(4, 3), "weight", "householder")
    )


BERT, GPT_2, LLAMA = (
    next(a for a in (*ENCODERS, *DECODERS) if a.name == name) for name in ("BERT", "GPT-2", "Llama")
)
WEIGHT_NORMS = normalized(weight_norm, weight_norm)
OLD_WEIGHT_NORMS = normalized(nn.utils.weight_norm, lambda linear: nn.utils.weight_norm(linear, dim=None))
SPECTRAL_NORMS = normalized(spectral_norm, spectral_norm)

PLAIN = [
    Architecture("TransformerEncoder", lambda: Encoder(batch_first=True), lambda: {"x": randn(3, 5, 8)}),
    Architecture(
        "TransformerEncoder, time first",
        lambda: Encoder(norm_first=True, activation="gelu"),
        lambda: {"x": randn(3, 5, 8)},
    ),
    Architecture("TransformerEncoder, padded", lambda: Encoder(batch_first=True), lambda: masked(5, 8)),
    Architecture("MultiheadAttention", Attending, masked),
    Architecture("nanoGPT", NanoGPT, tokens),
    Architecture("LSTM", lambda: Recurrent(nn.LSTM, num_layers=2), lambda: randn(4, 6, 3)),
    Architecture("GRU, bidirectional", lambda: Recurrent(nn.GRU, bidirectional=True), lambda: randn(4, 6, 3)),
    Architecture("decoder", decoder, lambda: randn(3, 4)),
    Architecture("weight norm", WEIGHT_NORMS, lambda: randn(4, 2, 6)),
    Architecture("weight norm, old", OLD_WEIGHT_NORMS, lambda: randn(4, 2, 6)),
    Architecture("spectral norm", SPECTRAL_NORMS, lambda: randn(4, 2, 6)),
    Architecture("orthogonal", orthogonal_layers, lambda: randn(4, 4)),
    Architecture("raw parameters", RawParameters, lambda: randn(3, 5, 4)),
    Architecture("sharing", Sharing, lambda: randn(4, 4)),
    Architecture("Mixer", Mixer, lambda: randn(3, 3, 8, 8)),
    Architecture("patches after BatchNorm", Patches, lambda: randn(3, 3, 6, 6)),
    Architecture("U-Net", UNet, lambda: randn(3, 2, 6, 6)),
    Architecture("DenseNet", DenseNet, lambda: randn(3, 3, 6, 6)),
    Architecture("squeeze and excitation", SqueezeExcite, lambda: randn(3, 3, 6, 6)),
    Architecture("in-place residuals", InPlaceResiduals, lambda: randn(3, 3, 9, 9)),
    Architecture(
        "Siamese",
        Siamese,
        lambda: (randn(3, 2, 6), randn(3, 2, 6, seed=1)),
        lambda model, batch: model(*batch),
    ),
    Architecture(
        "deep sets", DeepSets, lambda: {"points": randn(3, 5, 3), "present": (~masked()["mask"]).double()}
    ),
    Architecture(
        "graph network",
        GraphNet,
        lambda: {"nodes": randn(3, 4, 3), "adjacency": (randn(3, 4, 4, seed=1) > 0).double()},
    ),
    Architecture("bilinear", Pair, lambda: {"left": randn(4, 3), "right": randn(4, 5, seed=1)}),
    Architecture("embedding bags", Bags, lambda: {"tokens": tokens(), "weights": randn(3, 5)}),
    Architecture("compiled", compiled, lambda: randn(4, 4)),
    Architecture("compiled in place", compiled_in_place, lambda: randn(4, 4)),
    Architecture("compiled in part", PartlyCompiled, lambda: randn(4, 4)),
    peft("LoRA on BERT", "LoraConfig", BERT, "SEQ_CLS", r=2, target_modules=["query", "value"]),
    peft(
        "LoRA on GPT-2", "LoraConfig", GPT_2, "CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True
    ),
    peft("DoRA on BERT", "LoraConfig", BERT, "SEQ_CLS", r=2, target_modules=["dense"], use_dora=True),
    peft("prompt tuning on Llama", "PromptTuningConfig", LLAMA, "CAUSAL_LM", num_virtual_tokens=2),
]

ZOO: list[Architecture] = [*ENCODERS, *DECODERS, *ENCODER_DECODERS, *VISION, *SENSES, *PLAIN]
