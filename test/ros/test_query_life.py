"""Questions while a node is deactivated, and what it keeps of them."""

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")

from test.ros.asking import SMALL_QUERY, START_S, ask, block, feed, request  # noqa: E402
from test.ros.harness import bench  # noqa: E402


def test_deactivation_answers_what_waits_and_refuses_what_comes():
    from g2vlm_ros.srv import SpatialQuery

    with bench(**SMALL_QUERY) as made:
        feed(made)
        client = made.peer.create_client(SpatialQuery, "/perception/query")
        assert client.wait_for_service(20)
        release = block(made, [])
        waiting = client.call_async(request(question="What is there?"))
        made.until(lambda: made.node._device._waiting() > 0, "the question to wait")
        made.node._active = False
        release()
        made.until(waiting.done, "its answer")
        assert waiting.result().error_code == 9908
        assert ask(made, question="What?").error_code == 9908
        made.node._active = True
        assert ask(made, question="What is there?").success


def test_memory_of_windows_and_dialogues_is_bounded():
    with bench(**SMALL_QUERY, **{"query.windows": 2, "query.dialogues": 2}) as made:
        for k in range(4):
            feed(made, start_s=START_S + 10 * k)
            made.node._refresh(20)
            answer = ask(made, question="What is there?", dialogue=f"d{k}")
            assert answer.success, answer.error_msg
        memory = made.node._queries._answerer._memory
        assert len(memory.recent) == 2
        assert memory.dialogue("d0") is None and memory.dialogue("d3") is not None
