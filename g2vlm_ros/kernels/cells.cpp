// SPDX-License-Identifier: Apache-2.0
// Points and voxels summed up by the voxel cell that they fall into.
#include "kernel.h"

#include <algorithm>
#include <vector>

#include "voxel.h"

// Points that wait to be added: their cells are looked for all at once, so that the memory of one
// is fetched while the others are worked on.
class PointBatch {
public:
    PointBatch(CellTable& sums, int64_t stamp_ns, int32_t window, double inverse_size)
        : sums_(sums), stamp_ns_(stamp_ns), window_(window), inverse_size_(inverse_size)
    {}

    // False when there is no room for its cell, or for that of an earlier one.
    bool add(const float* place, const uint8_t* colour, float confidence)
    {
        const int64_t key = key_of(place[0], place[1], place[2], inverse_size_);
        if (key < 0) {
            ++out_of_range_;
            return true;
        }
        sums_.prefetch(key);
        points_[count_++] = {key, weight_of(confidence), {place[0], place[1], place[2]},
                             {colour[0], colour[1], colour[2]}};
        return count_ < SIZE || flush();
    }

    bool flush()
    {
        for (int i = 0; i < count_; ++i) {
            sums_.prefetch_cell(points_[i].key);
        }
        for (int i = 0; i < count_; ++i) {
            const Point& point = points_[i];
            if (cell_ == nullptr || cell_->key != point.key) {  // neighbours often share one
                cell_ = sums_.at(point.key);
                if (cell_ == nullptr) {
                    return false;
                }
                cell_->stamp_ns = stamp_ns_;
                cell_->window = window_;
            }
            const double weight = point.weight, dyed = weight * 256.0;
            cell_->weight += weight;
            ++cell_->count;
            for (int k = 0; k < 3; ++k) {
                cell_->position[k] += weight * point.place[k];
                cell_->colour[k] += dyed * point.colour[k];
            }
        }
        added_ += count_;
        count_ = 0;
        return true;
    }

    int64_t added() const { return added_; }
    int64_t out_of_range() const { return out_of_range_; }

private:
    struct Point {
        int64_t key;
        float weight, place[3];
        uint8_t colour[3];
    };
    static constexpr int SIZE = 64;

    CellTable& sums_;
    const int64_t stamp_ns_;
    const int32_t window_;
    const double inverse_size_;
    Point points_[SIZE];
    Cell* cell_ = nullptr;
    int count_ = 0;
    int64_t added_ = 0, out_of_range_ = 0;
};

// Valid pixels of the views named, each taken by its affine (3, 4) to the map and added to its
// cell. Pixels are thinned out tile by tile so that about one of them falls onto a voxel's edge.
// per_depth (view_count): see stride_at; 0 takes every pixel. Left out are confidences below
// min_confidence (NaN passes if that is 0) or below `contradicted` (NaN passes), and depths above
// max_depth. table: 2**table_bits entries.
// points_seen (2): added, and left out because they are out of the map's range.
// Returns the number of cells, or -1 when `capacity` is too small.
KERNEL int64_t cells_of_views(
    const float* points, const uint8_t* colours, const float* confidence, const uint8_t* valid,
    const int64_t* views, int64_t view_count, int64_t height, int64_t width, const float* affines,
    const double* per_depth, float min_confidence, float contradicted, float max_depth,
    double voxel_size, int64_t stamp_ns, int32_t window, int32_t* table,
    int32_t table_bits, Cell* cells, int64_t capacity, int64_t* points_seen)
{
    CellTable sums(table, table_bits, cells, capacity);
    PointBatch batch(sums, stamp_ns, window, 1.0 / voxel_size);
    const PointLimits limits = {min_confidence, contradicted, max_depth};
    const int64_t tiles = (width + TILE_PX - 1) / TILE_PX;
    std::vector<int> strides(tiles);
    for (int64_t i = 0; i < view_count; ++i) {
        const int64_t first = views[i] * height * width;
        const float* affine = affines + 12 * i;
        for (int64_t v0 = 0; v0 < height; v0 += TILE_PX) {
            int least = TILE_PX;
            for (int64_t t = 0; t < tiles; ++t) {
                strides[t] = tile_stride(
                    points + 3 * first, t * TILE_PX, v0, width, height, per_depth[i]);
                least = std::min(least, strides[t]);
            }
            for (int64_t v = v0; v < std::min(v0 + TILE_PX, height); v += least) {
                const int64_t row = first + v * width;
                for (int64_t t = 0; t < tiles; ++t) {
                    const int stride = strides[t];
                    if ((v - v0) % stride) {
                        continue;
                    }
                    const int64_t end = std::min(t * TILE_PX + TILE_PX, width);
                    for (int64_t u = t * TILE_PX; u < end; u += stride) {
                        const int64_t at = row + u;
                        if (!valid[at] || !limits.pass(confidence[at], points[3 * at + 2])) {
                            continue;
                        }
                        float p[3];
                        transform(affine, points + 3 * at, p);
                        if (!batch.add(p, colours + 3 * at, confidence[at])) {
                            return -1;
                        }
                    }
                }
            }
        }
    }
    if (!batch.flush()) {
        return -1;
    }
    points_seen[0] = batch.added();
    points_seen[1] = batch.out_of_range();
    return sums.size();
}

// Packed cells (count) of one window as sums again; places are the middles of the 2**16 parts.
KERNEL void unpack_cells(
    const PackedCell* packed, int64_t count, double voxel_size, int64_t stamp_ns, int32_t window,
    Cell* cells)
{
    for (int64_t i = 0; i < count; ++i) {
        const PackedCell& from = packed[i];
        Cell& cell = cells[i];
        cell = {int64_t(uint64_t(from.key_high) << 32 | from.key_low), stamp_ns, from.weight, {},
                {}, int32_t(from.count), window};
        int64_t corner[3];
        corner_of(cell.key, corner);
        for (int k = 0; k < 3; ++k) {
            const double part = (from.place[k] + 0.5) / 65536.0;
            cell.position[k] = cell.weight * ((double(corner[k]) + part) * voxel_size);
            cell.colour[k] = cell.weight * double(from.colour[k]);
        }
    }
}

// Voxels that come to lie at positions (count, 3), each with the weight it has, added to the cells
// there; the newest one gives the stamp and the window. kept (count) becomes 0 for those that are
// out of the map's range, else 1. Returns as above.
KERNEL int64_t cells_of_voxels(
    const double* positions, const Voxel* voxels, int64_t count, double voxel_size, int32_t* table,
    int32_t table_bits, Cell* cells, int64_t capacity, uint8_t* kept)
{
    CellTable sums(table, table_bits, cells, capacity);
    const double inverse_size = 1.0 / voxel_size;
    for (int64_t i = 0; i < count; ++i) {
        const double* p = positions + 3 * i;
        const int64_t key = key_of(p[0], p[1], p[2], inverse_size);
        kept[i] = key >= 0;
        if (key < 0) {
            continue;
        }
        Cell* cell = sums.at(key);
        if (cell == nullptr) {
            return -1;
        }
        const Voxel& voxel = voxels[i];
        if (cell->count == 0 || voxel.stamp_ns >= cell->stamp_ns) {
            cell->stamp_ns = voxel.stamp_ns;
            cell->window = voxel.window;
        }
        const double weight = voxel.count * double(voxel.confidence);
        cell->weight += weight;
        cell->count += voxel.count;
        for (int k = 0; k < 3; ++k) {
            cell->position[k] += weight * p[k];
            cell->colour[k] += weight * voxel.colour[k];
        }
    }
    return sums.size();
}

// Names of the cells that hold points (count, 3), -1 where there is none.
KERNEL void keys_of_points(const double* points, int64_t count, double voxel_size, int64_t* keys)
{
    const double inverse_size = 1.0 / voxel_size;
    for (int64_t i = 0; i < count; ++i) {
        keys[i] = key_of(points[3 * i], points[3 * i + 1], points[3 * i + 2], inverse_size);
    }
}
