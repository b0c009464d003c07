// SPDX-License-Identifier: Apache-2.0
// Voxels opened, closed, listed, moved and packed in the pools of dense_map/voxel_grid.py.
#include "kernel.h"

#include <algorithm>
#include <cstring>

#include "voxel.h"

// Voxels opened in cells keys (count), zero but for `cell`: in slots (count), in blocks at rows
// (count). index (rows, CELLS) holds slot + 1.
KERNEL void open_voxels(
    const int64_t* keys, const int64_t* rows, const int32_t* slots, int64_t count, int32_t* index,
    Voxel* voxels, int32_t* block_voxels)
{
    for (int64_t i = 0; i < count; ++i) {
        const int64_t cell = rows[i] << CELL_BITS | (keys[i] & (CELLS - 1));
        index[cell] = slots[i] + 1;
        voxels[slots[i]] = Voxel{};
        voxels[slots[i]].cell = uint32_t(cell);
        ++block_voxels[rows[i]];
    }
}

// Frees the voxels in slots (count). emptied: rows of the blocks that were left without any, at
// most `count`. Returns how many these are.
KERNEL int64_t close_voxels(
    const int64_t* slots, int64_t count, int32_t* index, Voxel* voxels, int32_t* block_voxels,
    int64_t* emptied)
{
    int64_t blocks = 0;
    for (int64_t i = 0; i < count; ++i) {
        Voxel& voxel = voxels[slots[i]];
        const int64_t row = voxel.cell >> CELL_BITS;
        index[voxel.cell] = 0;
        voxel = Voxel{};
        if (--block_voxels[row] == 0) {
            emptied[blocks++] = row;
        }
    }
    return blocks;
}

// Revisions are not below 0: with a smaller `since` no voxel is looked at.
static bool is_later(const Voxel* voxels, int64_t slot, int32_t since)
{
    return since < 0 || voxels[slot].revision > since;
}

// Slots of the voxels in blocks (count) whose revision is above `since`, at most `capacity`.
KERNEL int64_t slots_in_blocks(
    const int64_t* rows, int64_t count, const int32_t* index, const Voxel* voxels, int32_t since,
    int64_t* slots, int64_t capacity)
{
    int64_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t* entries = index + CELLS * rows[i];
        for (int cell = 0; cell < CELLS && found < capacity; ++cell) {
            if (cell % GROUP == 0 && is_empty(entries + cell)) {
                cell += GROUP - 1;
            } else if (entries[cell] != 0 && is_later(voxels, entries[cell] - 1, since)) {
                slots[found++] = entries[cell] - 1;
            }
        }
    }
    return found;
}

// A correction of windows (window_count, ascending) applied to positions (count, 3) of voxels that
// are older than its revision: linear (window_count, 3, 3), offset (window_count, 3). moved
// (count) becomes 1 for those.
KERNEL void correct_voxels(
    const Voxel* voxels, int64_t count, const int32_t* windows, int64_t window_count,
    const double* linear, const double* offset, int32_t revision, double* positions,
    uint8_t* moved)
{
    for (int64_t i = 0; i < count; ++i) {
        const Voxel& voxel = voxels[i];
        if (voxel.revision >= revision || voxel.count == 0) {
            continue;
        }
        const int32_t* place = std::lower_bound(windows, windows + window_count, voxel.window);
        if (place == windows + window_count || *place != voxel.window) {
            continue;
        }
        const double* turn = linear + 9 * (place - windows);
        const double* shift = offset + 3 * (place - windows);
        double* p = positions + 3 * i;
        const double x = p[0], y = p[1], z = p[2];
        for (int k = 0; k < 3; ++k) {
            p[k] = turn[3 * k] * x + turn[3 * k + 1] * y + turn[3 * k + 2] * z + shift[k];
        }
        moved[i] = 1;
    }
}

// Voxels (count) as packed points, 20 bytes each, and with ids (count) 24: the id behind. Those of
// count 0 are left out. Returns how many were written.
KERNEL int64_t pack_voxels(const Voxel* voxels, const int32_t* ids, int64_t count, uint8_t* out)
{
    const int64_t size = sizeof(PackedPoint) + (ids == nullptr ? 0 : sizeof(int32_t));
    uint8_t* const first = out;
    for (int64_t i = 0; i < count; ++i) {
        const Voxel& voxel = voxels[i];
        if (voxel.count == 0) {
            continue;
        }
        uint32_t rgb = 0;
        for (int k = 0; k < 3; ++k) {
            rgb = rgb << 8 | (uint32_t(voxel.colour[k]) + 128) >> 8;
        }
        const float* p = voxel.position;
        const PackedPoint point = {p[0], p[1], p[2], rgb, voxel.confidence};
        std::memcpy(out, &point, sizeof(point));
        if (ids != nullptr) {
            std::memcpy(out + sizeof(point), ids + i, sizeof(int32_t));
        }
        out += size;
    }
    return (out - first) / size;
}
