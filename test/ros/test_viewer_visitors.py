# SPDX-License-Identifier: Apache-2.0
"""The viewer shows nothing to pages of other sites, to rebound names, nor to a crowd."""

import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("viser", reason="viser is not installed")


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
    ],
)
def test_who_is_turned_away(host, headers, visitors, words):
    from g2vlm_ros.ros.viewer.visitors import VisitorRules

    rules = VisitorRules(host, "secret-token", max_visitors=16)
    sentence = rules.refusal("/secret-token/", headers, visitors)
    assert words in sentence if words else sentence == ""
