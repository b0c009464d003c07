# SPDX-License-Identifier: Apache-2.0
"""The viewer shows nothing to pages of other sites, to rebound names, nor to a crowd."""

import urllib.error
import urllib.request

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("viser", reason="viser is not installed")


@pytest.fixture(scope="module")
def page():
    from g2vlm_ros.ros.viewer.viewer_node import Page, ViewerSettings

    made = Page(ViewerSettings(port=0))
    yield made
    made.close()


def status(page, **headers):
    request = urllib.request.Request(page.address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_page_itself_is_served(page):
    assert status(page) == 200


def test_a_name_that_leads_here_from_elsewhere_is_refused(page):
    assert status(page, Host="evil.example") == 403


def test_a_websocket_of_another_site_is_refused_and_our_own_is_not(page):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    address = page.address.replace("http", "ws", 1)
    with pytest.raises(InvalidStatus, match="403"):
        connect(address, origin="http://evil.example").close()
    connect(address, origin=page.address).close()


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
    ],
)
def test_who_is_turned_away(host, headers, visitors, words):
    from g2vlm_ros.ros.viewer.visitors import refusal

    sentence = refusal(host, headers, visitors)
    assert words in sentence if words else sentence == ""
