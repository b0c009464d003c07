# SPDX-License-Identifier: Apache-2.0
"""The node `perception`: cameras in, clouds, poses and answers out. Wiring only.

Sensor callbacks hand frames over and return; one thread owns the device and runs windows and
questions as jobs; what a window adds is published from that thread.
"""

from __future__ import annotations

import functools
import math
import threading
import traceback
from concurrent.futures import wait

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from g2vlm_ros.checkpoint.digest import fingerprint
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.msg import ReconstructionStatus
from g2vlm_ros.perception import Perception
from g2vlm_ros.pipeline import Counts, MappedWindow, MappingPipeline
from g2vlm_ros.records import BackendGoneError, Frame
from g2vlm_ros.ros import parameters
from g2vlm_ros.ros.conversions import messages
from g2vlm_ros.ros.diagnostics import Diagnostics, status_message
from g2vlm_ros.ros.inference_scheduler import InferenceScheduler
from g2vlm_ros.ros.inputs.cameras import Cameras
from g2vlm_ros.ros.map_services import MapServices
from g2vlm_ros.ros.point_service import PointService
from g2vlm_ros.ros.publishers import LATCHED, Publishers
from g2vlm_ros.ros.query_server import QueryServer
from g2vlm_ros.ros.rclpy_workarounds import SafeWaitables
from g2vlm_ros.settings import SettingError, Settings, knobs
from g2vlm_ros.srv import EditMap, GetPoints, LoadMap, SaveMap

SETTINGS = frozenset(name for name, _ in knobs())


def reported(transition):
    """A transition whose failure is logged: rclpy itself would swallow the exception."""

    @functools.wraps(transition)
    def run(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except (ValueError, OSError) as error:
            self.get_logger().error(f"{transition.__name__}: {error}")
        except Exception:
            self.get_logger().error(f"{transition.__name__} failed:\n{traceback.format_exc()}")
        return TransitionCallbackReturn.FAILURE

    return run


class PerceptionNode(SafeWaitables, LifecycleNode):
    """Lifecycle: configure loads the model, activate subscribes, deactivate waits for the device.

    A job that fails on the device is logged, shown in /diagnostics and ~/status, and the next
    window is tried. Raises SettingError when a parameter is wrong at start.
    """

    def __init__(self, **node_arguments):
        super().__init__(
            "perception", automatically_declare_parameters_from_overrides=True, **node_arguments
        )
        parameters.declare(self, Settings)
        self._configured = False
        self._active = False
        self.add_on_set_parameters_callback(self._check_parameters)

    # Lifecycle -------------------------------------------------------------------------------

    @reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Validate settings, load and warm up the model, make topics and services."""
        settings = parameters.read(self, Settings)
        self._settings = settings
        self._device = InferenceScheduler(
            settings.query.reconstruction_share, settings.query.queue
        )
        try:
            self._perception = self._device.submit(open_and_warm_up, settings).result()
            self._version = fingerprint(settings.model.checkpoint)
        except BaseException:
            self._device.shutdown()
            raise
        self._live, self._map = MappingPipeline(self._perception, settings), DenseMap(settings)
        self._newest: MappedWindow | None = None
        self._latency_s = math.nan
        self._problem = ""
        self._device_gone = False
        self._job_waiting, self._job_running = threading.Event(), threading.Event()
        self._outputs = Publishers(self, settings)
        self._status = self.create_lifecycle_publisher(ReconstructionStatus, "~/status", LATCHED)
        self._make_diagnostics()
        self._make_services()
        self._configured = True
        self.get_logger().info(
            f"model {self._version} on {self._perception.backend} "
            f"({self._perception.chosen_because})"
        )
        return super().on_configure(state)

    @reported
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the cameras and start reporting."""
        result = super().on_activate(state)
        self._active = True
        self._cameras = Cameras(self, self._settings, self._on_frame, self._live.reject)
        self._report_timers = [
            self.create_timer(self._settings.status_period_s, self._report),
            self.create_timer(
                self._settings.voxel.publish_period_s,
                lambda: self._outputs.publish_map(self._map),
                callback_group=MutuallyExclusiveCallbackGroup(),
            ),
        ]
        return result

    @reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening, wait for the running job, forget waiting frames."""
        self._stop()
        return super().on_deactivate(state)

    @reported
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give the model, the topics and the services back."""
        self._close()
        return super().on_cleanup(state)

    @reported
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and close from whatever state."""
        self._stop()
        self._close()
        return super().on_shutdown(state)

    def _stop(self) -> None:
        if not self._active:
            return
        self._active = False
        self._cameras.close()
        for timer in self._report_timers:
            self.destroy_timer(timer)
        self._device.submit(lambda: None).result()
        self._live.reset()

    def _close(self) -> None:
        if not self._configured:
            return
        self._configured = False
        self._outputs.close()
        for publisher in (self._status, self._diagnostics_publisher):
            self.destroy_publisher(publisher)
        for service in self._services_made:
            self.destroy_service(service)
        self._device.shutdown()
        self._queries.close()
        del self._perception, self._live, self._map, self._newest, self._queries

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

    def _make_diagnostics(self) -> None:
        self._diagnostics = Diagnostics(self.get_name(), self._perception.backend, self._settings)
        self._diagnostics_publisher = self.create_lifecycle_publisher(
            DiagnosticArray, "/diagnostics", QoSProfile(depth=1)
        )

    def _make_services(self) -> None:
        services = PointService(
            self._settings.map.frame,
            newest=self._newest_and_age,
            refresh=self._refresh,
            active=lambda: self._active,
            log_failure=self._log_failure,
        )
        self._queries = QueryServer(
            self,
            self._perception,
            self._settings,
            self._version,
            self._device,
            newest=self._newest_and_age,
            run_window=self._run_window,
            active=lambda: self._active,
            log_failure=self._log_failure,
        )
        maps = MapServices(self._settings.map.frame, self._map, services)
        group = ReentrantCallbackGroup()
        self._services_made = [
            self.create_service(kind, name, handler, callback_group=group)
            for kind, name, handler in (
                (GetPoints, "~/get_points", services.get_points),
                (SaveMap, "~/save_map", maps.save_map),
                (LoadMap, "~/load_map", maps.load_map),
                (EditMap, "~/edit_map", maps.edit_map),
                (Trigger, "~/reset", self._reset),
            )
        ]

    def _on_frame(self, frame: Frame) -> None:
        self._live.offer(frame)
        self._schedule()

    # Device ----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Queue a window job unless one is queued already; a running one does not count."""
        if self._active and not self._job_waiting.is_set() and self._outputs.wanted():
            self._job_waiting.set()
            self._device.submit(self._run_window)

    def _run_window(self) -> None:
        self._job_running.set()
        self._job_waiting.clear()
        try:
            if self._active and self._step():
                self._schedule()
        except Exception as error:
            self._problem = f"{type(error).__name__}: {error}"
            self._device_gone = isinstance(error, BackendGoneError)
            self._log_failure("window", error)
        finally:
            self._job_running.clear()

    def _step(self) -> bool:
        """Make and publish the next window; False when there are too few frames for one."""
        update = self._live.step()
        if update is None:
            return False
        self._map.add(update)
        self._outputs.publish(update)
        self._queries.remember(update)
        self._newest, self._problem = update, ""
        self._latency_s = self._age_s(update)
        self._publish_status()
        return True

    def _age_s(self, update: MappedWindow) -> float:
        return (self.get_clock().now().nanoseconds - update.window.stamp_ns) * 1e-9

    def _newest_and_age(self) -> tuple[MappedWindow, float] | None:
        update = self._newest
        return None if update is None else (update, self._age_s(update))

    def _refresh(self, timeout_s: float) -> None:
        """Run a window although nobody listens, and wait for it."""
        wait([self._device.submit(self._run_window)], timeout_s)

    def _reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._map.reset(self._live.reset())
        self._newest = None
        self._device.submit(self._queries.forget)
        response.success, response.message = True, "frames and map are forgotten"
        return response

    def _log_failure(self, what: str, error: Exception) -> None:
        self.get_logger().error(
            f"{what} failed: {''.join(traceback.format_exception(error))}",
            throttle_duration_sec=5.0,
        )

    # Seen from outside -----------------------------------------------------------------------

    def counts(self) -> Counts:
        """Frames and windows since configure."""
        return self._live.counts()

    def newest_views_ns(self) -> tuple[int, ...]:
        """Stamps of the newest window's views, oldest first; empty before the first window."""
        update = self._newest
        return () if update is None else tuple(sorted(f.stamp_ns for f in update.window.frames))

    def listened_to(self) -> bool:
        """Whether anybody subscribes to something that needs the model."""
        return self._outputs.wanted()

    def idle(self) -> bool:
        """Whether no window job is queued or running."""
        return not (self._job_waiting.is_set() or self._job_running.is_set())

    # Reports ---------------------------------------------------------------------------------

    def _header(self, stamp) -> Header:
        return Header(stamp=stamp, frame_id=self._settings.map.frame)

    def _publish_status(self) -> None:
        update = self._newest
        stamp = messages.stamp(update.window.stamp_ns) if update else self._now()
        self._status.publish(
            status_message(
                self._header(stamp),
                self._live.counts(),
                update,
                self._latency_s,
                self._version,
                self._perception.backend,
                self._problem,
            )
        )

    def _now(self):
        return self.get_clock().now().to_msg()

    def _report(self) -> None:
        self._publish_status()
        if self._device_gone:
            self.get_logger().error("the device is gone for good: inactive; start the node again")
            self.trigger_deactivate()
            return
        if self._diagnostics_publisher.get_subscription_count():
            now_s = self.get_clock().now().nanoseconds * 1e-9
            self._diagnostics_publisher.publish(
                self._diagnostics.report(
                    Header(stamp=self._now()),
                    now_s,
                    self._live.counts(),
                    self._newest,
                    self._latency_s,
                    self._problem,
                    self._outputs.wanted(),
                )
            )


def open_and_warm_up(settings: Settings) -> Perception:
    """Load the model and run it once on grey views, so that the first window is not slow."""
    perception = Perception.open(settings)
    grey = np.full((480, 640, 3), 128, np.uint8)
    perception.reconstruct([grey] * settings.window.views)
    return perception


def main(arguments: list[str] | None = None) -> int:
    """``ros2 run g2vlm_ros perception``: starts unconfigured; a launch file drives it."""
    rclpy.init(args=arguments)
    # Besides sensors and reports, each waiting question of the service holds a thread.
    executor = MultiThreadedExecutor(num_threads=16)
    try:
        node = PerceptionNode()
    except SettingError as error:
        rclpy.logging.get_logger("perception").fatal(str(error))
        rclpy.try_shutdown()
        return 2
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.on_shutdown(None)
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
