# SPDX-License-Identifier: Apache-2.0
"""The viewer shows nothing to pages of other sites, to rebound names, nor to a crowd."""

import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest

pytest.importorskip("rclpy")
viser = pytest.importorskip("viser", reason="viser is not installed")

PROTOCOLS = [f"viser-v{viser.__version__}"]


@pytest.fixture(scope="module")
def page():
    from g2vlm_ros.ros.viewer.viewer_node import Page, ViewerSettings

    made = Page(ViewerSettings(port=0))
    yield made
    made.close()


def status(address, **headers):
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def without_token(page):
    url = urlsplit(page.address)
    return f"{url.scheme}://{url.netloc}"


def test_the_page_is_served_to_who_has_the_token_only(page):
    assert status(page.address) == 200
    for wrong in ("/", "/index.html", "/wrong-token/", "/" + page.address.split("/")[3][:-1]):
        assert status(without_token(page) + wrong) == 403


def test_a_name_that_leads_here_from_elsewhere_is_refused(page):
    assert status(page.address, Host="evil.example") == 403


def test_a_websocket_needs_the_token_and_our_own_page(page):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    # As viser's page makes it of its own address: no query, no slash at the end.
    address = page.address.replace("http", "ws", 1).rstrip("/")
    for url, origin in (
        (address, "http://evil.example"),
        (without_token(page).replace("http", "ws", 1), without_token(page)),
    ):
        with pytest.raises(InvalidStatus, match="403"):
            connect(url, origin=origin).close()
    connect(address, origin=without_token(page)).close()


def test_a_crowd_is_turned_away_whatever_it_says():
    """Visitors that said nothing were not counted, and were sent all that is shown."""
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    from g2vlm_ros.ros.viewer.viewer_node import Page, ViewerSettings

    small = Page(ViewerSettings(port=0, max_visitors=2))
    address, origin = small.address.replace("http", "ws", 1), without_token(small)
    try:
        silent = [connect(address, origin=origin, subprotocols=PROTOCOLS) for _ in range(2)]
        assert all(each.recv(timeout=10) for each in silent)
        with pytest.raises(InvalidStatus, match="403"):
            connect(address, origin=origin, subprotocols=PROTOCOLS).close()
        silent.pop().close()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                silent.append(connect(address, origin=origin, subprotocols=PROTOCOLS))
                break
            except InvalidStatus:
                time.sleep(0.1)
        assert len(silent) == 2 and silent[-1].recv(timeout=10)
        for each in silent:
            each.close()
    finally:
        small.close()


def test_each_start_has_another_token_and_a_given_one_is_checked():
    from g2vlm_ros.parameter_schema import SettingError
    from g2vlm_ros.ros.viewer.viewer_node import ViewerSettings
    from g2vlm_ros.ros.viewer.visitors import make_token, token_fault

    assert make_token() != make_token() and not token_fault(make_token())
    assert ViewerSettings(token="robot-1_key").token == "robot-1_key"
    for wrong in ("short", "with/slash", "with space", "ümlaute-also"):
        with pytest.raises(SettingError, match="token"):
            ViewerSettings(token=wrong)


@pytest.mark.parametrize(
    ("host", "headers", "visitors", "words"),
    [
        ("127.0.0.1", {"Host": "localhost:8080"}, 0, ""),
        ("127.0.0.1", {"Host": "127.0.0.1:8080"}, 0, ""),
        ("127.0.0.1", {"Host": "evil.example:8080"}, 0, "evil.example"),
        ("127.0.0.1", {}, 0, "not served"),
        ("0.0.0.0", {"Host": "192.168.1.5:8080"}, 0, ""),
        ("0.0.0.0", {"Host": "robot.local:8080"}, 0, ""),
        ("0.0.0.0", {"Host": "evil.example:8080"}, 0, "evil.example"),
        ("0.0.0.0", {"Host": "10.0.0.1:80", "Origin": "http://10.0.0.2:80"}, 0, "10.0.0.2"),
        ("127.0.0.1", {"Host": "localhost:1", "Upgrade": "websocket"}, 16, "16 browsers"),
        ("127.0.0.1", {"Host": "localhost:1", "Upgrade": "websocket"}, 15, ""),
        # What is no URL, and fields that come twice: they were tracebacks in the viewer's log.
        ("127.0.0.1", {"Host": "[::1"}, 0, "not served"),
        ("127.0.0.1", {"Host": "localhost", "Origin": "http://["}, 0, "http://["),
        ("127.0.0.1", [("Host", "localhost"), ("Host", "evil.example")], 0, "not served"),
        (
            "127.0.0.1",
            [("Host", "localhost"), ("Origin", "http://localhost"), ("Origin", "http://evil")],
            0,
            "evil",
        ),
    ],
)
def test_who_is_turned_away(host, headers, visitors, words):
    from websockets.datastructures import Headers

    from g2vlm_ros.ros.viewer.visitors import VisitorRules

    rules = VisitorRules(host, "secret-token", max_visitors=16)
    sentence = rules.refusal("/secret-token/", Headers(headers), visitors)
    assert words in sentence if words else sentence == ""
