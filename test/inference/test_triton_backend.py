# SPDX-License-Identifier: Apache-2.0
"""The stages behind a server: same results, one request a window, whatever the server forgets."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
from g2vlm_tests import triton_server as servers

pytest.importorskip("onnxruntime", reason="the server's backend here is onnx")

from g2vlm_ros.checkpoint.config import ModelConfig  # noqa: E402
from g2vlm_ros.checkpoint.digest import model_version  # noqa: E402
from g2vlm_ros.checkpoint.tokenizer import Tokenizer  # noqa: E402
from g2vlm_ros.export import triton_repository  # noqa: E402
from g2vlm_ros.inference import triton_backend as client  # noqa: E402
from g2vlm_ros.inference.onnx_backend import OnnxBackend  # noqa: E402
from g2vlm_ros.inference.stage_service import MAX_ROBOTS, StageService, top  # noqa: E402
from g2vlm_ros.inference.triton_transport import GrpcTransport, packed, unpacked  # noqa: E402
from g2vlm_ros.perception import Perception  # noqa: E402
from g2vlm_ros.records import NonFiniteError, UnfitError  # noqa: E402
from g2vlm_ros.settings import Settings  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "A"
SETTINGS = {
    "model.checkpoint": str(GOLDEN),
    "model.image_width_px": 56,
    "query.semantic_width_px": 56,
    "query.max_tokens": 6,
}
QUESTIONS = ("What is there?", "And behind it?")


@pytest.fixture(scope="module")
def local():
    return OnnxBackend.open(GOLDEN, device="cpu")


@pytest.fixture(scope="module")
def images():
    return list(np.random.default_rng(2).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def expected(local, images):
    """(reconstruction, answers) of the backend itself."""
    return outcome(perception(local), images)


def perception(stages):
    return Perception(stages, Tokenizer.open(GOLDEN), Settings.from_flat(SETTINGS))


def outcome(sees, images):
    scene = sees.scene(images)
    return sees.reconstruct(scene), [sees.ask(scene, question) for question in QUESTIONS]


def assert_same(actual, expected):
    (reconstruction, answers), (true, true_answers) = actual, expected
    for name in ("local_points_u", "window_from_camera", "rotation9"):
        np.testing.assert_array_equal(
            getattr(reconstruction.geometry, name), getattr(true.geometry, name)
        )
    np.testing.assert_array_equal(reconstruction.descriptors, true.descriptors)
    assert [answer.token_ids for answer in answers] == [a.token_ids for a in true_answers]


class Counting(client.InProcess):
    """Counts requests and steps; may be silent, or forget everything."""

    requests = 0
    silent = False

    def call(self, header, arrays):
        if self.silent:
            raise client.ServerError("no answer in time")
        self.requests += 1
        self.stages = [step["stage"] for step in header["steps"]]
        # Through the bytes of the wire.
        reply = super().call(*unpacked(*packed(header, arrays)))
        return unpacked(*packed(*reply))


def counting(local):
    return Counting(StageService(local, model_version(GOLDEN)), "test")


def remote(transport, **options):
    return client.TritonBackend(ModelConfig.read(GOLDEN), transport, **options)


def test_results_are_those_of_the_servers_backend(local, images, expected):
    assert_same(outcome(perception(remote(counting(local))), images), expected)


def test_a_window_is_one_request_and_images_go_up_once(local, images):
    transport = counting(local)
    sees = perception(remote(transport))
    sees.reconstruct(images)  # the prompt's text goes up with the first one
    before = transport.requests
    scene = sees.scene(images)
    result = sees.reconstruct(scene)
    assert transport.requests == before + 1
    assert transport.stages == ["encode_geometry", "geometry", "heads"]
    assert result.stage_times_s["heads"] > 0
    sees.ask(scene, "What?", max_tokens=1)
    assert "encode_geometry" not in transport.stages


def test_what_the_server_forgot_is_made_again(local, images, expected):
    transport = counting(local)
    sees = perception(remote(transport))
    scene = sees.scene(images)
    reconstruction = sees.reconstruct(scene)
    first = sees.ask(scene, QUESTIONS[0])
    transport.service = StageService(local, model_version(GOLDEN))  # started again
    second = sees.ask(scene, QUESTIONS[1])
    assert_same((reconstruction, [first, second]), expected)


def test_the_local_backend_takes_over_and_gives_back(local, images, expected, monkeypatch):
    monkeypatch.setattr(client, "RETRY_S", 0.0)
    transport = counting(local)
    stages = remote(transport, fallback=lambda: OnnxBackend.open(GOLDEN, device="cpu"))
    sees = perception(stages)
    scene = sees.scene(images)
    reconstruction = sees.reconstruct(scene)
    transport.silent = True
    first = sees.ask(scene, QUESTIONS[0])
    transport.silent, before = False, transport.requests
    second = sees.ask(scene, QUESTIONS[1])
    assert transport.requests > before
    assert_same((reconstruction, [first, second]), expected)


def test_while_the_local_backend_works_the_server_is_not_asked_for_each_step(local, images):
    transport = counting(local)
    stages = remote(transport, fallback=lambda: local)
    transport.silent = True
    sees = perception(stages)
    sees.reconstruct(images)
    transport.silent = False
    sees.reconstruct(images)
    assert transport.requests == 0


def test_without_a_fallback_a_silent_server_is_an_error_and_the_next_window_works(local, images):
    transport = counting(local)
    sees = perception(remote(transport))
    transport.silent = True
    with pytest.raises(client.ServerError, match="in time"):
        sees.reconstruct(images)
    transport.silent = False
    assert np.isfinite(sees.reconstruct(images).geometry.local_points_u).all()


def other_kind(reply, arrays):
    return reply, {name: array.astype(np.int16) for name, array in arrays.items()}


def other_tokens(reply, arrays):
    return reply, {n: a + 10**6 if n.endswith("ids") else a for n, a in arrays.items()}


def without_times(reply, arrays):
    return {name: value for name, value in reply.items() if name != "times_s"}, arrays


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda reply, arrays: (reply, {}), "gave"),
        (other_kind, "int16"),
        (other_tokens, "holds no ids of"),
        (without_times, "times_s"),
        (lambda reply, arrays: ({"error": 3}, {}), "no words"),
    ],
)
def test_a_reply_that_is_none_is_taken_over(local, images, expected, caplog, spoil, words):
    """It was a KeyError or TypeError in each window, and nothing took over."""

    class Spoilt(Counting):
        def call(self, header, arrays):
            return spoil(*super().call(header, arrays))

    service = StageService(local, model_version(GOLDEN))
    sees = perception(remote(Spoilt(service, "test"), fallback=lambda: local))
    assert_same(outcome(sees, images), expected)
    assert words in caplog.text and "the local backend takes over" in caplog.text


def test_a_request_that_is_none_is_an_error_of_its_caller_alone(local):
    service = StageService(local)
    for step in ("heads", {"stage": "decode", "count": float("inf")}, {"stage": "heads"}, 3):
        reply, _ = service.handle({"robot": "r", "steps": [step]}, {})
        assert reply["error"] and "times_s" not in reply
    for header in (b"[]", b'"text"', b"{}", b"[" * 10**5, b'{"arrays": {"a": [[], 1, 2]}}'):
        with pytest.raises(ValueError):
            unpacked(np.frombuffer(header, np.uint8), np.zeros(8, np.uint8))


def test_a_question_that_failed_leaves_the_conversation_as_it_was(local, images, expected):
    transport = counting(local)
    sees = perception(remote(transport))
    scene = sees.scene(images)
    reconstruction, first = sees.reconstruct(scene), sees.ask(scene, QUESTIONS[0])
    transport.silent = True
    with pytest.raises(client.ServerError):
        sees.ask(scene, QUESTIONS[1])
    transport.silent = False
    second = sees.ask(scene, QUESTIONS[1])
    assert_same((reconstruction, [first, second]), expected)


def test_the_server_keeps_only_what_is_needed(local, images):
    transport = counting(local)
    stages = remote(transport)
    sees = perception(stages)
    counts = []
    for _ in range(8):
        scene = sees.scene(images)
        sees.reconstruct(scene)
        sees.ask(scene, QUESTIONS[0])
        del scene
        gc.collect()
        counts.append(transport.service.count(stages.robot))
    assert max(counts[2:]) <= counts[1] + 2 <= 16


def test_robots_do_not_see_each_other_and_silent_ones_go(local, images, expected):
    transport = counting(local)
    backends = [remote(transport) for _ in range(2)]
    robots = [perception(backend) for backend in backends]
    scenes = [sees.scene(images if k == 0 else images[::-1]) for k, sees in enumerate(robots)]
    both = [sees.reconstruct(scene) for sees, scene in zip(robots, scenes, strict=True)]
    answers = [robots[0].ask(scenes[0], question) for question in QUESTIONS]
    assert_same((both[0], answers), expected)
    difference = both[0].geometry.local_points_u - both[1].geometry.local_points_u
    assert np.abs(difference).max() > 1e-3
    for _ in range(MAX_ROBOTS):
        remote(transport).check_server(model_version(GOLDEN))
    assert transport.service.count(backends[0].robot) == 0
    assert_same((robots[0].reconstruct(scenes[0]), answers), expected)


def test_other_weights_are_refused(local):
    with pytest.raises(UnfitError, match="same checkpoint"):
        remote(counting(local)).check_server("B@00000000")


def test_what_a_stage_raises_comes_back_as_itself(local, images, monkeypatch):
    stages = remote(counting(local))
    with pytest.raises(ValueError, match="multiple"):
        stages.encode_geometry(np.zeros((1, 50, 56, 3), np.uint8))

    def overflow(*_arguments):
        raise NonFiniteError("heads")

    monkeypatch.setattr(local, "heads", overflow)
    with pytest.raises(NonFiniteError, match="heads"):
        perception(stages).reconstruct(images)


def test_the_largest_logits_keep_the_first_of_equals():
    logits = np.zeros(500, np.float32)
    logits[[7, 400]] = 3.0
    kept = top(logits)
    assert kept["top_ids"][np.argmax(kept["top_logits"])] == 7 and len(kept["top_ids"]) == 32
    flat = top(np.ones(500, np.float32))
    assert flat["top_ids"][np.argmax(flat["top_logits"])] == 0


def test_messages_survive_the_wire_and_lies_about_them_are_refused():
    arrays = {"0.a": np.arange(6, dtype=np.int64).reshape(2, 3), "0.b": np.zeros(0, np.float32)}
    header, back = unpacked(*packed({"robot": "r"}, arrays))
    assert header == {"robot": "r"} and back["0.b"].shape == (0,)
    np.testing.assert_array_equal(back["0.a"], arrays["0.a"])
    text, payload = packed({}, arrays)
    for old, new in ((b"[2, 3]", b"[2, 9]"), (b'"<i8"', b'"|O"'), (b", 0]", b",-8]")):
        lie = bytes(text).replace(old, new)
        assert lie != bytes(text)
        with pytest.raises(ValueError):
            unpacked(np.frombuffer(lie, np.uint8), payload)


def test_the_repository_is_written_by_a_command(tmp_path, capsys):
    words = ["--checkpoint", str(GOLDEN), "--out", str(tmp_path), "--backend", "torch"]
    assert triton_repository.main(words) == 0
    config = (tmp_path / "g2vlm" / "config.pbtxt").read_text()
    assert 'backend: "python"' in config and f'string_value: "{GOLDEN}"' in config
    compile((tmp_path / "g2vlm" / "1" / "model.py").read_text(), "model.py", "exec")
    assert triton_repository.main(["--checkpoint", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "text_config.json" in capsys.readouterr().err
    with pytest.raises(ValueError, match="quotes"):
        triton_repository.parameter("checkpoint", 'a" }')


# The real server -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if reason := servers.why_not():
        pytest.skip(reason)
    with servers.triton_server(tmp_path_factory.mktemp("triton"), GOLDEN) as running:
        yield running


def through(server, **settings):
    values = {"model.backend": "triton", "model.triton_url": server.url, **settings}
    return Perception.open(Settings.from_flat({**SETTINGS, **values}))


def test_a_real_triton_gives_the_same(server, images, expected):
    sees = through(server)
    assert "onnx cpu" in sees.backend
    assert_same(outcome(sees, images), expected)


def test_two_robots_at_once_on_a_real_triton(server, images, expected):
    results = {}

    def drive(robot):
        results[robot] = outcome(through(server), images)

    threads = [threading.Thread(target=drive, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for robot in range(2):
        assert_same(results[robot], expected)


def test_a_real_triton_that_dies_is_taken_over_and_comes_back(
    server, images, expected, caplog, monkeypatch
):
    monkeypatch.setattr(client, "RETRY_S", 0.0)
    sees = through(server, **{"model.triton_fallback": "onnx", "model.triton_timeout_s": 2.0})
    scene = sees.scene(images)
    reconstruction = sees.reconstruct(scene)
    server.stop()
    first = sees.ask(scene, QUESTIONS[0])
    assert "takes over" in caplog.text
    server.start()
    second = sees.ask(scene, QUESTIONS[1])
    assert "answers again" in caplog.text
    assert_same((reconstruction, [first, second]), expected)


def test_a_real_triton_refuses_what_comes_too_late(server, images):
    transport = GrpcTransport(server.url, "g2vlm", timeout_s=1e-3)
    sees = perception(remote(transport))
    with pytest.raises(client.ServerError, match="Triton at"):
        sees.reconstruct(images)
