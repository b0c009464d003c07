# SPDX-License-Identifier: Apache-2.0
"""The node `perception`: cameras in, clouds, poses and answers out. Wiring only.

Sensor callbacks hand frames over and return; one thread owns the device and runs windows and
questions as jobs; what a window adds is published from that thread.
"""

from __future__ import annotations

import threading
import traceback
from concurrent.futures import TimeoutError as FutureTimeoutError

import numpy as np
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from std_srvs.srv import Trigger

from g2vlm_ros.checkpoint.digest import model_version
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.dense_map.rooms import RoomMap
from g2vlm_ros.mapping.keyframe_files import KeyframeOrigin
from g2vlm_ros.parameter_schema import SettingError, parameters_of
from g2vlm_ros.perception import Perception, with_input_sizes
from g2vlm_ros.pipeline import Counts, MappingPipeline
from g2vlm_ros.query.object_memory import ObjectMemory
from g2vlm_ros.records import BackendGoneError
from g2vlm_ros.ros import parameters
from g2vlm_ros.ros.camera_tracking import CameraTracking, TrackingCounts
from g2vlm_ros.ros.heap import limit_arenas, trim_by_and_by
from g2vlm_ros.ros.inference_scheduler import InferenceScheduler
from g2vlm_ros.ros.initial_pose import InitialPose
from g2vlm_ros.ros.inputs.cameras import Cameras
from g2vlm_ros.ros.keyframe_keeper import KeyframeKeeper
from g2vlm_ros.ros.lifecycle import FAILURE, SafeLifecycleNode, all_or_nothing
from g2vlm_ros.ros.map_services import MapServices, folder_warning
from g2vlm_ros.ros.name_clash import NameClash
from g2vlm_ros.ros.object_services import ObjectServices
from g2vlm_ros.ros.point_service import PointService
from g2vlm_ros.ros.publishers import Publishers
from g2vlm_ros.ros.query_server import QueryServer
from g2vlm_ros.ros.repeated_faults import RepeatedFaults
from g2vlm_ros.ros.run_node import run
from g2vlm_ros.ros.status_reports import StatusReports
from g2vlm_ros.ros.stores import Store, stores
from g2vlm_ros.ros.window_worker import WindowWorker
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
        self._configured = self._device_gone = False
        self._failures = 0
        self._map_is_void = False
        """Whether topics still show a map that no window will continue: it was deactivated."""
        self._name_clash = NameClash(self)
        self._report_timers: list = []
        self._map_and_point_services: list = []
        self._clock_watch: threading.Timer | None = None
        self._initial_pose: InitialPose | None = None
        self._reports: StatusReports | None = None
        # The parts, from configure to cleanup; None otherwise.
        self.scheduler: InferenceScheduler | None = None
        self.perception: Perception | None = None
        self.pipeline: MappingPipeline | None = None
        self.dense_map: DenseMap | None = None
        self.objects: ObjectMemory | None = None
        self.rooms: RoomMap | None = None
        self.outputs: Publishers | None = None
        self.windows: WindowWorker | None = None
        self._reporting, self._publishing = threading.RLock(), threading.RLock()
        """Held by what timers do, and while the parts are closed: the process may end meanwhile. A
        report may also deactivate."""
        self.queries: QueryServer | None = None
        self.object_services: ObjectServices | None = None
        self.cameras: Cameras | None = None
        """Only while active."""
        try:
            parameters.declare(self, Settings)
        except BaseException:
            self.destroy_node()
            raise
        self.add_on_set_parameters_callback(self._check_parameters)
        trim_by_and_by(self)

    # Lifecycle -------------------------------------------------------------------------------

    @all_or_nothing(undo="_close")
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Validate settings, load and warm up the model, make topics and services."""
        self._configured = True
        self._settings = settings = parameters.read(self, Settings)
        self.scheduler = InferenceScheduler(
            settings.query.reconstruction_share, settings.query.queue, self.log_failure
        )
        self.perception = self.scheduler.submit(open_and_warm_up, settings).result()
        self._version = model_version(settings.model.checkpoint)
        self.pipeline = MappingPipeline(self.perception, settings)
        self.dense_map = DenseMap(settings)
        self.objects, self.rooms = ObjectMemory(settings.query.objects), RoomMap()
        self._device_gone = False
        self.outputs = Publishers(self, settings)
        self.windows = WindowWorker(
            self.scheduler,
            self.pipeline,
            self.dense_map,
            self.rooms,
            self.outputs,
            lambda: self.get_clock().now().nanoseconds,
            self.log_failure,
            self.get_logger().error,
            RepeatedFaults(settings),
        )
        self._reports = StatusReports(
            self,
            settings,
            self._version,
            self.perception.backend,
            self.scheduler,
            self.pipeline,
            self.windows,
            self.outputs,
            self.stores,
        )
        self._make_services()
        self.windows.connect(
            self.queries,
            self.object_services,
            self._reports.publish_status,
            self._reports.input_problem,
        )
        self.get_logger().info(
            f"model {self._version} on {self.perception.backend} "
            f"({self.perception.chosen_because})"
        )
        for sentence in self.perception.warnings:
            self.get_logger().warning(sentence)
        return super().on_configure(state)

    @all_or_nothing(undo="_stop")
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the cameras and start reporting."""
        result = super().on_activate(state)
        if self._map_is_void:
            self.windows.reset()
        if self._settings.pose.between_windows:
            self.windows.tracking = CameraTracking(
                self._settings,
                self.outputs.publish_tracked,
                self.outputs.poses_wanted,
                self.log_failure,
            )
            self.windows.tracking.reset(self.windows.session)
        self.cameras = Cameras(
            self,
            self._settings,
            self.windows.offer,
            self.pipeline.reject,
            self.outputs.publish_odom if self._settings.map.publish_odom_tf else None,
            self.queries.worker.detections,
        )
        self._initial_pose = InitialPose(self, self._settings.map.frame, self.pipeline.give_hint)
        self._report_timers = [
            self.create_timer(self._settings.status_period_s, self._report),
            self.create_timer(
                self._settings.voxel.publish_period_s,
                self._publish_map,
                callback_group=MutuallyExclusiveCallbackGroup(),
            ),
        ]
        self._clock_watch = threading.Timer(CLOCK_WAIT_S, self._check_clock)
        self._clock_watch.daemon = True
        self._clock_watch.start()
        self.windows.active = True
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
        if self.windows is not None:
            self._map_is_void = self._map_is_void or self.windows.active
            self.windows.active = False
        if self._clock_watch is not None:
            self._clock_watch.cancel()
        cameras, self.cameras = self.cameras, None
        if cameras is not None:
            self.attempt("unsubscribing", cameras.close)
        self._stop_tracking()
        initial_pose, self._initial_pose = self._initial_pose, None
        if initial_pose is not None:
            self.attempt("unsubscribing", initial_pose.close)
        timers, self._report_timers = self._report_timers, []
        for timer in timers:
            self.attempt("stopping reports", lambda timer=timer: self.destroy_timer(timer))
        if self.pipeline is not None:
            self.pipeline.reset()
            self._device_rests()

    def _stop_tracking(self) -> None:
        if self.windows is None:
            return
        tracking, self.windows.tracking = self.windows.tracking, None
        if tracking is not None:
            self.attempt("ending the tracking of frames", tracking.close)

    def _close(self) -> None:
        """Undo on_configure, whatever of it was done."""
        scheduler, self.scheduler = self.scheduler, None
        # What waits there comes to an end first: every question gets its response.
        if scheduler is not None and not scheduler.shutdown(DEVICE_WAIT_S):
            self.get_logger().error("the device's thread does not end; it is left to itself")
        with self._reporting, self._publishing:
            self._close_parts()

    def _close_parts(self) -> None:
        for what, part in (
            ("questions", self.queries),
            ("objects", self.object_services),
            ("topics", self.outputs),
            ("reports", self._reports),
        ):
            if part is not None:
                self.attempt(f"closing {what}", part.close)
        services, self._map_and_point_services = self._map_and_point_services, []
        for service in services:
            self.attempt("closing services", lambda s=service: self.destroy_service(s))
        self.perception = self.queries = self.outputs = self.pipeline = self.dense_map = None
        self.object_services = self.windows = self._reports = None
        self._configured = self._map_is_void = False

    def _device_rests(self) -> bool:
        """Wait for what runs on the device; False, with a word in the log, where it hangs."""
        if self.scheduler is None:
            return True
        try:
            self.scheduler.submit(lambda: None).result(DEVICE_WAIT_S)
            return True
        except FutureTimeoutError:
            job_s = self.scheduler.running_for_s()
            self.get_logger().error(
                f"the device has been busy with one job for {job_s:.1f} s; "
                "its result will be thrown away"
            )
            return False
        except RuntimeError:
            return True

    def _check_clock(self) -> None:
        """Say that nothing timed can happen where sim time is wanted and no clock runs."""
        if self._is_active() and self.get_clock().now().nanoseconds == 0:
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

    def _make_services(self) -> None:
        services = PointService(self._settings.map.frame, windows=self.windows)
        self.object_services = ObjectServices(
            self,
            self._settings.map.frame,
            self.objects,
            self.rooms,
            self.dense_map,
            windows=self.windows,
        )
        self.queries = QueryServer(
            self,
            self.perception,
            self._settings,
            self._version,
            self.scheduler,
            windows=self.windows,
            objects=self.objects,
            publish_objects=self.object_services.publish,
        )
        keyframes = KeyframeKeeper(
            self._settings.map,
            KeyframeOrigin(self._version, with_input_sizes(self._settings).model.image_width_px),
            self.scheduler.submit,
            self.pipeline.map_views,
            self.windows.look_for,
            self.get_logger().info,
        )
        maps = MapServices(
            self._settings.map, self.dense_map, self.objects, self.rooms, services, keyframes
        )
        if sentence := folder_warning(self._settings.map.folder):
            self.get_logger().warning(sentence)
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

    def _reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        windows = self.windows
        if windows is None:
            response.success, response.message = False, "the node is not configured"
            return response
        windows.reset()
        response.success, response.message = True, "frames and map are forgotten"
        return response

    def log_failure(self, what: str, error: BaseException) -> None:
        """Log what should not have happened, with where it did."""
        self._device_gone = self._device_gone or isinstance(error, BackendGoneError)
        self.get_logger().error(
            f"{what} failed: {''.join(traceback.format_exception(error))}",
            throttle_duration_sec=5.0,
        )

    # Seen from outside -----------------------------------------------------------------------

    def begin(self) -> None:
        """Become active where the parameter autostart says so."""
        if self.get_parameter("autostart").value:
            self.bring_up()

    def exit_code(self) -> int:
        """Of the process, when it ends now."""
        if self.device_gone():
            return DEVICE_GONE_EXIT_CODE
        return int(self.bring_up_failed)

    def device_gone(self) -> bool:
        """Whether nothing can run on the device in this process any more, and all is put down."""
        return self._device_gone and not self._is_active()

    def _is_active(self) -> bool:
        windows = self.windows
        return windows is not None and windows.active

    def counts(self) -> Counts:
        """Frames and windows since configure."""
        return self.pipeline.counts()

    def stores(self) -> tuple[Store, ...]:
        """What is held against its bounds, since configure."""
        return stores(
            self._settings,
            self.pipeline,
            self.dense_map,
            self.objects,
            self.queries.worker.sizes(),
        )

    def tracking_counts(self) -> TrackingCounts | None:
        """Frames followed between windows since activation; None where none are."""
        tracking = self.windows.tracking
        return None if tracking is None else tracking.counts()

    def tracking_rests(self) -> bool:
        """Whether no frame waits to be followed, or is being followed."""
        tracking = self.windows.tracking
        return tracking is None or tracking.rests()

    def newest_views_ns(self) -> tuple[int, ...]:
        """Stamps of the newest window's views, oldest first; empty before the first window."""
        update = self.windows.newest
        return () if update is None else tuple(sorted(f.stamp_ns for f in update.window.frames))

    def listened_to(self) -> bool:
        """Whether anybody subscribes to something that needs the model."""
        return self.windows.listened_to()

    def idle(self) -> bool:
        """Whether no window job is queued or running."""
        return self.windows.idle()

    def refresh(self, timeout_s: float) -> None:
        """Run a window although nobody listens, and wait for it."""
        self.windows.refresh(timeout_s)

    def _report(self) -> None:
        with self._reporting:
            if self._reports is not None:  # else the timer fired before it was destroyed
                self._report_once()

    def _publish_map(self) -> None:
        with self._publishing:
            if self.outputs is not None:
                self.outputs.publish_map(self.dense_map)

    def _report_once(self) -> None:
        self._name_clash.check()
        if (cameras := self.cameras) is not None:
            cameras.renew_silent()
        self._reports.count_frames()
        self._reports.publish_status()
        self.object_services.publish()
        if self._device_gone:
            self.get_logger().error(
                f"the device is gone for this process: inactive; it ends with exit code "
                f"{DEVICE_GONE_EXIT_CODE}, and the launch file starts it again"
            )
            self.trigger_deactivate()
            return
        self._reports.publish_diagnostics(self._failures)


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
    """``ros2 run g2vlm_ros perception``: unconfigured, or with autostart active by itself.

    Exit code 1 where it should become active and cannot.
    """
    limit_arenas()
    return run(
        "perception",
        PerceptionNode,
        arguments,
        threads=THREADS,
        begin=PerceptionNode.begin,
        ended=lambda node: node.device_gone() or node.bring_up_failed,
        end=PerceptionNode.end,
        exit_code=PerceptionNode.exit_code,
    )


if __name__ == "__main__":
    raise SystemExit(main())
