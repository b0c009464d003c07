#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A smoke test on the wheels of ROS 2 Kilted, in an environment of its own (.venv-kilted, 1.5 GB).

    python3 tools/kilted.py          # or: make kilted

Builds the interfaces, then runs the node as a real process with the demo checkpoint: windows,
kill -9, a start again, a question, SIGTERM; and the doctor. Exit code 1 where something else than
expected is seen.
"""

import os
import subprocess
import sys

import setup_env

VENV = setup_env.ROOT / ".venv-kilted"
CASES = ("kill -9, started again", "they ask", "SIGINT twice")
"""Of `make faults`, by parts of their description."""


def prepare():
    """The environment, its ROS built into it."""
    setup_env.VENV, setup_env.STAMPS = VENV, VENV / ".setup"
    setup_env.UNFINISHED = VENV / ".setup" / "pip_is_at_work"
    setup_env.BUILD = VENV / ".setup" / "build"
    setup_env.DISK_GB["kilted"] = setup_env.DISK_GB["ros"]
    setup_env.make_venv()
    others = setup_env.CONSTRAINTS.read_text().splitlines()
    setup_env.CONSTRAINTS = VENV / ".setup" / "constraints.txt"
    # Jazzy's versions are not Kilted's.
    kept = [line for line in others if not line.startswith("ros-")]
    setup_env.CONSTRAINTS.write_text("\n".join(kept) + "\n")
    setup_env.install(("base", "kilted"))
    setup_env.mend_wheels()
    setup_env.build_kernels()
    setup_env.stamp("ros", "kilted")
    setup_env.build_interfaces()


def main():
    try:
        with setup_env.one_at_a_time():
            prepare()
    except setup_env.SetupError as error:
        sys.exit(f"kilted: {error}")
    python, env = str(VENV / "bin" / "python"), setup_env.environment()
    env["ROS_DISTRO"] = "kilted"  # as ROS from apt says it; Fast DDS 3 has a profile of its own
    env["PYTHONPATH"] = os.pathsep.join([str(setup_env.ROOT), str(setup_env.ROOT / "test")])
    commands = [[python, "-m", "g2vlm_ros.ros.doctor.doctor", "--offline"]]
    commands += [[python, "-m", "g2vlm_tests.faults", "--only", case] for case in CASES]
    failed = [c for c in commands if subprocess.call(c, cwd=str(setup_env.ROOT), env=env)]
    print(f"kilted: {len(commands) - len(failed)} of {len(commands)} commands ended well")
    complaint = profile_complaint(python, env)
    if complaint:
        print(f"kilted: Fast DDS 3 refuses config/fastdds3.xml: {complaint}")
    return int(bool(failed or complaint))


def profile_complaint(python, env):
    """What Fast DDS says of our settings for it; empty where it takes them."""
    profile = str(setup_env.ROOT / "config" / "fastdds3.xml")
    command = [python, "-c", "import rclpy; rclpy.init(); rclpy.create_node('profiled')"]
    child = subprocess.run(
        command, env={**env, "FASTDDS_DEFAULT_PROFILES_FILE": profile}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines = [line for line in child.stdout.splitlines() if "XMLPARSER" in line]
    return (lines or ([] if child.returncode == 0 else child.stdout.splitlines()[-1:]) or [""])[0]


if __name__ == "__main__":
    sys.exit(main())
