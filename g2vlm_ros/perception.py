# SPDX-License-Identifier: Apache-2.0
"""The one door: views in, geometry and answers out. Usable without ROS.

    perception = Perception.open(Settings.from_flat({"model.checkpoint": "CHECKPOINT"}))
    scene = perception.scene(images)                     # encoded once, shared by all that follows
    result = perception.reconstruct(scene)
    answer = perception.ask(scene, "How far is the chair?")
    again = perception.ask(scene, "And the table?", history=[("How far ...?", answer.text)])

From a shell: ``python -m g2vlm_ros FOLDER_OR_VIDEO --checkpoint DIR --question "..."``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import numpy as np

from g2vlm_ros.checkpoint.folder_permissions import permission_warning
from g2vlm_ros.checkpoint.input_sizes import InputSizes
from g2vlm_ros.checkpoint.prompt_layout import (
    Segment,
    Turn,
    dialogue_segments,
    reconstruction_segments,
)
from g2vlm_ros.checkpoint.tokenizer import Tokenizer
from g2vlm_ros.geometry.camera import intrinsics_of_views
from g2vlm_ros.geometry.confidence import multi_view_confidence
from g2vlm_ros.images.preprocessing import PATCH_PX, resize_views, semantic_image
from g2vlm_ros.inference.backend import Backend, Cache, Features, open_backend
from g2vlm_ros.inference.tensorrt.engine_metadata import default_cache
from g2vlm_ros.records import Answer, Intrinsics, RawGeometry, Reconstruction
from g2vlm_ros.settings import ModelSettings, SettingError, Settings

History = Sequence[tuple[str, str]]
"""Questions and answers of earlier turns about the same views."""


@dataclass(eq=False)
class Scene:
    """The views of one window inside the model; what was computed for them is kept here."""

    images: tuple[np.ndarray, ...]
    """uint8 (h, w, 3) RGB camera images, sizes may differ."""
    views: np.ndarray
    """uint8 (N, H, W, 3): the images at model size (that of the first one)."""
    features: Features | None = None
    prefix: Cache | None = None
    """Key/value cache of the dialogue up to the end of the images."""
    prefix_key: tuple = ()
    """Which in-context examples the prefix holds."""

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Patches per view: rows, columns."""
        return self.views.shape[1] // PATCH_PX, self.views.shape[2] // PATCH_PX


@dataclass(frozen=True)
class Example:
    """An in-context example: a scene with a question and the answer that was right."""

    scene: Scene
    question: str
    answer: str


@dataclass
class StageTimer:
    """Seconds per stage of the work, in the order of the stages."""

    times_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds what the block took; one that fails counts for nothing."""
        start = time.perf_counter()
        yield
        time_s = time.perf_counter() - start
        self.times_s[stage] = self.times_s.get(stage, 0.0) + time_s


class Perception:
    """A loaded checkpoint. One thread at a time: the device belongs to its caller."""

    def __init__(self, stages: Backend, tokenizer: Tokenizer, settings: Settings):
        self._stages = stages
        self._tokenizer = tokenizer
        settings = with_input_sizes(settings)
        self._model = settings.model
        self._query = settings.query
        self._reconstruction_prefix: Cache | None = None
        self._segments = lru_cache(maxsize=4)(partial(reconstruction_segments, tokenizer))
        self._resized: list[
            tuple[np.ndarray, np.ndarray]
        ] = []  # images and views of the last scene
        self.warnings: tuple[str, ...] = ()
        """What a person should know about these settings with this checkpoint, in sentences."""

    @classmethod
    def open(cls, settings: Settings) -> Perception:
        """Load what `settings.model` names. ValueError says what is missing or does not fit.

        Image sizes that the settings leave open are the checkpoint's.
        """
        model = settings.model
        if not model.checkpoint:
            raise SettingError(
                "model.checkpoint is empty; set it to the folder of a G2VLM checkpoint"
            )
        stages = open_backend(
            model.backend,
            model.checkpoint,
            model.engines,
            threads=model.threads,
            cuda_graphs=model.cuda_graphs,
            fused_kernels=model.fused_kernels,
            device=model.device,
            dtype=model.dtype,
            dino_windows=None if model.dino_windows == "auto" else model.dino_windows,
            **_server_options(model),
        )
        perception = cls(stages, Tokenizer.open(model.checkpoint), settings)
        perception.warnings = (*untrained_sizes(settings), *open_folders(settings))
        return perception

    @property
    def backend(self) -> str:
        """What runs the network, e.g. "torch cpu float32"."""
        return self._stages.backend

    @property
    def speaks(self) -> bool:
        """Whether the checkpoint's language is trained; if not, `ask` answers nonsense."""
        return self._stages.config.text.speaks

    @property
    def can_point(self) -> bool:
        """Whether the checkpoint can say where in its images a thing is."""
        return self._stages.config.text.can_point

    @property
    def chosen_because(self) -> str:
        """Why this backend, one sentence for the log."""
        return self._stages.chosen_because

    def scene(self, images: Sequence[np.ndarray]) -> Scene:
        """Views of one window: uint8 (h, w, 3) RGB each, the first one fixes the model's size.

        An image that is the same object as one of the scene before is not resized again.
        """
        earlier = {id(image): view for image, view in self._resized}
        views = resize_views(
            images,
            self._model.image_width_px,
            self._model.resample,
            [earlier.get(id(image)) for image in images],
        )
        # The images are held with their views, so that no other one can get their id.
        self._resized = list(zip(images, views, strict=True))
        return Scene(tuple(images), views)

    def reconstruct(self, scene: Scene | Sequence[np.ndarray]) -> Reconstruction:
        """Points, poses, confidence and intrinsics of the views, in the model's unit and frame.

        Raises NonFiniteError naming the stage that produced NaN or infinity.
        """
        scene = scene if isinstance(scene, Scene) else self.scene(scene)
        clock = StageTimer()
        text, views = self._segments(len(scene.views), scene.grid_hw)
        if self._reconstruction_prefix is None:
            self._reconstruction_prefix = self._stages.new_cache()
            self._stages.language(text, self._reconstruction_prefix)
        self._encode(scene, clock)
        with clock.measure("geometry"):
            cache = self._reconstruction_prefix.fork()
            hidden = self._stages.geometry(scene.features, views, cache)
        with clock.measure("heads"):
            raw = self._stages.heads(hidden, scene.grid_hw)
        with clock.measure("confidence"):
            intrinsics = intrinsics_of_views(raw.local_points_u)
            confidence = _confidence(raw, intrinsics)
        return Reconstruction(
            raw,
            scene.views,
            confidence,
            intrinsics,
            {stage: self._stages.times_s.get(stage, s) for stage, s in clock.times_s.items()},
            self._stages.describe(scene.features),
        )

    def ask(
        self,
        scene: Scene | Sequence[np.ndarray],
        question: str,
        *,
        history: History = (),
        examples: Sequence[Example] = (),
        max_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Answer a question about the views by greedy decoding.

        The views' features and their key/value cache are computed once per scene; later questions
        and turns pay for their own text only. `should_stop` is asked before every token, `on_text`
        gets the text so far. Raises NonFiniteError naming the stage.
        """
        if not question.strip():
            raise ValueError("the question is empty; ask something about the views")
        scene = scene if isinstance(scene, Scene) else self.scene(scene)
        if len(scene.views) > self._query.max_views:
            logging.getLogger(__name__).warning(
                "a question about %d views; answers degrade above query.max_views = %d",
                len(scene.views),
                self._query.max_views,
            )
        clock = StageTimer()
        segments = self.prompt(scene, question, history, examples)
        *prefix, text = segments
        computed = text.length
        key = tuple((id(e.scene), e.question, e.answer) for e in examples)
        if scene.prefix is None or scene.prefix_key != key:
            scenes = [e.scene for e in examples] + [scene]
            scene.prefix = self._prefill(prefix, scenes, clock)
            scene.prefix_key = key
            computed += scene.prefix.length
        cache = scene.prefix.fork()
        with clock.measure("prefill"):
            self._stages.language(text, cache)
        limit = max_tokens or self._query.max_tokens
        with clock.measure("decode"):
            ids, finished = self._decode(cache, text.next_position, limit, on_text, should_stop)
        answer = self._tokenizer.decode(ids)
        return Answer(answer, tuple(ids), finished, clock.times_s, computed)

    def _encode(self, scene: Scene, clock: StageTimer) -> None:
        if scene.features is None:
            with clock.measure("encode_geometry"):
                scene.features = self._stages.encode_geometry(scene.views)

    def prompt(
        self,
        scene: Scene,
        question: str,
        history: History = (),
        examples: Sequence[Example] = (),
    ) -> list[Segment]:
        """Segments of examples, then this scene's images with the first turn, then the rest."""
        turns = [self._turn(e.scene, e.question, e.answer) for e in examples]
        exchanges = [*history, (question, None)]
        turns.append(self._turn(scene, *exchanges[0]))
        turns += [Turn(text, answered) for text, answered in exchanges[1:]]
        return dialogue_segments(self._tokenizer, turns)

    def _turn(self, scene: Scene, question: str, answer: str | None) -> Turn:
        side = semantic_image(scene.images[0], self._query.semantic_width_px).shape[0]
        merged = side // (2 * PATCH_PX)
        return Turn(question, answer, len(scene.views), scene.grid_hw, (merged, merged))

    def _prefill(
        self, segments: Sequence[Segment], scenes: Sequence[Scene], clock: StageTimer
    ) -> Cache:
        """A cache that holds the dialogue up to the end of the last scene's images."""
        cache = self._stages.new_cache()
        pending = iter(scenes)
        images: Iterator[np.ndarray] = iter(())
        for segment in segments:
            if segment.kind == "geometry":
                scene = next(pending)
                images = iter(scene.images)
                self._encode(scene, clock)
                with clock.measure("geometry"):
                    self._stages.geometry(scene.features, segment, cache)
            elif segment.kind == "semantic":
                square = semantic_image(next(images), self._query.semantic_width_px)
                with clock.measure("encode_semantics"):
                    features = self._stages.encode_semantics(square)
                with clock.measure("prefill"):
                    self._stages.language(segment, cache, features)
            else:
                with clock.measure("prefill"):
                    self._stages.language(segment, cache)
        return cache

    def _decode(
        self,
        cache: Cache,
        position: int,
        limit: int,
        on_text: Callable[[str], None] | None,
        should_stop: Callable[[], bool],
    ) -> tuple[list[int], bool]:
        """Greedy ids after the start token, and whether the model itself ended the answer."""
        special, ids = self._tokenizer.special, []
        with closing(self._stages.decode(special.newline, position, cache)) as tokens:
            while len(ids) < limit and not should_stop():
                token = next(tokens)
                if token == special.im_end:
                    return ids, True
                ids.append(token)
                if on_text is not None:
                    on_text(self._tokenizer.decode(ids))
        return ids, False


def open_folders(settings: Settings) -> tuple[str, ...]:
    """One sentence for each folder of weights, engines or maps that anybody may write to."""
    folders = (
        ("model.checkpoint", settings.model.checkpoint),
        ("model.engines", settings.model.engines or default_cache()),
        ("map.folder", settings.map.folder),
    )
    sentences = (permission_warning(what, folder) for what, folder in folders)
    return tuple(sentence for sentence in sentences if sentence)


def _server_options(model: ModelSettings) -> dict[str, object]:
    """What the backend triton needs beside the others' options."""
    if model.backend != "triton":
        return {}
    return {
        "url": model.triton_url,
        "model": model.triton_model,
        "timeout_s": model.triton_timeout_s,
        "fallback": model.triton_fallback,
    }


def with_input_sizes(settings: Settings) -> Settings:
    """Settings whose image sizes are pixels: those left open become what the checkpoint says."""
    sizes = _sizes_of(settings) or InputSizes()
    width_px = settings.model.image_width_px or sizes.image_width_px
    semantic_px = settings.query.semantic_width_px or sizes.semantic_width_px
    return replace(
        settings,
        model=replace(settings.model, image_width_px=width_px),
        query=replace(settings.query, semantic_width_px=semantic_px),
    )


def untrained_sizes(settings: Settings) -> tuple[str, ...]:
    """One sentence for each image size that is set to another than the checkpoint was trained on.

    Nothing where the checkpoint does not say what it was trained on.
    """
    sizes = _sizes_of(settings)
    if sizes is None:
        return ()
    pairs = (
        ("model.image_width_px", settings.model.image_width_px, sizes.image_width_px),
        ("query.semantic_width_px", settings.query.semantic_width_px, sizes.semantic_width_px),
    )
    return tuple(
        f"{name} is {value}, and {settings.model.checkpoint} was trained at {trained}: its points "
        "and answers will be worse; set it to 0 to use the checkpoint's own"
        for name, value, trained in pairs
        if value not in (0, trained)
    )


def _sizes_of(settings: Settings) -> InputSizes | None:
    checkpoint = settings.model.checkpoint
    return InputSizes.read(checkpoint) if checkpoint else None


def _confidence(raw: RawGeometry, intrinsics: Sequence[Intrinsics | None]) -> np.ndarray:
    """The confidence head's where the checkpoint has one, else the agreement of the views."""
    if raw.confidence is not None:
        return raw.confidence
    return multi_view_confidence(raw.local_points_u, raw.window_from_camera, intrinsics)


if __name__ == "__main__":
    raise SystemExit("the command line has moved: python -m g2vlm_ros --help")
