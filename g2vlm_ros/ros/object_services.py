# SPDX-License-Identifier: Apache-2.0
"""`~/objects`, `~/find_objects`, `~/edit_object`: the object memory over ROS."""

from __future__ import annotations

import threading

from geometry_msgs.msg import Pose, Vector3
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import ColorRGBA

from g2vlm_ros.msg import ImageRegion, MapObjects
from g2vlm_ros.msg import MapObject as MapObjectMessage
from g2vlm_ros.query.map_object import MAX_NAME, MapObject
from g2vlm_ros.query.object_memory import ObjectMemory
from g2vlm_ros.records import ScaleState
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.point_service import box_of
from g2vlm_ros.ros.publishers import LATCHED
from g2vlm_ros.ros.query_messages import check_text
from g2vlm_ros.ros.service_errors import Codes, RequestError, inactive, invalid, reply_errors
from g2vlm_ros.ros.window_source import WindowSource
from g2vlm_ros.srv import EditObject, FindObjects


class ObjectServices:
    """Publishes what is remembered after every change, finds it and edits it."""

    def __init__(
        self, node: LifecycleNode, map_frame: str, memory: ObjectMemory, windows: WindowSource
    ):
        self._node, self._map_frame = node, map_frame
        self._memory, self._windows = memory, windows
        self.log_failure = windows.log_failure
        self._published = memory.version
        self._lock = threading.Lock()
        self._topic = node.create_lifecycle_publisher(MapObjects, "~/objects", LATCHED)
        group = ReentrantCallbackGroup()
        self._services = [
            node.create_service(FindObjects, "~/find_objects", self.find, callback_group=group),
            node.create_service(EditObject, "~/edit_object", self.edit, callback_group=group),
        ]

    def wanted(self) -> bool:
        """Whether somebody subscribes."""
        return self._topic.get_subscription_count() > 0

    def publish(self) -> None:
        """Latch what is remembered, if it changed since the last time (any thread)."""
        with self._lock:
            version = self._memory.version
            if version == self._published:
                return
            self._published = version
            objects = self._memory.objects()
            stamp_ns = max((each.last_seen_ns for each in objects), default=self._now_ns())
            self._topic.publish(
                MapObjects(
                    header=geometry.header(stamp_ns, self._map_frame),
                    map_id=max(0, self._memory.map_id),
                    objects=[object_message(each) for each in objects],
                )
            )

    @reply_errors
    def find(self, request: FindObjects.Request, response: FindObjects.Response) -> None:
        """Remembered objects by words, region and time."""
        self._check_active()
        if request.words:
            check_text("words", request.words)
        if request.max_objects < 1:
            raise invalid("max_objects is 0; it must be 1 or more")
        size, contains = request.box_size, None
        if any((size.x, size.y, size.z)):
            contains = box_of(request.box_pose, size, self._map_frame).contains
        found = self._memory.find(
            request.words, contains, geometry.stamp_ns(request.seen_since), request.with_gone
        )
        if not found:
            raise self._nothing()
        response.header = geometry.header(self._now_ns(), self._map_frame)
        response.objects = [object_message(each) for each in found[: request.max_objects]]

    @reply_errors
    def edit(self, request: EditObject.Request, response: EditObject.Response) -> None:
        """Rename or forget one."""
        self._check_active()
        try:
            if request.action == request.RENAME:
                if len(request.name) > MAX_NAME:
                    raise invalid(
                        f"name has {len(request.name)} characters; at most {MAX_NAME} are taken"
                    )
                if request.name:
                    check_text("name", request.name)
                self._memory.rename(request.id, request.name)
            elif request.action == request.DELETE:
                self._memory.delete(request.id)
            else:
                raise invalid(f"action is {request.action}; it must be 1 (RENAME) or 2 (DELETE)")
        except KeyError:
            raise RequestError(
                Codes.NOT_VISIBLE,
                f"no object {request.id} is remembered; ~/find_objects lists those that are",
            ) from None
        self.publish()

    def close(self) -> None:
        """Take topic and services away."""
        for service in self._services:
            self._node.destroy_service(service)
        self._node.destroy_publisher(self._topic)

    def _check_active(self) -> None:
        if not self._windows.is_active():
            raise inactive()

    def _nothing(self) -> RequestError:
        newest = self._windows.newest_window()
        metric = newest and newest[0].placement.scale.state is ScaleState.METRIC
        if not self._memory.objects() and not metric:
            return RequestError(
                Codes.NO_GEOMETRY,
                "nothing is remembered while lengths are no metres; give the node odometry, "
                "depth, a rig baseline or a camera height",
            )
        return RequestError(
            Codes.NOT_VISIBLE,
            "nothing that is remembered fits; use other words, a larger box, or with_gone",
        )

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds


def object_message(thing: MapObject) -> MapObjectMessage:
    """A remembered object as its message."""
    pose = thing.as_object3d().pose
    x, y, z = (float(side) for side in thing.size)
    colour = ColorRGBA()
    if thing.colour is not None:
        red, green, blue = thing.colour
        colour = ColorRGBA(r=red, g=green, b=blue, a=1.0)
    u0, v0, u1, v1 = thing.box_px
    placed: Pose = geometry.pose_message(pose)
    return MapObjectMessage(
        id=thing.id,
        label=thing.label,
        name=thing.name,
        state=int(thing.state),
        pose=placed,
        size=Vector3(x=x, y=y, z=z),
        position_covariance=thing.covariance.ravel(),
        colour=colour,
        belief=thing.belief,
        sightings=thing.sightings,
        misses=thing.misses,
        first_seen=geometry.stamp(thing.first_seen_ns),
        last_seen=geometry.stamp(thing.last_seen_ns),
        evidence=ImageRegion(
            kind=ImageRegion.BOX,
            camera=thing.camera,
            stamp=geometry.stamp(thing.last_seen_ns),
            u_px=(u0 + u1) / 2,
            v_px=(v0 + v1) / 2,
            width_px=u1 - u0,
            height_px=v1 - v0,
        ),
    )
