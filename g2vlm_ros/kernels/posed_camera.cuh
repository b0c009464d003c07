// SPDX-License-Identifier: Apache-2.0
// A posed depth view, and what it proves empty: once for the processor and for a GPU, as
// pixel.cuh.
#pragma once

#include "pixel.cuh"

// Of a voxel's depth, by which a surface must lie behind it.
constexpr float RELATIVE_SLACK = 0.05f;
constexpr int TILES_AROUND = 3;

// A depth in map units, 0 where it proves nothing.
ON_BOTH float trusted_depth(float depth, float scale, float confidence, float min_confidence)
{
    const float z = depth * scale;
    return (z > 0) & is_finite(z) & (confidence >= min_confidence) ? z : 0.0f;
}

// Where a posed camera sees a point of the map. pose: map_from_camera (4, 4), rigid.
struct PosedCamera {
    float turn[9], origin[3];
    Pinhole lens;
    float right, bottom;  // last column and row

    ON_BOTH PosedCamera(const double* pose, const float* pinhole, int64_t height, int64_t width)
        : lens{pinhole[0], pinhole[1], pinhole[2], pinhole[3]}, right(float(width - 1)),
          bottom(float(height - 1))
    {
        for (int row = 0; row < 3; ++row) {
            for (int column = 0; column < 3; ++column) {
                turn[3 * column + row] = float(pose[4 * row + column]);
            }
            origin[row] = float(pose[4 * row + 3]);
        }
    }

    ON_BOTH void to_camera(const float* point, float* out) const
    {
        const float d[3] = {point[0] - origin[0], point[1] - origin[1], point[2] - origin[2]};
        for (int axis = 0; axis < 3; ++axis) {
            const float* row = turn + 3 * axis;
            out[axis] = row[0] * d[0] + row[1] * d[1] + row[2] * d[2];
        }
    }

    // Nearest pixel of a point (x, y, z) of the camera's frame, z > 0; false outside the image
    // grown by a margin, inside the image otherwise.
    ON_BOTH bool pixel(
        float x, float y, float z, float margin, int64_t* column, int64_t* row) const
    {
        const float u = x / z * lens.fx + lens.cx, v = y / z * lens.fy + lens.cy;
        const float low = -0.5f - margin, more = 0.5f + margin;
        if (!(u >= low && v >= low && u <= right + more && v <= bottom + more)) {
            return false;
        }
        *column = int64_t(between(nearbyintf(u), 0.0f, right));
        *row = int64_t(between(nearbyintf(v), 0.0f, bottom));
        return true;
    }

    // Whether a ray passed a point of the map on its way to a surface clearly behind. nearest
    // (height, width): depth of the nearest surface around each pixel, 0 where that is unknown.
    ON_BOTH bool sees_through(
        const float* point, const float* nearest, int64_t width, float slack) const
    {
        float p[3];
        to_camera(point, p);
        int64_t u, v;
        return p[2] > 0 && pixel(p[0], p[1], p[2], 0.0f, &u, &v)
            && nearest[v * width + u] > p[2] * (1 + RELATIVE_SLACK) + slack;
    }
};
