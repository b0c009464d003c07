// SPDX-License-Identifier: Apache-2.0
// A window's points summed up by the cell of the map that they fall into, on a device.
//
// Sums go by atomics into a hash table: a cell's points come from several views and tiles, so that
// a sort would move 150 000 of them several times, and the table is of 30 000 cells. The order of
// a cell's points differs from run to run, which changes the last bits of its sums (double).
#pragma once

#include "cell.cuh"
#include "device_kernel.cuh"

// Of a table that is half full at most: more means that it is full.
constexpr int MAX_PROBES = 128;

// The entry of a key in a table of 2**bits cells, whose keys are stored + 1 (0: empty); null where
// it is full.
#ifdef __CUDACC__
__device__
#endif
inline Cell* entry_of(Cell* table, int32_t bits, int64_t key)
{
    int64_t entry = int64_t(uint64_t(key) * 0x9E3779B97F4A7C15ull >> (64 - bits));
    for (int probe = 0; probe < MAX_PROBES; ++probe) {
        Cell* cell = table + entry;
        const int64_t before = claim(&cell->key, key + 1);
        if (before == 0 || before == key + 1) {
            return cell;
        }
        entry = (entry + 1) & ((1ll << bits) - 1);
    }
    return nullptr;
}

// Valid pixels of the views named into the table, as cells_of_views of cells.cpp. ignored (views,
// height, width): pixels that nobody wants, or null. outcome: [1] points out of the map's range,
// [2] whether the table was full.
DEVICE_KERNEL add_points(
    const float* points, const uint8_t* colours, const float* confidence, const uint8_t* ignored,
    const int64_t* views, const float* affines, const double* per_depth, int64_t view_count,
    int64_t height, int64_t width, float edge_step, float min_confidence, float contradicted,
    float max_depth, double inverse_size, Cell* table, int32_t bits, int32_t* outcome)
{
    const PointLimits limits = {min_confidence, contradicted, max_depth};
    FOR_EACH(i, view_count * height * width) {
        const int64_t u = i % width, v = i / width % height, nth = i / (height * width);
        const int64_t first = views[nth] * height * width, at = first + v * width + u;
        const float* view = points + 3 * first;
        const int stride = tile_stride(
            view, u / TILE_PX * TILE_PX, v / TILE_PX * TILE_PX, width, height, per_depth[nth]);
        const bool enters = u % TILE_PX % stride == 0 && v % TILE_PX % stride == 0
            && limits.pass(confidence[at], points[3 * at + 2]) && !(ignored && ignored[at])
            && is_valid(view, u, v, width, height, edge_step);
        if (enters) {
            float p[3];
            transform(affines + 12 * nth, points + 3 * at, p);
            const int64_t key = key_of(p[0], p[1], p[2], inverse_size);
            Cell* cell = key < 0 ? nullptr : entry_of(table, bits, key);
            if (cell == nullptr) {
                add_to(outcome + (key < 0 ? 1 : 2), 1);
            } else {
                const double weight = weight_of(confidence[at]), dyed = weight * 256.0;
                add_to(&cell->weight, weight);
                add_to(&cell->count, 1);
                for (int k = 0; k < 3; ++k) {
                    add_to(&cell->position[k], weight * p[k]);
                    add_to(&cell->colour[k], dyed * colours[3 * at + k]);
                }
            }
        }
    }
}

// The entries in use of a table of 2**bits -> cells (2**bits); outcome[0]: how many.
DEVICE_KERNEL compact_cells(
    const Cell* table, int32_t bits, double inverse_size, PackedCell* cells, int32_t* outcome)
{
    FOR_EACH(i, 1ll << bits) {
        if (table[i].key != 0) {
            cells[add_to(outcome, 1)] = pack_cell(table[i], table[i].key - 1, inverse_size);
        }
    }
}
