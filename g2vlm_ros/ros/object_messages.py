# SPDX-License-Identifier: Apache-2.0
"""Remembered things and rooms as messages: our own, RViz's markers, vision_msgs'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import Point, Pose, Vector3
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from g2vlm_ros.dense_map.rooms import Room
from g2vlm_ros.msg import ImageRegion, MapObjects, MapRoom
from g2vlm_ros.msg import MapObject as MapObjectMessage
from g2vlm_ros.query.map_object import MapObject
from g2vlm_ros.ros.conversions import geometry

MIN_EDGE_M = 0.02
"""Of a marker's box: thinner ones cannot be seen."""
TEXT_M = 0.12
"""Height of a marker's letters."""
UNKNOWN_COLOUR = (0.6, 0.6, 0.6)


def objects_message(
    header: Header, map_id: int, objects: Sequence[MapObject], rooms: Sequence[Room]
) -> MapObjects:
    """All that is remembered of a map."""
    return MapObjects(
        header=header,
        map_id=map_id,
        objects=[object_message(each) for each in objects],
        rooms=[_room_message(room, objects) for room in rooms],
    )


def object_message(thing: MapObject) -> MapObjectMessage:
    """A remembered thing."""
    x, y, z = (float(side) for side in thing.size)
    colour = ColorRGBA()
    if thing.colour is not None:
        red, green, blue = thing.colour
        colour = ColorRGBA(r=red, g=green, b=blue, a=1.0)
    u0, v0, u1, v1 = thing.box_px
    return MapObjectMessage(
        id=thing.id,
        label=thing.label,
        name=thing.name,
        state=int(thing.state),
        pose=geometry.pose_message(thing.as_object3d().pose),
        size=Vector3(x=x, y=y, z=z),
        position_covariance=thing.covariance.ravel(),
        colour=colour,
        belief=thing.belief,
        sightings=thing.sightings,
        misses=thing.misses,
        first_seen=geometry.stamp(thing.first_seen_ns),
        last_seen=geometry.stamp(thing.last_seen_ns),
        seen_from=_looking_at(thing),
        room=thing.room,
        room_name=thing.room_name,
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


def picture_message(thing: MapObject) -> CompressedImage:
    """The picture of a thing as it was seen best; no data where there is none."""
    return CompressedImage(
        header=Header(stamp=geometry.stamp(thing.picture_ns), frame_id=thing.camera),
        format="rgb8; jpeg compressed bgr8",
        data=thing.picture,
    )


def markers_message(header: Header, objects: Sequence[MapObject]) -> MarkerArray:
    """RViz's boxes with labels. Each message is whole: it takes away what was shown before, so
    that none has to arrive for the next one to be right.

    A box fades as the belief in its thing falls.
    """
    markers = [Marker(header=header, action=Marker.DELETEALL)]
    for each in objects:
        red, green, blue = each.colour or UNKNOWN_COLOUR
        pose = geometry.pose_message(each.as_object3d().pose)
        x, y, z = (max(float(side), MIN_EDGE_M) for side in each.size)
        box = Marker(header=header, ns="objects", id=each.id, type=Marker.CUBE, pose=pose)
        box.scale = Vector3(x=x, y=y, z=z)
        box.color = ColorRGBA(r=red, g=green, b=blue, a=0.1 + 0.5 * each.belief)
        text = Marker(header=header, ns="labels", id=each.id, type=Marker.TEXT_VIEW_FACING)
        text.pose.position = Point(
            x=pose.position.x, y=pose.position.y, z=pose.position.z + z / 2 + TEXT_M
        )
        text.scale.z = TEXT_M
        text.color = ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)
        text.text = each.name or each.label
        if not each.there:
            text.text += f" ({each.state.name.lower()})"
        markers += [box, text]
    return MarkerArray(markers=markers)


def detections_message(header: Header, objects: Sequence[MapObject], vision_msgs: Any) -> Any:
    """vision_msgs/Detection3DArray of the things that are there; score: the belief in each.

    vision_msgs: the module `vision_msgs.msg`, which the wheels of ROS do not have.
    """
    detections = []
    for each in objects:
        if not each.there:
            continue
        pose = geometry.pose_message(each.as_object3d().pose)
        result = vision_msgs.ObjectHypothesisWithPose()
        result.hypothesis.class_id = each.label
        result.hypothesis.score = each.belief
        result.pose.pose = pose
        covariance = np.zeros((6, 6))
        covariance[:3, :3] = each.covariance
        result.pose.covariance = covariance.ravel()
        detection = vision_msgs.Detection3D(header=header, id=str(each.id))
        detection.results = [result]
        detection.bbox.center = pose
        x, y, z = (float(side) for side in each.size)
        detection.bbox.size = Vector3(x=x, y=y, z=z)
        detections.append(detection)
    return vision_msgs.Detection3DArray(header=header, detections=detections)


def _room_message(room: Room, objects: Sequence[MapObject]) -> MapRoom:
    x, y = room.middle
    return MapRoom(
        id=room.id,
        name=room.name,
        middle=Point(x=x, y=y),
        area_m2=room.area_m2,
        objects=sum(each.there and each.room == room.id for each in objects),
    )


def _looking_at(thing: MapObject) -> Pose:
    """The camera that saw a thing last: its place, x level towards the thing."""
    place = thing.centre if thing.seen_from is None else thing.seen_from
    ahead = (thing.centre - place)[:2]
    yaw = math.atan2(ahead[1], ahead[0])
    matrix = np.eye(4)
    matrix[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    matrix[:3, 3] = place
    return geometry.pose_message(matrix)
