# SPDX-License-Identifier: Apache-2.0
"""A real Triton server, out of the wheel nvidia-pytriton, on a CPU.

The wheel's own proxy model is not used: `tritonserver` itself runs the repository that we write.
Its Python stub must be that of this Python and lie beside the backend; its libraries and Python's
are put on LD_LIBRARY_PATH.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from g2vlm_ros.export import triton_repository

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / ".venv" / ".setup" / "wheels"
START_S = 60.0
PACKAGES = ("tritonclient", "grpcio", "python-rapidjson")
SERVER = "nvidia-pytriton"


def wheel(package: str) -> Path | None:
    """Where tools/setup_env.py has put a wheel."""
    return next(iter(sorted(WHEELS.glob(f"{package}==*"))), None)


def why_not() -> str:
    """Why no server can be started here; empty where one can."""
    missing = [name for name in (SERVER, *PACKAGES) if wheel(name) is None]
    if missing:
        return f"without {', '.join(missing)}: x86-64 wheels that `make test` installs"
    if not stub().exists():
        return f"{SERVER} has no stub for Python {sys.version_info.major}.{sys.version_info.minor}"
    return ""


def use_client() -> None:
    """Let tritonclient be imported; its pins of protobuf and ml_dtypes are older than ours."""
    if importlib.util.find_spec("tritonclient") is None:
        sys.path += [str(wheel(name)) for name in PACKAGES]


def server_folder() -> Path:
    return wheel(SERVER) / "pytriton" / "tritonserver"


def stub() -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return server_folder() / "python_backend_stubs" / version / "triton_python_backend_stub"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class TritonServer:
    """A server of one checkpoint; may be stopped and started again at the same port."""

    def __init__(self, folder: Path, checkpoint: Path, backend: str = "onnx"):
        """folder: an empty one for the repository, the backends and the log."""
        self.repository, self.backends = folder / "repository", folder / "backends"
        self.log = folder / "server.log"
        parameters = {"checkpoint": str(checkpoint), "backend": backend, "engines": ""}
        parameters |= {"device": "cpu", "dtype": "auto"}
        triton_repository.write(self.repository, "g2vlm", parameters)
        shutil.copytree(server_folder() / "backends", self.backends)
        target = self.backends / "python" / stub().name
        shutil.copy(stub(), target)
        target.chmod(0o755)
        self.port = free_port()
        self.url = f"localhost:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Until the model is ready; RuntimeError with the log where it does not come up."""
        binary = server_folder() / "bin" / "tritonserver"
        binary.chmod(0o755)
        libraries = [
            str(wheel(SERVER) / "nvidia_pytriton.libs"),
            sysconfig.get_config_var("LIBDIR"),
        ]
        libraries.append(os.environ.get("LD_LIBRARY_PATH", ""))
        paths = [str(ROOT), *(path for path in sys.path if path)]
        environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}
        environment |= {"PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1"}
        # The stub looks for its Python on PATH; ours need not be the first one there.
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        command = [str(binary), "--model-repository", str(self.repository)]
        command += ["--backend-directory", str(self.backends), "--allow-http", "false"]
        command += ["--allow-metrics", "false", "--grpc-address", "127.0.0.1"]
        command += ["--grpc-port", str(self.port)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        if not self._ready():
            self.stop()
            raise RuntimeError(self.log.read_text()[-3000:])

    def _ready(self) -> bool:
        import tritonclient.grpc as client

        asks, deadline = client.InferenceServerClient(self.url), time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if asks.is_model_ready("g2vlm"):
                    return True
            except client.InferenceServerException:
                pass
            time.sleep(0.2)
        return False

    def stop(self) -> None:
        """As when the machine loses power."""
        self.process.kill()
        self.process.wait()


@contextmanager
def triton_server(folder: Path, checkpoint: Path) -> Iterator[TritonServer]:
    """A server for a while."""
    use_client()
    server = TritonServer(folder, checkpoint)
    server.start()
    try:
        yield server
    finally:
        server.stop()
