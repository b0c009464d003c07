// SPDX-License-Identifier: Apache-2.0
// The records of the voxel map, as records.py has them in numpy.
#pragma once

#include "cell.cuh"
#include "kernel.h"

#include <algorithm>
#include <cstdint>

constexpr int CELLS = 1 << CELL_BITS;
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
