# SPDX-License-Identifier: Apache-2.0
"""Every number of the training in one place: the network, the data, the losses, the steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from g2vlm_ros.checkpoint.config import ModelConfig

STAGES = ("geometry", "naming", "language")
"""Points and poses; the semantic encoder and its words; answers, which train that encoder on."""


@dataclass(frozen=True)
class Sizes:
    """The network. Its decoders are smaller than the released 5 blocks of 16 heads."""

    hidden: int = 192
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 448
    vocabulary: int = 640
    dino_layers: int = 2
    dino_heads: int = 3
    registers: int = 4
    table_side: int = 16
    vit_width: int = 128
    vit_layers: int = 2
    vit_heads: int = 4
    decoder_blocks: int = 1
    decoder_heads: int = 4
    point_channels: int = 256
    camera_channels: int = 128

    def text(self) -> dict:
        """text_config.json."""
        third = self.hidden // self.heads // 2 // 3
        sections = [self.hidden // self.heads // 2 - 2 * third, third, third]
        return {
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "model_type": "qwen2_vl",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_theta": 100.0,
            "rope_scaling": {"type": "mrope", "mrope_section": sections},
            "tie_word_embeddings": False,
        }

    def vit(self) -> dict:
        """vit_config.json."""
        return {
            "model_type": "qwen2_vl",
            "depth": self.vit_layers,
            "embed_dim": self.vit_width,
            "hidden_size": self.hidden,
            "hidden_act": "quick_gelu",
            "mlp_ratio": 4,
            "num_heads": self.vit_heads,
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        }

    def dino(self) -> dict:
        """dino_config.json; the windows are aligned, as the architecture intends."""
        return {
            "model_type": "dinov2_with_registers",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.dino_layers,
            "num_attention_heads": self.dino_heads,
            "mlp_ratio": 4,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "image_size": 14 * self.table_side,
            "patch_size": 14,
            "num_channels": 3,
            "qkv_bias": True,
            "layerscale_value": 1.0,
            "use_swiglu_ffn": False,
            "num_register_tokens": self.registers,
            "attention_windows": "aligned",
        }

    def decoder(self) -> dict:
        """decoder_config.json."""
        return {
            "blocks": self.decoder_blocks,
            "heads": self.decoder_heads,
            "point_channels": self.point_channels,
            "camera_channels": self.camera_channels,
        }

    def model(self) -> ModelConfig:
        """The same for the network."""
        return ModelConfig.from_dicts(self.text(), self.vit(), self.dino(), self.decoder())


@dataclass(frozen=True)
class Data:
    """What is rendered and how windows are cut from it."""

    width_px: int = 224
    height_px: int = 168
    semantic_px: int = 168
    """Side of the square image for the semantic encoder."""
    views_per_scene: int = 8
    views: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    views_weights: tuple[float, ...] = (0.15, 0.15, 0.35, 0.1, 0.15, 0.1)
    pairs_first: int = 40_000
    """So many windows of two views come first: only one other view to compare with."""
    first_shard: int = 0
    """Number of the first shard that is drawn; a training that goes on begins behind those that
    earlier ones drew, so that its homes are new."""
    shards_first: int = 24
    """Shards of 32 scenes that are there before the first step."""
    shards_kept: int = 100
    """Shards in memory; new ones replace the oldest."""
    windows_per_scene: int = 24
    """A new shard comes in after 32 times as many windows."""
    questions: int = 16
    """Per window."""
    harder: tuple[str, ...] = ("nearest", "count", "distance", "size", "colour", "fits", "absent")
    """Kinds of questions that are asked two to three times as often as the others."""
    nearest_weight: float = 3.0
    """When questions are drawn, of what is nearest, which can be asked in few ways."""
    tolerant_lengths: bool = True
    """Of a distance or a size any tenth is taught that counts as right: then the likeliest answer
    is the one that is right most often, not the one most often true to the tenth."""
    tokens: int = 40
    """Longest question with its answer."""


@dataclass(frozen=True)
class Loss:
    """Weights of the losses."""

    points: float = 1.0
    metric: float = 0.5
    rays: float = 0.5
    normals: float = 0.3
    slopes: float = 0.5
    rotation: float = 1.5
    translation: float = 0.8
    matching: float = 0.2
    places: float = 1.0
    language: float = 3.0
    naming: float = 0.3
    looking: float = 0.3
    whereabouts: float = 0.3
    object_weight: float = 3.0
    """Pixels on things and at depth edges count this much more."""
    pixels: float = 0.5
    """Share of the pixels that each step draws for the point loss."""


@dataclass(frozen=True)
class Steps:
    """Optimisation."""

    batch_views: int = 32
    """Views per step: windows times views per window."""
    asking_views: int = 16
    """The same where questions are asked, many of each window."""
    muon_rate: float = 0.0027
    adam_rate: float = 0.00054
    semantic_factor: float = 2.0
    """On both rates for the semantic expert, which starts from nothing."""
    weight_decay: float = 0.01
    warmup: int = 50
    lead_in: int = 150
    """Steps of a stage, after an exported checkpoint, until the training's heads count in full."""
    anneal: float = 0.9
    """Last part of a stage in which the rates fall linearly to zero."""
    clip: float = 1.0
    keep_geometry: bool = False
    """Answers are learnt only in ways that leave points and poses as they are (`GeometryHold`)."""
    save_s: float = 120.0
    seed: int = 1


@dataclass(frozen=True)
class Config:
    """All of it."""

    sizes: Sizes = field(default_factory=Sizes)
    data: Data = field(default_factory=Data)
    loss: Loss = field(default_factory=Loss)
    steps: Steps = field(default_factory=Steps)

    def record(self) -> dict:
        """For the checkpoint and the model card."""
        return asdict(self)
