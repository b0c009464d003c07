# SPDX-License-Identifier: Apache-2.0
"""Installs the Python package with pip for work without ROS: folders of images, export, training.

On a robot use colcon, which also builds the interfaces (CMakeLists.txt).
"""

import re
import sys
from pathlib import Path

from setuptools import Distribution, find_namespace_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from g2vlm_ros.kernels.build import compile_library, variants_for_packages  # noqa: E402

VERSION = re.search(r'__version__ = "(.+)"', (HERE / "g2vlm_ros/__init__.py").read_text())[1]


class BuildWithKernels(build_py):
    """Compiles the kernels into the package; a C++ compiler is needed."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # a checkout compiles them when they are first needed
            folder = Path(self.build_lib) / "g2vlm_ros" / "kernels"
            for name in variants_for_packages():
                compile_library(name, folder / f"lib{name}.so")


class PlatformDistribution(Distribution):
    """A wheel that holds compiled kernels fits one kind of machine."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    name="g2vlm_ros",
    cmdclass={"build_py": BuildWithKernels},
    distclass=PlatformDistribution,
    version=VERSION,
    description="G²VLM: camera views in; 3D points, poses and answers to spatial questions out",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_namespace_packages(include=["g2vlm_ros", "g2vlm_ros.*"]),
    package_data={"": ["*.cu", "*.cuh", "*.json", "*.safetensors", "*.yaml"]},
    install_requires=[
        "numpy>=1.26",
        "opencv-python-headless>=4.8",
        "pillow>=10",
        "PyYAML>=6",
        "safetensors>=0.4",
        "tokenizers>=0.20",
        "transforms3d>=0.4.2",
    ],
    extras_require={
        "onnx": ["onnxruntime>=1.20"],
        "ros-tools": ["rosbags>=0.10"],
        # On JetPack TensorRT comes with the system, and JetPack 6 needs the bindings of CUDA 12.
        "jetpack6": ["cuda-bindings==12.9.*", "nvidia-cuda-nvrtc-cu12"],
        "jetpack7": ["cuda-bindings==13.*", "nvidia-cuda-nvrtc==13.*"],
        "tensorrt-rtx": ["cuda-bindings==13.*", "nvidia-cuda-nvrtc==13.*", "tensorrt-rtx"],
        "tensorrt": ["cuda-bindings==13.*", "nvidia-cuda-nvrtc==13.*", "tensorrt>=10.6"],
        "torch": ["onnx>=1.17", "onnxscript>=0.5", "torch>=2.5"],
        "viewer": ["viser>=1.1", "websockets>=13"],
    },
)
