# SPDX-License-Identifier: Apache-2.0
"""The node `replay`: a folder of images, a video or a ROS recording as a camera.

Publishes <camera>/image_raw (or /compressed) and <camera>/camera_info. Without calibration the
latter says so (K all zero), as ROS camera drivers do. In sim time frames keep their recorded
stamps and /clock runs evenly from one to the next; otherwise frames are stamped when published.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Bool
from std_srvs.srv import SetBool

from g2vlm_ros.parameter_schema import FRAME, TOPIC, SettingError, parameter
from g2vlm_ros.ros import parameters
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.replay.source import CameraFrame, Recording
from g2vlm_ros.ros.run_node import run

CLOCK_PERIOD_S = 0.02
PROGRESS_PERIOD_S = 3.0
FIRST_SIM_NS = 1_000_000_000
"""Recordings that count from zero start here: to ROS, time 0 means that there is no time yet."""


@dataclass(frozen=True)
class ReplaySettings:
    """All settings of the replay node; they are read once, at start."""

    path: str = parameter(
        "", "Folder of images, image, video, rosbag2 folder, .mcap or .db3. Required."
    )
    camera: str = parameter("camera", "Namespace of the camera: <camera>/image_raw.", name=TOPIC)
    frame_id: str = parameter(
        "",
        "Optical frame; empty takes the recorded one, without one <camera>_optical_frame.",
        name=FRAME,
    )
    topic: str = parameter("", "Image topic of a recording; empty takes the only one there is.")
    transport: str = parameter("raw", "raw or compressed (JPEG).", choices=("raw", "compressed"))
    camera_info: str = parameter(
        "", "Calibration file (camera_info YAML); empty takes the recorded one."
    )
    rate_hz: float = parameter(
        0.0, "Frames per second; 0 plays as recorded.", low=0.0, high=1000.0
    )
    loop: bool = parameter(
        False, "Begin again after the last frame; time goes on, it never jumps back."
    )
    sim_time: bool = parameter(False, "Keep the recorded stamps and publish /clock.")
    wait_for_subscriber: bool = parameter(True, "Hold the first frame until somebody subscribes.")
    start_paused: bool = parameter(False, "Begin with the first ~/pause call whose data is false.")
    pause_at_end: bool = parameter(
        True, "Stay after the last frame, where resuming plays again; otherwise the node ends."
    )

    def __post_init__(self) -> None:
        if not self.path:
            raise SettingError(
                "path is empty; set it to a folder of images, a video or a recording"
            )
        if not self.camera:
            raise SettingError("camera is empty; set it to a namespace such as camera")


def open_recording(settings: ReplaySettings) -> Recording:
    """What `settings` say to play; FileNotFoundError or ValueError say what is wrong with it."""
    return Recording(
        settings.path,
        topic=settings.topic,
        rate_hz=settings.rate_hz or None,
        compressed=settings.transport == "compressed",
        frame_id=settings.frame_id,
        default_frame_id=settings.camera.strip("/").replace("/", "_") + "_optical_frame",
        camera_info=settings.camera_info,
    )


class ReplayNode(Node):
    """Plays in a thread of its own from the start on; spinning is only needed for ~/pause.

    Raises SettingError, FileNotFoundError or ValueError when a parameter or the recording is
    wrong.
    """

    def __init__(self, **node_arguments):
        super().__init__(
            "replay", automatically_declare_parameters_from_overrides=True, **node_arguments
        )
        try:
            parameters.declare(self, ReplaySettings)
            self._settings = parameters.read(self, ReplaySettings)
            self._recording = open_recording(self._settings)
        except BaseException:
            self.destroy_node()
            raise
        self.add_on_set_parameters_callback(_refuse_changes)
        self.finished = False
        """True after the last frame (never when looping), also when playing failed."""
        self.failure = ""
        """Why playing ended early, empty if it did not."""
        self.published = 0
        self._sim_ns = 0
        self._shift_ns = 0
        self._due_s = 0.0
        self._gap_s = 0.0
        self._paused = self._settings.start_paused
        self._closing = threading.Event()
        self._make_topics()
        self._say_what_plays()
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="replay-decode")
        self._thread = threading.Thread(target=self._play, name="replay", daemon=True)
        self._thread.start()

    def destroy_node(self) -> None:
        """Stop playing, then destroy."""
        if hasattr(self, "_thread"):
            self._closing.set()
            self._thread.join()
            self._ahead.shutdown()
        super().destroy_node()

    @property
    def ended(self) -> bool:
        """Whether nothing more can be played, not even by resuming."""
        return not self._thread.is_alive()

    # Wiring ----------------------------------------------------------------------------------

    def _make_topics(self) -> None:
        camera, compressed = self._settings.camera, self._settings.transport == "compressed"
        kind, suffix = (CompressedImage, "/compressed") if compressed else (Image, "")
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._image, self._info = (
            self.create_publisher(
                message,
                topic,
                qos_profile_sensor_data,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            for message, topic in (
                (kind, f"{camera}/image_raw{suffix}"),
                (CameraInfo, f"{camera}/camera_info"),
            )
        )
        self._finished = self.create_publisher(Bool, "~/finished", latched)
        self._finished.publish(Bool(data=False))
        sim_time = self._settings.sim_time
        self._clock_topic = self.create_publisher(Clock, "/clock", 10) if sim_time else None
        self.create_service(SetBool, "~/pause", self._on_pause)

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._paused = request.data
        response.success = not self.ended
        response.message = "paused" if request.data else "playing"
        if not response.success:
            response.message = f"playing has ended: {self.failure or 'nothing is left'}"
        return response

    def _say_what_plays(self) -> None:
        recording, log = self._recording, self.get_logger()
        length = "an unknown number of" if recording.length is None else recording.length
        log.info(
            f"{self._settings.path}: {length} frames, stamps from {recording.stamps}, "
            f"to {self._image.topic_name}"
        )
        for line in recording.skipped[:10]:
            log.warning(f"left out {line}")
        if len(recording.skipped) > 10:
            log.warning(f"left out {len(recording.skipped) - 10} more")

    # Playing ---------------------------------------------------------------------------------

    def _play(self) -> None:
        try:
            if self._settings.wait_for_subscriber:
                listened = self._image.get_subscription_count
                self._hold(lambda: not listened(), f"a subscriber of {self._image.topic_name}")
            while not self._closing.is_set():
                self._hold(lambda: self._paused, "a call of ~/pause with data false")
                self._play_once()
                if self._settings.loop or self._closing.is_set():
                    continue
                self._set_finished(True)
                if not self._settings.pause_at_end:
                    return
                self._paused = True
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._closing.is_set() or not self.context.ok():
            return
        expected = isinstance(error, (OSError, ValueError))
        self.failure = str(error) if expected else repr(error)
        detail = self.failure if expected else "".join(traceback.format_exception(error))
        self.get_logger().error(f"playing ends after {self.published} frames: {detail}")
        self._set_finished(True)

    def _set_finished(self, finished: bool) -> None:
        if finished != self.finished:
            self.finished = finished
            self._finished.publish(Bool(data=finished))

    def _play_once(self) -> None:
        """One pass over the recording; a frame is decoded while the one before awaits its time."""
        self._set_finished(False)
        self.published, self._due_s = 0, time.monotonic()
        next_line_s = self._due_s + PROGRESS_PERIOD_S
        before_ns, span_s = None, 0.0
        for frame in self._decoded():
            if before_ns is None:
                self._join_passes(frame.stamp_ns)
            else:
                span_s = self._span_s(frame.stamp_ns - before_ns)
            before_ns = frame.stamp_ns
            self._approach(frame.stamp_ns + self._shift_ns, span_s)
            self._publish(frame)
            if time.monotonic() >= next_line_s:
                next_line_s += PROGRESS_PERIOD_S
                self._progress("playing")
        if not self.published and not self._closing.is_set():
            raise ValueError("none of its pictures can be decoded; the warnings above say why")
        self._gap_s = span_s or 1.0
        self._progress("played")

    def _decoded(self) -> Iterator[CameraFrame]:
        """The recording's frames, always one ahead in the decoding thread."""
        frames = iter(self._recording)
        ready = self._ahead.submit(next, frames, None)
        while True:
            while not wait([ready], CLOCK_PERIOD_S).done:
                self._tick(self._sim_ns)
            frame = ready.result()
            if frame is None or self._closing.is_set():
                return
            ready = self._ahead.submit(next, frames, None)
            yield frame

    def _span_s(self, recorded_ns: int) -> float:
        rate_hz = self._settings.rate_hz
        return 1 / rate_hz if rate_hz else max(0, recorded_ns) * 1e-9

    def _join_passes(self, first_ns: int) -> None:
        """Shift the stamps of this pass so that time neither starts at 0 nor jumps back."""
        if self._sim_ns:
            self._shift_ns = self._sim_ns + round(self._gap_s * 1e9) - first_ns
            self._approach(first_ns + self._shift_ns, self._gap_s)
        else:
            self._shift_ns = FIRST_SIM_NS if first_ns < FIRST_SIM_NS else 0

    def _approach(self, stamp_ns: int, span_s: float) -> None:
        """Let `span_s` pass, and sim time with it, to `stamp_ns`; pauses come on top.

        A frame that is late anyway does not make the next ones hurry.
        """
        self._due_s = max(self._due_s + span_s, time.monotonic())
        start_s, start_ns = self._due_s - span_s, self._sim_ns
        while (now_s := time.monotonic()) < self._due_s and not self._closing.is_set():
            if self._paused:
                self._hold(lambda: self._paused, "a call of ~/pause with data false")
                pause_s = time.monotonic() - now_s
                start_s, self._due_s = start_s + pause_s, self._due_s + pause_s
                continue
            share = max(0.0, (now_s - start_s) / span_s)
            self._tick(start_ns + int(share * max(0, stamp_ns - start_ns)))
            self._closing.wait(min(CLOCK_PERIOD_S, self._due_s - now_s))
        self._tick(stamp_ns)

    def _hold(self, reason: Callable[[], bool], what: str) -> None:
        """Let time stand still while there is a reason."""
        if reason():
            self.get_logger().info(f"waiting for {what}")
        while reason() and not self._closing.is_set():
            self._tick(self._sim_ns)
            self._closing.wait(CLOCK_PERIOD_S)

    def _tick(self, sim_ns: int) -> None:
        self._sim_ns = max(self._sim_ns, sim_ns)
        if self._clock_topic and self._sim_ns and not self._closing.is_set():
            self._clock_topic.publish(Clock(clock=geometry.stamp(self._sim_ns)))

    def _publish(self, frame: CameraFrame) -> None:
        if self._closing.is_set():
            return
        stamp = self.get_clock().now().to_msg()
        if self._settings.sim_time:
            stamp = geometry.stamp(frame.stamp_ns + self._shift_ns)
        frame.image.header.stamp = frame.info.header.stamp = stamp
        self._info.publish(frame.info)
        self._image.publish(frame.image)
        self.published += 1

    def _progress(self, verb: str) -> None:
        of = "" if self._recording.length is None else f" of {self._recording.length}"
        self.get_logger().info(f"{verb} {self.published}{of} frames")


def _refuse_changes(changed: list[Parameter]) -> SetParametersResult:
    names = ", ".join(p.name for p in changed if not p.name.startswith(parameters.OF_ROS))
    reason = f"{names} cannot change while playing; start replay again" if names else ""
    return SetParametersResult(successful=not names, reason=reason)


def main(arguments: list[str] | None = None) -> int:
    """``ros2 run g2vlm_ros replay --ros-args -p path:=FOLDER``.

    Exit code 1 if playing failed, 2 if a parameter or the recording was refused.
    """
    return run(
        "replay",
        ReplayNode,
        arguments,
        ended=lambda node: node.ended,
        exit_code=lambda node: 1 if node.failure else 0,
    )


if __name__ == "__main__":
    raise SystemExit(main())
