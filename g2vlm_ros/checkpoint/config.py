# SPDX-License-Identifier: Apache-2.0
"""The sizes of a checkpoint, read from the JSON files beside its weights and checked.

The files are those of the released model: `text_config.json`, `vit_config.json`,
`dino_config.json`. Hugging Face leaves keys out that equal its class default, so such keys have
that default here; every other key must be present. The optional `decoder_config.json` changes the
geometric decoders, whose sizes are fixed in the released code. As in the released loader, the
word embedding is never tied to the output matrix, queries and keys are always normalised, and
patches are always 14 pixels, whatever the files say.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

PATCH_PX = 14
RELEASED_MROPE_SECTION = (16, 24, 24)
DINO_WINDOWS = ("released", "aligned")
MAX_SIZE = 1_000_000
"""No size or number comes near it; the largest one released is a vocabulary of 150 000 words."""
MAX_FACTOR = 1e9
"""Of a ratio or a base; the largest in use, bases of rotary angles, are some 1e6."""
MAX_LAYERS = 1000
"""Of one stack; the released ones have up to 32."""


class ConfigError(ValueError):
    """A configuration file is missing, malformed or describes a network that we do not build."""


@dataclass(frozen=True)
class TextConfig:
    """The mixture-of-transformers trunk."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    mlp_size: int
    vocab_size: int
    rms_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    """How many rotary angles follow the temporal, height and width position."""
    speaks: bool = True
    """False where the geometry was trained and the language not (yet): `language_trained`."""
    can_point: bool = True
    """False where the language never learned to tell pixels: `language_points`."""

    def __post_init__(self) -> None:
        _check_heads("text_config.json", self.hidden_size, self.heads, divisor=2)
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"text_config.json has {self.heads} query heads for {self.kv_heads} key/value "
                "heads; the first must be a multiple of the second"
            )
        if sum(self.mrope_section) * 2 != self.head_dim or len(self.mrope_section) != 3:
            raise ConfigError(
                f"text_config.json has mrope_section {list(self.mrope_section)}; it must be three "
                f"numbers that add up to half the head size, {self.head_dim // 2}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads


@dataclass(frozen=True)
class VisionConfig:
    """The semantic encoder, the vision tower of Qwen2-VL."""

    embed_dim: int
    depth: int
    heads: int
    mlp_size: int
    merge: int
    """Side of the square of patches that becomes one token."""
    frames: int
    """Temporal patch size: a still image is repeated that often."""

    def __post_init__(self) -> None:
        _check_heads("vit_config.json", self.embed_dim, self.heads, divisor=4)


@dataclass(frozen=True)
class DinoConfig:
    """The geometric encoder, DINOv2 with registers."""

    hidden_size: int
    layers: int
    heads: int
    mlp_size: int
    registers: int
    table_side: int
    """Side of the square table of learned positions, in patches."""
    eps: float
    windows: str
    """`released` or `aligned`, see `model.encoders.DinoEncoder`."""

    def __post_init__(self) -> None:
        _check_heads("dino_config.json", self.hidden_size, self.heads, divisor=1)
        if self.windows not in DINO_WINDOWS:
            raise ConfigError(
                f"attention_windows is {self.windows!r}; it must be one of {DINO_WINDOWS}"
            )


@dataclass(frozen=True)
class DecoderConfig:
    """The geometric decoders: as wide as the trunk, sizes of the released code by default."""

    blocks: int = 5
    heads: int = 16
    point_channels: int = 1024
    camera_channels: int = 512


@dataclass(frozen=True)
class ModelConfig:
    """All sizes of one checkpoint."""

    text: TextConfig
    vision: VisionConfig
    dino: DinoConfig
    decoder: DecoderConfig

    def __post_init__(self) -> None:
        _check_heads("the decoders", self.text.hidden_size, self.decoder.heads, divisor=4)

    @staticmethod
    def read(folder: str | Path) -> ModelConfig:
        """Reads the JSON files of a checkpoint folder; raises ConfigError."""
        folder = Path(folder)
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder; give the folder of a checkpoint")
        decoder = folder / "decoder_config.json"
        return ModelConfig.from_dicts(
            _read_json(folder / "text_config.json"),
            _read_json(folder / "vit_config.json"),
            _read_json(folder / "dino_config.json"),
            _read_json(decoder) if decoder.exists() else None,
        )

    @staticmethod
    def from_dicts(text: dict, vit: dict, dino: dict, decoder: dict | None = None) -> ModelConfig:
        """The same from the contents of the files."""
        text_config = _text_config(_Keys("text_config.json", text))
        return ModelConfig(
            text_config,
            _vision_config(_Keys("vit_config.json", vit), text_config.hidden_size),
            _dino_config(_Keys("dino_config.json", dino)),
            _decoder_config(_Keys("decoder_config.json", decoder or {})),
        )


def _text_config(keys: _Keys) -> TextConfig:
    keys.expect_family("qwen2_vl")
    keys.expect("hidden_act", "silu")
    heads = keys.count("num_attention_heads")
    hidden_size = keys.count("hidden_size")
    scaling = keys.values.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise ConfigError(f"text_config.json: rope_scaling is {scaling!r}; it must be an object")
    # The released code uses 16/24/24 and never reads the file (quirk Q3), so absent means that.
    section = scaling.get("mrope_section", RELEASED_MROPE_SECTION)
    if not isinstance(section, (list, tuple)) or not all(isinstance(n, int) for n in section):
        raise ConfigError(f"text_config.json has mrope_section {section!r}; give three integers")
    return TextConfig(
        hidden_size=hidden_size,
        layers=keys.count("num_hidden_layers", most=MAX_LAYERS),
        heads=heads,
        kv_heads=keys.count("num_key_value_heads"),
        mlp_size=keys.count("intermediate_size"),
        vocab_size=keys.count("vocab_size"),
        rms_eps=keys.positive("rms_norm_eps", 1e-5),
        rope_theta=keys.positive("rope_theta", 1e6),
        mrope_section=tuple(section),
        speaks=keys.flag("language_trained"),
        can_point=keys.flag("language_points"),
    )


def _vision_config(keys: _Keys, hidden_size: int) -> VisionConfig:
    keys.expect_family("qwen2_vl")
    keys.expect("hidden_act", "quick_gelu")
    keys.expect("hidden_size", hidden_size)
    embed_dim = keys.count("embed_dim", 1280)
    return VisionConfig(
        embed_dim=embed_dim,
        depth=keys.count("depth", 32, most=MAX_LAYERS),
        heads=keys.count("num_heads", 16),
        mlp_size=keys.product("mlp_ratio", 4, embed_dim),
        merge=keys.count("spatial_merge_size", 2),
        frames=keys.count("temporal_patch_size", 2),
    )


def _dino_config(keys: _Keys) -> DinoConfig:
    keys.expect_family("dinov2_with_registers")
    keys.expect("hidden_act", "gelu")
    keys.expect("patch_size", PATCH_PX)
    keys.expect("use_swiglu_ffn", False)
    hidden_size = keys.count("hidden_size")
    return DinoConfig(
        hidden_size=hidden_size,
        layers=keys.count("num_hidden_layers", most=MAX_LAYERS),
        heads=keys.count("num_attention_heads"),
        mlp_size=keys.product("mlp_ratio", 4, hidden_size),
        registers=keys.count("num_register_tokens", 4),
        table_side=keys.count("image_size") // PATCH_PX,
        eps=keys.positive("layer_norm_eps", 1e-6),
        windows=keys.values.get("attention_windows", "released"),
    )


def _decoder_config(keys: _Keys) -> DecoderConfig:
    released = DecoderConfig()
    return DecoderConfig(
        blocks=keys.count("blocks", released.blocks, most=MAX_LAYERS),
        heads=keys.count("heads", released.heads),
        point_channels=keys.count("point_channels", released.point_channels),
        camera_channels=keys.count("camera_channels", released.camera_channels),
    )


@dataclass(frozen=True)
class _Keys:
    """One JSON file, read key by key with the file and key named in every error."""

    file: str
    values: dict

    def count(self, key: str, default: int | None = None, most: int = MAX_SIZE) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ConfigError(
                f"{self.file}: {key} is {value!r}; it must be an integer above 0, at most {most}"
            )
        return value

    def product(self, key: str, default: float, size: int) -> int:
        """A size that the file gives as a multiple of another one."""
        value = int(size * self.positive(key, default))
        if not 1 <= value <= MAX_SIZE:
            raise ConfigError(
                f"{self.file}: {key} makes a size of {value}; it must be from 1 to {MAX_SIZE}"
            )
        return value

    def flag(self, key: str) -> bool:
        """True where the key is left out."""
        value = self.values.get(key, True)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.file}: {key} is {value!r}; it must be true or false")
        return value

    def positive(self, key: str, default: float) -> float:
        value = self._get(key, default)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value <= MAX_FACTOR:
            raise ConfigError(
                f"{self.file}: {key} is {value!r}; it must be a number above 0, at most "
                f"{MAX_FACTOR:g}"
            )
        return float(value)

    def expect(self, key: str, only: object) -> None:
        """Refuses any other value than the one that the network is built for."""
        value = self.values.get(key, only)
        if value != only:
            raise ConfigError(f"{self.file}: {key} is {value!r}; only {only!r} is supported")

    def expect_family(self, family: str) -> None:
        """Refuses other architectures; library versions append words such as `_text`."""
        model_type = self.values.get("model_type", family)
        if not str(model_type).startswith(family):
            raise ConfigError(
                f"{self.file}: model_type is {model_type!r}; only {family!r} is supported"
            )

    def _get(self, key: str, default: object) -> object:
        value = self.values.get(key, default)
        if value is None:
            raise ConfigError(f"{self.file} has no key {key}; take the file of a G2VLM checkpoint")
        return value


def _check_heads(where: str, size: int, heads: int, divisor: int) -> None:
    if size % heads or size // heads % divisor:
        raise ConfigError(
            f"{where}: width {size} over {heads} heads; the width of a head must be a whole "
            f"multiple of {divisor}"
        )


def _read_json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path.name} is missing in {path.parent}; give the folder of a G2VLM checkpoint"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}); copy it again") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; it must be a JSON object")
    return values
