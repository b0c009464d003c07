# SPDX-License-Identifier: Apache-2.0
"""What others see of answers: the last place asked about, the last answer, its picture."""

from __future__ import annotations

import math
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from tf2_msgs.msg import TFMessage

from g2vlm_ros.msg import SpatialExample
from g2vlm_ros.query.question_plan import AnswerType
from g2vlm_ros.ros.answer_image_publisher import AnswerImagePublisher
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.publishers import LATCHED
from g2vlm_ros.ros.query_response import Answer
from g2vlm_ros.ros.question import Question
from g2vlm_ros.settings import Settings


class AnswerTopics:
    """`~/query/last_target`, `~/query/last_answer`, `~/query/picture`, and /tf where wanted."""

    def __init__(self, node: LifecycleNode, settings: Settings):
        self._node, self._map_frame = node, settings.map.frame
        self._target_frame = settings.query.target_tf
        self.pictures = AnswerImagePublisher(node)
        self._target = node.create_lifecycle_publisher(PoseStamped, "~/query/last_target", LATCHED)
        self._answer = node.create_lifecycle_publisher(
            SpatialExample, "~/query/last_answer", LATCHED
        )
        self._said = False
        """Whether something was published that a reset makes void."""
        self._tf = None
        if self._target_frame:
            self._tf = node.create_lifecycle_publisher(TFMessage, "/tf", QoSProfile(depth=100))

    def close(self) -> None:
        """Take the topics away."""
        self._said = False
        for publisher in (self._target, self._answer, self._tf):
            if publisher is not None:
                self._node.destroy_publisher(publisher)
        self.pictures.close()

    def retract(self) -> None:
        """Take back from the latched topics what was said of a map that is forgotten."""
        said, self._said = self._said, False
        if not said:
            return
        self._answer.publish(SpatialExample())
        nowhere = PoseStamped(header=geometry.header(0, self._map_frame))
        position = nowhere.pose.position
        position.x = position.y = position.z = math.nan
        self._target.publish(nowhere)

    def publish(self, question: str, answer: Answer, response: Any) -> None:
        """The place of an answer, latched and on /tf where wanted, and the answer's picture."""
        result, selection = answer.result, answer.selection
        if result.kind in (AnswerType.POINT, AnswerType.POSE) and result.pose is not None:
            self._target.publish(response.pose)
            if self._tf is not None:
                header = geometry.header(selection.stamp_ns, self._map_frame)
                place = geometry.transform_message(header, self._target_frame, result.pose)
                self._tf.publish(TFMessage(transforms=[place]))
        self.pictures.show(answer.stamp_ns, question, result, selection)

    def publish_answer(self, question: Question) -> None:
        """Latch a question that came to its turn, with the answer or why there is none."""
        request, response = question.request, question.response
        self._said = True
        self._answer.publish(
            SpatialExample(
                camera=response.evidence[0].camera if response.evidence else "",
                stamp=response.stamp,
                question=request.question,
                answer=response.answer if response.success else response.error_msg,
            )
        )
