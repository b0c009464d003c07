# SPDX-License-Identifier: Apache-2.0
"""``ros2 run g2vlm_ros doctor``: what is wrong with this machine and this graph, and what helps.

Looks at the installation, and for some seconds at the running perception node with its cameras.
Changes nothing. Exit code 0 without errors (warnings do not count), 1 with.
"""

from __future__ import annotations

import argparse
import sys

import rclpy
from rclpy.utilities import remove_ros_args

from g2vlm_ros.parameter_schema import TOPIC
from g2vlm_ros.ros.doctor.findings import Finding, Level, as_json, as_text, error
from g2vlm_ros.ros.doctor.graph_checks import check_graph
from g2vlm_ros.ros.doctor.installation import check_installation
from g2vlm_ros.ros.doctor.observer import Observer
from g2vlm_ros.ros.start_errors import SecurityError, StartError, start_errors

MIN_LISTEN_S, MAX_LISTEN_S = 0.1, 3600.0


def seconds(text: str) -> float:
    """A time to listen: long enough for an image, and no longer than anybody waits."""
    value = float(text)
    if not MIN_LISTEN_S <= value <= MAX_LISTEN_S:
        raise argparse.ArgumentTypeError(
            f"{text} must be a number from {MIN_LISTEN_S:g} to {MAX_LISTEN_S:g}"
        )
    return value


def node_name(text: str) -> str:
    """A full name of a node as ROS has them."""
    if not text or not TOPIC.pattern.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be {TOPIC.sentence}")
    return text


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, less ROS's own arguments."""
    parser = argparse.ArgumentParser(
        prog="doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--node", type=node_name, default="/perception", help="full name of the node"
    )
    parser.add_argument("--seconds", type=seconds, default=5.0, help="how long to listen")
    parser.add_argument("--checkpoint", help="folder to check; else the node's model.checkpoint")
    parser.add_argument("--offline", action="store_true", help="do not look at the graph")
    parser.add_argument("--json", action="store_true", help="for programs")
    try:
        rest = remove_ros_args(["doctor", *(arguments or [])])[1:]
    except UnicodeEncodeError:
        parser.error("ROS takes arguments in UTF-8 only; give the folder another name")
    return parser.parse_args(rest)


def examine(options: argparse.Namespace, arguments: list[str] | None = None) -> list[Finding]:
    """All findings."""
    if options.offline:
        return list(check_installation(options.checkpoint))
    try:
        with start_errors():
            rclpy.init(args=arguments)
            node = rclpy.create_node("g2vlm_doctor", enable_rosout=False)
        graph = Observer(node, options.node).look(options.seconds)
        node.destroy_node()
    except StartError as refusal:
        check = "security" if isinstance(refusal, SecurityError) else "ros"
        remedy = "the graph was not looked at; --offline leaves it out"
        return [error(check, str(refusal), remedy), *check_installation(options.checkpoint)]
    finally:
        rclpy.try_shutdown()
    checkpoint = options.checkpoint or graph.parameters.get("model.checkpoint")
    engines = graph.parameters.get("model.engines", "")
    return [*check_installation(checkpoint, engines), *check_graph(graph)]


def main(arguments: list[str] | None = None) -> int:
    """0 without errors, 1 with."""
    words = sys.argv[1:] if arguments is None else arguments
    options = parse(words)
    findings = examine(options, words)
    print(as_json(findings) if options.json else as_text(findings))
    return int(any(each.level is Level.ERROR for each in findings))


if __name__ == "__main__":
    raise SystemExit(main())
