# SPDX-License-Identifier: Apache-2.0
"""Services of the live map: save it, continue in a saved one, edit it; never raising."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from geometry_msgs.msg import Pose

from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.dense_map.map_editor import Edit, MapEditError, MapEditor, OrientedBox
from g2vlm_ros.dense_map.map_files import MapFileError, load_keyframes, load_objects
from g2vlm_ros.dense_map.rooms import RoomMap
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.keyframe_files import KeyframeFileError
from g2vlm_ros.query.object_file import ObjectMemoryError, from_bytes, to_bytes
from g2vlm_ros.query.object_memory import ObjectMemory
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.keyframe_keeper import KeyframeKeeper
from g2vlm_ros.ros.point_service import REFRESH_WAIT_S, PointService, box_of
from g2vlm_ros.ros.service_errors import RequestError, check_map_frame, invalid, reply_errors
from g2vlm_ros.settings import MapSettings
from g2vlm_ros.srv import EditMap, LoadMap, SaveMap

MAP_FORMATS = ("ply", "pcd", "npz")
MAX_PATH_LENGTH = 4096
"""Of Linux."""
MAX_NAME_BYTES = 200
"""Of a file or folder: Linux takes 255, and a file is written under a longer name first."""
MAX_SHIFT_M = 10_000.0
"""Of a saved map against the live one: 2^20 voxels of 1 cm; what lies beyond would be lost."""
NOT_WRITABLE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of the folder that was asked for, not of the node or its disk."""
SHOWN_LENGTH = 200
"""So much of a path is repeated in an error."""


def folder_warning(text: str) -> str:
    """Why no map can be saved in `map.folder`, which somebody would learn after the drive; empty
    where one can, and where any folder may be taken."""
    folder = Path(os.path.expanduser(text))
    if not text or (folder.is_absolute() and folder.is_dir() and os.access(folder, os.W_OK)):
        return ""
    fault = "is not absolute" if not folder.is_absolute() else "cannot be written to"
    if folder.is_absolute() and not folder.is_dir():
        fault = "is no folder"
    return f"map.folder {_short(text)} {fault} on this robot: no map can be saved there"


class MapServices:
    """Answers SaveMap, LoadMap and EditMap; `services` knows whether and from what."""

    def __init__(
        self,
        settings: MapSettings,
        dense_map: DenseMap,
        objects: ObjectMemory,
        rooms: RoomMap,
        services: PointService,
        keyframes: KeyframeKeeper,
    ):
        self._map_frame, self._map, self._services = settings.frame, dense_map, services
        self._folder = settings.folder
        self._objects, self._rooms = objects, rooms
        self._keyframes = keyframes
        self.log_failure = services.log_failure

    @reply_errors
    def save_map(self, request: SaveMap.Request, response: SaveMap.Response) -> None:
        """Write the map as PLY or PCD for other tools, or as NPZ without loss."""
        self._services.check_active()
        path, kind = self._target(request)
        if not self._map.stamp_ns:
            self._services.current(math.inf, REFRESH_WAIT_S)
        content = to_bytes(self._objects.objects(), self._rooms.rooms())
        keyframes = self._keyframes.saved() if kind == "npz" else b""
        try:
            response.points = self._map.save(path, content, keyframes)
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
            raise invalid(
                f"path {_short(request.path)} cannot be written on the robot: {error.strerror}; "
                "give one in another folder"
            ) from error
        response.path = str(path)

    def _target(self, request: SaveMap.Request) -> tuple[Path, str]:
        """Where the map is written, and in which of MAP_FORMATS."""
        path = self._confined(request.path)
        kind = request.format or path.suffix.lstrip(".").lower()
        if kind not in MAP_FORMATS or path.suffix.lower() != f".{kind}":
            raise invalid(
                f"path {_short(request.path)} with format {_short(request.format)}; give a path "
                "that ends in "
                f".{', .'.join(MAP_FORMATS)}"
            )
        if not path.parent.is_dir():
            raise invalid(
                f"path {_short(request.path)} is in a folder that does not exist on the robot"
            )
        if path.exists() and not path.is_file():
            raise invalid(f"path {_short(request.path)} is no regular file; give another name")
        return path, kind

    @reply_errors
    def load_map(self, request: LoadMap.Request, response: LoadMap.Response) -> None:
        """Continue in a saved map in place of the live one, or look for the robot in it."""
        self._services.check_active()
        path = self._confined(request.path)
        if not path.is_file():
            raise invalid(
                f"path {_short(request.path)} is no map file: no regular file on the robot"
            )
        if path.suffix.lower() != ".npz":
            raise invalid(
                f"path {_short(request.path)} is no .npz; .ply and .pcd are for other tools, save "
                "the map as .npz to load it"
            )
        try:
            map_from_file = _rigid("map_from_file", request.map_from_file)
            if np.abs(map_from_file.translation).max() > MAX_SHIFT_M:
                raise invalid(
                    f"map_from_file moves the map by {map_from_file.translation.tolist()} m; at "
                    f"most {MAX_SHIFT_M:g} m fit into its grid: take an origin nearby"
                )
            objects, rooms = from_bytes(load_objects(path), map_from_file)
            keyframes = load_keyframes(path)
            pose_is_known = request.known_pose or not _is_identity(map_from_file)
            if not pose_is_known and not keyframes:
                raise invalid(
                    f"{_short(str(path))} has no keyframes to find the robot by; say that the "
                    "pose is known (known_pose), or save the map again"
                )
            saved = [] if pose_is_known else self._keyframes.read(keyframes)
            loaded = self._map.read(path, map_from_file)
        except (MapFileError, ObjectMemoryError, KeyframeFileError) as error:
            raise invalid(str(error)) from error
        # All of the file is sound: from here on nothing of it can fail.
        map_id = None if pose_is_known else self._keyframes.look_for(saved)
        self._map.put(loaded, map_id)
        self._rooms.restore(rooms)
        self._objects.replace_all(objects, map_id)
        response.points = len(loaded)

    def _confined(self, text: str) -> Path:
        """The absolute path of a request, inside map.folder where that is set."""
        if not 0 < len(text) <= MAX_PATH_LENGTH or "\0" in text:
            raise invalid(
                f"path {_short(text)} has {len(text)} characters; it must have 1 to "
                f"{MAX_PATH_LENGTH}, and no zero byte"
            )
        try:
            path = Path(text).expanduser()
            folder = Path(self._folder).expanduser() if self._folder else None
            if not path.is_absolute() and folder is not None:
                path = folder / path
            if not path.is_absolute():
                raise invalid(f"path {_short(text)} must be absolute, on the robot")
            # Links are followed before it is compared: none leads out.
            inside = folder is None or path.resolve().is_relative_to(folder.resolve())
        except (RuntimeError, OSError) as error:
            raise invalid(f"path {_short(text)}: {error}") from error
        if not inside:
            raise invalid(f"path {_short(text)} is outside map.folder, {self._folder}")
        longest = max(len(os.fsencode(part)) for part in path.parts)
        if longest > MAX_NAME_BYTES:
            raise invalid(
                f"path {_short(text)} has a name of {longest} bytes; at most {MAX_NAME_BYTES} are "
                "taken"
            )
        return path

    @reply_errors
    def edit_map(self, request: EditMap.Request, response: EditMap.Response) -> None:
        """Change what is in a box, take the last change back, or end the edits' rules."""
        self._services.check_active()
        kinds = {
            request.REMOVE: self._remove,
            request.KEEP: self._keep,
            request.MOVE: self._move,
            request.RECOLOUR: self._recolour,
            request.UNDO: self._undo,
            request.RELEASE: self._release,
        }
        if request.action not in kinds:
            raise invalid(
                f"action is {request.action}; it must be one of 1 (REMOVE) to 6 (RELEASE)"
            )
        edit = kinds[request.action](request)
        response.changed = 0 if edit is None else edit.changed
        edits = self._map.edits
        response.edits, response.undoable = len(edits), bool(edits) and edits[-1].undoable

    def _edit(self, change: Callable[[MapEditor], Edit]) -> Edit:
        """Let `change` edit the map; INVALID_REQUEST where that cannot be done."""
        try:
            return self._map.edit(change)
        except MapEditError as error:
            raise invalid(str(error)) from error

    def _remove(self, request: EditMap.Request) -> Edit:
        box = self._filled_box(request)
        return self._edit(lambda editor: editor.remove(box))

    def _keep(self, request: EditMap.Request) -> Edit:
        box = self._filled_box(request)
        return self._edit(lambda editor: editor.keep(box))

    def _move(self, request: EditMap.Request) -> Edit:
        check_map_frame("target_pose frame", request.target_pose.header.frame_id, self._map_frame)
        target = _rigid("target_pose", request.target_pose.pose)
        box = self._filled_box(request)
        motion = target @ Sim3(1.0, box.rotation, box.centre).inverse()
        return self._edit(lambda editor: editor.move(box, motion))

    def _recolour(self, request: EditMap.Request) -> Edit:
        colour = (request.colour.r, request.colour.g, request.colour.b)
        if not all(0 <= part <= 1 for part in colour):
            raise invalid(f"colour is {colour}; r, g and b must lie in 0 to 1")
        red, green, blue = (round(255 * part) for part in colour)
        box = self._filled_box(request)
        return self._edit(lambda editor: editor.recolour(box, (red, green, blue)))

    def _undo(self, request: EditMap.Request) -> Edit:
        try:
            return self._map.edit(MapEditor.undo)
        except ValueError as error:
            raise RequestError(EditMap.Response.NO_GEOMETRY, str(error)) from error

    def _release(self, request: EditMap.Request) -> None:
        try:
            self._map.edit(MapEditor.release)
        except ValueError as error:
            raise RequestError(EditMap.Response.NO_GEOMETRY, str(error)) from error

    def _filled_box(self, request: EditMap.Request) -> OrientedBox:
        """The request's box; RequestError where it holds nothing of the map."""
        box = box_of(request.box_pose, request.box_size, self._map_frame)
        points = self._map.points()
        if not len(points):
            raise RequestError(
                EditMap.Response.NO_GEOMETRY, "the map is empty; wait for a window or load a map"
            )
        if not box.contains(np.stack([points[axis] for axis in "xyz"], axis=-1)).any():
            raise RequestError(
                EditMap.Response.NOT_VISIBLE, "the box holds no point of the map; enlarge it"
            )
        return box


def _rigid(field: str, pose: Pose) -> Sim3:
    """The motion of a pose; RequestError where it is none."""
    try:
        matrix = geometry.pose_matrix(pose)
    except ValueError as error:
        raise invalid(f"{field}: {error}") from error
    if not np.isfinite(matrix).all():
        raise invalid(f"{field} has position {matrix[:3, 3].tolist()}; it must be finite")
    return Sim3(1.0, matrix[:3, :3], matrix[:3, 3])


def _is_identity(motion: Sim3) -> bool:
    return np.array_equal(motion.rotation, np.eye(3)) and not motion.translation.any()


def _short(text: str) -> str:
    """A text of a request as an error repeats it: printable, of bounded length."""
    return repr(text if len(text) <= SHOWN_LENGTH else text[:SHOWN_LENGTH] + "…")
