# SPDX-License-Identifier: Apache-2.0
"""Faults of who calls: bad requests, floods, clients that die, files that are no maps."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
from g2vlm_ros.action import AnswerSpatialQuery
from g2vlm_ros.srv import EditMap, GetPoints, LoadMap, SaveMap, SpatialQuery
from g2vlm_tests.faults.robot import ANSWER_S, Case, Robot, Seen
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import QoSProfile

from g2vlm_ros.ros.rclpy_workarounds import SafeActionClient

BUSY = SpatialQuery.Response.BUSY
INVALID = SpatialQuery.Response.INVALID_REQUEST
TF_ERROR = SpatialQuery.Response.TF_ERROR
FLOOD = 60


def refused(it: Robot, response: object, codes: tuple[int, ...] = (INVALID,)) -> Seen:
    """That a request was refused with a code and a sentence, and the node goes on."""
    if response is None:
        return Seen("no response", False)
    fine = not response.success and response.error_code in codes and bool(response.error_msg)
    return Seen(f"{response.error_code}: {response.error_msg}"[:100], fine and it.works())


def save(it: Robot, path: object, format: str = "") -> object:
    return it.call(SaveMap, "save_map", SaveMap.Request(path=str(path), format=format))


def load(it: Robot, path: object) -> object:
    request = LoadMap.Request(path=str(path), known_pose=True)
    request.map_from_file.orientation.w = 1.0
    return it.call(LoadMap, "load_map", request)


def ask(it: Robot, question: str = "What do you see?", **fields: object) -> object:
    fields = {"max_wait_s": ANSWER_S / 2, "max_age_s": ANSWER_S, **fields}
    return it.call(SpatialQuery, "query", SpatialQuery.Request(question=question, **fields))


def device_file(it: Robot) -> Seen:
    return refused(it, save(it, "/dev/full", "ply"))


def no_folder(it: Robot) -> Seen:
    return refused(it, save(it, "/proc/no/such/map.npz"))


def read_only(it: Robot) -> Seen:
    """/sys takes no files of ours, whoever we are."""
    return refused(it, save(it, "/sys/map.npz"), (SaveMap.Response.UNKNOWN, INVALID))


def folder_as_file(it: Robot) -> Seen:
    (it.folder / "folder.npz").mkdir()
    return refused(it, save(it, it.folder / "folder.npz"))


def through_a_link(it: Robot) -> Seen:
    victim, link = it.folder / "victim.npz", it.folder / "link.npz"
    victim.write_bytes(b"something else")
    link.symlink_to(victim)
    response = save(it, link)
    kept = victim.read_bytes() == b"something else"
    what = "the file behind it is as it was" if kept else "the file behind it was overwritten"
    return Seen(what, bool(response) and kept and it.works())


def saved_and_loaded(it: Robot) -> Seen:
    path = it.folder / "good.npz"
    saved = save(it, path)
    loaded = load(it, path) if saved and saved.success else None
    points = loaded.points if loaded else 0
    return Seen(f"{points} points back", bool(loaded and loaded.success) and it.works())


def truncated_map(it: Robot) -> Seen:
    path = it.folder / "cut.npz"
    save(it, path)
    os.truncate(path, path.stat().st_size // 2)
    return refused(it, load(it, path))


def zip_bomb(it: Robot) -> Seen:
    path = it.folder / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("meta", "keys", "voxels"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.zeros(8 << 20, np.int64))
    return refused(it, load(it, path))


def pipe(it: Robot) -> Seen:
    path = it.folder / "pipe.npz"
    os.mkfifo(path)
    return refused(it, load(it, path))


def million_pixels(it: Robot) -> Seen:
    pixels = [1.0] * 1_000_000
    request = GetPoints.Request(camera="camera", u_px=pixels, v_px=pixels, max_age_s=10.0)
    start = time.monotonic()
    seen = refused(it, it.call(GetPoints, "get_points", request))
    return Seen(seen.seen, seen.fine and time.monotonic() - start < ANSWER_S)


def move_far(it: Robot) -> Seen:
    request = EditMap.Request(action=EditMap.Request.MOVE)
    for pose in (request.box_pose, request.target_pose):
        pose.header.frame_id, pose.pose.orientation.w = "map", 1.0
    request.target_pose.pose.position.x = 1e300
    request.box_size.x = request.box_size.y = request.box_size.z = 100.0
    return refused(it, it.call(EditMap, "edit_map", request))


def unknown_frame(it: Robot) -> Seen:
    return refused(it, ask(it, target_frame="no_such_frame"), (TF_ERROR,))


def flood(it: Robot) -> Seen:
    depth = QoSProfile(
        depth=2 * FLOOD
    )  # the default keeps ten replies, the others would be lost here
    client = it.node.create_client(SpatialQuery, "/perception/query", qos_profile=depth)
    client.wait_for_service(ANSWER_S)
    asked = SpatialQuery.Request(
        question="What is there?", max_wait_s=ANSWER_S / 2, max_age_s=ANSWER_S
    )
    futures = []
    for _ in range(FLOOD):
        futures.append(client.call_async(asked))
        time.sleep(0.005)
    it.until(lambda: all(future.done() for future in futures))
    answers = [future.result() for future in futures if future.done()]
    it.node.destroy_client(client)
    good = sum(answer.success for answer in answers)
    busy = sum(answer.error_code == BUSY for answer in answers)
    what = f"{len(answers)} replies: {good} answered, {busy} BUSY"
    return Seen(what, len(answers) == FLOOD and good > 0 and it.works())


def dying_client(it: Robot) -> Seen:
    command = [sys.executable, "-m", "g2vlm_ros.ros.client.ask", "Describe everything you see"]
    clients = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]
    time.sleep(1.5)
    for client in clients:
        client.kill()
        client.wait()
    answer = ask(it)
    return Seen("the next one was answered", bool(answer and answer.success) and it.works())


def cancelled_goals(it: Robot) -> Seen:
    client = SafeActionClient(it.node, AnswerSpatialQuery, "/perception/answer")
    client.wait_for_server(ANSWER_S)
    asked = AnswerSpatialQuery.Goal(question="What is there?", max_wait_s=20.0, max_age_s=ANSWER_S)
    sent = [client.send_goal_async(asked) for _ in range(10)]
    it.until(lambda: all(future.done() for future in sent))
    handles = [future.result() for future in sent if future.done() and future.result().accepted]
    results = [handle.get_result_async() for handle in handles]
    for handle in handles:
        handle.cancel_goal_async()
    it.until(lambda: all(future.done() for future in results))
    ended = sum(future.done() for future in results)
    client.destroy()
    return Seen(f"{len(handles)} accepted, {ended} ended", ended == 10 and it.works())


def live_parameters(it: Robot) -> Seen:
    value = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=7)
    parameters = [Parameter(name=name, value=value) for name in ("window.views", "no.such")]
    response = it.call(
        SetParameters, "set_parameters", SetParameters.Request(parameters=parameters)
    )
    reasons = [result.reason for result in response.results] if response else []
    refusals = len(reasons) == 2 and not any(result.successful for result in response.results)
    return Seen(f"refused: {'; '.join(reasons)}"[:100], refusals and it.works())


def wrong_transitions(it: Robot) -> Seen:
    made = [it.change(number) for number in ("activate", "configure", 200, 99, "activate")]
    return Seen(f"{sum(made)} of {len(made)} made", not any(made) and it.works())


def save_and_die(it: Robot) -> Seen:
    path: Path = it.folder / "kept.npz"
    save(it, path)
    client = it.node.create_client(SaveMap, "/perception/save_map")
    client.wait_for_service(ANSWER_S)
    for _ in range(4):
        client.call_async(SaveMap.Request(path=str(path)))
    time.sleep(0.05)
    it.process.kill()
    it.process.wait()
    it.node.destroy_client(client)
    it.start()
    loaded = load(it, path) if it.bring_up() and it.works() else None
    what = f"{loaded.points} points loaded after the start" if loaded else "not loaded"
    return Seen(what, bool(loaded and loaded.success) and it.works())


CASES = (
    Case("~/save_map onto a device file", "an error with a sentence; goes on", device_file),
    Case("~/save_map into a folder that is not there", "an error; goes on", no_folder),
    Case("~/save_map into a read-only file system", "an error; goes on", read_only),
    Case("~/save_map onto a folder", "an error; goes on", folder_as_file),
    Case("~/save_map onto a symbolic link", "what it points to is kept", through_a_link),
    Case("~/save_map, ~/load_map", "the map comes back; goes on", saved_and_loaded),
    Case("~/load_map of half a file", "an error; goes on", truncated_map),
    Case("~/load_map of zeros that unpack to 192 MiB", "an error; goes on", zip_bomb),
    Case("~/load_map of a named pipe", "an error; goes on", pipe),
    Case("~/get_points of a million pixels", "refused in time; goes on", million_pixels),
    Case("~/edit_map moves everything 1e300 m", "an error; goes on", move_far),
    Case("a question in a frame that is not there", "TF_ERROR; goes on", unknown_frame),
    Case(f"{FLOOD} questions at once", "each gets a reply; goes on", flood),
    Case("3 clients killed while they ask", "the next is answered; goes on", dying_client),
    Case("10 goals sent and cancelled at once", "each ends once; goes on", cancelled_goals),
    Case("parameters set while it runs", "refused with reasons; goes on", live_parameters),
    Case("transitions that are not possible now", "success is false; goes on", wrong_transitions),
    Case("kill -9 while it saves a map", "the file is whole; starts again", save_and_die),
)
