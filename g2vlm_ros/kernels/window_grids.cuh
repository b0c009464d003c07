// SPDX-License-Identifier: Apache-2.0
// Small grids of a window's points for what the host computes by them, on a device.
#pragma once

#include "device_kernel.cuh"

// Pixels of points (views, height, width, 3) that are not valid, and those beside them: as bits,
// the first pixel's the highest of the first byte.
DEVICE_KERNEL uneven_bits(
    const float* points, int64_t views, int64_t height, int64_t width, float edge_step,
    uint8_t* bits)
{
    const int64_t count = views * height * width;
    FOR_EACH(i, (count + 7) / 8) {
        int byte = 0;
        for (int64_t at = 8 * i; at < least(8 * i + 8, count); ++at) {
            const float* view = points + 3 * (at / (height * width) * height * width);
            const int64_t u = at % width, v = at / width % height;
            bool even = true;
            for (int64_t y = most<int64_t>(v - 1, 0); y <= least(v + 1, height - 1); ++y) {
                for (int64_t x = most<int64_t>(u - 1, 0); x <= least(u + 1, width - 1); ++x) {
                    even = even && is_valid(view, x, y, width, height, edge_step);
                }
            }
            byte |= even ? 0 : 128 >> (at - 8 * i);
        }
        bits[i] = uint8_t(byte);
    }
}

// grey (height, width) of a source as a target with points, one of the views, sees it.
DEVICE_KERNEL warp_image(
    const float* points, int64_t target, int64_t height, int64_t width, const float* affine,
    const float* camera, const uint8_t* grey, uint8_t* out)
{
    FOR_EACH(i, height * width) {
        const Pinhole lens = {camera[0], camera[1], camera[2], camera[3]};
        const SeenAt seen = seen_at(points + 3 * (target * height * width + i), affine, lens);
        out[i] = grey_at(grey, height, width, seen.x, seen.y);
    }
}

// As the kernel of pinhole.cpp; a thread for each row.
DEVICE_KERNEL lines_of_rows(
    const float* points, int64_t views, int64_t height, int64_t width, int64_t step,
    RowLines* lines)
{
    const int64_t rows = (height + step - 1) / step;
    FOR_EACH(i, views * rows) {
        const int64_t v = i % rows * step;
        lines[i] = RowLines(points + 3 * (i / rows * height + v) * width, v, width, step);
    }
}

// As the kernel of surfaces.cpp.
DEVICE_KERNEL surface_normals(
    const float* points, const float* poses, int64_t views, int64_t rows, int64_t columns,
    int64_t height, int64_t width, int64_t reach, int64_t step, double max_bend, double* normals)
{
    FOR_EACH(i, views * rows * columns) {
        const int64_t u = reach + step * (i % columns), view = i / (rows * columns);
        const int64_t v = reach + step * (i / columns % rows);
        const float* p = points + 3 * ((view * height + v) * width + u);
        const int64_t beside = 3 * reach, across = 3 * reach * width;
        surface_normal(p, p - beside, p + beside, p - across, p + across, poses + 16 * view,
                       max_bend, normals + 3 * i);
    }
}
