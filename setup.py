# SPDX-License-Identifier: Apache-2.0
"""Installs the Python package with pip for work without ROS: folders of images, export, training.

On a robot use colcon, which also builds the interfaces (CMakeLists.txt).
"""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "g2vlm_ros/__init__.py").read_text())[1]

setup(
    name="g2vlm_ros",
    version=VERSION,
    description="G²VLM: camera views in; 3D points, poses and answers to spatial questions out",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_namespace_packages(include=["g2vlm_ros", "g2vlm_ros.*"]),
    package_data={"": ["*.cu", "*.json", "*.safetensors", "*.yaml"]},
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
        "tensorrt": ["cuda-bindings", "tensorrt>=10.3"],
        "torch": ["onnx>=1.17", "onnxscript>=0.5", "torch>=2.5"],
        "viewer": ["viser>=1.1"],
    },
)
