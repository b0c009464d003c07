// SPDX-License-Identifier: Apache-2.0
// Depth of a window's views made to agree: every pixel moves along its ray to the least-squares
// mean of what all views say of it, its own one included.
#include "kernel.h"

#include <algorithm>
#include <limits>
#include <vector>

// The surface of one view on the small grid: inverse depth, and where there are depth edges.
struct Surface {
    std::vector<float> nearness;
    std::vector<uint8_t> edge;
    int64_t height, width;

    // Inverse depth at a place inside the image; the inverse depth of a plane is linear in it. NaN
    // beside an edge.
    float at(float u, float v) const
    {
        const float left = std::floor(u), top = std::floor(v), a = u - left, b = v - top;
        const int64_t u0 = std::max<int64_t>(int64_t(left), 0);
        const int64_t v0 = std::max<int64_t>(int64_t(top), 0) * width;
        const int64_t u1 = std::min(int64_t(left) + 1, width - 1);
        const int64_t v1 = std::min(int64_t(top) + 1, height - 1) * width;
        if (edge[v0 + u0] | (edge[v0 + u1] & (a > 0)) | (edge[v1 + u0] & (b > 0))
            | (edge[v1 + u1] & (a > 0) & (b > 0))) {
            return std::numeric_limits<float>::quiet_NaN();
        }
        return (nearness[v0 + u0] * (1 - a) + nearness[v0 + u1] * a) * (1 - b)
            + (nearness[v1 + u0] * (1 - a) + nearness[v1 + u1] * a) * b;
    }

    Surface(const float* points, int64_t height, int64_t width, float edge_step)
        : nearness(height * width), edge(height * width, 0), height(height), width(width)
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

// Where another view sees points (count, 3), and how deep. Without branches, so that compilers
// make vector instructions of it.
static void project_row(
    const float* points, int64_t count, const float* affine, Pinhole lens, float* u, float* v,
    float* z)
{
    for (int64_t c = 0; c < count; ++c) {
        float q[3];
        transform(affine, points + 3 * c, q);
        u[c] = lens.fx * q[0] / q[2] + lens.cx;
        v[c] = lens.fy * q[1] / q[2] + lens.cy;
        z[c] = q[2];
    }
}

// points (views, height, width, 3) on a small grid, j_from_i (views, views, 3, 4), pinholes
// (views, 4) of that grid -> factor (views, height, width) on each depth. edge_step: depth steps
// across which there is no surface. tolerance: relative error at which a view counts a quarter.
KERNEL void fusion_factors(
    const float* points, int64_t views, int64_t height, int64_t width, const float* j_from_i,
    const float* pinholes, float edge_step, float tolerance, float* factor)
{
    const Pinhole* lens = reinterpret_cast<const Pinhole*>(pinholes);
    constexpr float SMALLEST = std::numeric_limits<float>::min();
    constexpr float LARGEST = std::numeric_limits<float>::max();
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
                project_row(points_of_row, width, affine, lens[j], u.data(), v.data(), z.data());
                for (int64_t c = 0; c < width; ++c) {
                    const bool inside = z[c] > 0 && u[c] > -0.5f && v[c] > -0.5f
                        && u[c] < width - 0.5f && v[c] < height - 0.5f;
                    ratio[c] = inside ? surfaces[j].at(u[c], v[c]) * z[c] : 0.0f;
                }
                for (int64_t c = 0; c < width; ++c) {
                    const bool told = (ratio[c] > SMALLEST) & (ratio[c] < LARGEST);
                    const float error = -logarithm_of(told ? ratio[c] : 1.0f);
                    // How fast the depth there changes with the point's own.
                    const float slope = (z[c] - affine[11]) / z[c];
                    const float relative = error * inverse_tolerance;
                    const float doubt = 1 + relative * relative;
                    const float counts = slope / (doubt * doubt);
                    pull[c] += told ? counts * error : 0.0f;
                    weight[c] += told ? counts * slope : 0.0f;
                }
            }
            for (int64_t c = 0; c < width; ++c) {
                const float power = std::min(std::max(pull[c] / weight[c], -80.0f), 80.0f);
                factor[i * view + row * width + c] = exponential_of(power);
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
        const float x = (u + 0.5f) * float(columns) / float(width) - 0.5f;
        const float first = std::floor(x);
        left[u] = std::clamp<int64_t>(int64_t(first), 0, columns - 1);
        right[u] = std::clamp<int64_t>(int64_t(first) + 1, 0, columns - 1);
        share[u] = x - first;
    }
    for (int64_t row = 0; row < views * height; ++row) {
        const float y = (row % height + 0.5f) * float(rows) / float(height) - 0.5f;
        const float first = std::floor(y), below = y - first;
        const float* grid = factor + row / height * rows * columns;
        const float* a = grid + std::clamp<int64_t>(int64_t(first), 0, rows - 1) * columns;
        const float* b = grid + std::clamp<int64_t>(int64_t(first) + 1, 0, rows - 1) * columns;
        for (int64_t c = 0; c < columns; ++c) {
            line[c] = a[c] + (b[c] - a[c]) * below;
        }
        const float* p = points + 3 * row * width;
        float* q = out + 3 * row * width;
        for (int64_t u = 0; u < width; ++u) {
            const float l = line[left[u]], scale = l + (line[right[u]] - l) * share[u];
            q[3 * u] = p[3 * u] * scale;
            q[3 * u + 1] = p[3 * u + 1] * scale;
            q[3 * u + 2] = p[3 * u + 2] * scale;
        }
    }
}
