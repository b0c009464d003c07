# SPDX-License-Identifier: Apache-2.0
# g2vlm_ros on a desktop or server with an NVIDIA GPU: Ubuntu 24.04, CUDA 13 libraries, ROS 2 Jazzy, torch.
#   docker build -f docker/desktop.Dockerfile -t g2vlm_ros .
#   docker run --rm --gpus all --network host --ipc host -v ~/G2VLM-2B-MoT:/checkpoint:ro g2vlm_ros \
#     ros2 launch g2vlm_ros perception.launch.py params_file:=desktop checkpoint:=/checkpoint cameras:=front
# --network host and --ipc host: DDS finds its peers, and clouds go through shared memory.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive ROS_DISTRO=jazzy

# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl gnupg \
 && curl -fsSL https://raw.githubusercontent.com/ros/rosdistro/master/ros.key \
      -o /usr/share/keyrings/ros-archive-keyring.gpg \
 && echo "deb [arch=$(dpkg --print-architecture) signed-by=/usr/share/keyrings/ros-archive-keyring.gpg] http://packages.ros.org/ros2/ubuntu noble main" \
      > /etc/apt/sources.list.d/ros2.list \
 && apt-get update \
 && apt-get install -y --no-install-recommends \
      g++ python3-pip python3-venv python3-colcon-common-extensions python3-rosdep \
      ros-jazzy-ros-base ros-jazzy-cv-bridge ros-jazzy-vision-msgs ros-jazzy-tf2-ros ros-jazzy-launch-ros \
 && rosdep init \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /ws
COPY . src/g2vlm_ros
# hadolint ignore=DL3008
RUN apt-get update \
 && rosdep update --rosdistro jazzy \
 && rosdep install --from-paths src --ignore-src -y --rosdistro jazzy \
 && rm -rf /var/lib/apt/lists/*

# Versions are those of requirements/; numpy 1 is what cv_bridge of 24.04 was compiled against.
RUN python3 -m venv --system-site-packages /venv \
 && /venv/bin/pip install --no-cache-dir -c src/g2vlm_ros/requirements/constraints.txt \
      "numpy<2" onnxruntime==1.32.0 tokenizers==0.23.3 safetensors==0.8.0 tqdm==4.70.1 rosbags==0.11.9 \
      torch==2.13.0 viser==1.1.1
ENV PATH=/venv/bin:$PATH
RUN . /opt/ros/jazzy/setup.bash \
 && colcon build --packages-select g2vlm_ros --cmake-args -DBUILD_TESTING=OFF \
 && useradd --create-home --uid 10001 robot
USER 10001
ENTRYPOINT ["/ws/src/g2vlm_ros/docker/entrypoint.sh"]
CMD ["ros2", "run", "g2vlm_ros", "doctor", "--offline"]
