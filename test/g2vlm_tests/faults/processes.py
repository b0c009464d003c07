# SPDX-License-Identifier: Apache-2.0
"""Faults of the process: signals, memory, descriptors, disk, a network that fails, bad starts."""

from __future__ import annotations

import itertools
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from g2vlm_tests.faults.requests import ask, save
from g2vlm_tests.faults.robot import ANSWER_S, CHECKPOINT, TRANSITIONS, Case, Robot, Seen, robot
from rosgraph_msgs.msg import Clock

LIFECYCLE_S = 120.0
END_S = 15.0
CUTS = (
    ("weights cut off in the middle", "model.safetensors", 5_000_000),
    ("an ONNX file cut off", "heads.onnx", 100),
    ("text_config.json is empty", "text_config.json", 0),
    ("vit_config.json is cut off", "vit_config.json", 40),
    ("the tokenizer is cut off", "tokenizer.json", 1000),
)
"""(what, file, bytes that stay)."""
SPARE_MEMORY = 48 << 20
"""Address space that a node gets beside what it has before it is configured: not enough for
what runs the network, on any number of cores."""


def killed(it: Robot) -> Seen:
    it.process.kill()
    it.process.wait()
    it.start()
    return Seen("windows again after a start", it.bring_up() and it.works())


def stopped(it: Robot, seconds: float) -> Seen:
    it.process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    it.process.send_signal(signal.SIGCONT)
    return it.works_again("went on")


def random_lifecycle(it: Robot) -> Seen:
    choice, count, deadline = random.Random(0), 0, time.monotonic() + LIFECYCLE_S
    while time.monotonic() < deadline and it.process.poll() is None:
        it.change(choice.choice(list(TRANSITIONS)))
        count += 1
    for name in ("deactivate", "cleanup"):
        it.change(name)
    return Seen(f"{count} transitions, then windows", it.bring_up() and it.works())


def checkpoint_moved(it: Robot) -> Seen:
    """it.checkpoint is a copy."""
    away = it.checkpoint.with_name("away")
    it.checkpoint.rename(away)
    answer, going = ask(it), it.works()
    away.rename(it.checkpoint)
    return Seen(f"answered: {bool(answer and answer.success)}", going and bool(answer))


def full_disk(it: Robot) -> Seen:
    """A file system of 256 kB where it may be mounted, else the limit of a file's size."""
    folder = it.folder / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.call(command, stderr=subprocess.DEVNULL) == 0
    try:
        if not mounted:
            return file_limit(it)
        path = folder / "map.npz"
        path.write_bytes(b"the map of yesterday")
        (folder / "filler").write_bytes(bytes(240 << 10))
        response = save(it, path)
        kept = path.read_bytes() == b"the map of yesterday"
        left = sorted(each.name for each in folder.iterdir()) == ["filler", "map.npz"]
        sentence = response.error_msg if response else "no response"
        fine = bool(response) and not response.success and kept and left
        return Seen(sentence[:100], fine and it.works())
    finally:
        if mounted:
            subprocess.call(["umount", str(folder)])


def file_limit(it: Robot) -> Seen:
    path = it.folder / "limited.npz"
    path.write_bytes(b"the map of yesterday")
    limits = resource.prlimit(it.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(it.process.pid, resource.RLIMIT_FSIZE, (4096, limits[1]))
    response = save(it, path)
    resource.prlimit(it.process.pid, resource.RLIMIT_FSIZE, limits)
    kept = path.read_bytes() == b"the map of yesterday"
    sentence = response.error_msg if response else "no response"
    fine = bool(response) and not response.success and kept
    return Seen(sentence[:100], fine and it.works())


def no_descriptors(it: Robot) -> Seen:
    pid = it.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free_descriptor(pid), limits[1]))
    response = save(it, it.folder / "none.npz")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    sentence = response.error_msg if response else "no response"
    return Seen(sentence[:100], bool(response) and not response.success and it.works())


def no_memory(it: Robot) -> Seen:
    pid = it.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (address_space(it), limits[1]))
    says_so = it.until(lambda: it.status and "alloc" in it.status.message)
    sentence = it.status.message if it.status else ""
    resource.prlimit(pid, resource.RLIMIT_AS, limits)
    return Seen(f"~/status: “{sentence}”"[:100], says_so and it.works())


def lowest_free_descriptor(pid: int) -> int:
    """The number that a process's next file gets, whatever its threads open for a moment."""
    listings = []
    for _ in range(10):
        listings.append({int(name) for name in os.listdir(f"/proc/{pid}/fd")})
        time.sleep(0.02)
    lasting = set.intersection(*listings)
    return next(number for number in itertools.count() if number not in lasting)


SAID = {"runtime": "RuntimeError", "memory": "MemoryError", "exit": "SystemExit"}
"""By fault, what ~/status is to name."""


def failing(it: Robot, fault: str) -> Seen:
    """it runs `saboteur`."""
    it.fail(fault)
    says_so = it.until(lambda: it.status and SAID[fault] in it.status.message)
    said = it.status.message if it.status else ""
    it.fail("")
    return Seen(f"~/status: “{said}”"[:100], says_so and it.works())


def failing_language(it: Robot) -> Seen:
    it.fail("language")
    answer = ask(it)
    it.fail("")
    again = ask(it)
    words = f"{answer.error_code}: {answer.error_msg}" if answer else "no response"
    fine = bool(answer and not answer.success and again and again.success)
    return Seen(words[:100], fine and it.works())


def hanging(it: Robot) -> Seen:
    it.fail("hang")
    says_so = it.until(lambda: "busy with one job" in it.diagnostics)
    answers = it.answers()
    it.fail("")
    what = "/diagnostics names it, the node answers, then windows"
    return Seen(what, says_so and answers and it.works())


def hanging_at_the_end(it: Robot) -> Seen:
    it.fail("hang")
    hung = it.hangs()
    start = time.monotonic()
    it.process.terminate()
    code = it.ends(END_S)
    it.fail("")
    what = f"exit code {code} after {time.monotonic() - start:.1f} s"
    return Seen(what, hung and code is not None)


def lost_device(it: Robot) -> Seen:
    it.fail("lost")
    code = it.ends()
    it.fail("")
    return Seen(f"exit code {code}", code == 75)


def ended_by(it: Robot, signals: tuple[int, ...]) -> Seen:
    start = time.monotonic()
    for number in signals:
        it.process.send_signal(number)
        time.sleep(0.1)
    code = it.ends(END_S)
    return Seen(f"exit code {code} after {time.monotonic() - start:.1f} s", code == 0)


RUNNING = (
    Case("SIGSTOP for 3 s, SIGCONT", "goes on", partial(stopped, seconds=3)),
    Case("SIGSTOP for 12 s, SIGCONT", "goes on", partial(stopped, seconds=12)),
    Case("~/save_map onto a full disk", "an error, the old file is kept; goes on", full_disk),
    Case("~/save_map over the limit of a file's size", "as on a full disk", file_limit),
    Case("no descriptors are left", "an error; goes on", no_descriptors),
    Case("no memory is left for a while", "said; goes on", no_memory),
    Case("the checkpoint's folder is moved away and back", "goes on, answers", checkpoint_moved),
    Case(
        f"random lifecycle transitions for {LIFECYCLE_S:.0f} s",
        "windows at the end",
        random_lifecycle,
    ),
    Case("kill -9, started again", "windows come again", killed),
    Case("SIGINT twice", "ends with 0", partial(ended_by, signals=(signal.SIGINT, signal.SIGINT))),
)
SABOTEUR = (
    Case("the network raises RuntimeError", "said; goes on", partial(failing, fault="runtime")),
    Case("the network raises MemoryError", "said; goes on", partial(failing, fault="memory")),
    Case("the network raises SystemExit", "said; goes on", partial(failing, fault="exit")),
    Case("the language raises RuntimeError", "an error; the next is answered", failing_language),
    Case("the network hangs until it is let go", "/diagnostics says so; goes on", hanging),
    Case("the network hangs, SIGTERM", f"ends within {END_S:.0f} s", hanging_at_the_end),
)
"""On a process whose network fails on demand; the last one ends it."""


def with_saboteur(run: Callable[[Robot], Seen]) -> Seen:
    with robot(module="g2vlm_tests.faults.saboteur") as it:
        if not (it.bring_up() and it.works()):
            return Seen("did not come up", False)
        return run(it)


# Starts that cannot succeed: each a process of its own ----------------------------------------


def configured(prepare: Callable[[Robot], None] | None = None, **arguments: object) -> Seen:
    """That configure fails with a sentence and the process stays. prepare: called before."""
    with robot(**arguments) as it:
        if prepare:
            prepare(it)
        refused = not it.change("configure")
        lives = it.process.poll() is None
        lines = [line for line in it.said().splitlines() if "on_configure" in line]
        sentence = lines[-1].split("on_configure: ")[-1] if lines else "no sentence"
        return Seen(f"“{sentence[:90]}”", refused and lives and bool(lines))


def damaged(spoil: Callable[[Path], object]) -> Seen:
    """A checkpoint folder that cannot be loaded."""
    with tempfile.TemporaryDirectory() as base:
        folder = shutil.copytree(CHECKPOINT, Path(base) / "checkpoint")
        spoil(folder)
        return configured(checkpoint=folder)


def cut(file: str, size: int, folder: Path) -> None:
    os.truncate(folder / file, size)


def little_memory() -> Seen:
    return configured(prepare=limit_memory)


def limit_memory(it: Robot) -> None:
    it.answers()
    resource.prlimit(it.process.pid, resource.RLIMIT_AS, (address_space(it) + SPARE_MEMORY,) * 2)


def address_space(it: Robot) -> int:
    """Bytes that a process has now."""
    pages = int(Path(f"/proc/{it.process.pid}/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def refused_start(*words: str) -> Seen:
    """That a command ends with code 2 and a sentence, without a traceback."""
    ended = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, timeout=ANSWER_S
    )
    lines = [line for line in (ended.stderr + ended.stdout).splitlines() if line.strip()]
    sentence = lines[-1] if lines else "nothing"
    fine = ended.returncode == 2 and "Traceback" not in ended.stderr
    return Seen(f"code {ended.returncode}: “{sentence.split(']: ')[-1][:80]}”", fine)


def taken_port() -> Seen:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        return refused_start(
            "g2vlm_ros.ros.viewer.viewer_node", "--ros-args", "-p", f"port:={port}"
        )


def cut_recording() -> Seen:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.mcap"
        path.write_bytes(b"\x89MCAP0\r\n" + bytes(100))
        return refused_start(
            "g2vlm_ros.ros.replay.replay_node", "--ros-args", "-p", f"path:={path}"
        )


def jumping_clock() -> Seen:
    """/clock runs, jumps back 500 s, stands still for 2 s, runs on."""
    with robot(parameters={"use_sim_time": "true"}) as it:
        real_s = time.time()
        if not it.bring_up():
            return Seen("did not come up", False)
        windows = []
        for start_s, pause_s in ((real_s, 0), (real_s - 500, 2), (real_s - 490, 0)):
            run_clock(it, start_s, 1 + max(windows, default=0))
            time.sleep(pause_s)
            windows.append(it.status.window_id if it.status else 0)
        rising = 0 < windows[0] < windows[1] < windows[2]
        return Seen(f"windows after each part: {windows}", rising and it.process.poll() is None)


def run_clock(it: Robot, start_s: float, window_id: int) -> None:
    """/clock from a time on, for 5 s and until a window; ANSWER_S at most."""
    begin_s = time.monotonic()
    while (seconds := time.monotonic() - begin_s) < ANSWER_S:
        if seconds > 5 and it.status and it.status.window_id >= window_id:
            return
        now_s = start_s + seconds
        message = Clock()
        message.clock.sec, message.clock.nanosec = int(now_s), int(now_s % 1 * 1e9)
        it.offset_s = now_s - time.time()
        it.clock.publish(message)
        time.sleep(0.05)


STARTS = (
    Case("the device is lost", "exit code 75", partial(with_saboteur, lost_device)),
    Case("sim time jumps 500 s back and stands still for 2 s", "goes on", jumping_clock),
    Case(
        "SIGTERM",
        "ends with 0 within 15 s",
        partial(with_saboteur, partial(ended_by, signals=(signal.SIGTERM,))),
    ),
    Case("no memory: 48 MiB more than before", "configure fails with a sentence", little_memory),
    Case(
        "checkpoint folder is missing",
        "configure fails with a sentence",
        partial(damaged, shutil.rmtree),
    ),
    *(
        Case(done, "configure fails with a sentence", partial(damaged, partial(cut, file, size)))
        for done, file, size in CUTS
    ),
    Case("the viewer's port is taken", "code 2 and a sentence", taken_port),
    Case("replay of a cut recording", "code 2 and a sentence", cut_recording),
)
