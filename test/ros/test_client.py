# SPDX-License-Identifier: Apache-2.0
"""Planners and agents ask through clients and tools, over real DDS."""

import asyncio
import importlib.util
import json
import time

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")

from g2vlm_tests.asking import SMALL_QUERY, feed  # noqa: E402
from g2vlm_tests.harness import bench  # noqa: E402

OLD = {"max_age_s": 1e12, "max_wait_s": 20.0}


@pytest.fixture(scope="module")
def testbed():
    with bench(**SMALL_QUERY) as testbed:
        feed(testbed)
        yield testbed


@pytest.fixture(scope="module")
def robot(testbed):
    from g2vlm_ros.ros.client.client import SpatialClient

    with SpatialClient() as robot:
        yield robot


def test_the_client_asks_and_gets_codes(robot):
    assert robot.ask("What is there?", **OLD).success
    assert robot.locate("chair", **OLD).error_code == 9904, "no metres, no place"
    points = robot.points("camera", [20.0], [20.0], max_age_s=1e12)
    assert points.success and len(points.points) == 1


def test_wrong_arguments_are_errors_before_anything_is_sent(robot):
    with pytest.raises(ValueError, match="surrogate"):
        robot.ask("a\udc00b")
    with pytest.raises(ValueError, match="colour"):
        robot.ask("What?", colour="red")
    for text in ("Is there a door?\0 No.", "a\x1b[2Jb", "\x85"):
        with pytest.raises(ValueError, match=r"question holds the control character U\+00"):
            robot.ask(text)
    with pytest.raises(ValueError, match=r"targets\[1\] holds the control character U\+0000"):
        robot.ask("", question_type="distance", targets=["chair", "ta\0ble"])


def test_asyncio_asks_several_at_once(testbed):
    from g2vlm_ros.ros.client.client import AsyncSpatialClient

    async def ask():
        async with AsyncSpatialClient() as robot:
            return await asyncio.gather(*(robot.ask(f"What is {k}?", **OLD) for k in range(3)))

    assert [answer.error_code for answer in asyncio.run(ask())] == [0, 0, 0]


def test_asyncio_answers_by_the_action_and_hears_it_grow(testbed):
    from g2vlm_ros.ros.client.client import AsyncSpatialClient

    heard = []

    async def ask():
        async with AsyncSpatialClient() as robot:
            return await robot.answer("What is there?", heard.append, **OLD)

    result = asyncio.run(ask())
    assert result.success and result.answer and heard[-1].phase == 2
    assert all(result.answer.startswith(said.partial_answer) for said in heard)
    with pytest.raises(ValueError, match="colour"):
        asyncio.run(AsyncSpatialClient.answer(None, "What?", colour="red"))


@pytest.mark.parametrize("running", [False, True], ids=["before it is sent", "while it waits"])
def test_cancelling_the_task_cancels_the_goal(testbed, running):
    """A goal that waits for a window that never comes ends at once, not with its max_wait_s."""
    from action_msgs.msg import GoalStatus, GoalStatusArray
    from rclpy.qos import DurabilityPolicy, QoSProfile

    from g2vlm_ros.ros.client.client import AsyncSpatialClient

    told = []

    async def ask():
        heard = asyncio.Event()
        async with AsyncSpatialClient() as robot:
            fields = {**OLD, "max_wait_s": 600.0, "fresh_window": True}
            task = asyncio.create_task(robot.answer("What?", lambda _: heard.set(), **fields))
            await asyncio.sleep(0)
            if running:
                await asyncio.wait_for(heard.wait(), 60.0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(testbed.until, lambda: over() or not running, "the goal's end")

    def over():
        return told and [s.status for s in told[-1].status_list][-1:] == [
            GoalStatus.STATUS_CANCELED
        ]

    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    topic = "/perception/answer/_action/status"
    listener = testbed.peer.create_subscription(GoalStatusArray, topic, told.append, latched)
    asyncio.run(ask())
    testbed.until(
        lambda: (
            not told or all(s.status != GoalStatus.STATUS_EXECUTING for s in told[-1].status_list)
        ),
        "the end of a goal that had been sent",
    )
    testbed.peer.destroy_subscription(listener)


def test_asyncio_gets_points_and_its_own_errors(testbed, monkeypatch):
    from g2vlm_ros.ros.client import client

    async def points():
        async with client.AsyncSpatialClient() as robot:
            return await robot.points("camera", [20.0], [20.0], max_age_s=1e12)

    assert len(asyncio.run(points()).points) == 1
    monkeypatch.setattr(client, "DISCOVERY_S", 0.2)

    async def nobody():
        async with client.AsyncSpatialClient("/nobody") as robot:
            await robot.ask("What?")

    with pytest.raises(client.UnreachableError, match="not offered"):
        asyncio.run(nobody())


def test_a_node_that_is_not_there_is_an_error(testbed, monkeypatch):
    from g2vlm_ros.ros.client import client

    monkeypatch.setattr(client, "DISCOVERY_S", 0.2)
    with client.SpatialClient("/nobody") as robot, pytest.raises(client.UnreachableError):
        robot.ask("What?")


@pytest.mark.parametrize("node", ["1st", "a b", "robot/", "x" * 300, ""])
def test_a_node_that_is_no_ros_name_is_one_sentence(node, capsys):
    from g2vlm_ros.ros.client import agent_tools, ask

    for main, arguments in ((ask.main, ["What?"]), (agent_tools.main, [])):
        assert main([*arguments, "--node", node]) == 2
        error = capsys.readouterr().err
        assert "it must be a ROS name" in error and len(error.splitlines()) == 1


def test_ask_prints_an_answer_or_why_there_is_none(testbed, capsys):
    from g2vlm_ros.ros.client import ask

    old = ["--max-age-s", "1e12", "--wait-s", "20"]
    assert ask.main(["What", "is there; echo $HOME?", *old]) == 0
    assert "confidence not calibrated" in capsys.readouterr().out
    assert ask.main(["How far is the chair?", *old]) == 1
    assert "NO_GEOMETRY" in capsys.readouterr().out


def test_ask_writes_what_the_answer_rests_on(testbed, tmp_path, capsys):
    import numpy as np
    from PIL import Image

    from g2vlm_ros.ros.client import ask

    path = tmp_path / "answer.png"
    old = ["--max-age-s", "1e12", "--wait-s", "20"]
    assert ask.main(["What is there?", *old, "--picture", str(path)]) == 0
    picture = np.asarray(Image.open(path))
    assert picture.shape[1:] == (640, 3) and picture.shape[0] > 480 + 20, "words below the view"
    assert ask.main(["What is there?", *old, "--picture", str(tmp_path / "answer.nothing")]) == 2
    assert "extension" in capsys.readouterr().err


def test_a_picture_is_drawn_only_for_who_looks(testbed, robot):
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from sensor_msgs.msg import Image

    pictures = testbed.queries.worker.topics.pictures
    testbed.until(lambda: not pictures.seen(), "nobody to look")
    drawn = pictures.pictures_drawn
    for question in ("What is there?", "What else?"):
        assert robot.ask(question, **OLD).success
    assert pictures.pictures_drawn == drawn
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    seen = []
    late = testbed.peer.create_subscription(
        Image, "/perception/query/picture", seen.append, latched
    )
    testbed.until(
        lambda: pictures.pictures_drawn > drawn and seen, "the picture for a late listener"
    )
    testbed.peer.destroy_subscription(late)
    assert pictures.pictures_drawn == drawn + 1, "the newest, once"


def test_schemas_follow_the_srv():
    from g2vlm_ros.srv import SpatialQuery

    from g2vlm_ros.ros.client import agent_tools

    ask = next(s for s in agent_tools.schemas() if s["name"] == "ask")["parameters"]
    known = SpatialQuery.Request.get_fields_and_field_types()
    assert set(ask["properties"]) <= set(known) and ask["required"] == ["question"]
    assert ask["properties"]["max_wait_s"] == {"type": "number", "default": 1.5}
    assert ask["properties"]["camera_ids"] == {"type": "array", "items": {"type": "string"}}
    for style in (agent_tools.openai_style(), agent_tools.anthropic_style()):
        json.dumps(style)
        assert len(style) == 5


def test_tools_call_the_robot_and_name_what_is_wrong(robot):
    from g2vlm_ros.ros.client import agent_tools

    run = agent_tools.answered(robot)
    good = run("ask", {"question": "What is there?", "answer_kind": "TEXT", **OLD})
    assert good["success"] and good["kind"] == "TEXT" and good["confidence"] is None
    json.dumps(good)
    assert "shout" in run("shout", {})["remedy"]
    assert "question" in run("ask", {})["remedy"]
    assert "HOW" in run("ask", {"question": "a", "answer_kind": "HOW"})["remedy"]
    refused = run("ask", {"question": "How far is the sofa?", **OLD})
    assert refused["error"] == "NO_GEOMETRY" and refused["remedy"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_wait_s", "5", "max_wait_s is '5'; it must be a number"),
        ("max_wait_s", None, "max_wait_s is None"),
        ("max_wait_s", True, "max_wait_s is True"),
        ("max_wait_s", 1e300, "within 3.4e+38"),
        ("max_age_s", float("nan"), "finite"),
        ("answer_kind", 256, "from 0 to 255"),
        ("answer_kind", 1.5, "a whole number"),
        ("camera_ids", "front", "a list of string"),
        ("camera_ids", [1], "camera_ids[0] is 1; it must be text"),
        ("use_memory", 1, "true or false"),
        ("stamp", 3, "builtin_interfaces/Time message"),
    ],
)
def test_values_are_checked_before_any_c_code(field, value, words):
    from g2vlm_ros.ros.client import client

    with pytest.raises(ValueError) as caught:
        client.request("What?", **{field: value})
    assert words in str(caught.value)


def test_whole_numbers_are_numbers():
    """rosidl's C code would end the process."""
    from rclpy.serialization import serialize_message

    from g2vlm_ros.ros.client import client

    asked = client.request("What?", max_wait_s=5, max_age_s=60, min_confidence=1)
    assert (asked.max_wait_s, type(asked.max_wait_s)) == (5.0, float)
    assert serialize_message(asked)
    with pytest.raises(ValueError, match="question is 5"):
        client.request(5)


def test_an_agent_over_mcp_gets_answers_for_whole_numbers_and_errors_for_nonsense(robot):
    """With the real package's client: `isError`, and the server goes on."""
    mcp = pytest.importorskip("mcp", reason="pip install 'mcp>=2'")

    from g2vlm_ros.ros.client import agent_tools

    async def talk():
        server = agent_tools.mcp_server(agent_tools.answered(robot))
        async with mcp.Client(server) as client:
            arguments = {"question": "What is there?", "max_wait_s": 20, "max_age_s": 10**12}
            good = await client.call_tool("ask", arguments)
            bad = [
                await client.call_tool("ask", given)
                for given in (
                    {"question": 5},
                    {},
                    {"question": "a", "max_wait_s": "soon"},
                    {"question": "Is there a door?\0 No."},
                )
            ]
            return good, bad, await client.call_tool("find", {})

    good, bad, found = asyncio.run(talk())
    answer = json.loads(good.content[0].text)
    assert not good.is_error and answer["success"] and answer["measured"] is False
    assert all(each.is_error for each in bad)
    assert "max_wait_s" in json.loads(bad[2].content[0].text)["remedy"]
    assert "U+0000" in bad[3].content[0].text
    assert found.is_error, "nothing is remembered without metres"


def test_the_mcp_server_offers_and_calls_the_tools(capsys):
    from g2vlm_ros.ros.client import agent_tools

    if importlib.util.find_spec("mcp") is None:
        assert agent_tools.serve("/perception") == 2
        assert "pip install" in capsys.readouterr().err
        return
    from mcp import Client

    async def talk():
        server = agent_tools.mcp_server(
            lambda tool, given: {"success": tool == "look", "got": given}
        )
        async with Client(server) as client:
            offered = await client.list_tools()
            good = await client.call_tool("look", {})
            bad = await client.call_tool("ask", {"question": "; rm -rf"})
        return [tool.name for tool in offered.tools], good, bad

    names, good, bad = asyncio.run(talk())
    assert names == ["ask", "locate", "measure", "look", "find"] and not good.is_error
    assert bad.is_error and json.loads(bad.content[0].text)["got"] == {"question": "; rm -rf"}


def test_listening_to_pictures_may_end_while_another_thread_spins(robot):
    """rclpy's executor fails on what is destroyed after it was listed, unless that is forgiven."""
    pictures = robot.pictures()
    (subscription,) = (each for each in robot.node.subscriptions if "picture" in each.topic_name)
    (handler, *_) = subscription.event_handlers
    pictures.close()
    handler.add_to_wait_set(None)
    assert robot.ask("What is there?", **OLD).success


def stamped(kind, instant_ns, **fields):
    """A message whose answer was given at an instant."""
    from builtin_interfaces.msg import Time

    stamp = Time(sec=instant_ns // 10**9, nanosec=instant_ns % 10**9)
    return kind(stamp=stamp, **fields)


def test_a_callback_that_raises_does_not_end_the_client(robot):
    calls = []

    def fail():
        calls.append(1)
        raise KeyError("a bug of the user's")

    timer = robot.node.create_timer(0.01, fail)
    deadline = time.monotonic() + 20
    while len(calls) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    robot.node.destroy_timer(timer)
    assert len(calls) >= 2 and robot.ask("What is there?", **OLD).success


def test_a_missed_picture_is_named_at_once_and_asked_for_again(testbed, monkeypatch):
    """A later picture says that one's own answer came before the node found its listener."""
    from g2vlm_ros.srv import SpatialQuery
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from g2vlm_ros.ros.client.answer_images import PICTURES, AnswerImages
    from g2vlm_ros.ros.client.client import SpatialClient
    from g2vlm_ros.ros.client.errors import PictureMissedError

    original, missed = AnswerImages.of, []

    def of(images, answer):
        if not missed:
            later = stamped(Header, 2000 + images_instant_ns(answer))
            for _ in range(PICTURES):  # as many as are kept: one's own is gone
                images.keep(Image(header=later))
            missed.append(answer)
        return original(images, answer)

    def images_instant_ns(answer):
        return answer.stamp.sec * 10**9 + answer.stamp.nanosec + round(answer.age_s * 1e9)

    monkeypatch.setattr(AnswerImages, "of", of)
    with SpatialClient() as robot:
        answer, picture = robot.ask_and_see("What is there?", **OLD)
        assert answer.success and picture.height > 0 and answer != missed[0]
        pictures = robot.pictures()
        for _ in range(PICTURES):
            pictures.keep(Image(header=stamped(Header, 5 * 10**9)))
        with pytest.raises(PictureMissedError, match="ask again"):
            original(pictures, stamped(SpatialQuery.Response, 4 * 10**9), 30.0)
        pictures.close()


def test_clients_that_join_at_once_all_get_answers(testbed):
    """Discovery between participants of one process, five at a time."""
    from concurrent.futures import ThreadPoolExecutor

    from g2vlm_ros.ros.client.client import SpatialClient

    def ask(number):
        with SpatialClient() as robot:
            return robot.ask(f"What is {number}?", **OLD).error_code

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(ask, range(10))) == [0] * 10
