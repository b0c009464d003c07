// SPDX-License-Identifier: Apache-2.0
// The bytes of a PointCloud2: x, y, z, 0x00RRGGBB, confidence; 20 bytes a point.
#include "kernel.h"

#include <limits>

// How many points `pack` writes for a dense cloud.
KERNEL int64_t count_points(
    const float* confidence, const uint8_t* valid, const int64_t* views, int64_t view_count,
    int64_t height, int64_t width, int64_t stride, float min_confidence)
{
    int64_t count = 0;
    for (int64_t i = 0; i < view_count; ++i) {
        for (int64_t v = 0; v < height; v += stride) {
            const uint8_t* is_valid = valid + (views[i] * height + v) * width;
            const float* sure = confidence + (views[i] * height + v) * width;
            if (stride == 1) {  // without branches and gaps, compilers make vector instructions
                int32_t of_row = 0;
                for (int64_t u = 0; u < width; ++u) {
                    of_row += int32_t((is_valid[u] != 0) & is_trusted(sure[u], min_confidence));
                }
                count += of_row;
                continue;
            }
            for (int64_t u = 0; u < width; u += stride) {
                count += is_valid[u] && is_trusted(sure[u], min_confidence);
            }
        }
    }
    return count;
}

// Points of the views named, every `stride`-th row and column, taken by affines (view_count, 3, 4)
// to the cloud's frame and unit. organised keeps invalid points, with x, y and z NaN. Writes at
// most `capacity` points; returns how many.
KERNEL int64_t pack_points(
    const float* points, const uint8_t* colours, const float* confidence, const uint8_t* valid,
    const int64_t* views, int64_t view_count, int64_t height, int64_t width, int64_t stride,
    const float* affines, float min_confidence, int32_t organised, PackedPoint* out,
    int64_t capacity)
{
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    PackedPoint* const first = out;
    PackedPoint* const end = out + capacity;
    for (int64_t i = 0; i < view_count; ++i) {
        const float* affine = affines + 12 * i;
        for (int64_t v = 0; v < height; v += stride) {
            const int64_t row = (views[i] * height + v) * width;
            for (int64_t u = 0; u < width; u += stride) {
                const int64_t at = row + u;
                const bool pass = valid[at] && is_trusted(confidence[at], min_confidence);
                if (!(pass || organised) || out == end) {
                    continue;
                }
                float place[3] = {nan, nan, nan};
                if (pass) {
                    transform(affine, points + 3 * at, place);
                }
                *out++ = packed_point(place, colours + 3 * at, confidence[at]);
            }
        }
    }
    return out - first;
}
