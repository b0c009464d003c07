// SPDX-License-Identifier: Apache-2.0
// Which pixels of point maps belong into clouds and maps: finite, in front of the camera, not at a
// depth step to one of the four neighbours.
#include "kernel.h"

#include <vector>

static void depths_of(const float* points, int64_t width, float* depth)
{
    for (int64_t u = 0; u < width; ++u) {
        depth[u] = points[3 * u + 2];
    }
}

// points (views, height, width, 3) -> valid (views, height, width) of 0 and 1. edge_step: fraction
// of the nearer depth; 0 keeps depth steps.
KERNEL void valid_points(
    const float* points, int64_t views, int64_t height, int64_t width, float edge_step,
    uint8_t* valid)
{
    // Rows of depth with one pixel of margin that repeats the border, where there is no step.
    std::vector<float> above(width + 2), here(width + 2), below(width + 2);
    for (int64_t row = 0; row < views * height; ++row) {
        const int64_t v = row % height;
        const float* p = points + 3 * row * width;
        uint8_t* out = valid + row * width;
        for (int64_t u = 0; u < width; ++u) {
            out[u] = uint8_t(is_in_front(p + 3 * u));
        }
        if (!(edge_step > 0)) {
            continue;
        }
        above.swap(here);
        here.swap(below);
        if (v == 0) {
            depths_of(p, width, here.data() + 1);
            above = here;
        }
        depths_of(v < height - 1 ? p + 3 * width : p, width, below.data() + 1);
        here[0] = here[1];
        here[width + 1] = here[width];
        const float *a = above.data() + 1, *h = here.data() + 1, *b = below.data() + 1;
        for (int64_t u = 0; u < width; ++u) {
            const int beside =
                is_step(h[u], h[u - 1], edge_step) | is_step(h[u], h[u + 1], edge_step);
            const int across = is_step(h[u], a[u], edge_step) | is_step(h[u], b[u], edge_step);
            out[u] &= uint8_t(!(beside | across));
        }
    }
}
