# SPDX-License-Identifier: Apache-2.0
"""The node `viewer`: the live map in a browser, for robots without a screen.

Serves one page (library viser) on a local port: the map, the views of the newest window with their
images, the path, the newest question with its answer and picture, scale and latency. It listens to
`perception` only while a browser is open, so that a model nobody looks at rests; latched topics
bring a newcomer up to date.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from g2vlm_ros.msg import ReconstructionStatus, SpatialExample
from geometry_msgs.msg import PoseArray, PoseStamped
from nav_msgs.msg import Path
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from g2vlm_ros.geometry.sim3 import quaternion_xyzw
from g2vlm_ros.parameter_schema import TOPIC, SettingError, parameter
from g2vlm_ros.ros import parameters
from g2vlm_ros.ros.conversions import geometry, images
from g2vlm_ros.ros.end_signals import END_WITH_PARENT
from g2vlm_ros.ros.publishers import LATCHED
from g2vlm_ros.ros.run_node import run
from g2vlm_ros.ros.viewer.scene import (
    Cloud,
    Frustum,
    ViewFrustums,
    answer_lines,
    overview,
    path_segments,
    status_lines,
    table,
)
from g2vlm_ros.ros.viewer.visitors import VisitorRules, guarded, make_token, token_fault

LOOK_PERIOD_S = 0.2
"""How often the node looks whether a browser is open."""
PATH_COLOUR, VIEW_COLOUR, TARGET_COLOUR = (255, 64, 64), (90, 170, 255), (255, 210, 0)
INSTALL = "the viewer needs the Python package viser: pip install viser (1.1 or newer)"


@dataclass(frozen=True)
class ViewerSettings:
    """All settings of the viewer; they are read once, at start."""

    host: str = parameter("127.0.0.1", "Address to serve at; 0.0.0.0 lets other machines look on.")
    port: int = parameter(8080, "Port to serve at; 0 takes a free one.", low=0, high=65535)
    perception: str = parameter("perception", "Name of the perception node.", name=TOPIC)
    image_transport: str = parameter(
        "raw", "raw or compressed images.", choices=("raw", "compressed")
    )
    max_points: int = parameter(
        500_000, "Most points of the map that are sent to a browser.", low=1000, high=10_000_000
    )
    token: str = parameter(
        "", "First part of the page's path: who lacks it is refused. Empty makes a new one."
    )
    max_visitors: int = parameter(16, "Browsers that may look on at once.", low=1, high=1000)

    def __post_init__(self) -> None:
        if self.token and (fault := token_fault(self.token)):
            raise SettingError(fault)


class Page:
    """What a browser sees; safe to call from any thread.

    Raises RuntimeError where viser is missing, OSError where the port cannot be had.
    """

    def __init__(self, settings: ViewerSettings):
        check_installed()
        import viser

        check_port(settings.host, settings.port)
        # Browsers open spare connections and close them unused; that is not worth a traceback.
        logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
        self._max_points = settings.max_points
        self._lock = threading.Lock()
        self._cloud: Cloud | None = None
        self._size = 0.2
        """Of drawn cameras, in map lengths."""
        self._shown: dict[str, list] = {}
        self._token = settings.token or make_token()
        rules = VisitorRules(settings.host, self._token, settings.max_visitors)
        with guarded(rules):
            self._server = viser.ViserServer(
                settings.host, settings.port, label="g2vlm_ros", verbose=False
            )
        self._server.scene.set_up_direction("+z")
        gui = self._server.gui
        gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
        self._status = gui.add_html(table({"Status": "waiting for the perception node"}))
        self._answer = gui.add_html("")
        self._picture = gui.add_image(np.zeros((1, 1, 3), np.uint8), visible=False)
        self._height = gui.add_slider(
            "Height shown, %",
            min=5,
            max=100,
            step=1,
            initial_value=80,
            hint="Hides the ceiling: only points in this lowest part of the map are drawn.",
        )
        self._height.on_update(lambda _: self._draw_cloud())

    @property
    def address(self) -> str:
        """Where to point the browser of this machine: with the token."""
        host = self._server.get_host()
        name = "localhost" if host == "0.0.0.0" else host
        return f"http://{name}:{self._server.get_port()}/{self._token}/"

    def watched(self) -> bool:
        """Whether a browser is open."""
        return bool(self._server.get_clients())

    def close(self) -> None:
        """Stop serving."""
        self._server.stop()

    def show_cloud(self, cloud: Cloud) -> None:
        """Draw the map; the first one moves the eyes of who is there, later ones "Reset view"."""
        first = self._cloud is None
        self._cloud = cloud.thinned(self._max_points)
        self._draw_cloud()
        if not len(cloud.positions):
            return
        self._size = 0.045 * cloud.extent()[1]
        cameras = [self._server.initial_camera]
        if first:
            cameras += [client.camera for client in self._server.get_clients().values()]
        for camera in cameras:
            camera.position, camera.look_at = overview(self._cloud)

    def _draw_cloud(self) -> None:
        with self._lock:
            if self._cloud is None or not len(self._cloud.positions):
                return
            visible = self._cloud.below(self._height.value / 100)
            self._server.scene.add_point_cloud(
                "/map",
                visible.positions,
                visible.colours,
                precision="float32",
                point_size=self._cloud.spacing(),
                point_shading="flat",
            )

    def show_frusta(self, frusta: list[Frustum]) -> None:
        """Draw the views of the newest window instead of those before."""
        handles = [
            self._server.scene.add_camera_frustum(
                f"/views/{i}",
                view.fov_rad,
                view.image.shape[1] / view.image.shape[0],
                scale=self._size,
                thickness=0.05 * self._size,
                color=VIEW_COLOUR,
                image=view.image,
                wxyz=np.roll(quaternion_xyzw(view.map_from_camera[:3, :3]), 1),
                position=view.map_from_camera[:3, 3],
            )
            for i, view in enumerate(frusta)
        ]
        for surplus in self._shown.get("views", [])[len(handles) :]:
            surplus.remove()
        self._shown["views"] = handles

    def show_path(self, segments: np.ndarray) -> None:
        """Draw lines (n, 2, 3) instead of those before."""
        if len(segments):
            self._server.scene.add_line_segments(
                "/path", segments, PATH_COLOUR, thickness=3.0, thickness_units="screen"
            )

    def show_target(self, position: np.ndarray) -> None:
        """Mark the place (3,) that the last answer was about."""
        self._server.scene.add_icosphere(
            "/target", 0.15 * self._size, TARGET_COLOUR, position=position
        )

    def show_status(self, lines: dict[str, str]) -> None:
        """Write scale, latency and what else the status says."""
        self._status.content = table(lines)

    def show_answer(self, lines: dict[str, str]) -> None:
        """Write the newest question and answer."""
        self._answer.content = table(lines)

    def show_picture(self, image: np.ndarray) -> None:
        """Show the picture (H, W, 3) that goes with the answer."""
        self._picture.image, self._picture.visible = image, True


class ViewerNode(Node):
    """Topics of `perception` and images of its cameras, onto a page.

    Raises SettingError, RuntimeError or OSError when a parameter is wrong, viser is missing or the
    port cannot be had.
    """

    def __init__(self, **node_arguments):
        super().__init__(
            "viewer", automatically_declare_parameters_from_overrides=True, **node_arguments
        )
        try:
            parameters.declare(self, ViewerSettings)
            self._settings = parameters.read(self, ViewerSettings)
            self._page = Page(self._settings)
        except BaseException:
            self.destroy_node()
            raise
        self._views = ViewFrustums()
        self._map_frame = ""
        self._camera_subscriptions: dict[str, object] = {}
        self.create_timer(LOOK_PERIOD_S, self._follow_watchers)
        self.get_logger().info(f"open {self.address} in a browser")

    @property
    def address(self) -> str:
        """Where to point the browser of this machine."""
        return self._page.address

    def destroy_node(self) -> None:
        """Stop serving, then destroy."""
        if hasattr(self, "_page"):
            self._page.close()
        super().destroy_node()

    # Listening -------------------------------------------------------------------------------

    def _follow_watchers(self) -> None:
        """Listen while somebody watches; let go of everything received otherwise."""
        watched = self._page.watched()
        if watched and not self._camera_subscriptions:
            self.listen_to_perception()
        elif not watched and self._camera_subscriptions:
            for subscription in self._camera_subscriptions.values():
                self.destroy_subscription(subscription)
            self._camera_subscriptions.clear()
            self._views = ViewFrustums()

    def listen_to_perception(self) -> None:
        """Subscribe to what the perception node publishes."""
        few = QoSProfile(depth=2)
        for kind, topic, receive, qos in (
            (PointCloud2, "map", self._on_map, LATCHED),
            (Path, "path", lambda m: self._page.show_path(path_segments(m)), LATCHED),
            (PoseArray, "window_poses", self._on_poses, few),
            (CameraInfo, "depth/camera_info", lambda m: self._views.add_calibration(m), few),
            (ReconstructionStatus, "status", self._on_status, LATCHED),
            (SpatialExample, "query/last_answer", self._on_answer, LATCHED),
            (PoseStamped, "query/last_target", self._on_target, LATCHED),
            (Image, "query/picture", self._on_picture, LATCHED),
        ):
            self._listen(kind, f"{self._settings.perception}/{topic}", receive, qos)

    def listen_to_camera(self, camera: str) -> None:
        """Subscribe to a camera's images."""
        if self._settings.image_transport == "compressed":
            kind, suffix, read = CompressedImage, "/compressed", images.frame_from_compressed
        else:
            kind, suffix, read = Image, "", images.frame_from_image
        receive = functools.partial(self._on_image, read, camera)
        self._listen(kind, f"{camera}/image_raw{suffix}", receive, qos_profile_sensor_data)

    def _listen(self, kind: type, topic: str, receive: Callable, qos: QoSProfile) -> None:
        """Subscribe; a message that cannot be shown is named in the log."""

        def checked(message) -> None:
            try:
                receive(message)
            except ValueError as error:
                self.get_logger().warning(f"{topic}: {error}", throttle_duration_sec=5.0)

        self._camera_subscriptions[topic] = self.create_subscription(kind, topic, checked, qos)

    # Showing ---------------------------------------------------------------------------------

    def _on_map(self, message: PointCloud2) -> None:
        self._map_frame = message.header.frame_id
        self._page.show_cloud(Cloud.of(message))

    def _on_image(self, read: Callable, camera: str, message: Image | CompressedImage) -> None:
        self._views.add_image(read(message, camera))

    def _on_poses(self, message: PoseArray) -> None:
        self._views.add_poses(message)
        self._show_views()

    def _on_status(self, message: ReconstructionStatus) -> None:
        for camera in set(message.view_cameras):
            if not any(
                topic.startswith(f"{camera}/image_raw") for topic in self._camera_subscriptions
            ):
                self.listen_to_camera(camera)
        self._views.add_status(message)
        self._page.show_status(status_lines(message))
        self._show_views()

    def _show_views(self) -> None:
        frusta = self._views.frusta()
        if frusta is not None:
            self._page.show_frusta(frusta)

    def _on_answer(self, message: SpatialExample) -> None:
        self._page.show_answer(answer_lines(message))

    def _on_target(self, message: PoseStamped) -> None:
        if message.header.frame_id == self._map_frame:
            self._page.show_target(geometry.position(message.pose.position))

    def _on_picture(self, message: Image) -> None:
        self._page.show_picture(images.frame_from_image(message, "picture").decode())


def check_installed() -> None:
    """RuntimeError with the remedy where viser is missing."""
    if importlib.util.find_spec("viser") is None:
        raise RuntimeError(INSTALL)


def check_port(host: str, port: int) -> None:
    """OSError naming host and port where it cannot be had; viser itself would take another."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise OSError(
            f"cannot serve at {host}:{port} ({error.strerror or error}); choose another host or "
            "port, 0 takes a free one"
        ) from error


def start(port: int) -> subprocess.Popen:
    """The viewer as a process of its own, which logs its address; `terminate()` ends it.

    Raises RuntimeError where viser is missing, OSError where the port is taken.
    """
    check_installed()
    check_port(ViewerSettings.host, port)
    command = [
        sys.executable,
        "-m",
        "g2vlm_ros.ros.viewer.viewer_node",
        "--ros-args",
        "-p",
        f"port:={port}",
    ]
    environment = {**os.environ, END_WITH_PARENT: "1"}
    # Away from the terminal's signals: whoever started it ends it.
    return subprocess.Popen(command, env=environment, start_new_session=True)


def main(arguments: list[str] | None = None) -> int:
    """``ros2 run g2vlm_ros viewer``; exit code 2 if it cannot serve."""
    return run("viewer", ViewerNode, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
