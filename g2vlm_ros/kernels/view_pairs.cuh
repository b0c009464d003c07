// SPDX-License-Identifier: Apache-2.0
// The arithmetic of points that other views see, as pixel.cuh.
#pragma once

#include "pixel.cuh"

// --- Views warped into each other (window_adjustment.cpp) ---------------------------------------

// Where a camera sees a point: pixels, far outside for one behind it, and the depth.
struct SeenAt {
    float x, y, depth;
};

ON_BOTH SeenAt seen_at(const float* point, const float* affine, Pinhole lens)
{
    constexpr float OUTSIDE = -1000;
    float moved[3];
    transform(affine, point, moved);
    const float near = 1 / moved[2];
    const float x = lens.fx * moved[0] * near + lens.cx;
    const float y = lens.fy * moved[1] * near + lens.cy;
    const bool ahead = (moved[2] > 0) & is_finite(x) & is_finite(y);
    return {ahead ? x : OUTSIDE, ahead ? y : OUTSIDE, moved[2]};
}

ON_BOTH float mixed(float before, float after, float share)
{
    return before + (after - before) * share;
}

// An image (height, width) at a place between its pixels, linearly; outside it is 0.
ON_BOTH uint8_t grey_at(const uint8_t* image, int64_t height, int64_t width, float x, float y)
{
    const float left = floorf(x), top = floorf(y);
    if (!(left >= -1 && top >= -1 && left < float(width) && top < float(height))) {
        return 0;
    }
    const int64_t u = int64_t(left), v = int64_t(top);
    const bool has_left = u >= 0, has_right = u + 1 < width;
    float lines[2] = {};
    for (int k = 0; k < 2; ++k) {
        if (v + k >= 0 && v + k < height) {
            const uint8_t* line = image + (v + k) * width + u;
            lines[k] = mixed(has_left ? line[0] : 0.0f, has_right ? line[1] : 0.0f, x - left);
        }
    }
    return uint8_t((mixed(lines[0], lines[1], y - top) + TO_WHOLE) - TO_WHOLE);
}

// --- Agreement of views (confidence.cpp) -------------------------------------------------------

// Where a view sees a point: the index of the nearest pixel, or -1, and the depth. Without
// branches, so that compilers make vector instructions of loops with it.
struct SeenPoint {
    int32_t pixel;
    float depth;
};

ON_BOTH SeenPoint see_point(
    const float* point, const float* affine, Pinhole lens, int32_t height, int32_t width)
{
    float q[3];
    transform(affine, point, q);
    const float u = lens.fx * q[0] / q[2] + lens.cx, v = lens.fy * q[1] / q[2] + lens.cy;
    const bool inside = (q[2] > 0) & (u > -0.5f) & (v > -0.5f) & (u < float(width) - 0.5f)
        & (v < float(height) - 0.5f);
    const int32_t column = least(int32_t((inside ? u : 0.0f) + 0.5f), width - 1);
    const int32_t line = least(int32_t((inside ? v : 0.0f) + 0.5f), height - 1);
    return {inside ? line * width + column : -1, q[2]};
}

// What another view says of a point whose relative error of depth there is known.
struct Agreement {
    float share, counts;  // 0 to 1; 1, or 0 where it says nothing: the point is hidden there
};

ON_BOTH Agreement agreement_of(float error, float hidden_from, float inverse_step)
{
    const bool counts = error <= hidden_from;
    const float steps = counts ? fabsf(error) * inverse_step : 0.0f;
    const float share = exponential_of(-least(steps, 80.0f));
    return {counts ? share : 0.0f, counts ? 1.0f : 0.0f};
}

// --- Views of the same surfaces (covisibility.cpp) ----------------------------------------------

// A point as another view sees it.
struct GridSighting {
    double depth;
    float surface;  // depth of what that view shows there
    int32_t pixel;  // -1: outside of the image
};

// A point of a view (here: its pose, 4 x 4, in the window) seen by another one; all but the
// surface.
ON_BOTH GridSighting sighting_of(
    const float* point, const float* here, const float* there, Pinhole lens, int64_t height,
    int64_t width)
{
    float p[3];
    transform(here, point, p);
    double q[3] = {};  // as the other view has it: the turn is transposed
    for (int row = 0; row < 3; ++row) {
        const double d = p[row] - double(there[4 * row + 3]);
        for (int axis = 0; axis < 3; ++axis) {
            q[axis] += there[4 * row + axis] * d;
        }
    }
    const double x = nearbyint(lens.fx * q[0] / q[2] + lens.cx);
    const double y = nearbyint(lens.fy * q[1] / q[2] + lens.cy);
    const bool inside =
        q[2] > 0 && x >= 0 && y >= 0 && x < double(width) && y < double(height);
    return {q[2], 0.0f, inside ? int32_t(int64_t(y) * width + int64_t(x)) : -1};
}

// --- Fused depth (depth_fusion.cpp) ------------------------------------------------------------

// The surface of one view on the small grid: inverse depth, and where there are depth edges.
struct SurfaceGrid {
    const float* nearness;
    const uint8_t* edge;
    int64_t height, width;

    // Inverse depth at a place inside the image; the inverse depth of a plane is linear in it. 0
    // beside an edge.
    ON_BOTH float at(float u, float v) const
    {
        const float left = floorf(u), top = floorf(v), a = u - left, b = v - top;
        const int64_t u0 = most<int64_t>(int64_t(left), 0);
        const int64_t v0 = most<int64_t>(int64_t(top), 0) * width;
        const int64_t u1 = least(int64_t(left) + 1, width - 1);
        const int64_t v1 = least(int64_t(top) + 1, height - 1) * width;
        if (edge[v0 + u0] | (edge[v0 + u1] & (a > 0)) | (edge[v1 + u0] & (b > 0))
            | (edge[v1 + u1] & (a > 0) & (b > 0))) {
            return 0.0f;
        }
        return (nearness[v0 + u0] * (1 - a) + nearness[v0 + u1] * a) * (1 - b)
            + (nearness[v1 + u0] * (1 - a) + nearness[v1 + u1] * a) * b;
    }
};

// Where another view sees a point, in pixels of the small grid, and how deep.
struct Projection {
    float u, v, z;
    ON_BOTH bool inside(int64_t height, int64_t width) const
    {
        return z > 0 && u > -0.5f && v > -0.5f && u < width - 0.5f && v < height - 0.5f;
    }
};

ON_BOTH Projection projection_of(const float* point, const float* affine, Pinhole lens)
{
    float q[3];
    transform(affine, point, q);
    return {lens.fx * q[0] / q[2] + lens.cx, lens.fy * q[1] / q[2] + lens.cy, q[2]};
}

// What one view adds to the least-squares step of the logarithm of a pixel's depth: the sums of
// step * weight and of weight.
struct Pull {
    float step, weight;
};

// ratio: a point's depth in the other view over that of the surface there, outside of floats where
// there is none. offset: depth of this camera's centre in the other view.
ON_BOTH Pull pull_of(float ratio, float depth, float offset, float inverse_tolerance)
{
    constexpr float SMALLEST = 1.17549435e-38f, LARGEST = 3.40282347e+38f;
    const bool counts = (ratio > SMALLEST) & (ratio < LARGEST);
    const float error = -logarithm_of(counts ? ratio : 1.0f);
    // How fast the depth there changes with the point's own.
    const float slope = (depth - offset) / depth;
    const float relative = error * inverse_tolerance;
    const float doubt = 1 + relative * relative;
    const float share = slope / (doubt * doubt);
    return {counts ? share * error : 0.0f, counts ? share * slope : 0.0f};
}

ON_BOTH float fusion_factor(float step, float weight)
{
    return exponential_of(least(most(step / weight, -80.0f), 80.0f));
}

// Where a pixel of an axis lies between the middles of a grid's larger pixels.
struct GridPlace {
    int64_t before, after;
    float share;  // of the one after
};

ON_BOTH GridPlace grid_place(int64_t pixel, int64_t pixels, int64_t cells)
{
    const float x = (pixel + 0.5f) * float(cells) / float(pixels) - 0.5f, first = floorf(x);
    const int64_t before = between<int64_t>(int64_t(first), 0, cells - 1);
    return {before, between<int64_t>(int64_t(first) + 1, 0, cells - 1), x - first};
}
