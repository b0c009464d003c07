# SPDX-License-Identifier: Apache-2.0
"""The object memory over ROS: its topics, `~/find_objects` and `~/edit_object`."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode
from visualization_msgs.msg import MarkerArray

from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.dense_map.rooms import RoomMap
from g2vlm_ros.msg import MapObjects
from g2vlm_ros.query.map_object import MAX_NAME, is_room
from g2vlm_ros.query.object_memory import ObjectMemory
from g2vlm_ros.records import ScaleState
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.object_messages import (
    detections_message,
    markers_message,
    object_message,
    objects_message,
    picture_message,
)
from g2vlm_ros.ros.point_service import box_of
from g2vlm_ros.ros.publishers import LATCHED
from g2vlm_ros.ros.query_request import check_text
from g2vlm_ros.ros.service_errors import Codes, RequestError, inactive, invalid, reply_errors
from g2vlm_ros.ros.window_source import WindowSource
from g2vlm_ros.srv import EditObject, FindObjects

try:
    import vision_msgs.msg as vision_msgs
except ImportError:
    vision_msgs = None

ROOMS_PERIOD_S = 5.0
"""Least time between two cuts of the map into rooms: some 25 ms for a home, more if larger."""


class ObjectServices:
    """Publishes what is remembered after every change, finds it and edits it."""

    def __init__(
        self,
        node: LifecycleNode,
        map_frame: str,
        memory: ObjectMemory,
        rooms: RoomMap,
        dense_map: DenseMap,
        windows: WindowSource,
    ):
        self._node, self._map_frame = node, map_frame
        self._memory, self._rooms, self._map = memory, rooms, dense_map
        self._windows = windows
        self.log_failure = windows.log_failure
        self._published = memory.version
        self._lock = threading.Lock()
        self._cut_version, self._cut_s = dense_map.version, -ROOMS_PERIOD_S
        self._topic = node.create_lifecycle_publisher(MapObjects, "~/objects", LATCHED)
        self._markers = node.create_lifecycle_publisher(MarkerArray, "~/object_markers", LATCHED)
        self._detections = None
        if vision_msgs is not None:
            self._detections = node.create_lifecycle_publisher(
                vision_msgs.Detection3DArray, "~/object_detections", LATCHED
            )
        group = ReentrantCallbackGroup()
        self._services = [
            node.create_service(FindObjects, "~/find_objects", self.find, callback_group=group),
            node.create_service(EditObject, "~/edit_object", self.edit, callback_group=group),
        ]

    def wanted(self) -> bool:
        """Whether somebody subscribes."""
        return any(topic.get_subscription_count() for topic in self._topics())

    def publish(self) -> None:
        """Latch what is remembered, if it changed since the last time (any thread)."""
        with self._lock:
            self._cut_rooms()
            version = self._memory.version
            if version == self._published:
                return
            self._published = version
            objects = self._memory.objects()
            stamp_ns = max((each.last_seen_ns for each in objects), default=self._now_ns())
            header = geometry.header(stamp_ns, self._map_frame)
            map_id = max(0, self._memory.map_id)
            self._topic.publish(objects_message(header, map_id, objects, self._rooms.rooms()))
            self._markers.publish(markers_message(header, objects))
            if self._detections is not None:
                self._detections.publish(detections_message(header, objects, vision_msgs))

    def _cut_rooms(self) -> None:
        """Cut the map into rooms where it has changed, and look up those of the objects."""
        version, now_s = self._map.version, time.monotonic()
        changed = version != self._cut_version and now_s - self._cut_s >= ROOMS_PERIOD_S
        if changed and self._memory.objects():
            plan = self._map.floor_plan()
            if plan is not None:
                self._rooms.update(*plan)
            self._cut_version, self._cut_s = version, now_s
        self._memory.locate(self._room_of)

    def _room_of(self, places: np.ndarray) -> list[tuple[int, str]]:
        return [
            (0, "") if room is None else (room.id, room.name) for room in self._rooms.at(places)
        ]

    def _topics(self) -> list[Any]:
        topics = (self._topic, self._markers, self._detections)
        return [topic for topic in topics if topic is not None]

    @reply_errors
    def find(self, request: FindObjects.Request, response: FindObjects.Response) -> None:
        """Remembered objects by words, room, region and time."""
        self._check_active()
        if request.words:
            check_text("words", request.words)
        if request.room:
            self._check_room(request.room)
        if request.max_objects < 1:
            raise invalid("max_objects is 0; it must be 1 or more")
        size, contains = request.box_size, None
        if any((size.x, size.y, size.z)):
            contains = box_of(request.box_pose, size, self._map_frame).contains
        objects = self._memory.find(
            request.words,
            request.room,
            contains,
            geometry.stamp_ns(request.seen_since),
            request.with_gone,
        )
        if not objects:
            raise self._nothing()
        response.header = geometry.header(self._now_ns(), self._map_frame)
        objects = objects[: request.max_objects]
        response.objects = [object_message(each) for each in objects]
        if request.with_pictures:
            response.pictures = [picture_message(each) for each in objects]

    @reply_errors
    def edit(self, request: EditObject.Request, response: EditObject.Response) -> None:
        """Rename or forget one, doubt it until it is seen again, or name a room."""
        self._check_active()
        kinds = {
            request.RENAME: self._rename,
            request.DELETE: self._delete,
            request.NAME_ROOM: self._name_room,
            request.LOOK_AGAIN: self._look_again,
        }
        if request.action not in kinds:
            raise invalid(
                f"action is {request.action}; it must be 1 (RENAME), 2 (DELETE), 3 (NAME_ROOM) or "
                "4 (LOOK_AGAIN)"
            )
        kinds[request.action](request)
        self.publish()

    def _rename(self, request: EditObject.Request) -> None:
        _check_name(request.name)
        try:
            self._memory.rename(request.id, request.name)
        except KeyError:
            raise _no_object(request.id) from None

    def _delete(self, request: EditObject.Request) -> None:
        try:
            self._memory.delete(request.id)
        except KeyError:
            raise _no_object(request.id) from None

    def _look_again(self, request: EditObject.Request) -> None:
        try:
            self._memory.look_again(request.id)
        except KeyError:
            raise _no_object(request.id) from None

    def _name_room(self, request: EditObject.Request) -> None:
        _check_name(request.name)
        try:
            self._rooms.rename(request.id, request.name)
        except KeyError:
            raise RequestError(
                Codes.NOT_VISIBLE, f"there is no room {request.id}; {self._rooms_in_words()}"
            ) from None

    def _check_room(self, room: str) -> None:
        """NOT_VISIBLE where no room is called so."""
        check_text("room", room)
        if not any(is_room(room, each.id, each.name) for each in self._rooms.rooms()):
            raise RequestError(
                Codes.NOT_VISIBLE, f"no room is called '{room}'; {self._rooms_in_words()}"
            )

    def _rooms_in_words(self) -> str:
        titles = [room.title for room in self._rooms.rooms()]
        return f"~/objects lists {', '.join(titles)}" if titles else "no room is known yet"

    def close(self) -> None:
        """Take topic and services away."""
        for service in self._services:
            self._node.destroy_service(service)
        for topic in self._topics():
            self._node.destroy_publisher(topic)

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


def _check_name(name: str) -> None:
    """INVALID_REQUEST for a name that cannot be kept; an empty one takes the name back."""
    if len(name) > MAX_NAME:
        raise invalid(f"name has {len(name)} characters; at most {MAX_NAME} are taken")
    if name:
        check_text("name", name)


def _no_object(object_id: int) -> RequestError:
    return RequestError(
        Codes.NOT_VISIBLE,
        f"no object {object_id} is remembered; ~/find_objects lists those that are",
    )
