# SPDX-License-Identifier: Apache-2.0
"""The interface files say what each field is; the built interfaces carry it over real DDS."""

from __future__ import annotations

import re
from concurrent.futures import Future
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(file for kind in ("msg", "srv", "action") for file in ROOT.glob(f"{kind}/*.{kind}"))
PATIENCE_S = 20.0


def sections(file: Path) -> list[list[str]]:
    """The lines of a file, split where a service or an action starts its next part."""
    parts: list[list[str]] = [[]]
    for line in file.read_text().splitlines():
        if line == "---":
            parts.append([])
        else:
            parts[-1].append(line)
    return parts


def fields(lines: list[str]) -> dict[str, str]:
    """Field name -> its whole declaration; constants and comments left out."""
    declarations = [line for line in lines if line and not line.startswith("#")]
    split = [line.split("#")[0].split() for line in declarations]
    return {
        words[1]: line
        for words, line in zip(split, declarations, strict=True)
        if "=" not in words[1] and "=" not in "".join(words[2:3])
    }


def constants(lines: list[str], type_name: str) -> dict[str, int]:
    found = [re.match(rf"{type_name} (\w+)=(\d+)", line) for line in lines]
    return {match[1]: int(match[2]) for match in found if match}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_field_says_what_it_is(file: Path) -> None:
    assert file.read_text().startswith("# "), "the first line says what the interface is for"
    for lines in sections(file):
        for name, line in fields(lines).items():
            comment = line.partition("#")[2].strip()
            assert len(comment) > 10, f"{file.name}: {name} has no comment with its unit and frame"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_lengths_and_angles_name_their_unit(file: Path) -> None:
    units = r"metre|second|pixel|0\.\.1|`unit`|no unit"
    for lines in sections(file):
        for name, line in fields(lines).items():
            if re.match(r"(float|geometry_msgs/(Pose|Point|Vector))", line):
                assert re.search(units, line), f"{file.name}: {name} does not name its unit"


def test_error_codes_are_laid_out_as_those_of_nav2() -> None:
    query = constants(sections(ROOT / "srv/SpatialQuery.srv")[1], "uint16")
    assert query["NONE"] == 0
    assert {"UNKNOWN", "TIMEOUT", "TF_ERROR", "NO_MODEL", "NO_GEOMETRY", "NOT_VISIBLE"} < set(
        query
    )
    assert {"AMBIGUOUS", "BUSY", "INACTIVE", "INVALID_REQUEST"} < set(query)
    others = [value for name, value in query.items() if name != "NONE"]
    assert others == sorted(set(others)), "codes are unique and in order"
    assert all(9900 <= value <= 9999 for value in others)
    for file in ("GetPoints", "SaveMap", "LoadMap", "EditMap", "FindObjects", "EditObject"):
        response = sections(ROOT / f"srv/{file}.srv")[1]
        assert constants(response, "uint16").items() <= query.items(), f"{file} uses other values"
        assert {"success", "error_code", "error_msg"} <= set(fields(response))
        assert fields(response)["error_code"].startswith("uint16 ")


def test_action_asks_and_answers_as_the_service_does() -> None:
    request, response = sections(ROOT / "srv/SpatialQuery.srv")
    goal, result, feedback = sections(ROOT / "action/AnswerSpatialQuery.action")
    assert set(fields(goal)) - set(fields(request)) == {"fresh_window"}
    assert fields(request).items() <= fields(goal).items()
    assert result == response
    assert set(fields(feedback)) == {"phase", "partial_answer", "elapsed_s"}


@pytest.mark.ros
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_built_interfaces_are_those_of_the_files(file: Path) -> None:
    kind = file.suffix[1:]
    built = getattr(__import__(f"g2vlm_ros.{kind}", fromlist=[file.stem]), file.stem)
    parts = {"msg": [""], "srv": ["Request", "Response"], "action": ["Goal", "Result", "Feedback"]}
    for part, lines in zip(parts[kind], sections(file), strict=True):
        message = getattr(built, part) if part else built
        assert list(message.get_fields_and_field_types()) == list(fields(lines)), (
            f"{file.name} changed after it was built; run `make build`"
        )


def spin_until(executor, future: Future):
    executor.spin_until_future_complete(future, timeout_sec=PATIENCE_S)
    assert future.done(), f"no result within {PATIENCE_S:.0f} s"
    return future.result()


@pytest.fixture
def wire(ros):
    """Two nodes and the executor that spins both."""
    from rclpy.executors import SingleThreadedExecutor

    nodes = ros.create_node("asker"), ros.create_node("answerer")
    executor = SingleThreadedExecutor()
    for node in nodes:
        executor.add_node(node)
    yield *nodes, executor
    executor.shutdown()
    for node in nodes:
        node.destroy_node()


def test_status_arrives_as_it_was_sent(wire) -> None:
    from g2vlm_ros.msg import ReconstructionStatus
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from rclpy.task import Future as RosFuture

    asker, answerer, executor = wire
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    sent = ReconstructionStatus(
        window_id=7,
        view_cameras=["front", "rear"],
        scale_state=ReconstructionStatus.SCALE_METRIC,
        scale_source=ReconstructionStatus.SOURCE_RIG,
        metres_per_unit=1.25,
        drop_reasons=["stale"],
        drop_counts=[3],
    )
    sent.header.stamp.sec, sent.header.frame_id = 12, "map"
    answerer.create_publisher(ReconstructionStatus, "status", latched).publish(sent)
    received = RosFuture()
    asker.create_subscription(ReconstructionStatus, "status", received.set_result, latched)
    assert spin_until(executor, received) == sent


def test_service_answers_with_an_error_code(wire) -> None:
    from g2vlm_ros.srv import SpatialQuery

    def refuse(request, response):
        response.error_code = SpatialQuery.Response.NO_MODEL
        response.error_msg = f"no language in this checkpoint for {request.question!r}"
        return response

    asker, answerer, executor = wire
    answerer.create_service(SpatialQuery, "query", refuse)
    client = asker.create_client(SpatialQuery, "query")
    assert client.wait_for_service(PATIENCE_S)
    question = SpatialQuery.Request(question="Wie weit ist die Tür?")
    assert question.max_wait_s == 1.5
    answer = spin_until(executor, client.call_async(question))
    assert not answer.success
    assert answer.error_code == 9903
    assert "Tür" in answer.error_msg


def test_action_gives_feedback_and_a_result(wire) -> None:
    from g2vlm_ros.action import AnswerSpatialQuery
    from g2vlm_ros.msg import SpatialObject
    from rclpy.action import ActionClient, ActionServer

    def answer(goal):
        phase = AnswerSpatialQuery.Feedback.ANSWERING
        goal.publish_feedback(AnswerSpatialQuery.Feedback(phase=phase, partial_answer="the"))
        goal.succeed()
        objects = [SpatialObject(label="door", confidence=-1.0)]
        return AnswerSpatialQuery.Result(success=True, answer="the door", objects=objects)

    asker, answerer, executor = wire
    server = ActionServer(answerer, AnswerSpatialQuery, "ask", answer)
    client = ActionClient(asker, AnswerSpatialQuery, "ask")
    heard = []
    assert client.wait_for_server(PATIENCE_S)
    goal = spin_until(
        executor,
        client.send_goal_async(
            AnswerSpatialQuery.Goal(question="which way out?"),
            feedback_callback=lambda message: heard.append(message.feedback.partial_answer),
        ),
    )
    assert goal.accepted
    result = spin_until(executor, goal.get_result_async()).result
    assert heard == ["the"]
    assert result.answer == "the door"
    assert result.objects[0].label == "door"
    client.destroy()
    server.destroy()
