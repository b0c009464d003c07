// SPDX-License-Identifier: Apache-2.0
// The cells of the voxel map, and which points of a window go into which: once for the processor
// and for a GPU, as pixel.cuh.
#pragma once

#include "pixel.cuh"

constexpr int CELL_BITS = 9;  // 8 x 8 x 8 cells in a block
constexpr int AXIS_BITS = 18;
constexpr int64_t BIAS = 8ll << (AXIS_BITS - 1);

// CELL of records.py: what is to be folded into one cell, sums weighted by confidence.
struct Cell {
    int64_t key;
    int64_t stamp_ns;  // of the newest contribution
    double weight;
    double position[3], colour[3];  // sums; colour in 1/256 steps
    int32_t count, window;  // of the newest contribution
};
static_assert(sizeof(Cell) == 80, "CELL of records.py");

// A cell as it travels from a device to the host: its mean place as parts of 2**16 of its edge.
struct PackedCell {
    uint32_t key_low, key_high;
    float weight;
    uint32_t count;
    uint16_t place[3], colour[3];
};
static_assert(sizeof(PackedCell) == 28, "PACKED_CELL_BYTES of cells.py");

ON_BOTH int64_t floor_of(double x)
{
    const int64_t whole = int64_t(x);
    return whole - (x < double(whole));
}

// The key of the cell that holds a point, or -1 when it is not finite or farther than 2**20 voxels
// from the origin along an axis. inverse_size: 1 / edge of a voxel.
ON_BOTH int64_t key_of(double x, double y, double z, double inverse_size)
{
    x *= inverse_size;
    y *= inverse_size;
    z *= inverse_size;
    const double limit = double(BIAS);
    const bool inside = x >= -limit + 1 && x < limit && y >= -limit + 1 && y < limit
        && z >= -limit + 1 && z < limit;
    if (!inside) {
        return -1;
    }
    const int64_t i = floor_of(x) + BIAS, j = floor_of(y) + BIAS, k = floor_of(z) + BIAS;
    const int64_t block = ((i >> 3) << AXIS_BITS | j >> 3) << AXIS_BITS | k >> 3;
    return block << CELL_BITS | (i & 7) << 6 | (j & 7) << 3 | (k & 7);
}

// The lower corner of a cell, in voxels.
ON_BOTH void corner_of(int64_t key, int64_t* corner)
{
    const int64_t mask = (1ll << AXIS_BITS) - 1, block = key >> CELL_BITS;
    corner[0] = ((block >> 2 * AXIS_BITS & mask) << 3 | (key >> 6 & 7)) - BIAS;
    corner[1] = ((block >> AXIS_BITS & mask) << 3 | (key >> 3 & 7)) - BIAS;
    corner[2] = ((block & mask) << 3 | (key & 7)) - BIAS;
}

ON_BOTH PackedCell pack_cell(const Cell& sums, int64_t key, double inverse_size)
{
    PackedCell packed = {uint32_t(key), uint32_t(uint64_t(key) >> 32), float(sums.weight),
                         uint32_t(sums.count), {}, {}};
    int64_t corner[3];
    corner_of(key, corner);
    for (int k = 0; k < 3; ++k) {
        const double place = sums.position[k] / sums.weight * inverse_size - double(corner[k]);
        packed.place[k] = uint16_t(between(place * 65536.0, 0.0, 65535.0));
        packed.colour[k] = uint16_t(nearbyint(sums.colour[k] / sums.weight));
    }
    return packed;
}

constexpr int TILE_PX = 16;
constexpr float UNKNOWN_CONFIDENCE = 0.1f;  // of a NaN: it counts, but gives way to any known one
constexpr float MIN_WEIGHT = 1e-3f;

ON_BOTH float weight_of(float confidence)
{
    if (confidence != confidence) {
        return UNKNOWN_CONFIDENCE;
    }
    return least(most(confidence, MIN_WEIGHT), 1.0f);
}

// Pixels from one sample to the next so that a voxel gets one sample at this depth: a power of two
// up to TILE_PX. per_depth: pixels of a voxel's edge at depth 1, 0 where the camera is unknown.
ON_BOTH int stride_at(float depth, double per_depth)
{
    const double pixels = depth > 0 ? per_depth / depth : 0.0;
    int stride = 1;
    while (stride < TILE_PX && 2 * stride <= pixels) {
        stride *= 2;
    }
    return stride;
}

// How often a tile of pixels that begins at (u0, v0) of a point map is sampled: by its middle.
ON_BOTH int tile_stride(
    const float* points, int64_t u0, int64_t v0, int64_t width, int64_t height, double per_depth)
{
    const int64_t u = least(u0 + TILE_PX / 2, width - 1);
    const int64_t v = least(v0 + TILE_PX / 2, height - 1);
    return stride_at(points[3 * (v * width + u) + 2], per_depth);
}

// Which of the valid points enter a map: not those below min_confidence (NaN passes if that is 0)
// or below `contradicted` (NaN passes), nor those beyond max_depth.
struct PointLimits {
    float min_confidence, contradicted, max_depth;
    ON_BOTH bool pass(float confidence, float depth) const
    {
        return is_trusted(confidence, min_confidence) && !(confidence < contradicted)
            && !(depth > max_depth);
    }
};
