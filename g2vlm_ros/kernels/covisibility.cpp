// SPDX-License-Identifier: Apache-2.0
// How far the views of one window show the same surfaces: points of each seen from each other.
#include "kernel.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "small_matrix.h"

constexpr double NONE = std::numeric_limits<double>::quiet_NaN();

static double brightness(const uint8_t* colour)
{
    return (double(colour[0]) + colour[1] + colour[2]) / 3.0;
}

// Correlation of brightness; NaN where there are too few points or one side is flat.
static double correlation(
    const std::vector<double>& a, const std::vector<double>& b, size_t min_points)
{
    const size_t n = a.size();
    if (n < min_points) {
        return NONE;
    }
    double mean_a = 0, mean_b = 0, aa = 0, bb = 0, ab = 0;
    for (size_t k = 0; k < n; ++k) {
        mean_a += a[k] / double(n);
        mean_b += b[k] / double(n);
    }
    for (size_t k = 0; k < n; ++k) {
        const double x = a[k] - mean_a, y = b[k] - mean_b;
        aa += x * x;
        bb += y * y;
        ab += x * y;
    }
    if (aa < double(n) || bb < double(n)) {  // a deviation below one grey level
        return NONE;
    }
    return ab / std::sqrt(aa * bb);
}

// Every step-th pixel of each view as each other view sees it -> seen (views, views, rows,
// columns), of view i in view j; those of a view in itself and in views without a known camera are
// not written.
KERNEL void see_grid(
    const float* points, const float* poses, const float* pinholes, int64_t views, int64_t height,
    int64_t width, int64_t step, GridSighting* seen)
{
    const Pinhole* lens = reinterpret_cast<const Pinhole*>(pinholes);
    const int64_t rows = (height + step - 1) / step, columns = (width + step - 1) / step;
    for (int64_t i = 0; i < views; ++i) {
        for (int64_t j = 0; j < views; ++j) {
            if (i == j || !lens[j].known()) {
                continue;
            }
            GridSighting* out = seen + (i * views + j) * rows * columns;
            for (int64_t at = 0; at < rows * columns; ++at) {
                const int64_t v = at / columns * step, u = at % columns * step;
                const float* point = points + 3 * ((i * height + v) * width + u);
                const float *here = poses + 16 * i, *there = poses + 16 * j;
                out[at] = sighting_of(point, here, there, lens[j], height, width);
                __builtin_prefetch(points + 3 * (j * height * width + most(out[at].pixel, 0)) + 2);
            }
            for (int64_t at = 0; at < rows * columns; ++at) {
                out[at].surface =
                    points[3 * (j * height * width + most(out[at].pixel, 0)) + 2];
            }
        }
    }
}

// seen as `see_grid` has it; colours (views, height, width, 3), pinholes (views, 4). agreement and
// nearness: bounds of |log depth ratio|. Each out is (views, views), of points of view i in view
// j: shared, the share that lies on j's surface; alike, the correlation of brightness there;
// stretch, the median logarithm of the depth over that of the surface, of the points near it.
KERNEL void covisibility(
    const GridSighting* seen, const uint8_t* colours, const float* pinholes, int64_t views,
    int64_t height, int64_t width, int64_t step, double agreement, double nearness,
    int64_t min_points, double* shared, double* alike, double* stretch)
{
    const Pinhole* lens = reinterpret_cast<const Pinhole*>(pinholes);
    const int64_t rows = (height + step - 1) / step, columns = (width + step - 1) / step;
    std::vector<double> off, from, to;
    std::fill(shared, shared + views * views, NONE);
    std::fill(alike, alike + views * views, NONE);
    std::fill(stretch, stretch + views * views, NONE);
    for (int64_t j = 0; j < views; ++j) {
        if (!lens[j].known()) {
            continue;
        }
        shared[j * views + j] = alike[j * views + j] = 1.0;
        for (int64_t i = 0; i < views; ++i) {
            if (i == j) {
                continue;
            }
            off.clear();
            from.clear();
            to.clear();
            const GridSighting* sightings = seen + (i * views + j) * rows * columns;
            for (int64_t at = 0; at < rows * columns; ++at) {
                const GridSighting& each = sightings[at];
                if (each.pixel < 0) {
                    continue;
                }
                const double log_ratio = std::log(std::max(each.depth, 1e-9) / each.surface);
                if (std::fabs(log_ratio) < nearness) {
                    off.push_back(log_ratio);
                }
                if (std::fabs(log_ratio) < agreement) {
                    const int64_t v = at / columns * step, u = at % columns * step;
                    from.push_back(brightness(colours + 3 * ((i * height + v) * width + u)));
                    to.push_back(brightness(colours + 3 * (j * height * width + each.pixel)));
                }
            }
            shared[i * views + j] = double(from.size()) / double(rows * columns);
            alike[i * views + j] = correlation(from, to, size_t(min_points));
            if (int64_t(off.size()) >= min_points) {
                stretch[i * views + j] = median_of(off);
            }
        }
    }
}
