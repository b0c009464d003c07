// SPDX-License-Identifier: Apache-2.0
// How far the views of one window show the same surfaces: points of each seen from each other.
#include "kernel.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "small_matrix.h"

// A pixel of view i that view j shows: both by index, and its depth there.
struct SeenPixel {
    int64_t at, seen;
    double depth;
};

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

// points (views, height, width, 3), colours alike, poses (views, 4, 4) window_from_camera,
// pinholes (views, 4); every step-th pixel is seen from the other views. agreement and nearness:
// bounds of |log depth ratio|. Each out is (views, views), of points of view i in view j:
// shared, the share that lies on j's surface; alike, the correlation of brightness there; stretch,
// the median logarithm of the depth over that of the surface, of the points near it.
KERNEL void covisibility(
    const float* points, const uint8_t* colours, const float* poses, const float* pinholes,
    int64_t views, int64_t height, int64_t width, int64_t step, double agreement, double nearness,
    int64_t min_points, double* shared, double* alike, double* stretch)
{
    const Pinhole* lens = reinterpret_cast<const Pinhole*>(pinholes);
    std::vector<double> off, from, to;
    std::vector<SeenPixel> pixels;
    std::fill(shared, shared + views * views, NONE);
    std::fill(alike, alike + views * views, NONE);
    std::fill(stretch, stretch + views * views, NONE);
    for (int64_t j = 0; j < views; ++j) {
        if (!lens[j].known()) {
            continue;
        }
        shared[j * views + j] = alike[j * views + j] = 1.0;
        const float* there = poses + 16 * j;
        for (int64_t i = 0; i < views; ++i) {
            if (i == j) {
                continue;
            }
            const float* here = poses + 16 * i;
            off.clear();
            from.clear();
            to.clear();
            pixels.clear();
            int64_t count = 0;
            for (int64_t v = 0; v < height; v += step) {
                for (int64_t u = 0; u < width; u += step) {
                    ++count;
                    const int64_t at = (i * height + v) * width + u;
                    float p[3];
                    transform(here, points + 3 * at, p);
                    double q[3] = {};  // as view j has it: the turn is transposed
                    for (int row = 0; row < 3; ++row) {
                        const double d = p[row] - double(there[4 * row + 3]);
                        for (int axis = 0; axis < 3; ++axis) {
                            q[axis] += there[4 * row + axis] * d;
                        }
                    }
                    if (!(q[2] > 0)) {
                        continue;
                    }
                    const double x = std::nearbyint(lens[j].fx * q[0] / q[2] + lens[j].cx);
                    const double y = std::nearbyint(lens[j].fy * q[1] / q[2] + lens[j].cy);
                    if (!(x >= 0 && y >= 0 && x < double(width) && y < double(height))) {
                        continue;
                    }
                    const int64_t seen = (j * height + int64_t(y)) * width + int64_t(x);
                    __builtin_prefetch(points + 3 * seen + 2);
                    __builtin_prefetch(colours + 3 * seen);
                    pixels.push_back({at, seen, q[2]});
                }
            }
            for (const SeenPixel& each : pixels) {
                const double surface = points[3 * each.seen + 2];
                const double log_ratio = std::log(std::max(each.depth, 1e-9) / surface);
                if (std::fabs(log_ratio) < nearness) {
                    off.push_back(log_ratio);
                }
                if (std::fabs(log_ratio) < agreement) {
                    from.push_back(brightness(colours + 3 * each.at));
                    to.push_back(brightness(colours + 3 * each.seen));
                }
            }
            shared[i * views + j] = double(from.size()) / double(count);
            alike[i * views + j] = correlation(from, to, size_t(min_points));
            if (int64_t(off.size()) >= min_points) {
                stretch[i * views + j] = median_of(off);
            }
        }
    }
}
