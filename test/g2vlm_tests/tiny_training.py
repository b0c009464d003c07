# SPDX-License-Identifier: Apache-2.0
"""A training that is tiny in every direction, so that tests of it take seconds."""

from __future__ import annotations

from dataclasses import replace

from g2vlm_ros.demo.train.config import Config, Data, Loss, Sizes, Steps  # noqa: E402

TINY = Config(
    sizes=Sizes(
        hidden=64,
        layers=2,
        heads=4,
        kv_heads=2,
        mlp=128,
        dino_layers=1,
        dino_heads=2,
        registers=1,
        table_side=4,
        vit_width=32,
        vit_layers=1,
        vit_heads=2,
        point_channels=128,
        camera_channels=64,
    ),
    data=Data(
        width_px=56,
        height_px=42,
        semantic_px=56,
        views_per_scene=3,
        views=(2,),
        pairs_first=0,
        views_weights=(1.0,),
        shards_first=1,
        shards_kept=1,
        windows_per_scene=100_000,
        questions=4,
    ),
    loss=Loss(),
    steps=replace(Steps(), batch_views=8, warmup=5, save_s=1e9),
)
