# SPDX-License-Identifier: Apache-2.0
"""What is held of a window for questions about it is bounded, whichever views they are about."""

from __future__ import annotations

from types import SimpleNamespace

from g2vlm_ros.query import context


class DrawnSelection:
    """A selection that holds as many scenes as it may, each with a cache."""

    def __init__(self, update, views):
        self.views = views

    def drawn_scenes(self):
        return [scene() for _ in range(context.MAX_MARKED_SCENES)]


def scene():
    return SimpleNamespace(prefix=SimpleNamespace(length=10))


def window(views):
    return SimpleNamespace(
        window=SimpleNamespace(frames=(None,) * views), scene=scene(), still=False
    )


def test_questions_about_ever_other_cameras_hold_no_more(monkeypatch):
    monkeypatch.setattr(context, "ViewSelection", DrawnSelection)
    store = context.ContextStore(max_windows=2, max_dialogues=1)
    for _ in range(3):
        asked = store.remember(window(views=6))
        selection = asked.select()
        for views in range(1, 2**6 - 1):
            asked.select([view for view in range(6) if views >> view & 1])
            assert asked.select() is selection, "what is asked about most stays"
    sizes = store.sizes()
    assert sizes.windows == 2
    assert sizes.caches == 2 * context.MAX_SCENES < sizes.max_caches == 3 * context.MAX_SCENES
    assert sizes.cache_tokens == 10 * sizes.caches
