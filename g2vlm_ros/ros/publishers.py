# SPDX-License-Identifier: Apache-2.0
"""The topics of the node: made at configure, filled only for who listens."""

from __future__ import annotations

import threading

import numpy as np
from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped, TransformStamped
from nav_msgs.msg import OccupancyGrid, Odometry, Path
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from g2vlm_ros.dense_map.dense_map import DenseMap, Version
from g2vlm_ros.dense_map.map_changes import CHANGED_POINT, EVERYTHING, POINT, change_rows
from g2vlm_ros.geometry import point_cloud
from g2vlm_ros.mapping.camera_tracker import TrackedPose
from g2vlm_ros.mapping.continuous_odometry import OdometryEstimate
from g2vlm_ros.mapping.trajectory import Trajectory
from g2vlm_ros.mapping.window_pose import MappedWindow
from g2vlm_ros.records import Frame, newest_view
from g2vlm_ros.ros.conversions import clouds, geometry, images
from g2vlm_ros.ros.conversions.odometry_messages import odometry_message
from g2vlm_ros.ros.map_to_odom import MapToOdom
from g2vlm_ros.settings import Settings

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Publishers:
    """Publishes what one window adds; work for a topic is done only when it has subscribers.

    ~/occupancy and ~/odometry are published only while lengths are metres: nothing in their
    messages would tell a planner that they are not. Stamps of a camera on ~/pose and /tf only
    grow: what a window says of a moment that frames followed since have passed is not sent.
    `retract` takes back what latched topics say of a forgotten map.
    """

    TOPICS = {
        "points": (PointCloud2, "~/points", QoSProfile(depth=2)),
        "pose": (PoseWithCovarianceStamped, "~/pose", QoSProfile(depth=10)),
        "odometry": (Odometry, "~/odometry", QoSProfile(depth=10)),
        "path": (Path, "~/path", LATCHED),
        "window_poses": (PoseArray, "~/window_poses", QoSProfile(depth=2)),
        "depth": (Image, "~/depth/image", QoSProfile(depth=2)),
        "depth_info": (CameraInfo, "~/depth/camera_info", QoSProfile(depth=2)),
        "map": (PointCloud2, "~/map", LATCHED),
        "map_updates": (PointCloud2, "~/map_updates", QoSProfile(depth=100)),
        "occupancy": (OccupancyGrid, "~/occupancy", LATCHED),
        "tf": (TFMessage, "/tf", QoSProfile(depth=100)),
    }

    def __init__(self, node: LifecycleNode, settings: Settings):
        self._settings = settings
        self._trail = Trajectory(settings.map.path_length)
        self._path: Path | None = None
        self._cloud: PointCloud2 | None = None
        self._sent_versions: dict[str, Version] = {}
        self._session = 0
        self._map_to_odom = MapToOdom(settings.map.frame)
        self._newest_ns: dict[tuple[str, str], int] = {}
        """Newest stamp sent on a topic about a camera."""
        self._lock = threading.RLock()
        """Held while a message is made and sent: what is retracted does not come back."""
        self.shared_frames: dict[str, tuple[str, ...]] = {}
        """Cameras by a frame_id that does not name one of them alone."""
        self._followers: set[tuple[int, ...]] = set()
        self._publishers = {
            name: node.create_lifecycle_publisher(
                kind,
                topic,
                qos,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            for name, (kind, topic, qos) in self.TOPICS.items()
            if name != "tf" or settings.map.publish_tf
        }
        self._node = node

    def close(self) -> None:
        """Take the topics away."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        self._publishers.clear()

    def wanted(self) -> bool:
        """Whether anybody listens to anything that needs the model."""
        return any(self._listened(name) for name in self._publishers)

    def publish(self, update: MappedWindow) -> None:
        """Send everything that somebody listens to. Stamps are those of the views.

        Nothing in the map frame while the robot is lost in a saved map.
        """
        with self._lock:
            if update.session < self._session:
                return
            self._publish_depth(update)
            if not update.localisation.placed:
                self._map_to_odom.clear()
                return
            self._map_to_odom.update(update)
            self._publish_points(update)
            self._publish_poses(update)
            self._publish_transforms(update)

    def retract(self, session: int, stamp_ns: int) -> None:
        """Say on every latched topic, and to ~/map_updates, that the map is forgotten.

        session: what `MappingPipeline.reset` returned; windows of earlier ones come to nothing.
        """
        with self._lock:
            self._session = session
            self._map_to_odom.clear()
            self._newest_ns.clear()
            self._trail = Trajectory(self._settings.map.path_length)
            self._path = None
            self._publishers["path"].publish(Path(header=self._header(stamp_ns)))
            self._retract("map", stamp_ns)
            self._retract("occupancy", stamp_ns)
            if self._sent_versions.pop("map_updates", None) is not None:
                everything = np.zeros(1, CHANGED_POINT)
                everything["id"] = EVERYTHING
                for axis in "xyz":
                    everything[axis] = np.nan
                message = clouds.packed_cloud(self._header(stamp_ns), everything)
                self._publishers["map_updates"].publish(message)

    def _retract(self, name: str, stamp_ns: int) -> None:
        """An empty message on a latched topic of the map, if it said anything before."""
        if self._sent_versions.pop(name, None) is None:
            return
        header = self._header(stamp_ns)
        if name == "map":
            message = clouds.packed_cloud(header, np.empty(0, POINT))
        else:
            message = OccupancyGrid(header=header)
            message.info.map_load_time = header.stamp
            message.info.resolution = float(self._settings.voxel.cell_m)
        self._publishers[name].publish(message)

    def publish_map(self, dense_map: DenseMap) -> None:
        """Send map, changes and occupancy where they are listened to and have changed."""
        with self._lock:
            self._publish_changes(dense_map)
            for name, make in (("map", self._map_message), ("occupancy", self._occupancy_message)):
                version, stamp_ns = dense_map.version, dense_map.stamp_ns
                if not stamp_ns or (name == "occupancy" and not dense_map.metric):
                    continue
                if version != self._sent_versions.get(name) and self._listened(name):
                    if (message := make(dense_map, self._header(stamp_ns))) is not None:
                        self._publishers[name].publish(message)
                    self._sent_versions[name] = version
            if dense_map.stamp_ns and not dense_map.metric:
                self._retract("occupancy", dense_map.stamp_ns)

    def _publish_changes(self, dense_map: DenseMap) -> None:
        """What changed since the last message, or everything when there is a new listener."""
        if not self._listened("map_updates"):
            self._followers.clear()
            return
        publisher = self._publishers["map_updates"]
        subscribers = self._node.get_subscriptions_info_by_topic(publisher.topic_name)
        followers = {tuple(endpoint.endpoint_gid) for endpoint in subscribers}
        matched = len(followers) == publisher.get_subscription_count()
        up_to_date = matched and followers <= self._followers
        changes = dense_map.changes(self._sent_versions.get("map_updates") if up_to_date else None)
        if changes is None:
            return
        change, version = changes
        rows = change_rows(change)
        if len(rows):
            header = self._header(dense_map.stamp_ns)
            publisher.publish(clouds.packed_cloud(header, rows))
        self._sent_versions["map_updates"] = version
        self._followers = followers if matched else set()

    @staticmethod
    def _map_message(dense_map: DenseMap, header: Header) -> PointCloud2:
        return clouds.packed_cloud(header, dense_map.points())

    @staticmethod
    def _occupancy_message(dense_map: DenseMap, header: Header) -> OccupancyGrid | None:
        grid = dense_map.occupancy()
        return None if grid is None else clouds.occupancy_grid(header, grid)

    def _listened(self, name: str) -> bool:
        publisher = self._publishers.get(name)
        return publisher is not None and publisher.get_subscription_count() > 0

    def _header(self, stamp_ns: int) -> Header:
        return geometry.header(stamp_ns, self._settings.map.frame)

    def _publish_points(self, update: MappedWindow) -> None:
        if not self._listened("points"):
            return
        cloud = self._settings.cloud
        sound = update.trusted_views
        alone = [[i] for i in update.new_views if i in sound]
        for views in alone if cloud.organised else [sound]:
            self._publish_cloud(update, np.array(views))

    def _publish_cloud(self, update: MappedWindow, views: np.ndarray) -> None:
        frames = update.window.frames
        header = self._header(frames[newest_view(frames, views)].stamp_ns)
        packed = self._packed_on_device(update, views)
        if packed is None:
            self._cloud = self._packed_here(header, update, views)
        else:
            self._cloud = clouds.cloud_of_bytes(header, packed, out=self._cloud)
        self._publishers["points"].publish(self._cloud)

    def _packed_on_device(self, update: MappedWindow, views: np.ndarray) -> np.ndarray | None:
        """The bytes of a dense cloud of all pixels that lie on a device; else None."""
        cloud, result = self._settings.cloud, update.result
        points = result.device_points_u
        if points is None or cloud.organised or cloud.stride_px > 1:
            return None
        poses, scale = update.map_from_camera[views], update.placement.map_from_window.scale
        return points.packed(
            views,
            result.colours,
            result.confidence,
            result.ignored,
            point_cloud.affines(len(views), poses, scale),
            cloud.min_confidence,
            cloud.max_edge_step,
        )

    def _packed_here(self, header: Header, update: MappedWindow, views: np.ndarray) -> PointCloud2:
        cloud, result = self._settings.cloud, update.result
        return clouds.cloud_message(
            header,
            np.asarray(result.local_points_u),
            result.colours,
            np.asarray(result.confidence),
            result.valid(cloud.max_edge_step),
            views=views,
            stride_px=cloud.stride_px,
            min_confidence=cloud.min_confidence,
            organised=cloud.organised,
            poses=update.map_from_camera[views],
            scale=update.placement.map_from_window.scale,
            out=self._cloud,
        )

    def _publish_poses(self, update: MappedWindow) -> None:
        frames, poses = update.window.frames, update.map_from_camera
        # What no overlap connects with the map has no pose in it.
        new = sorted(
            set(update.new_views) & set(update.trusted_views), key=lambda i: frames[i].stamp_ns
        )
        self._publish_path(update, new)
        if update.still:
            new = [max(update.trusted_views, key=lambda i: frames[i].stamp_ns)]
        for i in new:
            header = self._header(frames[i].stamp_ns)
            if self._listened("pose") and self._is_newer(
                "pose", frames[i].camera, frames[i].stamp_ns
            ):
                covariance = update.placement.covariance[i]
                message = geometry.pose_with_covariance(header, poses[i], covariance)
                self._publishers["pose"].publish(message)
        if self._listened("window_poses"):
            header = self._header(update.window.stamp_ns)
            self._publishers["window_poses"].publish(geometry.pose_array(header, poses))

    def _publish_path(self, update: MappedWindow, new: list[int]) -> None:
        """The new views on the path; all is written again where earlier ones moved.

        Written only while somebody listens: each pose of a message costs some 50 microseconds.
        """
        frames, local = update.window.frames, update.result.window_from_camera
        views = [(frames[i].stamp_ns, local[i]) for i in new]
        moved = self._trail.add(update.window.id, update.placement, views)
        if not self._listened("path"):
            self._path = None
            return
        if moved or self._path is None:
            self._path, poses = Path(), self._trail.poses()
        else:
            poses = self._trail.poses(newest=len(new)) if new else []
        for stamp_ns, pose in poses:
            stamped = geometry.pose_stamped(self._header(stamp_ns), pose)
            geometry.append(self._path, stamped, self._settings.map.path_length)
        self._publishers["path"].publish(self._path)

    def _publish_depth(self, update: MappedWindow) -> None:
        image, info = self._listened("depth"), self._listened("depth_info")
        if not (image or info):
            return
        frames = update.window.frames
        newest = {frame.camera: i for i, frame in enumerate(frames)}
        for i in newest.values():
            header = geometry.header(frames[i].stamp_ns, frames[i].frame_id)
            depth = update.result.local_points_u[i, ..., 2]
            if image:
                scaled = depth * np.float32(update.placement.map_from_window.scale)
                self._publishers["depth"].publish(images.depth_image(header, scaled))
            if info:
                calibrated = frames[i].intrinsics
                height, width = depth.shape
                camera = update.result.intrinsics[i]
                if calibrated is not None:
                    camera = calibrated.resized(width, height)
                message = images.camera_info(header, camera, width, height)
                self._publishers["depth_info"].publish(message)

    def _publish_transforms(self, update: MappedWindow) -> None:
        if not self._listened("tf"):
            return
        newest = {update.window.frames[i].camera: i for i in update.trusted_views}
        transforms: dict[str, TransformStamped] = {}
        for i in newest.values():
            frame = update.window.frames[i]
            child = self._child(frame.frame_id)
            if child in transforms or not frame.frame_id:
                self._warn_of_frame(frame.frame_id, update)
                continue
            if not self._is_newer("tf", frame.camera, frame.stamp_ns):
                continue
            header = self._header(frame.stamp_ns)
            pose = update.map_from_camera[i]
            transforms[child] = geometry.transform_message(header, child, pose)
        if transforms:
            self._publishers["tf"].publish(TFMessage(transforms=list(transforms.values())))

    def publish_tracked(
        self,
        frame: Frame,
        tracked: TrackedPose,
        odometry: OdometryEstimate | None,
        session: int,
    ) -> None:
        """A pose between windows, where it is newer than what was sent (any thread).

        odometry: where lengths are metres. session: of the map, as `retract` has it.
        """
        with self._lock:
            if session < self._session or not self._publishers:
                return
            header, child = self._header(frame.stamp_ns), self._child(frame.frame_id)
            pose = tracked.map_from_camera
            if self._listened("pose") and self._is_newer("pose", frame.camera, frame.stamp_ns):
                message = geometry.pose_with_covariance(header, pose, tracked.covariance)
                self._publishers["pose"].publish(message)
            if odometry is not None and self._listened("odometry"):
                odom = geometry.header(frame.stamp_ns, self._settings.pose.odometry_frame)
                self._publishers["odometry"].publish(odometry_message(odom, child, odometry))
            if not frame.frame_id or frame.frame_id in self.shared_frames:
                return
            if self._listened("tf") and self._is_newer("tf", frame.camera, frame.stamp_ns):
                transforms = [geometry.transform_message(header, child, pose)]
                if odometry is not None:
                    name = self._settings.pose.odometry_frame
                    odom_pose = odometry.map_from_odom
                    transforms.append(geometry.transform_message(header, name, odom_pose))
                self._publishers["tf"].publish(TFMessage(transforms=transforms))

    def publish_odom(self, message: Odometry) -> None:
        """Where odometry's frame lies in the map, at the stamp of a message of it (any thread)."""
        with self._lock:
            if not self._publishers or not self._listened("tf"):
                return
            transform = self._map_to_odom.transform(message.header)
            if transform is not None:
                self._publishers["tf"].publish(TFMessage(transforms=[transform]))

    def poses_wanted(self) -> bool:
        """Whether anybody listens to what comes between windows."""
        return any(self._listened(name) for name in ("pose", "odometry", "tf"))

    def _child(self, frame_id: str) -> str:
        return frame_id + self._settings.map.tf_child_suffix

    def _is_newer(self, topic: str, camera: str, stamp_ns: int) -> bool:
        """Whether a stamp may follow what was sent; a clock that went back begins anew."""
        newest_ns = self._newest_ns.get((topic, camera))
        back_ns = self._settings.window.max_age_s * 1e9
        if newest_ns is not None and newest_ns - back_ns <= stamp_ns <= newest_ns:
            return False
        self._newest_ns[topic, camera] = stamp_ns
        return True

    def _warn_of_frame(self, frame_id: str, update: MappedWindow) -> None:
        """Say once that a frame_id does not name one camera."""
        if frame_id in self.shared_frames:
            return
        cameras = sorted({f.camera for f in update.window.frames if f.frame_id == frame_id})
        self.shared_frames[frame_id] = tuple(cameras)
        self._node.get_logger().warning(
            f"frame_id {frame_id!r} is that of {' and '.join(cameras)}: /tf holds the first only, "
            "and odometry, depth and imu cannot be matched; give each camera a frame_id of its own"
        )
