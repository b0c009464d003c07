# SPDX-License-Identifier: Apache-2.0
"""Settings as ROS parameters: declared with type, bounds and description, read back checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import Field
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from g2vlm_ros.parameter_schema import (
    SettingError,
    build,
    check,
    default_of,
    former_names,
    parameters_of,
)

OF_ROS = ("use_sim_time", "start_type_description_service", "qos_overrides.")
"""How the names begin of parameters that rclpy declares itself."""


@contextmanager
def empty_lists_named() -> Iterator[None]:
    """Around the making of a node: says what rclpy means where a params file has an empty list."""
    try:
        yield
    except ValueError as error:
        if "PARAMETER_NOT_SET" not in str(error):
            raise
        raise SettingError(
            "a parameter is an empty list, such as cameras: []; ROS cannot tell its type. Name at "
            "least one entry, or leave the line out"
        ) from error


def declare(node: Node, kind: type) -> None:
    """Declare the parameters of a settings class on a node and report what nobody will read.

    The node must be made with automatically_declare_parameters_from_overrides. Raises
    SettingError naming value, bound and remedy when a params file or ``-p`` gives a wrong value.
    A whole number is taken where a float is wanted.
    """
    for name, item in parameters_of(kind):
        value = default_of(item)
        if node.has_parameter(name):
            value = check(name, item, node.get_parameter(name).value)
            node.undeclare_parameter(name)
        node.declare_parameter(name, value, _descriptor(item), ignore_override=True)
    former = former_names(kind)
    for name in unknown(node, kind):
        why = f"is called '{former[name]}' now: rename it" if name in former else "is not known"
        node.get_logger().warning(f"parameter '{name}' {why}; its value is not used")


def read(node: Node, kind: type, changed: dict[str, object] | None = None) -> Any:
    """The node's parameters, with `changed` on top, as checked settings; raises SettingError."""
    values = {name: node.get_parameter(name).value for name, _ in parameters_of(kind)}
    return build(kind, {**values, **(changed or {})})


def unknown(node: Node, kind: type) -> list[str]:
    """Names that were given to this node and that nothing reads."""
    names = {name for name, _ in parameters_of(kind)}
    values = node.get_parameters_by_prefix("")
    return sorted(n for n in values if n not in names and not n.startswith(OF_ROS))


def _descriptor(item: Field) -> ParameterDescriptor:
    meta, default = item.metadata, default_of(item)
    descriptor = ParameterDescriptor(description=meta["doc"])
    if meta["choices"]:
        descriptor.additional_constraints = "one of " + ", ".join(meta["choices"])
    if meta["low"] is not None and isinstance(default, float):
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=float(meta["low"]), to_value=float(meta["high"]))
        ]
    elif meta["low"] is not None:
        descriptor.integer_range = [
            IntegerRange(from_value=int(meta["low"]), to_value=int(meta["high"]))
        ]
    return descriptor
