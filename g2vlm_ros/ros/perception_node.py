# SPDX-License-Identifier: Apache-2.0
"""The node `perception`: cameras in, clouds, poses and answers out. Wiring only.

Sensor callbacks hand frames over and return; one thread owns the device and runs windows and
questions as jobs; what a window adds is published from that thread.
"""

from __future__ import annotations

import math
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures import wait

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from g2vlm_ros.checkpoint.digest import model_version
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.dense_map.rooms import RoomMap
from g2vlm_ros.mapping.keyframe_files import KeyframeOrigin
from g2vlm_ros.mapping.keyframes import Keyframe
from g2vlm_ros.msg import ReconstructionStatus
from g2vlm_ros.parameter_schema import SettingError, parameters_of
from g2vlm_ros.perception import Perception, with_input_sizes
from g2vlm_ros.pipeline import Counts, MappingPipeline, PerceivedWindow
from g2vlm_ros.query.object_memory import ObjectMemory
from g2vlm_ros.records import BackendGoneError, Frame
from g2vlm_ros.ros import parameters
from g2vlm_ros.ros.camera_tracking import CameraTracking, TrackingCounts
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.diagnostics import Diagnostics, clock_remark, hang_remark, status_message
from g2vlm_ros.ros.inference_scheduler import InferenceScheduler
from g2vlm_ros.ros.initial_pose import InitialPose
from g2vlm_ros.ros.inputs.cameras import Cameras
from g2vlm_ros.ros.keyframe_keeper import KeyframeKeeper
from g2vlm_ros.ros.lifecycle import FAILURE, SafeLifecycleNode, all_or_nothing
from g2vlm_ros.ros.map_services import MapServices
from g2vlm_ros.ros.object_services import ObjectServices
from g2vlm_ros.ros.point_service import PointService
from g2vlm_ros.ros.publishers import LATCHED, Publishers
from g2vlm_ros.ros.query_server import QueryServer
from g2vlm_ros.ros.run_node import run
from g2vlm_ros.settings import Settings
from g2vlm_ros.srv import EditMap, GetPoints, LoadMap, SaveMap

SETTINGS = frozenset(name for name, _ in parameters_of(Settings))


DEVICE_WAIT_S = 2.0
"""How long deactivating waits for the running job; what it brings later is thrown away."""
DEVICE_GONE_EXIT_CODE = 75
"""Of the process when its CUDA context is lost: a new process may have one (EX_TEMPFAIL)."""
CLOCK_WAIT_S = 5.0
"""How long /clock may be silent in sim time before it is said, in real time."""
THREADS = 16
"""Of the executor: besides sensors and reports, each waiting question holds a thread."""


class PerceptionNode(SafeLifecycleNode):
    """Lifecycle: configure loads the model, activate subscribes, deactivate waits for the device.

    Every transition is done as a whole or leaves nothing behind. A job that fails on the device
    is logged, shown in /diagnostics and ~/status, and the next window is tried. Raises
    SettingError when a parameter is wrong at start.
    """

    def __init__(self, **node_arguments):
        with parameters.empty_lists_named():
            super().__init__(
                "perception",
                automatically_declare_parameters_from_overrides=True,
                **node_arguments,
            )
        self._configured = self._active = self._device_gone = False
        self._failures = 0
        self._device: InferenceScheduler | None = None
        self._perception: Perception | None = None
        self._queries: QueryServer | None = None
        self._outputs: Publishers | None = None
        self._object_services: ObjectServices | None = None
        self._cameras: Cameras | None = None
        self._tracking: CameraTracking | None = None
        self._initial_pose: InitialPose | None = None
        self._live: MappingPipeline | None = None
        self._map: DenseMap | None = None
        self._newest: PerceivedWindow | None = None
        self._report_publishers: list = []
        self._map_and_point_services: list = []
        self._report_timers: list = []
        self._clock_watch: threading.Timer | None = None
        try:
            parameters.declare(self, Settings)
        except BaseException:
            self.destroy_node()
            raise
        self.add_on_set_parameters_callback(self._check_parameters)

    # Lifecycle -------------------------------------------------------------------------------

    @all_or_nothing(undo="_close")
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Validate settings, load and warm up the model, make topics and services."""
        self._configured = True
        self._settings = settings = parameters.read(self, Settings)
        self._device = InferenceScheduler(
            settings.query.reconstruction_share, settings.query.queue, self.log_failure
        )
        self._perception = self._device.submit(open_and_warm_up, settings).result()
        self._version = model_version(settings.model.checkpoint)
        self._live, self._map = MappingPipeline(self._perception, settings), DenseMap(settings)
        self._objects, self._rooms = ObjectMemory(settings.query.objects), RoomMap()
        self._newest = None
        self._session = 0
        self._latency_s = math.nan
        self._problem = ""
        self._device_gone = False
        self._job_waiting, self._job_running = threading.Event(), threading.Event()
        self._outputs = Publishers(self, settings)
        self._make_reports()
        self._make_services()
        self.get_logger().info(
            f"model {self._version} on {self._perception.backend} "
            f"({self._perception.chosen_because})"
        )
        for sentence in self._perception.warnings:
            self.get_logger().warning(sentence)
        return super().on_configure(state)

    @all_or_nothing(undo="_stop")
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the cameras and start reporting."""
        result = super().on_activate(state)
        if self._settings.pose.between_windows:
            self._tracking = CameraTracking(
                self._settings,
                self._outputs.publish_tracked,
                self._outputs.poses_wanted,
                self.log_failure,
            )
            self._tracking.reset(self._session)
        self._cameras = Cameras(self, self._settings, self._on_frame, self._live.reject)
        self._initial_pose = InitialPose(self, self._settings.map.frame, self._live.give_hint)
        self._report_timers = [
            self.create_timer(self._settings.status_period_s, self._report),
            self.create_timer(
                self._settings.voxel.publish_period_s,
                lambda: self._outputs.publish_map(self._map),
                callback_group=MutuallyExclusiveCallbackGroup(),
            ),
        ]
        self._clock_watch = threading.Timer(CLOCK_WAIT_S, self._check_clock)
        self._clock_watch.daemon = True
        self._clock_watch.start()
        self._active = True
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening, wait at most DEVICE_WAIT_S for the running job, forget frames."""
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give the model, the topics and the services back; FAILURE while the device hangs."""
        if not self._device_rests():
            return FAILURE
        self._close()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and close from whatever state."""
        self._stop()
        self._close()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured."""
        return self.on_shutdown(state)

    def _stop(self) -> None:
        """Undo on_activate, whatever of it was done."""
        self._active = False
        if self._clock_watch is not None:
            self._clock_watch.cancel()
        cameras, self._cameras = self._cameras, None
        if cameras is not None:
            self.attempt("unsubscribing", cameras.close)
        tracking, self._tracking = self._tracking, None
        if tracking is not None:
            self.attempt("ending the tracking of frames", tracking.close)
        initial_pose, self._initial_pose = self._initial_pose, None
        if initial_pose is not None:
            self.attempt("unsubscribing", initial_pose.close)
        timers, self._report_timers = self._report_timers, []
        for timer in timers:
            self.attempt("stopping reports", lambda timer=timer: self.destroy_timer(timer))
        if self._live is not None:
            self._live.reset()
            self._device_rests()

    def _close(self) -> None:
        """Undo on_configure, whatever of it was done."""
        device, self._device = self._device, None
        # What waits there comes to an end first: every question gets its response.
        if device is not None and not device.shutdown(DEVICE_WAIT_S):
            self.get_logger().error("the device's thread does not end; it is left to itself")
        if self._queries is not None:
            self.attempt("closing questions", self._queries.close)
        if self._object_services is not None:
            self.attempt("closing objects", self._object_services.close)
        if self._outputs is not None:
            self.attempt("closing topics", self._outputs.close)
        publishers, self._report_publishers = self._report_publishers, []
        for publisher in publishers:
            self.attempt("closing reports", lambda p=publisher: self.destroy_publisher(p))
        services, self._map_and_point_services = self._map_and_point_services, []
        for service in services:
            self.attempt("closing services", lambda s=service: self.destroy_service(s))
        self._perception = self._queries = self._outputs = self._live = self._map = None
        self._object_services = self._newest = None
        self._configured = False

    def _device_rests(self) -> bool:
        """Wait for what runs on the device; False, with a word in the log, where it hangs."""
        if self._device is None:
            return True
        try:
            self._device.submit(lambda: None).result(DEVICE_WAIT_S)
            return True
        except FutureTimeoutError:
            self.get_logger().error(
                f"the device has been busy with one job for {self._device.running_for_s():.1f} s; "
                "its result will be thrown away"
            )
            return False
        except RuntimeError:
            return True

    def _check_clock(self) -> None:
        """Say that nothing timed can happen where sim time is wanted and no clock runs."""
        if self._active and self.get_clock().now().nanoseconds == 0:
            self.get_logger().error(
                "use_sim_time is true, but nothing has come on /clock: ~/map, ~/status and "
                "/diagnostics wait for it; start the simulator's clock or set use_sim_time false"
            )

    def count_failure(self, _error: Exception) -> None:
        """A callback raised: seen by the executor, shown in /diagnostics."""
        self._failures += 1

    # Wiring ----------------------------------------------------------------------------------

    def _check_parameters(self, changed) -> SetParametersResult:
        """Settings change only while unconfigured, and only to values that fit."""
        values = {p.name: p.value for p in changed if p.name in SETTINGS}
        if not values:
            return SetParametersResult(successful=True)
        if self._configured:
            names = ", ".join(values)
            reason = f"{names} can change only while unconfigured; deactivate and clean up first"
            return SetParametersResult(successful=False, reason=reason)
        try:
            parameters.read(self, Settings, values)
        except SettingError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _make_reports(self) -> None:
        self._status = self.create_lifecycle_publisher(ReconstructionStatus, "~/status", LATCHED)
        self._report_publishers.append(self._status)
        self._diagnostics = Diagnostics(self.get_name(), self._perception.backend, self._settings)
        self._diagnostics_publisher = self.create_lifecycle_publisher(
            DiagnosticArray, "/diagnostics", QoSProfile(depth=1)
        )
        self._report_publishers.append(self._diagnostics_publisher)

    def _make_services(self) -> None:
        services = PointService(self._settings.map.frame, windows=self)
        self._queries = QueryServer(
            self,
            self._perception,
            self._settings,
            self._version,
            self._device,
            windows=self,
            objects=self._objects,
        )
        self._object_services = ObjectServices(
            self, self._settings.map.frame, self._objects, self._rooms, self._map, windows=self
        )
        keyframes = KeyframeKeeper(
            self._settings.map,
            KeyframeOrigin(self._version, with_input_sizes(self._settings).model.image_width_px),
            self._device.submit,
            self._live.map_views,
            self._look_for,
            self.get_logger().info,
        )
        maps = MapServices(
            self._settings.map, self._map, self._objects, self._rooms, services, keyframes
        )
        concurrent = ReentrantCallbackGroup()
        # One at a time: two that write one file, or read a large one, do not help each other, and
        # what hangs here must not take the threads of everything else.
        files = MutuallyExclusiveCallbackGroup()
        for kind, name, handler, group in (
            (GetPoints, "~/get_points", services.get_points, concurrent),
            (SaveMap, "~/save_map", maps.save_map, files),
            (LoadMap, "~/load_map", maps.load_map, files),
            (EditMap, "~/edit_map", maps.edit_map, files),
            (Trigger, "~/reset", self._reset, concurrent),
        ):
            service = self.create_service(kind, name, handler, callback_group=group)
            self._map_and_point_services.append(service)

    def _on_frame(self, frame: Frame) -> None:
        self._live.offer(frame)
        if (tracking := self._tracking) is not None:
            tracking.offer(frame)
        self._schedule()

    # Device ----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Queue a window job unless one is queued already; a running one does not count."""
        if self._active and not self._job_waiting.is_set() and self.listened_to():
            self._job_waiting.set()
            try:
                self._device.submit(self.run_window)
            except (AttributeError, RuntimeError):  # cleaned up meanwhile
                self._job_waiting.clear()

    def run_window(self) -> None:
        """Make and publish the next window, if frames for one are here (device's thread)."""
        self._job_running.set()
        self._job_waiting.clear()
        try:
            if self._active and self._step():
                self._schedule()
        except BaseException as error:  # a SystemExit of a library ends no window in silence
            self._problem = f"{type(error).__name__}: {error}"
            self.log_failure("window", error)
        finally:
            self._job_running.clear()

    def _step(self) -> bool:
        """Make and publish the next window; False when there are too few frames for one."""
        update = self._live.step()
        if update is None:
            return False
        self._map.add(update)
        self._outputs.publish(update)
        if update.localisation.placed:
            if (tracking := self._tracking) is not None:
                tracking.add(update)
            self._queries.remember(update)
        if update.session < self._session:
            return True  # forgotten while it was published
        self._object_services.publish()
        self._newest, self._problem = update, ""
        self._latency_s = self._age_s(update)
        self._publish_status()
        return True

    def is_active(self) -> bool:
        """Whether requests are served."""
        return self._active

    def _age_s(self, update: PerceivedWindow) -> float:
        return (self.get_clock().now().nanoseconds - update.window.stamp_ns) * 1e-9

    def newest_window(self) -> tuple[PerceivedWindow, float] | None:
        """The newest window and its age in seconds, or None before the first, and while nothing
        tells where it lies in the map."""
        update = self._newest
        if update is None or not update.localisation.placed:
            return None
        return update, self._age_s(update)

    def refresh(self, timeout_s: float) -> None:
        """Run a window although nobody listens, and wait for it."""
        wait([self._device.submit(self.run_window)], timeout_s)

    def _reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        device, live = self._device, self._live
        if device is None or live is None:
            response.success, response.message = False, "the node is not configured"
            return response
        self._session = session = live.reset()
        self._map.reset(session)
        if (tracking := self._tracking) is not None:
            tracking.reset(session)
        self._outputs.retract(session, self.get_clock().now().nanoseconds)
        self._newest = None
        self._rooms.clear()
        device.submit(self._queries.forget)
        response.success, response.message = True, "frames and map are forgotten"
        return response

    def _look_for(self, keyframes: Sequence[Keyframe]) -> int:
        """Be LOST in a saved map; its id (device's thread)."""
        self._session, map_id = self._live.load(keyframes)
        self._map.reset(self._session)
        self._outputs.retract(self._session, self.get_clock().now().nanoseconds)
        if (tracking := self._tracking) is not None:
            tracking.reset(self._session)
        self._newest = None
        self._queries.forget()
        return map_id

    def log_failure(self, what: str, error: BaseException) -> None:
        """Log what should not have happened, with where it did."""
        self._device_gone = self._device_gone or isinstance(error, BackendGoneError)
        self.get_logger().error(
            f"{what} failed: {''.join(traceback.format_exception(error))}",
            throttle_duration_sec=5.0,
        )

    # Seen from outside -----------------------------------------------------------------------

    def device_gone(self) -> bool:
        """Whether nothing can run on the device in this process any more, and all is put down."""
        return self._device_gone and not self._active

    def counts(self) -> Counts:
        """Frames and windows since configure."""
        return self._live.counts()

    def tracking_counts(self) -> TrackingCounts | None:
        """Frames followed between windows since activation; None where none are."""
        tracking = self._tracking
        return None if tracking is None else tracking.counts()

    def tracking_rests(self) -> bool:
        """Whether no frame waits to be followed, or is being followed."""
        tracking = self._tracking
        return tracking is None or tracking.rests()

    def newest_views_ns(self) -> tuple[int, ...]:
        """Stamps of the newest window's views, oldest first; empty before the first window."""
        update = self._newest
        return () if update is None else tuple(sorted(f.stamp_ns for f in update.window.frames))

    @property
    def objects(self) -> ObjectMemory:
        """What is remembered of the map."""
        return self._objects

    @property
    def rooms(self) -> RoomMap:
        """The rooms of the map."""
        return self._rooms

    def listened_to(self) -> bool:
        """Whether anybody subscribes to something that needs the model."""
        return self._outputs.wanted() or self._object_services.wanted()

    def idle(self) -> bool:
        """Whether no window job is queued or running."""
        return not (self._job_waiting.is_set() or self._job_running.is_set())

    # Reports ---------------------------------------------------------------------------------

    def _header(self, stamp) -> Header:
        return Header(stamp=stamp, frame_id=self._settings.map.frame)

    def _publish_status(self) -> None:
        update, job_s = self._newest, self._device.running_for_s()
        stamp = geometry.stamp(update.window.stamp_ns) if update else self._now()
        self._status.publish(
            status_message(
                self._header(stamp),
                self._live.counts(),
                update,
                self._latency_s,
                self._version,
                self._perception.backend,
                self._problem or self._input_problem(),
                job_s,
                self._live.localisation,
            )
        )

    def _input_problem(self) -> str:
        """Why nothing, or nothing right, comes of the frames that arrive."""
        remarks = (
            hang_remark(self._device.running_for_s()),
            clock_remark(self._latency_s),
            self._diagnostics.frame_rate.remark(),
        )
        return "; ".join(filter(None, remarks))

    def _now(self):
        return self.get_clock().now().to_msg()

    def _report(self) -> None:
        now_s = self.get_clock().now().nanoseconds * 1e-9
        self._diagnostics.frame_rate.update(now_s, self._live.counts().received)
        self._publish_status()
        self._object_services.publish()
        if self._device_gone:
            self.get_logger().error(
                f"the device is gone for this process: inactive; it ends with exit code "
                f"{DEVICE_GONE_EXIT_CODE}, and the launch file starts it again"
            )
            self.trigger_deactivate()
            return
        if self._diagnostics_publisher.get_subscription_count():
            self._diagnostics_publisher.publish(
                self._diagnostics.report(
                    Header(stamp=self._now()),
                    now_s,
                    self._live.counts(),
                    self._newest,
                    self._latency_s,
                    self._problem,
                    self._outputs.wanted(),
                    self._device.running_for_s(),
                    self._failures,
                    self.tracking_counts(),
                    self._live.localisation,
                )
            )


def open_and_warm_up(settings: Settings) -> Perception:
    """Load the model and run it once on grey views, so that the first window is not slow."""
    perception = Perception.open(settings)
    grey = np.full((480, 640, 3), 128, np.uint8)
    scene = perception.scene([grey] * settings.window.views)
    perception.reconstruct(scene)
    if perception.speaks:
        # Opens the graphs of the language: a missing one is found now, not at the first question.
        perception.ask(scene, "What is there?", max_tokens=1)
    return perception


def main(arguments: list[str] | None = None) -> int:
    """``ros2 run g2vlm_ros perception``: starts unconfigured; a launch file drives it."""
    return run(
        "perception",
        PerceptionNode,
        arguments,
        threads=THREADS,
        ended=PerceptionNode.device_gone,
        end=lambda node: node.trigger_shutdown(),
        exit_code=lambda node: DEVICE_GONE_EXIT_CODE if node.device_gone() else 0,
    )


if __name__ == "__main__":
    raise SystemExit(main())
