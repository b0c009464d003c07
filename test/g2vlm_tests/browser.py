# SPDX-License-Identifier: Apache-2.0
"""Headless Chromium for tests, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import cv2
import numpy as np

NAME = "chromium"
SOFTWARE_GL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
START_S = 60.0


class Browser:
    """A page of a running Chromium."""

    def __init__(self, connection):
        self._connection = connection
        self._numbers = itertools.count(1)

    def call(self, method, **parameters):
        """The result of a DevTools command."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters}
        self._connection.send(json.dumps(command))
        while (answer := json.loads(self._connection.recv(timeout=START_S))).get("id") != number:
            pass
        return answer["result"]

    def text(self):
        """The words on the page."""
        script = "document.body.innerText"
        return self.call("Runtime.evaluate", expression=script)["result"]["value"]

    def screenshot(self):
        """uint8 (H, W, 3) RGB."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


@contextmanager
def browse(address, profile, width_px=900, height_px=600):
    """A Browser that shows a page; `profile` is an empty folder for what Chromium writes."""
    from websockets.sync.client import connect

    command = [
        shutil.which(NAME),
        "--headless=new",
        "--no-sandbox",
        "--remote-debugging-port=0",
        "--no-first-run",
        "--hide-scrollbars",
        "--disable-dev-shm-usage",
        *SOFTWARE_GL,
        f"--user-data-dir={profile}",
        f"--window-size={width_px},{height_px}",
        address,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(_page_of(profile, process), max_size=None) as connection:
            yield Browser(connection)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _page_of(profile, process):
    """The DevTools address of the only page."""
    file, deadline = profile / "DevToolsActivePort", time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and (lines := file.read_text().splitlines()):
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json", timeout=10) as pages:
                for page in json.load(pages):
                    if page["type"] == "page":
                        return page["webSocketDebuggerUrl"]
        time.sleep(0.1)
    raise RuntimeError(f"{NAME} did not start within {START_S} s (exit code {process.poll()})")
