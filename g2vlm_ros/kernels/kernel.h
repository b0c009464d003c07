// SPDX-License-Identifier: Apache-2.0
// What all kernels share. Arrays are C-contiguous; api.py checks their shapes and types, so that a
// kernel may believe its arguments. Lengths are in map or model units, depth is z of the optical
// frame, the centre of the top-left pixel is (0, 0).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define KERNEL extern "C" __attribute__((visibility("default")))

// A depth differs from its neighbour's by more than a fraction of the nearer one: a depth edge.
inline bool is_step(float depth, float beside, float relative_step)
{
    const float nearer = depth < beside ? depth : beside;
    return std::fabs(depth - beside) > relative_step * nearer;
}

inline bool is_finite(float value) { return value - value == 0.0f; }

// e to a power of -80 to 80, to 2 units of the last place; without branches, so that compilers
// make vector instructions of loops with it (Cephes, expf).
inline float exponential_of(float power)
{
    constexpr float WHOLE = 12582912.0f;  // 1.5 * 2**23: what is added to it loses its fraction
    const float whole = (power * 1.44269504f + WHOLE) - WHOLE;
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
    std::memcpy(&scale, &bits, sizeof(scale));
    return mantissa * scale;
}

// The natural logarithm of a normal number above 0, alike (Cephes, logf).
inline float logarithm_of(float value)
{
    int32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    // value = 2**exponent * mantissa, mantissa in sqrt(1/2) to sqrt(2)
    const int32_t exponent = (bits - 0x3f3504f3) >> 23;
    const int32_t rest = bits - exponent * (1 << 23);
    float mantissa;
    std::memcpy(&mantissa, &rest, sizeof(mantissa));
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
inline void transform(const float* affine, const float* point, float* out)
{
    for (int axis = 0; axis < 3; ++axis) {
        const float* row = affine + 4 * axis;
        out[axis] = row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3];
    }
}

// A pinhole camera in pixels; fx 0 stands for an unknown one. The layout of (N, 4) arrays.
struct Pinhole {
    float fx, fy, cx, cy;
    bool known() const { return fx > 0; }
};

// A point of a PointCloud2 message, with colour as 0x00RRGGBB.
struct PackedPoint {
    float x, y, z;
    uint32_t rgb;
    float confidence;
};
static_assert(sizeof(PackedPoint) == 20, "POINT_BYTES of geometry/point_cloud.py");
