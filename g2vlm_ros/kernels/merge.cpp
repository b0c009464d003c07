// SPDX-License-Identifier: Apache-2.0
// Cells found in the voxel map and folded into its voxels.
#include "kernel.h"

#include <algorithm>
#include <unordered_map>

#include "voxel.h"

// Slots (count) of the voxels of cells, -1 where there is none, and rows (count) of their blocks.
// block_keys (blocks) is sorted, block_rows says where each lies; index (rows, CELLS) holds
// slot + 1. A block that does not exist is put into new_keys (count): its row is -1 less its place
// there. absent (2): cells without a voxel, and new blocks.
KERNEL void find_cells(
    const Cell* cells, int64_t count, const int64_t* block_keys, const int32_t* block_rows,
    int64_t blocks, const int32_t* index, int64_t* slots, int64_t* rows, int64_t* new_keys,
    int64_t* absent)
{
    // Cells come in no order of their blocks, but the same few blocks come again and again.
    constexpr int REMEMBERED = 1024;
    int64_t remembered[REMEMBERED], row_of[REMEMBERED];
    std::fill(remembered, remembered + REMEMBERED, -1);
    std::unordered_map<int64_t, int64_t> new_rows;
    absent[0] = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t key = cells[i].key, block = key >> CELL_BITS;
        const int place = int(uint64_t(block) * 0x9E3779B97F4A7C15ull >> 54);
        if (remembered[place] != block) {
            const int64_t* found = std::lower_bound(block_keys, block_keys + blocks, block);
            const bool known = found < block_keys + blocks && *found == block;
            remembered[place] = block;
            if (known) {
                row_of[place] = block_rows[found - block_keys];
            } else {
                const int64_t next = -1 - int64_t(new_rows.size());
                const auto entry = new_rows.emplace(block, next).first;
                new_keys[-1 - entry->second] = block;
                row_of[place] = entry->second;
            }
        }
        rows[i] = row_of[place];
        slots[i] = rows[i] < 0 ? -1 : int64_t(index[CELLS * rows[i] + (key & (CELLS - 1))]) - 1;
        absent[0] += slots[i] < 0;
    }
    absent[1] = int64_t(new_rows.size());
}

// Cells folded into the voxels at slots (count); a voxel of count 0 is new. The mean is weighted
// by confidence, so that it does not depend on the order of folding, up to rounding and until
// MAX_COUNT. Blocks are told: their revision, newest stamp, first and last window.
KERNEL void fold_cells(
    const Cell* cells, const int64_t* slots, int64_t count, int32_t revision, Voxel* voxels,
    int64_t* block_stamp_ns, int32_t* block_first_window, int32_t* block_last_window,
    int32_t* block_revision)
{
    constexpr int64_t AHEAD = 16;  // so many cells before its turn, a voxel is fetched
    for (int64_t i = 0; i < count; ++i) {
        __builtin_prefetch(voxels + slots[std::min(i + AHEAD, count - 1)], 1);
        const Cell& cell = cells[i];
        Voxel& voxel = voxels[slots[i]];
        const double total = voxel.count * double(voxel.confidence) + cell.weight;
        const float share = float(cell.weight / total);
        const double inverse = 1.0 / cell.weight;
        for (int k = 0; k < 3; ++k) {
            const float place = float(cell.position[k] * inverse);
            const float colour = float(cell.colour[k] * inverse), before = voxel.colour[k];
            voxel.position[k] += (place - voxel.position[k]) * share;
            voxel.colour[k] = uint16_t(std::nearbyint(before + (colour - before) * share));
        }
        const bool fresh = voxel.count == 0;
        const int64_t seen = int64_t(voxel.count) + cell.count;
        voxel.confidence = float(total / double(seen));
        voxel.count = uint16_t(std::min<int64_t>(seen, MAX_COUNT));
        if (fresh || cell.stamp_ns >= voxel.stamp_ns) {
            voxel.stamp_ns = cell.stamp_ns;
            voxel.window = cell.window;
        }
        if (fresh) {
            voxel.born = revision;
        }
        voxel.revision = revision;
        const int64_t row = voxel.cell >> CELL_BITS;
        block_revision[row] = revision;
        block_stamp_ns[row] = std::max(block_stamp_ns[row], voxel.stamp_ns);
        block_first_window[row] = std::min(block_first_window[row], voxel.window);
        block_last_window[row] = std::max(block_last_window[row], voxel.window);
    }
}
