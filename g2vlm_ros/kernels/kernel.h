// SPDX-License-Identifier: Apache-2.0
// What all kernels share. Arrays are C-contiguous; api.py checks their shapes and types, so that a
// kernel may believe its arguments. Lengths are in map or model units, depth is z of the optical
// frame, the centre of the top-left pixel is (0, 0).
#pragma once

#include <cmath>
#include <cstdint>

#define KERNEL extern "C" __attribute__((visibility("default")))

// A depth differs from its neighbour's by more than a fraction of the nearer one: a depth edge.
inline bool is_step(float depth, float beside, float relative_step)
{
    const float nearer = depth < beside ? depth : beside;
    return std::fabs(depth - beside) > relative_step * nearer;
}

inline bool is_finite(float value) { return value - value == 0.0f; }

// affine: 3 x 4, row-major.
inline void transform(const float* affine, const float* point, float* out)
{
    for (int axis = 0; axis < 3; ++axis) {
        const float* row = affine + 4 * axis;
        out[axis] = row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3];
    }
}

// A pinhole camera in pixels; fx 0 stands for an unknown one. The layout of (N, 4) arrays.
struct Pinhole {
    float fx, fy, cx, cy;
    bool known() const { return fx > 0; }
};

// A point of a PointCloud2 message, with colour as 0x00RRGGBB.
struct PackedPoint {
    float x, y, z;
    uint32_t rgb;
    float confidence;
};
static_assert(sizeof(PackedPoint) == 20, "POINT_BYTES of geometry/point_cloud.py");
