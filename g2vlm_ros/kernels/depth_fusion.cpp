// SPDX-License-Identifier: Apache-2.0
// Depth of a window's views made to agree: every pixel moves along its ray to the least-squares
// mean of what all views say of it, its own one included.
#include "kernel.h"

#include <algorithm>
#include <vector>

// The memory of a `SurfaceGrid`.
struct Surface {
    std::vector<float> nearness;
    std::vector<uint8_t> edge;

    Surface(const float* points, int64_t height, int64_t width, float edge_step)
        : nearness(height * width), edge(height * width, 0)
    {
        for (int64_t v = 0; v < height; ++v) {
            for (int64_t u = 0; u < width; ++u) {
                const int64_t at = v * width + u;
                const float depth = points[3 * at + 2];
                nearness[at] = 1 / depth;
                if (u < width - 1 && is_step(depth, points[3 * (at + 1) + 2], edge_step)) {
                    edge[at] = edge[at + 1] = 1;
                }
                if (v < height - 1 && is_step(depth, points[3 * (at + width) + 2], edge_step)) {
                    edge[at] = edge[at + width] = 1;
                }
            }
        }
    }
};

// points (views, height, width, 3) on a small grid, j_from_i (views, views, 3, 4), pinholes
// (views, 4) of that grid -> factor (views, height, width) on each depth. edge_step: depth steps
// across which there is no surface. tolerance: relative error at which a view counts a quarter.
KERNEL void fusion_factors(
    const float* points, int64_t views, int64_t height, int64_t width, const float* j_from_i,
    const float* pinholes, float edge_step, float tolerance, float* factor)
{
    const Pinhole* lens = reinterpret_cast<const Pinhole*>(pinholes);
    const int64_t view = height * width;
    std::vector<Surface> surfaces;
    for (int64_t i = 0; i < views; ++i) {
        surfaces.emplace_back(points + 3 * i * view, height, width, edge_step);
    }
    std::vector<float> pull(width), weight(width), u(width), v(width), z(width), ratio(width);
    const float inverse_tolerance = 1 / tolerance;
    for (int64_t i = 0; i < views; ++i) {
        for (int64_t row = 0; row < height; ++row) {
            const float* points_of_row = points + 3 * (i * view + row * width);
            // A pixel's own depth says with weight 1 that nothing is to change.
            std::fill(pull.begin(), pull.end(), 0.0f);
            std::fill(weight.begin(), weight.end(), 1.0f);
            for (int64_t j = 0; j < views; ++j) {
                if (j == i || !lens[j].known()) {
                    continue;
                }
                const float* affine = j_from_i + 12 * (j * views + i);
                const SurfaceGrid surface = {
                    surfaces[j].nearness.data(), surfaces[j].edge.data(), height, width};
                // In three loops, of which compilers make vector instructions but of the second.
                for (int64_t c = 0; c < width; ++c) {
                    const Projection seen = projection_of(points_of_row + 3 * c, affine, lens[j]);
                    u[c] = seen.u;
                    v[c] = seen.v;
                    z[c] = seen.z;
                }
                for (int64_t c = 0; c < width; ++c) {
                    const Projection seen = {u[c], v[c], z[c]};
                    ratio[c] = seen.inside(height, width) ? surface.at(u[c], v[c]) * z[c] : 0.0f;
                }
                for (int64_t c = 0; c < width; ++c) {
                    const Pull says = pull_of(ratio[c], z[c], affine[11], inverse_tolerance);
                    pull[c] += says.step;
                    weight[c] += says.weight;
                }
            }
            for (int64_t c = 0; c < width; ++c) {
                factor[i * view + row * width + c] = fusion_factor(pull[c], weight[c]);
            }
        }
    }
}

// Those of points (views, height, width, 3) that lie in given rows and columns -> out (views,
// rows, columns, 3).
KERNEL void pick_points(
    const float* points, int64_t views, int64_t height, int64_t width, const int64_t* row_of,
    int64_t rows, const int64_t* column_of, int64_t columns, float* out)
{
    for (int64_t i = 0; i < views; ++i) {
        for (int64_t r = 0; r < rows; ++r) {
            const float* line = points + 3 * (i * height + row_of[r]) * width;
            for (int64_t c = 0; c < columns; ++c, out += 3) {
                const float* point = line + 3 * column_of[c];
                out[0] = point[0];
                out[1] = point[1];
                out[2] = point[2];
            }
        }
    }
}

// points (views, height, width, 3) times factor (views, rows, columns), read linearly between the
// middles of its larger pixels -> out, as points.
KERNEL void scale_points(
    const float* points, int64_t views, int64_t height, int64_t width, const float* factor,
    int64_t rows, int64_t columns, float* out)
{
    std::vector<float> line(columns), share(width);
    std::vector<int64_t> left(width), right(width);
    for (int64_t u = 0; u < width; ++u) {
        const GridPlace place = grid_place(u, width, columns);
        left[u] = place.before;
        right[u] = place.after;
        share[u] = place.share;
    }
    for (int64_t row = 0; row < views * height; ++row) {
        const GridPlace place = grid_place(row % height, height, rows);
        const float* grid = factor + row / height * rows * columns;
        const float *a = grid + place.before * columns, *b = grid + place.after * columns;
        for (int64_t c = 0; c < columns; ++c) {
            line[c] = mixed(a[c], b[c], place.share);
        }
        const float* p = points + 3 * row * width;
        float* q = out + 3 * row * width;
        for (int64_t u = 0; u < width; ++u) {
            const float scale = mixed(line[left[u]], line[right[u]], share[u]);
            q[3 * u] = p[3 * u] * scale;
            q[3 * u + 1] = p[3 * u + 1] * scale;
            q[3 * u + 2] = p[3 * u + 2] * scale;
        }
    }
}
