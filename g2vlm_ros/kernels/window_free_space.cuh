// SPDX-License-Identifier: Apache-2.0
// What a depth view proves empty, on a device.
#pragma once

#include "device_kernel.cuh"
#include "posed_camera.cuh"

// As the kernel of free_space.cpp, of one view of points (views, height, width, 3).
DEVICE_KERNEL trusted_depths(
    const float* points, const float* confidence, int64_t view, int64_t height, int64_t width,
    float scale, float min_confidence, int64_t step, float* out)
{
    const int64_t rows = (height + step - 1) / step, columns = (width + step - 1) / step;
    FOR_EACH(i, rows * columns) {
        const int64_t at = (view * height + i / columns * step) * width + i % columns * step;
        out[i] = trusted_depth(points[3 * at + 2], scale, confidence[at], min_confidence);
    }
}

// Of trusted depths (height, width): nearest (height, width) as `free_depth` of free_space.cpp,
// and the bits of the largest ones: of `nearest` in each tile, and of all depths behind them.
DEVICE_KERNEL nearest_depths(
    const float* depth, int64_t height, int64_t width, int64_t tile, int64_t tile_columns,
    float* nearest, int32_t* largest)
{
    const int64_t tiles = (height + tile - 1) / tile * tile_columns;
    FOR_EACH(i, height * width) {
        const int64_t u = i % width, v = i / width;
        float low = depth[i];
        for (int64_t y = v - 1; y <= v + 1; ++y) {
            for (int64_t x = u - 1; x <= u + 1; ++x) {
                const bool inside = x >= 0 && y >= 0 && x < width && y < height;
                low = least(low, inside ? depth[y * width + x] : 0.0f);
            }
        }
        nearest[i] = low;
        raise_to(largest + v / tile * tile_columns + u / tile, bits_of(low));
        raise_to(largest + tiles, bits_of(depth[i]));
    }
}

// Of these bits the depths: farthest (tile_rows, tile_columns) as `free_depth` has it, the largest
// of all behind them.
DEVICE_KERNEL farthest_depths(
    const float* largest, int64_t tile_rows, int64_t tile_columns, float* farthest)
{
    FOR_EACH(i, tile_rows * tile_columns + 1) {
        const int64_t r = i / tile_columns, c = i % tile_columns;
        float most_around = largest[i];
        for (int64_t y = most<int64_t>(r - TILES_AROUND, 0);
             r < tile_rows && y <= least(r + TILES_AROUND, tile_rows - 1); ++y) {
            for (int64_t x = most<int64_t>(c - TILES_AROUND, 0);
                 x <= least(c + TILES_AROUND, tile_columns - 1); ++x) {
                most_around = most(most_around, largest[y * tile_columns + x]);
            }
        }
        farthest[i] = most_around;
    }
}

// passed (count): whether the view saw through voxels at places (count, 3).
DEVICE_KERNEL find_seen_through(
    const float* places, int64_t count, const float* nearest, const double* pose,
    const float* pinhole, int64_t height, int64_t width, float slack, uint8_t* passed)
{
    FOR_EACH(i, count) {
        const PosedCamera camera(pose, pinhole, height, width);
        passed[i] = camera.sees_through(places + 3 * i, nearest, width, slack);
    }
}
