# SPDX-License-Identifier: Apache-2.0
"""G²VLM as a ROS 2 perception node: uncalibrated views in, 3D points, poses and answers out."""

from pkgutil import extend_path

# The interfaces that colcon generates (g2vlm_ros.msg, .srv, .action) live in a second folder of
# the same name on sys.path; a source checkout and an installation both find them this way.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
