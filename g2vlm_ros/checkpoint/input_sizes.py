# SPDX-License-Identifier: Apache-2.0
"""The image sizes that a checkpoint was trained on, from `input_sizes.json` beside its weights.

    {"image_width_px": 224, "semantic_width_px": 168}

A network answers nonsense at sizes far from those of its training, so they travel with the
weights. The released weights have no such file: they take any size, and run at the ones they were
published with.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from g2vlm_ros.checkpoint.config import PATCH_PX, ConfigError

FILE = "input_sizes.json"
MAX_PX = 2072
"""As the settings' bound."""


@dataclass(frozen=True)
class InputSizes:
    """Pixels of the views and of the squares for questions; the defaults are the released ones."""

    image_width_px: int = 518
    """Width of a view, a multiple of 14."""
    semantic_width_px: int = 768
    """Side of the square that the semantic encoder gets; rounded to 28 there."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or not 2 * PATCH_PX <= value <= MAX_PX:
                raise ConfigError(
                    f"{FILE} has {name} {value!r}; it must be a whole number from "
                    f"{2 * PATCH_PX} to {MAX_PX}"
                )
        if self.image_width_px % PATCH_PX:
            raise ConfigError(
                f"{FILE} has image_width_px {self.image_width_px}; it must be a multiple of "
                f"{PATCH_PX}"
            )

    @classmethod
    def read(cls, folder: str | Path) -> InputSizes | None:
        """What the folder says; None where it has no such file. Raises ConfigError."""
        path = Path(folder) / FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as JSON ({error}); copy it again") from error
        names = set(cls.__dataclass_fields__)
        if not isinstance(values, dict) or set(values) != names:
            raise ConfigError(f"{path} must be a JSON object of {', '.join(sorted(names))}")
        return cls(**values)

    def write(self, folder: str | Path) -> None:
        """Into a checkpoint folder."""
        (Path(folder) / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n")
