// SPDX-License-Identifier: Apache-2.0
// How far points can be trusted, from the agreement of a window's views: a point that is right
// lands, seen from another view, on that view's own surface.
#include "kernel.h"

#include <algorithm>
#include <limits>
#include <vector>

// Where a view sees points (count, apart by `stride` floats), by `see_point`.
static void see_row(
    const float* points, int64_t count, int64_t stride, const float* affine, Pinhole lens,
    int32_t height, int32_t width, int32_t* pixel, float* depth)
{
    for (int64_t c = 0; c < count; ++c) {
        const SeenPoint seen = see_point(points + c * stride, affine, lens, height, width);
        pixel[c] = seen.pixel;
        depth[c] = seen.depth;
    }
}

// Depths of a row of points (count, apart by `stride` floats), with one more at either end that
// repeats it: there is no step.
static void depths_of(const float* points, int64_t count, int64_t stride, float* depth)
{
    for (int64_t c = 0; c < count; ++c) {
        depth[c + 1] = points[c * stride + 2];
    }
    depth[0] = depth[1];
    depth[count + 1] = depth[count];
}

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
    // Of a row of points: where another view sees them (-1: nowhere) and how deep, how far behind
    // its surface, sums, means.
    std::vector<int32_t> pixel(columns);
    std::vector<float> depth(columns), error(columns), total(columns), seen(columns), line(width);
    std::vector<float> above(columns + 2), here(columns + 2), below(columns + 2), mean(columns);
    constexpr float HIDDEN = std::numeric_limits<float>::infinity();
    const float hidden_from = 3 * agreement_step, inverse_step = 1 / agreement_step;
    for (int64_t i = 0; i < views; ++i) {
        depths_of(points + 3 * i * view, columns, right, below.data());
        here = below;
        for (int64_t r = 0; r < rows; ++r) {
            const float* row = points + 3 * (i * view + r * grid * width);
            above.swap(here);
            here = below;
            if (r + 1 < rows) {
                depths_of(row + down, columns, right, below.data());
            }
            std::fill(total.begin(), total.end(), 0.0f);
            std::fill(seen.begin(), seen.end(), 0.0f);
            for (int64_t j = 0; j < views; ++j) {
                if (j == i || !lens[j].known()) {
                    continue;
                }
                const float* affine = j_from_i + 12 * (j * views + i);
                see_row(row, columns, right, affine, lens[j], int32_t(height), int32_t(width),
                        pixel.data(), depth.data());
                for (int64_t c = 0; c < columns; ++c) {
                    const int64_t at = j * view + std::max(pixel[c], 0);
                    const float surface = points[3 * at + 2];
                    error[c] = pixel[c] < 0 ? HIDDEN : (depth[c] - surface) / surface;
                }
                for (int64_t c = 0; c < columns; ++c) {
                    const Agreement says = agreement_of(error[c], hidden_from, inverse_step);
                    total[c] += says.share;
                    seen[c] += says.counts;
                }
            }
            const float *a = above.data() + 1, *h = here.data() + 1, *b = below.data() + 1;
            for (int64_t c = 0; c < columns; ++c) {
                const int beside =
                    is_step(h[c], h[c - 1], edge_step) | is_step(h[c], h[c + 1], edge_step);
                const int across = is_step(h[c], a[c], edge_step) | is_step(h[c], b[c], edge_step);
                // Where nothing was seen this is 0 / 0, not a number.
                mean[c] = total[c] / seen[c] * (beside | across ? 0.5f : 1.0f);
            }
            for (int64_t c = 0; c < columns; ++c) {
                const int64_t end = std::min((c + 1) * grid, width);
                std::fill(line.begin() + c * grid, line.begin() + end, mean[c]);
            }
            for (int64_t v = r * grid; v < std::min((r + 1) * grid, height); ++v) {
                std::copy(line.begin(), line.end(), confidence + i * view + v * width);
            }
        }
    }
}
