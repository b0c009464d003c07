// SPDX-License-Identifier: Apache-2.0
// How far points can be trusted, from the agreement of a window's views: a point that is right
// lands, seen from another view, on that view's own surface.
#include <algorithm>
#include <limits>
#include <vector>

#include "kernel.h"

// points (views, height, width, 3) in the optical frames; j_from_i (views, views, 3, 4);
// pinholes (views, 4). agreement_step: relative depth error at which a point's confidence falls to
// 1/e; three times as far behind a surface it is hidden and says nothing. Points are compared on
// every grid-th pixel, whose value is repeated; those at depth edges are halved.
// confidence (views, height, width): 0..1, NaN where no other view sees the point.
KERNEL void multi_view_confidence(
    const float* points, int64_t views, int64_t height, int64_t width, const float* j_from_i,
    const float* pinholes, int64_t grid, float agreement_step, float edge_step, float* confidence)
{
    const Pinhole* lens = reinterpret_cast<const Pinhole*>(pinholes);
    const int64_t rows = (height + grid - 1) / grid, columns = (width + grid - 1) / grid;
    const int64_t view = height * width, right = 3 * grid, down = 3 * grid * width;
    std::vector<float> line(width);
    for (int64_t i = 0; i < views; ++i) {
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = 0; c < columns; ++c) {
                const float* p = points + 3 * (i * view + r * grid * width + c * grid);
                float total = 0;
                int seen = 0;
                for (int64_t j = 0; j < views; ++j) {
                    if (j == i || !lens[j].known()) {
                        continue;
                    }
                    float q[3];
                    transform(j_from_i + 12 * (j * views + i), p, q);
                    if (!(q[2] > 0)) {
                        continue;
                    }
                    const float u = lens[j].fx * q[0] / q[2] + lens[j].cx;
                    const float v = lens[j].fy * q[1] / q[2] + lens[j].cy;
                    if (!(u > -0.5f && v > -0.5f && u < width - 0.5f && v < height - 0.5f)) {
                        continue;
                    }
                    const int64_t at = int64_t(std::nearbyint(v)) * width + int64_t(std::nearbyint(u));
                    const float surface = points[3 * (j * view + at) + 2];
                    const float error = (q[2] - surface) / surface;
                    if (error <= 3 * agreement_step) {
                        total += std::exp(-std::fabs(error) / agreement_step);
                        ++seen;
                    }
                }
                float mean = seen ? total / float(seen) : std::numeric_limits<float>::quiet_NaN();
                const bool edge = (c > 0 && is_step(p[2], p[2 - right], edge_step))
                    || (c < columns - 1 && is_step(p[2], p[2 + right], edge_step))
                    || (r > 0 && is_step(p[2], p[2 - down], edge_step))
                    || (r < rows - 1 && is_step(p[2], p[2 + down], edge_step));
                mean *= edge ? 0.5f : 1.0f;
                std::fill(line.begin() + c * grid, line.begin() + std::min((c + 1) * grid, width), mean);
            }
            for (int64_t v = r * grid; v < std::min((r + 1) * grid, height); ++v) {
                std::copy(line.begin(), line.end(), confidence + i * view + v * width);
            }
        }
    }
}
