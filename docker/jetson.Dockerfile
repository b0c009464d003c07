# SPDX-License-Identifier: Apache-2.0
# g2vlm_ros on a Jetson with JetPack 7.2 (Ubuntu 24.04, CUDA 13.2, TensorRT 10.16), ROS 2 Jazzy. TensorRT and CUDA
# come from the host: nvidia-container-toolkit mounts the driver, apt's packages of the same JetPack bring the rest.
#   docker build -f docker/jetson.Dockerfile --build-arg L4T=r... -t g2vlm_ros .          # on the Jetson itself
#   docker run --rm --runtime nvidia --network host --ipc host -v ~/G2VLM-2B-MoT:/checkpoint:ro \
#     -v ~/.cache/g2vlm_ros:/cache/g2vlm_ros g2vlm_ros \
#     ros2 launch g2vlm_ros perception.launch.py params_file:=jetson_orin checkpoint:=/checkpoint cameras:=front
FROM ubuntu:24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive ROS_DISTRO=jazzy

# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl gnupg \
 && curl -fsSL https://raw.githubusercontent.com/ros/rosdistro/master/ros.key \
      -o /usr/share/keyrings/ros-archive-keyring.gpg \
 && echo "deb [arch=arm64 signed-by=/usr/share/keyrings/ros-archive-keyring.gpg] http://packages.ros.org/ros2/ubuntu noble main" \
      > /etc/apt/sources.list.d/ros2.list \
 && apt-get update \
 && apt-get install -y --no-install-recommends \
      g++ python3-pip python3-venv python3-colcon-common-extensions python3-rosdep \
      ros-jazzy-ros-base ros-jazzy-cv-bridge ros-jazzy-vision-msgs ros-jazzy-tf2-ros ros-jazzy-launch-ros \
 && rosdep init \
 && rm -rf /var/lib/apt/lists/*

# NVIDIA's repository of the host's JetPack (--build-arg L4T=r..., first line of the host's /etc/nv_tegra_release): its
# libraries must be those of the driver below.
ARG L4T
# hadolint ignore=DL3008
RUN test -n "$L4T" && curl -fsSL https://repo.download.nvidia.com/jetson/jetson-ota-public.asc \
      -o /etc/apt/trusted.gpg.d/jetson.asc \
 && echo "deb https://repo.download.nvidia.com/jetson/common ${L4T} main" \
      > /etc/apt/sources.list.d/jetson.list \
 && apt-get update \
 && apt-get install -y --no-install-recommends python3-libnvinfer libnvinfer-bin cuda-cudart-13-2 \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /ws
COPY . src/g2vlm_ros
# hadolint ignore=DL3008
RUN apt-get update \
 && rosdep update --rosdistro jazzy \
 && rosdep install --from-paths src --ignore-src -y --rosdistro jazzy \
 && rm -rf /var/lib/apt/lists/*

# PyPI's torch has no CUDA for Jetsons: engines are built from ONNX files that a desktop has exported.
RUN python3 -m venv --system-site-packages /venv \
 && /venv/bin/pip install --no-cache-dir -c src/g2vlm_ros/requirements/constraints.txt \
      "numpy<2" onnxruntime==1.32.0 tokenizers==0.23.3 safetensors==0.8.0 tqdm==4.70.1 "cuda-bindings>=13.2,<14"
ENV PATH=/venv/bin:$PATH
RUN . /opt/ros/jazzy/setup.bash \
 && colcon build --packages-select g2vlm_ros --cmake-args -DBUILD_TESTING=OFF \
 && useradd --create-home --uid 10001 --groups video robot
ENV XDG_CACHE_HOME=/cache
USER 10001
ENTRYPOINT ["/ws/src/g2vlm_ros/docker/entrypoint.sh"]
CMD ["ros2", "run", "g2vlm_ros", "doctor", "--offline"]
