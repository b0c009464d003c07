# SPDX-License-Identifier: Apache-2.0
"""Checks of this machine: libraries, checkpoint, ONNX files, GPU, TensorRT, engines, middleware.

Nothing is loaded that could crash the doctor: what has a compiled part is tried in a child
process, and of TensorRT only the version is read.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from g2vlm_ros.checkpoint.config import ModelConfig
from g2vlm_ros.checkpoint.folder_permissions import writable_by_others
from g2vlm_ros.checkpoint.onnx_manifest import Manifest, ManifestError, check_graph, digest
from g2vlm_ros.inference.tensorrt.engine_metadata import cached_engines, default_cache
from g2vlm_ros.ros.doctor.findings import Finding, error, ok, warning
from g2vlm_ros.ros.middleware import fastdds_profile

BACKENDS = {"torch": "torch", "onnx": "onnxruntime", "tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
"""Backend, or kind of it, and the module that it needs."""
LIBRARIES = ("numpy", "cv2", "PIL", "yaml", "safetensors", "tokenizers", "transforms3d")
OLDEST_TENSORRT = (10, 3)
SUSPECT_TENSORRT = {
    (10, 3): "16-bit attention of vision transformers gave wrong depth on it (JetPack 6.2)",
}
"""Versions of which wrong results without an error were reported, and of what."""
CHILD_S = 60.0
"""An import in a child process that takes longer hangs."""
SHM = Path("/dev/shm")
MIN_SHM_MIB = 160
"""config/fastdds.xml asks for a segment of 128 MiB per process that publishes."""


def check_libraries() -> Iterator[Finding]:
    """Python libraries that every backend needs, and whether any backend can run."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        yield error(
            "libraries",
            f"{sys.executable} cannot find {', '.join(missing)}",
            "install them for this Python (docs/robot.md), or activate the environment that "
            "has them before `ros2 run`",
        )
    else:
        yield ok("libraries", "all that every backend needs is here")
    backends = [name for name, module in BACKENDS.items() if importlib.util.find_spec(module)]
    if backends:
        yield ok("backends", f"installed: {', '.join(backends)}")
    else:
        yield error(
            "backends",
            "neither onnxruntime nor torch nor TensorRT is installed",
            "pip install onnxruntime",
        )


def check_cv_bridge() -> Iterator[Finding]:
    """Whether cv_bridge's compiled part loads beside this numpy; tried in a child process."""
    if importlib.util.find_spec("cv_bridge") is None:
        yield ok("cv_bridge", "not installed; the node decodes images itself")
        return
    code = (
        "import numpy as np\n"
        "from cv_bridge import CvBridge\n"
        "message = CvBridge().cv2_to_imgmsg(np.zeros((2, 2, 3), np.uint8), 'bgr8')\n"
        "CvBridge().imgmsg_to_cv2(message, 'rgb8')\n"
    )
    outcome = tried_in_a_child(code)
    if not outcome:
        yield ok("cv_bridge", "loads and converts")
        return
    yield warning(
        "cv_bridge",
        f"cannot convert an image here: {outcome}",
        'it was built for another numpy: pip install "numpy<2" for ROS packages of Ubuntu '
        "22.04; the node decodes all common encodings without it",
    )


def tried_in_a_child(code: str) -> str:
    """Run code in another Python; "" where it ends well, else why not, in a line."""
    try:
        child = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CHILD_S,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {CHILD_S:.0f} s"
    if child.returncode == 0:
        return ""
    last = (child.stderr.strip().splitlines() or ["no output"])[-1]
    return f"signal {-child.returncode}" if child.returncode < 0 else last


def check_checkpoint(folder: str) -> Iterator[Finding]:
    """Sizes, weights and ONNX files of a checkpoint folder, without loading the weights."""
    if not folder:
        yield error(
            "checkpoint",
            "model.checkpoint is empty",
            "launch with checkpoint:=FOLDER (docs/robot.md says where the weights come from)",
        )
        return
    path = Path(folder).expanduser()
    if not path.is_dir():
        yield error("checkpoint", f"{path} is not a folder", "correct checkpoint:=FOLDER")
        return
    try:
        ModelConfig.read(path)
        weights = digest(path)
    except (ValueError, OSError) as problem:
        yield error(
            "checkpoint",
            f"{path}: {problem}",
            f"python -m g2vlm_ros.model.weights --check {path} says more; download it again",
        )
        return
    yield ok("checkpoint", f"{path} has sizes and weights ({weights[:12]})")
    yield from check_permissions("checkpoint_permissions", path)
    yield from check_onnx_files(path)


def check_onnx_files(folder: Path) -> Iterator[Finding]:
    """Whether the ONNX files beside the weights are whole and of these weights."""
    try:
        manifest = Manifest.read(folder)
        manifest.check_weights(folder)
        for graph in manifest.graphs:
            check_graph(folder, graph)
    except ManifestError as problem:
        lacks = not (folder / "onnx.manifest").exists()
        report = warning if lacks else error
        yield report(
            "onnx_files",
            str(problem),
            f"python -m g2vlm_ros.export.export_onnx --checkpoint {folder} (needs torch); "
            "model.backend: torch runs without them",
        )
    else:
        yield ok("onnx_files", f"{len(manifest.graphs)} graphs of opset {manifest.opset} fit")


def check_permissions(check: str, folder: Path) -> Iterator[Finding]:
    """A folder of weights or engines that others may write to is a way into the node."""
    path = writable_by_others(folder)
    if path is None:
        yield ok(check, f"{folder} is not writable by others")
        return
    yield warning(check, f"anybody on this machine may write to {path}", f"chmod -R o-w {path}")


def check_gpu() -> Iterator[Finding]:
    """The GPU and its driver, by nvidia-smi; on a Jetson by its release file."""
    tegra = Path("/etc/nv_tegra_release")
    if tegra.exists():
        yield ok("gpu", "Jetson: " + tegra.read_text(errors="replace").splitlines()[0])
        return
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield ok("gpu", "none (no nvidia-smi); ONNX Runtime or torch run on the CPU")
        return
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        child = subprocess.run(query, capture_output=True, text=True, timeout=CHILD_S)
    except (subprocess.TimeoutExpired, OSError) as problem:
        yield error("gpu", f"nvidia-smi does not answer: {problem}", "restart the machine")
        return
    if child.returncode:
        line = (child.stdout + child.stderr).strip().splitlines()
        yield error(
            "gpu",
            f"nvidia-smi fails: {line[0] if line else child.returncode}",
            "driver and kernel module differ: restart the machine, or install the driver again",
        )
    else:
        yield ok("gpu", child.stdout.strip().replace("\n", "; "))


def check_tensorrt() -> Iterator[Finding]:
    """The installed TensorRT against what the engines need and against known faults."""
    try:
        text = version("tensorrt")
    except PackageNotFoundError:
        yield ok("tensorrt", "not installed")
        return
    yield judged_tensorrt(text)


def judged_tensorrt(text: str) -> Finding:
    """What is known of a version such as "10.3.0"."""
    numbers = re.match(r"(\d+)\.(\d+)", text)
    release = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if release < OLDEST_TENSORRT:
        return error(
            "tensorrt",
            f"TensorRT {text} is older than 10.3",
            "JetPack 6.2 or later brings a newer one",
        )
    if release in SUSPECT_TENSORRT:
        return warning(
            "tensorrt",
            f"TensorRT {text}: {SUSPECT_TENSORRT[release]}",
            "build with the proof that build_engines makes, and compare one window with "
            "model.backend: onnx; JetPack 7.2 brings TensorRT 10.16",
        )
    return ok("tensorrt", f"TensorRT {text}")


def check_engines(checkpoint: str, engines: str = "") -> Iterator[Finding]:
    """Built engines: whether any are there, and of these weights."""
    cache = Path(engines).expanduser() if engines else default_cache()
    records = cached_engines(cache) if cache.is_dir() else []
    if not records:
        yield ok("engines", f"none in {cache}; only the TensorRT backend needs them")
        return
    yield from check_permissions("engine_permissions", cache)
    try:
        weights = digest(checkpoint) if checkpoint else ""
    except (ManifestError, OSError):
        return
    fitting = [record for _, record in records if record.weights == weights]
    missing = [record.file for folder, record in records if not (folder / record.file).exists()]
    build = "python -m g2vlm_ros.export.build_engines (engines/TENSORRT.md)"
    if missing:
        yield error("engines", f"records without their file: {', '.join(missing)}", build)
    elif weights and not fitting:
        yield warning(
            "engines", f"none of the {len(records)} in {cache} is of this checkpoint", build
        )
    else:
        yield ok("engines", f"{len(fitting)} of {len(records)} in {cache} are of this checkpoint")


def check_middleware(environment: dict[str, str] | None = None) -> Iterator[Finding]:
    """Middleware and shared memory against clouds and images of megabytes."""
    environment = dict(os.environ if environment is None else environment)
    name = environment.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    profile = environment.get("FASTDDS_DEFAULT_PROFILES_FILE") or environment.get(
        "FASTRTPS_DEFAULT_PROFILES_FILE"
    )
    if name == "rmw_cyclonedds_cpp":
        profile = environment.get("CYCLONEDDS_URI")
    if name not in ("rmw_fastrtps_cpp", "rmw_cyclonedds_cpp"):
        yield ok("middleware", f"{name}; its settings for large messages are not known here")
    elif not profile:
        variable = (
            "CYCLONEDDS_URI=file://SHARE/config/cyclonedds.xml"
            if name == "rmw_cyclonedds_cpp"
            else f"FASTDDS_DEFAULT_PROFILES_FILE=SHARE/config/{fastdds_profile(environment)}"
        )
        yield warning(
            "middleware",
            f"{name} with its defaults: images and clouds above 512 kB get lost or slow",
            f"start camera driver, node and RViz with {variable} "
            "(SHARE: `ros2 pkg prefix --share g2vlm_ros`); the launch file sets it for its nodes",
        )
    elif fault := profile_fault(profile) or (
        name == "rmw_fastrtps_cpp" and version_fault(profile, environment)
    ):
        yield error("middleware", f"its profile {profile} {fault}", "correct the path or the file")
    else:
        yield ok("middleware", f"{name} with {profile}")
    yield from check_shared_memory()


def profile_fault(profile: str) -> str:
    """Why settings of a middleware cannot be read; empty where they are well-formed.

    profile: a file, with or without file://; of Cyclone DDS also several by commas, or XML itself.
    """
    try:
        if profile.lstrip().startswith("<"):
            ElementTree.fromstring(profile)
            return ""
        for path in profile.split(","):
            ElementTree.parse(path.strip().removeprefix("file://"))
    except OSError as problem:
        return f"cannot be read ({problem.strerror})"
    except (ElementTree.ParseError, ValueError) as problem:
        return f"is no XML ({problem}), so its settings do not hold"
    return ""


def version_fault(profile: str, environment: dict[str, str]) -> str:
    """Why the file of the other Fast DDS is refused as a whole; empty where it is not that."""
    tree = ElementTree.parse(profile.removeprefix("file://"))
    names = {element.tag.rpartition("}")[2] for element in tree.iter()}
    fitting = fastdds_profile(environment)
    foreign = "heartbeatPeriod" if fitting == "fastdds3.xml" else "heartbeat_period"
    if foreign not in names:
        return ""
    return f"has <{foreign}>, for which this Fast DDS refuses all of it; take config/{fitting}"


def check_shared_memory() -> Iterator[Finding]:
    """Room in /dev/shm for the segments that Fast DDS sends through."""
    if not SHM.is_dir():
        return
    free_mib = shutil.disk_usage(SHM).free >> 20
    if free_mib < MIN_SHM_MIB:
        yield warning(
            "shared_memory",
            f"{SHM} has {free_mib} MiB free; a publisher of clouds wants {MIN_SHM_MIB}",
            "in a container: docker run --shm-size=1g (or --ipc=host); else remove stale files: "
            "fastdds shm clean",
        )
    else:
        yield ok("shared_memory", f"{free_mib} MiB free in {SHM}")


def check_installation(checkpoint: str | None, engines: str = "") -> Iterator[Finding]:
    """All checks of this machine; without a checkpoint (None) its own are left out."""
    yield from check_libraries()
    yield from check_cv_bridge()
    yield from check_gpu()
    yield from check_tensorrt()
    yield from check_middleware()
    if checkpoint is not None:
        yield from check_checkpoint(checkpoint)
        yield from check_engines(checkpoint, engines)
