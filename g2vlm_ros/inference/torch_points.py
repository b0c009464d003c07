# SPDX-License-Identifier: Apache-2.0
"""Point maps of torch's network that stay on its GPU (`points_on_device`).

torch and our kernels share the device's primary context; what torch computed is copied on the
device, since it may use its memory again for the next window.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from g2vlm_ros.inference.points_on_device import PointKernels
from g2vlm_ros.inference.tensorrt.cuda import CudaError, DeviceLostError, open_cuda
from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
from g2vlm_ros.kernels.device_points import DevicePoints
from g2vlm_ros.records import UnfitError

log = logging.getLogger(__name__)


def point_kernels(device: torch.device) -> PointKernels | None:
    """The kernels for a GPU of torch's; None, with a warning, where they cannot be had."""
    try:
        cuda = open_cuda(torch.cuda.current_device() if device.index is None else device.index)
        with cuda.active():
            return PointKernels(DeviceMemory(cuda))
    except DeviceLostError:
        raise
    except (UnfitError, CudaError) as error:
        log.warning("points of windows go to the host: %s", error)
        return None


def points_of(kernels: PointKernels, points: Tensor) -> DevicePoints:
    """Point maps (N, H, W, 3) of any float type, after what torch still computes for them."""
    points = points.float().contiguous()
    if points.is_cuda:
        torch.cuda.current_stream(points.device).synchronize()
    return kernels.copy_of(points.data_ptr(), points.shape)
