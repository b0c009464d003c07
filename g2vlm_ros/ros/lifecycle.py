# SPDX-License-Identifier: Apache-2.0
"""A lifecycle node whose transitions are all or nothing.

rclpy itself ends the process at a transition that is not possible in the current state, swallows
what a transition raises, and leaves behind what a failed one has made.
"""

from __future__ import annotations

import functools
import threading
import traceback
from collections.abc import Callable

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from g2vlm_ros.ros.rclpy_workarounds import SafeEntities, safe_service

END_WAIT_S = 2.0
"""How long the end of the process waits for a transition that runs; a model may load minutes."""
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def all_or_nothing(undo: str) -> Callable:
    """A transition that takes back what it has made, by the method `undo`, where it fails.

    The reason is logged: one sentence for ValueError and OSError, else a traceback.
    """

    def decorate(transition: Callable) -> Callable:
        @functools.wraps(transition)
        def run(self, state: LifecycleState) -> TransitionCallbackReturn:
            try:
                result = transition(self, state)
            except (ValueError, OSError) as error:
                self.get_logger().error(f"{transition.__name__}: {error}")
            except Exception:
                self.get_logger().error(f"{transition.__name__} failed:\n{traceback.format_exc()}")
            else:
                if result == SUCCESS:
                    return result
            getattr(self, undo)()
            return FAILURE

        return run

    return decorate


class SafeLifecycleNode(SafeEntities, LifecycleNode):
    """Transitions run one at a time; one that is not possible now is refused, not raised."""

    def __init__(self, name: str, **node_arguments):
        self._transition = threading.RLock()
        self._ending = threading.Event()
        self.bring_up_failed = False
        """Whether `bring_up` was tried in vain."""
        super().__init__(name, **node_arguments)
        for service in (
            self._service_change_state,
            self._service_get_state,
            self._service_get_available_states,
            self._service_get_available_transitions,
            self._service_get_transition_graph,
        ):
            safe_service(service, self.get_logger().warning)

    def possible_transitions(self) -> dict[int, str]:
        """Label by id of the transitions that the current state allows."""
        return {each[0]: each[1] for each in self._state_machine.available_transitions}

    # The name that rclpy's mangling gives to LifecycleNodeMixin.__change_state, which both the
    # service ~/change_state and the trigger_ methods call.
    def _LifecycleNodeMixin__change_state(self, transition_id: int) -> TransitionCallbackReturn:
        if not self._transition.acquire(blocking=False):
            self.get_logger().warning(
                f"transition {transition_id} is refused: another one is running; wait for it"
            )
            return FAILURE
        try:
            possible = self.possible_transitions()
            if transition_id not in possible:
                listed = ", ".join(f"{i} ({label})" for i, label in sorted(possible.items()))
                self.get_logger().warning(
                    f"transition {transition_id} is refused in state "
                    f"'{self._state_machine.current_state[1]}'; possible: {listed or 'none'}"
                )
                return FAILURE
            return super()._LifecycleNodeMixin__change_state(transition_id)
        finally:
            self._transition.release()

    def bring_up(self) -> None:
        """Configure and activate, unless the end comes before."""
        for transition in (self.trigger_configure, self.trigger_activate):
            if self._ending.is_set():
                return
            if transition() != SUCCESS:
                self.bring_up_failed = not self._ending.is_set()
                return

    def end(self) -> bool:
        """Shut down at the end of the process; False where a transition does not come to its end
        within END_WAIT_S."""
        self._ending.set()
        if not self._transition.acquire(timeout=END_WAIT_S):
            self.get_logger().warning("ends while a transition is running; its work is lost")
            return False
        try:
            self.trigger_shutdown()
            return True
        finally:
            self._transition.release()

    def trigger_shutdown(self) -> TransitionCallbackReturn:
        """Shut down from whatever state; FAILURE where the node is finalized already."""
        if self._state_machine.current_state[1] not in ("unconfigured", "inactive", "active"):
            return FAILURE
        return super().trigger_shutdown()

    def destroy_node(self) -> None:
        """Destroy it, and what rclpy leaves to the garbage collector.

        The state machine holds on to the node below, and through it the DDS participant stays in
        the graph.
        """
        super().destroy_node()
        self._state_machine.destroy_when_not_in_use()

    def attempt(self, what: str, step: Callable[[], object]) -> None:
        """One step of taking things down; that it fails keeps no other from being done."""
        try:
            step()
        except Exception:
            self.get_logger().error(f"{what} failed:\n{traceback.format_exc()}")
