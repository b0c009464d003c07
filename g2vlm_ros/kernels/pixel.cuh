// SPDX-License-Identifier: Apache-2.0
// The arithmetic of single pixels, once for the loops of the processor (*.cpp) and for the threads
// of a GPU (*.cu). Needs no header where NVRTC compiles it, which has none.
#pragma once

#ifdef __CUDACC__
#define ON_BOTH __host__ __device__ inline
#else
#define ON_BOTH inline
#endif

#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define NAN __int_as_float(0x7fffffff)
#else
#include <cmath>
#include <cstdint>
#include <cstring>
#endif

template <class T> ON_BOTH T least(T a, T b) { return b < a ? b : a; }
template <class T> ON_BOTH T most(T a, T b) { return a < b ? b : a; }
template <class T> ON_BOTH T between(T value, T low, T high)
{
    return most(low, least(value, high));
}

// A depth differs from its neighbour's by more than a fraction of the nearer one: a depth edge.
ON_BOTH bool is_step(float depth, float beside, float relative_step)
{
    const float nearer = depth < beside ? depth : beside;
    return fabsf(depth - beside) > relative_step * nearer;
}

ON_BOTH bool is_finite(float value) { return value - value == 0.0f; }

constexpr float TO_WHOLE = 12582912.0f;  // 1.5 * 2**23: what is added to it loses its fraction

// e to a power of -80 to 80, to 2 units of the last place; without branches, so that compilers
// make vector instructions of loops with it (Cephes, expf).
ON_BOTH float exponential_of(float power)
{
    const float whole = (power * 1.44269504f + TO_WHOLE) - TO_WHOLE;
    const float rest = (power - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float series = 1.9875691500e-4f;
    series = series * rest + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    const float mantissa = series * rest * rest + rest + 1.0f;
    const int32_t bits = (int32_t(whole) + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof(scale));
    return mantissa * scale;
}

// The natural logarithm of a normal number above 0, alike (Cephes, logf).
ON_BOTH float logarithm_of(float value)
{
    int32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    // value = 2**exponent * mantissa, mantissa in sqrt(1/2) to sqrt(2)
    const int32_t exponent = (bits - 0x3f3504f3) >> 23;
    const int32_t rest = bits - exponent * (1 << 23);
    float mantissa;
    memcpy(&mantissa, &rest, sizeof(mantissa));
    const float x = mantissa - 1.0f, square = x * x, whole = float(exponent);
    float series = 7.0376836292e-2f;
    series = series * x - 1.1514610310e-1f;
    series = series * x + 1.1676998740e-1f;
    series = series * x - 1.2420140846e-1f;
    series = series * x + 1.4249322787e-1f;
    series = series * x - 1.6668057665e-1f;
    series = series * x + 2.0000714765e-1f;
    series = series * x - 2.4999993993e-1f;
    series = series * x + 3.3333331174e-1f;
    return (series * x * square - 2.12194440e-4f * whole - 0.5f * square) + x
        + 0.693359375f * whole;
}

// affine: 3 x 4, row-major.
ON_BOTH void transform(const float* affine, const float* point, float* out)
{
    for (int axis = 0; axis < 3; ++axis) {
        const float* row = affine + 4 * axis;
        out[axis] = row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3];
    }
}

// A pinhole camera in pixels; fx 0 stands for an unknown one. The layout of (N, 4) arrays.
struct Pinhole {
    float fx, fy, cx, cy;
    ON_BOTH bool known() const { return fx > 0; }
};

// A point moved onto the ray of pixel (u, v) of a known camera; its depth stays.
ON_BOTH void set_ray(float* point, float u, float v, Pinhole lens)
{
    point[0] = (u - lens.cx) / lens.fx * point[2];
    point[1] = (v - lens.cy) / lens.fy * point[2];
}

// Sums of the least-squares line y = slope x + offset over finite x.
struct Line {
    double n = 0, x = 0, y = 0, xx = 0, xy = 0;

    ON_BOTH void add(double px, double py)
    {
        if (px - px == 0) {
            n += 1;
            x += px;
            y += py;
            xx += px * px;
            xy += px * py;
        }
    }
};

// What a row of points says of a camera: u = fx x/z + cx, v = fy y/z + cy.
struct RowLines {
    Line across, down;

    // Every step-th of a row's points (width, 3).
    ON_BOTH RowLines(const float* row, int64_t v, int64_t width, int64_t step)
    {
        for (int64_t u = 0; u < width; u += step) {
            const float* p = row + 3 * u;
            across.add(p[0] / double(p[2]), double(u));
            down.add(p[1] / double(p[2]), double(v));
        }
    }
};

// The unit normal of a surface by the point p of a pixel and those left, right, above and below of
// it, in the frame of a pose (4, 4); NaN where depth bends by max_bend of itself or more.
ON_BOTH void surface_normal(
    const float* p, const float* left, const float* right, const float* above, const float* below,
    const float* pose, double max_bend, double* out)
{
    const double depth = p[2];
    const double bend_x = double(left[2]) + right[2] - 2 * depth;
    const double bend_y = double(above[2]) + below[2] - 2 * depth;
    const double limit = max_bend * depth;
    const bool smooth = fabs(bend_x) < limit && fabs(bend_y) < limit;
    double upright[3], level[3], normal[3];
    for (int axis = 0; axis < 3; ++axis) {
        upright[axis] = double(below[axis]) - above[axis];
        level[axis] = double(right[axis]) - left[axis];
    }
    for (int axis = 0; axis < 3; ++axis) {
        const int next = (axis + 1) % 3, last = (axis + 2) % 3;
        normal[axis] = upright[next] * level[last] - upright[last] * level[next];
    }
    const double length =
        sqrt(normal[0] * normal[0] + normal[1] * normal[1] + normal[2] * normal[2]);
    for (int axis = 0; axis < 3; ++axis) {
        const float* turn = pose + 4 * axis;
        const double turned = turn[0] * normal[0] + turn[1] * normal[1] + turn[2] * normal[2];
        out[axis] = smooth && length > 0 ? turned / length : double(NAN);
    }
}

// A point of a PointCloud2 message, with colour as 0x00RRGGBB.
struct PackedPoint {
    float x, y, z;
    uint32_t rgb;
    float confidence;
};
static_assert(sizeof(PackedPoint) == 20, "POINT_BYTES of geometry/point_cloud.py");

// Whether a point can be one: finite, and in front of the camera.
ON_BOTH bool is_in_front(const float* point)
{
    const float sum = point[0] + point[1] + point[2];
    return is_finite(sum) & (point[2] > 0.0f);
}

// Whether pixel (u, v) of a point map (height, width, 3) belongs into clouds and maps: in front,
// and at no depth step to its four neighbours. edge_step 0 keeps steps.
ON_BOTH bool is_valid(
    const float* points, int64_t u, int64_t v, int64_t width, int64_t height, float edge_step)
{
    const float* p = points + 3 * (v * width + u);
    if (!is_in_front(p) || !(edge_step > 0.0f)) {
        return is_in_front(p);
    }
    const int64_t row = 3 * width;
    return !(u > 0 && is_step(p[2], p[2 - 3], edge_step))
        && !(u < width - 1 && is_step(p[2], p[2 + 3], edge_step))
        && !(v > 0 && is_step(p[2], p[2 - row], edge_step))
        && !(v < height - 1 && is_step(p[2], p[2 + row], edge_step));
}

// Whether a confidence is known well enough; an unknown one (NaN) passes where the bound is 0.
ON_BOTH bool is_trusted(float confidence, float min_confidence)
{
    return !(min_confidence > 0) | (confidence >= min_confidence);
}

ON_BOTH PackedPoint packed_point(const float* place, const uint8_t* colour, float confidence)
{
    const uint32_t rgb = uint32_t(colour[0]) << 16 | uint32_t(colour[1]) << 8 | colour[2];
    return {place[0], place[1], place[2], rgb, confidence};
}
