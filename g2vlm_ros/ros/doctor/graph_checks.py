# SPDX-License-Identifier: Apache-2.0
"""Checks of a ROS graph, on a snapshot of it: names, topics, QoS, rates, clocks, TF.

A check reads a `Graph` and yields findings. Collecting the snapshot is `observer.py`.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator

from g2vlm_ros.ros.doctor.findings import Finding, error, ok, warning
from g2vlm_ros.ros.doctor.sensor_checks import check_images, check_scale, check_sensors
from g2vlm_ros.ros.doctor.snapshot import Endpoint, Graph, ImageSamples

MAX_CLOCK_OFFSET_S = 0.5
"""Stamps further from this machine's clock than a slow driver explains."""


def check_node(graph: Graph) -> Iterator[Finding]:
    """The node is there, once, and active."""
    count = Counter(graph.nodes)[graph.node]
    if not count:
        others = ", ".join(sorted(set(graph.nodes))[:8]) or "none"
        yield error(
            "node",
            f"{graph.node} is not in the graph (nodes seen: {others})",
            "ros2 launch g2vlm_ros perception.launch.py …, or doctor --node /NS/perception; is "
            "ROS_DOMAIN_ID the same on both sides?",
        )
        return
    if count > 1:
        yield error(
            "node_name",
            f"{count} nodes are called {graph.node}",
            "end one, or give each robot a namespace:=NAME: parameters and services reach "
            "either of them by chance",
        )
    if graph.state == "active":
        yield ok("state", "active")
    elif graph.state:
        step = "configure" if graph.state == "unconfigured" else "activate"
        yield error(
            "state",
            f"{graph.node} is {graph.state}",
            f"its log says why; then: ros2 lifecycle set {graph.node} {step}",
        )
    else:
        yield error(
            "state",
            f"{graph.node} does not answer about its state",
            "it hangs or is loading a model; look at its log, else start it again",
        )


def check_cameras(graph: Graph) -> Iterator[Finding]:
    """Every configured camera has a publisher of the right type that sends."""
    for camera in graph.configured_cameras():
        topic, kind = graph.image_topic(camera), graph.image_type()
        publishers = graph.publishers.get(topic, [])
        if not publishers:
            yield error("camera_topic", f"nobody publishes {topic}", camera_remedy(graph, kind))
            continue
        other = [each for each in publishers if each.type != kind]
        if other:
            yield error(
                "camera_type",
                f"{topic} is {other[0].type} by {other[0].node}, not {kind}",
                "set image_transport to what the driver sends, or remap its topic",
            )
            continue
        if len(publishers) > 1:
            names = ", ".join(each.node for each in publishers)
            yield warning(
                "camera_publishers",
                f"{topic} has {len(publishers)} publishers ({names}): their images interleave",
                "end one, or give each camera its own namespace",
            )
        if not graph.cameras.get(camera, ImageSamples()).received_s:
            yield error(
                "camera_silent",
                f"{topic} has a publisher and sent nothing in {graph.seconds:.0f} s",
                "look at the driver's log; ros2 topic hz " + topic,
            )


def camera_remedy(graph: Graph, kind: str) -> str:
    """Which image topics there are, and the launch argument that takes one."""
    there = sorted(
        topic
        for topic, publishers in graph.publishers.items()
        if any(each.type == kind for each in publishers) and not topic.startswith(graph.node + "/")
    )
    if not there:
        return "start the camera driver in the camera's namespace (-r __ns:=/CAMERA)"
    first = there[0].rsplit("/image_raw", 1)[0].strip("/")
    return f"there is {', '.join(there[:4])}: cameras:={first}, or remap the driver's topic"


def check_qos(graph: Graph) -> Iterator[Finding]:
    """Publishers and subscriptions of the node's topics that cannot be joined by their QoS."""
    mine = {
        topic
        for table in (graph.publishers, graph.subscriptions)
        for topic, endpoints in table.items()
        if any(each.node == graph.node for each in endpoints)
    }
    wrong = 0
    for topic in sorted(mine - {"/rosout", "/parameter_events"}):
        for publisher in graph.publishers.get(topic, []):
            for subscription in graph.subscriptions.get(topic, []):
                problem = incompatible(publisher, subscription)
                if problem and graph.node in (publisher.node, subscription.node):
                    wrong += 1
                    yield error(
                        "qos",
                        f"{topic}: {subscription.node} wants {problem}, {publisher.node} does "
                        "not offer it: no message passes",
                        f"change {subscription.node}'s QoS, or for our side "
                        f"qos_overrides.{topic}.<publisher|subscription>.<policy>",
                    )
    if mine and not wrong:
        yield ok("qos", f"{len(mine)} topics of the node fit")


def incompatible(publisher: Endpoint, subscription: Endpoint) -> str:
    """What the subscription wants and the publisher does not offer; "" where they fit."""
    if subscription.reliable and not publisher.reliable:
        return "reliable"
    if subscription.transient_local and not publisher.transient_local:
        return "transient_local"
    return ""


def check_rates(graph: Graph) -> Iterator[Finding]:
    """Cameras are quick enough to fill a window before its first view is too old."""
    views = graph.parameters.get("window.views", 4)
    span_s = graph.parameters.get("window.max_age_s", 5.0)
    cameras = graph.configured_cameras()
    for camera in cameras:
        rate = graph.cameras.get(camera, ImageSamples()).rate_hz()
        instants = max(1, views // len(cameras))
        if not rate or instants < 2:
            continue
        needed = (instants - 1) / span_s
        if rate < needed:
            yield error(
                "rate",
                f"{camera} sends {rate:.2f} Hz; {instants} instants within {span_s:g} s "
                f"(window.max_age_s) need more than {needed:.2f} Hz: no window fills",
                "raise window.max_age_s or the camera's rate, or lower window.views",
            )
        else:
            yield ok("rate", f"{camera} sends {rate:.1f} Hz, {needed:.2f} Hz are needed")


def check_stamps(graph: Graph) -> Iterator[Finding]:
    """Stamps are set and agree with this machine's clock; frames are named and told apart."""
    for camera, samples in graph.cameras.items():
        if not samples.stamps_s:
            continue
        if min(samples.stamps_s) <= 0:
            yield error(
                "stamp",
                f"{camera} leaves header.stamp at 0: its images are dropped",
                "set the driver's parameter for time stamps, or stamp in the driver",
            )
            continue
        pairs = zip(samples.received_s, samples.stamps_s, strict=True)
        offset_s = statistics.median(received - stamp for received, stamp in pairs)
        if abs(offset_s) > MAX_CLOCK_OFFSET_S and not graph.parameters.get("use_sim_time"):
            yield error(
                "clock",
                f"stamps of {camera} are {offset_s:+.2f} s behind this machine's clock",
                "synchronise the machines (chrony or PTP); for a recording use "
                "use_sim_time:=true with a publisher of /clock",
            )
        if "" in samples.frame_ids:
            yield error(
                "frame_id",
                f"{camera} leaves header.frame_id empty",
                "set the driver's frame_id to the camera's optical frame",
            )
    frames = Counter(name for each in graph.cameras.values() for name in each.frame_ids if name)
    for name, count in frames.items():
        if count > 1:
            yield error(
                "frame_id",
                f"{count} cameras use frame_id '{name}'",
                "give each driver a frame_id of its own: mounts and poses are looked up by it",
            )


def check_clock(graph: Graph) -> Iterator[Finding]:
    """Simulated time has a source."""
    if graph.parameters.get("use_sim_time") and not graph.publishers.get("/clock"):
        yield error(
            "sim_time",
            "use_sim_time is true and nobody publishes /clock: time stands still",
            "start the simulator or `ros2 bag play --clock`, or set use_sim_time:=false",
        )


def check_tf(graph: Graph) -> Iterator[Finding]:
    """No frame has two parents; where a sensor needs the camera's mount, it is there."""
    twice = {child: names for child, names in graph.parents.items() if len(names) > 1}
    for child, names in sorted(twice.items()):
        yield error(
            "tf_parents",
            f"'{child}' has {len(names)} parents: {', '.join(sorted(names))}",
            "one publisher per frame: for two robots map.frame and map.tf_child_suffix (or a "
            "remapped /tf) for each; else find the second publisher of the transform",
        )
    for circle in circles(graph.parents):
        yield error(
            "tf_loop",
            f"frames hang on each other in a circle: {' -> '.join(circle)}",
            "find who publishes one of these transforms, and give it the other direction or name",
        )
    sensors = [name for name in ("odometry_topic", "imu_topic") if graph.parameters.get(name)]
    mounted = graph.static_frames | {
        parent for child in graph.static_frames for parent in graph.parents.get(child, ())
    }
    for camera, samples in graph.cameras.items():
        for name in sorted(samples.frame_ids - {""}):
            if sensors and name not in mounted:
                yield error(
                    "mount",
                    f"/tf_static says nothing of '{name}' ({camera}), and {sensors[0]} is set",
                    "ros2 run tf2_ros static_transform_publisher --x … --frame-id base_link "
                    f"--child-frame-id {name}, or the robot's description",
                )
    if graph.parents and not twice:
        yield ok("tf_parents", f"each of {len(graph.parents)} frames has one parent")


def circles(parents: dict[str, set[str]]) -> list[list[str]]:
    """Frames that are their own ancestors: each circle once, from its first name on."""
    paths: list[list[str]] = []
    for start in sorted(parents):
        path, frame = [start], min(parents[start])
        while frame in parents and frame not in path:
            path.append(frame)
            frame = min(parents[frame])
        if frame == start and start == min(path):
            paths.append([*path, start])
    return paths


CHECKS: tuple[Callable[[Graph], Iterator[Finding]], ...] = (
    check_cameras,
    check_qos,
    check_rates,
    check_stamps,
    check_images,
    check_clock,
    check_tf,
    check_scale,
    check_sensors,
)


def check_graph(graph: Graph) -> Iterator[Finding]:
    """All checks of the graph; only the node's own where it did not give its parameters."""
    yield from check_node(graph)
    if not graph.parameters:
        return
    for check in CHECKS:
        yield from check(graph)
