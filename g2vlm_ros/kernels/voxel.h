// SPDX-License-Identifier: Apache-2.0
// The records of the voxel map, as records.py has them in numpy.
#pragma once

#include "kernel.h"

#include <algorithm>
#include <cstdint>

constexpr int CELL_BITS = 9;  // 8 x 8 x 8 cells in a block
constexpr int CELLS = 1 << CELL_BITS;
constexpr int AXIS_BITS = 18;
constexpr int64_t BIAS = 8ll << (AXIS_BITS - 1);
constexpr int32_t MAX_COUNT = 1000;  // MAX_COUNT of records.py

// VOXEL of records.py.
struct Voxel {
    float position[3];
    float confidence;
    int64_t stamp_ns;
    int32_t window, revision, born;
    uint32_t cell;  // row of its block << CELL_BITS | cell within the block
    uint16_t colour[3];  // in 1/256 steps
    uint16_t count;
};
static_assert(sizeof(Voxel) == 48, "VOXEL of records.py");

// CELL of records.py: what is to be folded into one cell, sums weighted by confidence.
struct Cell {
    int64_t key;
    int64_t stamp_ns;  // of the newest contribution
    double weight;
    double position[3], colour[3];  // sums; colour in 1/256 steps
    int32_t count, window;  // of the newest contribution
};
static_assert(sizeof(Cell) == 80, "CELL of records.py");

// Whether GROUP cells in a row hold no voxel: most of a block is air.
constexpr int GROUP = 8;
inline bool is_empty(const int32_t* entries)
{
    int32_t any = 0;
    for (int cell = 0; cell < GROUP; ++cell) {
        any |= entries[cell];
    }
    return any == 0;
}

inline int64_t floor_of(double x)
{
    const int64_t whole = int64_t(x);
    return whole - (x < double(whole));
}

// The key of the cell that holds a point, or -1 when it is not finite or farther than 2**20 voxels
// from the origin along an axis. inverse_size: 1 / edge of a voxel.
inline int64_t key_of(double x, double y, double z, double inverse_size)
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

// Distinct cells by key: open addressing over a table of 2**bits indices (-1 where empty).
class CellTable {
public:
    CellTable(int32_t* table, int bits, Cell* cells, int64_t capacity)
        : table_(table), mask_((1ll << bits) - 1), shift_(64 - bits), cells_(cells),
          capacity_(capacity)
    {
        for (int64_t i = 0; i <= mask_; ++i) {
            table[i] = -1;
        }
    }

    // Fetches what `at` will read first, and, once that is there, what it will read next.
    void prefetch(int64_t key) const { __builtin_prefetch(table_ + first_entry(key)); }
    void prefetch_cell(int64_t key) const
    {
        const int32_t index = table_[first_entry(key)];
        const char* cell = reinterpret_cast<const char*>(cells_ + std::max(index, 0));
        __builtin_prefetch(cell, 1);
        __builtin_prefetch(cell + sizeof(Cell) - 1, 1);  // it may lie in two lines of the cache
    }

    // The cell of a key, zero when new; null when there is no room for another one.
    Cell* at(int64_t key)
    {
        int64_t entry = first_entry(key);
        for (;; entry = (entry + 1) & mask_) {
            const int32_t index = table_[entry];
            if (index >= 0 && cells_[index].key == key) {
                return cells_ + index;
            }
            if (index < 0) {
                break;
            }
        }
        if (size_ >= capacity_) {
            return nullptr;
        }
        table_[entry] = int32_t(size_);
        Cell* cell = cells_ + size_++;
        *cell = Cell{};
        cell->key = key;
        return cell;
    }

    int64_t size() const { return size_; }

private:
    int64_t first_entry(int64_t key) const
    {
        return int64_t(uint64_t(key) * 0x9E3779B97F4A7C15ull >> shift_);
    }

    int32_t* table_;
    int64_t mask_;
    int shift_;
    Cell* cells_;
    int64_t capacity_, size_ = 0;
};
