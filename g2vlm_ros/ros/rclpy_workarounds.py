# SPDX-License-Identifier: Apache-2.0
"""Nodes whose parts may be destroyed by one thread while another spins them."""

from rclpy.exceptions import InvalidHandle
from rclpy.impl.implementation_singleton import rclpy_implementation

RCLError = rclpy_implementation.RCLError


class SafeWaitables:
    """Mixed into a node: its event handlers and actions may go while an executor lists them."""

    def add_waitable(self, waitable) -> None:
        """Add an event handler, an action server or an action client."""
        super().add_waitable(safe_waitable(waitable))


def safe_waitable(waitable):
    """The waitable, which lets itself be left out of a wait set once it is destroyed.

    An executor's thread that has just listed it would end otherwise: with InvalidHandle, or with
    RCLError where it is destroyed meanwhile (rclpy of Jazzy forgives that of subscriptions and
    services, but not of what their events wait for, nor of action servers).
    """
    add, ready, added = waitable.add_to_wait_set, waitable.is_ready, [False]

    def add_to_wait_set(wait_set) -> None:
        added[0] = False
        try:
            add(wait_set)
        except (InvalidHandle, RCLError):
            return
        added[0] = True

    waitable.add_to_wait_set = add_to_wait_set
    waitable.is_ready = lambda wait_set: added[0] and ready(wait_set)
    return waitable
