// SPDX-License-Identifier: Apache-2.0
// A window's points on the device where the network made them, until they are cells of the map.
//
// In: point maps (views, height, width, 3) in the optical frames and the model's unit. Once poses
// are known, which the host refines and registers by small grids (take_points):
//   set_rays               onto the rays of known cameras
//   multi_view_confidence  how far views agree
//   scale_points           times a smooth factor: the refinement's, or that of
//   surface_grid, fusion_factors  the views' depth made to agree, on a small grid
//   add_points             validity, thinning out, pose, key of the cell, sums by cell
//   compact_cells          the cells in use behind each other, which are all that the host gets
//
// Sums go by atomics into a hash table: a cell's points come from several views and tiles, so that
// a sort would move 150 000 of them several times, and the table is of 30 000 cells. The order of
// a cell's points differs from run to run, which changes the last bits of its sums (double).
//
// Confidence stays there too; the host gets the parts of it that it looks at (take_points).
//
// Each formula is that of the processor's kernels (pixel.cuh, cell.cuh). Compiled as C++ a kernel
// is a loop over its threads, and the tests run that.
#include "cell.cuh"
#include "posed_camera.cuh"

#ifdef __CUDACC__
#define DEVICE_KERNEL extern "C" __global__ void
#define FOR_EACH(i, count) \
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; \
    if (i < (count))

template <class T> __device__ T add_to(T* sum, T value) { return atomicAdd(sum, value); }

// What a place held before it got the value, which it only gets where it held 0.
__device__ inline int64_t claim(int64_t* place, int64_t value)
{
    return int64_t(atomicCAS(reinterpret_cast<unsigned long long*>(place), 0ull,
                             static_cast<unsigned long long>(value)));
}
#else
#define DEVICE_KERNEL extern "C" void
#define FOR_EACH(i, count) for (int64_t i = 0; i < (count); ++i)

template <class T> T add_to(T* sum, T value)
{
    const T before = *sum;
    *sum += value;
    return before;
}

inline int64_t claim(int64_t* place, int64_t value)
{
    const int64_t before = *place;
    *place = before ? before : value;
    return before;
}
#endif

// A place that is to hold the largest of the values.
#ifdef __CUDACC__
__device__
#endif
inline void raise_to(int32_t* place, int32_t value)
{
    if (value > *place) {  // which spares most of the waiting for each other
#ifdef __CUDACC__
        atomicMax(place, value);
#else
        *place = value;
#endif
    }
}

ON_BOTH int32_t bits_of(float value)
{
    int32_t bits;  // of numbers not below 0 they have the numbers' order
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

// Of a table that is half full at most: more means that it is full.
constexpr int MAX_PROBES = 128;

// flag becomes 1 where a value is not finite.
DEVICE_KERNEL find_not_finite(const float* values, int64_t count, int32_t* flag)
{
    FOR_EACH(i, count) {
        if (!is_finite(values[i])) {
            *flag = 1;
        }
    }
}

// Parts of maps (views, height, width, channels): out (n0, n1, n2, n3) of the views, rows, columns
// and channels that `index` lists one after the other.
DEVICE_KERNEL take_points(
    const float* maps, int64_t height, int64_t width, int64_t channels, const int64_t* index,
    int64_t n0, int64_t n1, int64_t n2, int64_t n3, float* out)
{
    FOR_EACH(i, n0 * n1 * n2 * n3) {
        const int64_t channel = index[n0 + n1 + n2 + i % n3];
        const int64_t column = index[n0 + n1 + i / n3 % n2];
        const int64_t row = index[n0 + i / (n3 * n2) % n1], view = index[i / (n3 * n2 * n1)];
        out[i] = maps[channels * ((view * height + row) * width + column) + channel];
    }
}

// Pixels of maps (views, height, width, channels) by their places, of all views counted through.
DEVICE_KERNEL take_pixels(
    const float* maps, const int64_t* index, int64_t channels, int64_t count, float* out)
{
    FOR_EACH(i, count) {
        for (int64_t k = 0; k < channels; ++k) {
            out[channels * i + k] = maps[channels * index[i] + k];
        }
    }
}

// Confidence, 0 at ignored pixels.
DEVICE_KERNEL distrust(
    const float* confidence, const uint8_t* ignored, int64_t pixels, float* out)
{
    FOR_EACH(i, pixels) {
        out[i] = ignored[i] ? 0.0f : confidence[i];
    }
}

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

// As the kernel of window_adjustment.cpp, of one of the views with points.
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

// points of views whose pinholes (views, 4) are known, moved onto their pixels' rays.
DEVICE_KERNEL set_rays(
    const float* points, const float* pinholes, int64_t views, int64_t height, int64_t width,
    float* out)
{
    FOR_EACH(i, views * height * width) {
        const Pinhole* lens = reinterpret_cast<const Pinhole*>(pinholes) + i / (height * width);
        const float* p = points + 3 * i;
        float* q = out + 3 * i;
        for (int axis = 0; axis < 3; ++axis) {
            q[axis] = p[axis];
        }
        if (lens->known()) {
            set_ray(q, float(i % width), float(i / width % height), *lens);
        }
    }
}

// As the kernel of depth_fusion.cpp.
DEVICE_KERNEL scale_points(
    const float* points, const float* factor, int64_t views, int64_t height, int64_t width,
    int64_t rows, int64_t columns, float* out)
{
    FOR_EACH(i, views * height * width) {
        const GridPlace across = grid_place(i % width, width, columns);
        const GridPlace down = grid_place(i / width % height, height, rows);
        const float* grid = factor + i / (height * width) * rows * columns;
        const float *a = grid + down.before * columns, *b = grid + down.after * columns;
        const float scale = mixed(
            mixed(a[across.before], b[across.before], down.share),
            mixed(a[across.after], b[across.after], down.share), across.share);
        for (int axis = 0; axis < 3; ++axis) {
            out[3 * i + axis] = points[3 * i + axis] * scale;
        }
    }
}

// Whether a pixel of a grid of points (height, width, 3), apart by `stride` floats in a row and
// `down` from row to row, differs in depth from a neighbour.
ON_BOTH bool at_step(
    const float* p, int64_t u, int64_t v, int64_t width, int64_t height, int64_t stride,
    int64_t down, float edge_step)
{
    return (u > 0 && is_step(p[2], p[2 - stride], edge_step))
        || (u < width - 1 && is_step(p[2], p[2 + stride], edge_step))
        || (v > 0 && is_step(p[2], p[2 - down], edge_step))
        || (v < height - 1 && is_step(p[2], p[2 + down], edge_step));
}

// The surfaces of all views on the small grid: see SurfaceGrid.
DEVICE_KERNEL surface_grid(
    const float* points, int64_t views, int64_t height, int64_t width, float edge_step,
    float* nearness, uint8_t* edge)
{
    FOR_EACH(i, views * height * width) {
        nearness[i] = 1 / points[3 * i + 2];
        edge[i] = at_step(points + 3 * i, i % width, i / width % height, width, height, 3,
                          3 * width, edge_step);
    }
}

// As the kernel of depth_fusion.cpp.
DEVICE_KERNEL fusion_factors(
    const float* points, const float* nearness, const uint8_t* edge, const float* j_from_i,
    const float* pinholes, int64_t views, int64_t height, int64_t width, float tolerance,
    float* factor)
{
    FOR_EACH(at, views * height * width) {
        const Pinhole* lens = reinterpret_cast<const Pinhole*>(pinholes);
        const int64_t view = height * width, i = at / view;
        float step = 0.0f, weight = 1.0f;  // a pixel's own depth says that nothing is to change
        for (int64_t j = 0; j < views; ++j) {
            if (j == i || !lens[j].known()) {
                continue;
            }
            const float* affine = j_from_i + 12 * (j * views + i);
            const SurfaceGrid surface = {nearness + j * view, edge + j * view, height, width};
            const Projection seen = projection_of(points + 3 * at, affine, lens[j]);
            const float ratio =
                seen.inside(height, width) ? surface.at(seen.u, seen.v) * seen.z : 0.0f;
            const Pull says = pull_of(ratio, seen.z, affine[11], 1 / tolerance);
            step += says.step;
            weight += says.weight;
        }
        factor[at] = fusion_factor(step, weight);
    }
}

// As the kernel of confidence.cpp; a thread for each grid-th pixel.
DEVICE_KERNEL multi_view_confidence(
    const float* points, const float* j_from_i, const float* pinholes, int64_t views,
    int64_t height, int64_t width, int64_t grid, float agreement_step, float edge_step,
    float* confidence)
{
    const int64_t rows = (height + grid - 1) / grid, columns = (width + grid - 1) / grid;
    FOR_EACH(at, views * rows * columns) {
        const Pinhole* lens = reinterpret_cast<const Pinhole*>(pinholes);
        const int64_t view = height * width, c = at % columns, r = at / columns % rows;
        const int64_t i = at / (rows * columns);
        const float* p = points + 3 * (i * view + r * grid * width + c * grid);
        float total = 0.0f, count = 0.0f;
        for (int64_t j = 0; j < views; ++j) {
            if (j == i || !lens[j].known()) {
                continue;
            }
            const SeenPoint seen = see_point(
                p, j_from_i + 12 * (j * views + i), lens[j], int32_t(height), int32_t(width));
            if (seen.pixel < 0) {
                continue;
            }
            const float surface = points[3 * (j * view + seen.pixel) + 2];
            const Agreement says = agreement_of(
                (seen.depth - surface) / surface, 3 * agreement_step, 1 / agreement_step);
            total += says.share;
            count += says.counts;
        }
        const bool steps =
            at_step(p, c, r, columns, rows, 3 * grid, 3 * grid * width, edge_step);
        const float mean = total / count * (steps ? 0.5f : 1.0f);
        for (int64_t v = r * grid; v < least((r + 1) * grid, height); ++v) {
            for (int64_t u = c * grid; u < least((c + 1) * grid, width); ++u) {
                confidence[i * view + v * width + u] = mean;
            }
        }
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

// As the kernel of covisibility.cpp.
DEVICE_KERNEL see_grid(
    const float* points, const float* poses, const float* pinholes, int64_t views, int64_t height,
    int64_t width, int64_t step, GridSighting* seen)
{
    const int64_t rows = (height + step - 1) / step, columns = (width + step - 1) / step;
    FOR_EACH(n, views * views * rows * columns) {
        const Pinhole* lens = reinterpret_cast<const Pinhole*>(pinholes);
        const int64_t at = n % (rows * columns), j = n / (rows * columns) % views;
        const int64_t i = n / (rows * columns * views);
        const int64_t v = at / columns * step, u = at % columns * step;
        if (i != j && lens[j].known()) {
            const float* point = points + 3 * ((i * height + v) * width + u);
            GridSighting sighting =
                sighting_of(point, poses + 16 * i, poses + 16 * j, lens[j], height, width);
            const int64_t pixel = j * height * width + most(sighting.pixel, 0);
            sighting.surface = points[3 * pixel + 2];
            seen[n] = sighting;
        }
    }
}

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
