// SPDX-License-Identifier: Apache-2.0
// What a depth view proves empty: the voxels that its rays passed, and the ground below its rays.
#include "kernel.h"

#include <algorithm>
#include <vector>

#include "posed_camera.cuh"
#include "voxel.h"

// Of one view, depth (height, width) apart by `stride` floats and confidence (height, width):
// nearest (height, width), the least depth of the 3 x 3 pixels around, times scale, 0 where one of
// them is unknown or outside; farthest (tile_rows, tile_columns), the largest of these in tiles
// of tile x tile pixels up to TILES_AROUND around. Returns the largest depth.
KERNEL float free_depth(
    const float* depth, int64_t stride, const float* confidence, int64_t height, int64_t width,
    float scale, float min_confidence, int64_t tile, int64_t tile_rows, int64_t tile_columns,
    float* nearest, float* farthest)
{
    const int64_t line = width + 2;
    std::vector<float> rows(3 * line, 0.0f), low(line);
    std::vector<float> tiles(tile_rows * tile_columns, 0.0f);
    float reach = 0;
    for (int64_t v = 0; v <= height; ++v) {  // the row that arrives; the one before is finished
        float* arriving = rows.data() + v % 3 * line;
        std::fill(arriving, arriving + line, 0.0f);
        for (int64_t u = 0; v < height && u < width; ++u) {
            const int64_t at = v * width + u;
            arriving[u + 1] =
                trusted_depth(depth[at * stride], scale, confidence[at], min_confidence);
            reach = std::max(reach, arriving[u + 1]);
        }
        if (v == 0) {
            continue;
        }
        const float *a = rows.data(), *b = a + line, *c = b + line;
        for (int64_t u = 0; u < line; ++u) {
            low[u] = std::min(std::min(a[u], b[u]), c[u]);
        }
        float* out = nearest + (v - 1) * width;
        for (int64_t u = 0; u < width; ++u) {
            out[u] = std::min(std::min(low[u], low[u + 1]), low[u + 2]);
        }
        float* best = tiles.data() + (v - 1) / tile * tile_columns;
        for (int64_t u = 0; u < width; ++best) {
            for (const int64_t end = std::min(u + tile, width); u < end; ++u) {
                *best = std::max(*best, out[u]);
            }
        }
    }
    for (int64_t r = 0; r < tile_rows; ++r) {
        for (int64_t c = 0; c < tile_columns; ++c) {
            float most = 0;
            const int64_t last_row = std::min(r + TILES_AROUND, tile_rows - 1);
            const int64_t last_column = std::min(c + TILES_AROUND, tile_columns - 1);
            for (int64_t y = std::max<int64_t>(r - TILES_AROUND, 0); y <= last_row; ++y) {
                for (int64_t x = std::max<int64_t>(c - TILES_AROUND, 0); x <= last_column; ++x) {
                    most = std::max(most, tiles[y * tile_columns + x]);
                }
            }
            farthest[r * tile_columns + c] = most;
        }
    }
    return reach;
}

// Rows of the blocks that may hold voxels which the view sees through: balls of `radius` around
// the centres (blocks, 3) that are neither empty nor waiting for a correction (stale), not beyond
// the view's reach, and not hidden behind everything around them in the image.
KERNEL int64_t blocks_in_view(
    const float* centres, const int32_t* voxel_counts, const int32_t* stale, int64_t blocks,
    const double* pose, const float* pinhole, int64_t height, int64_t width, float reach,
    float radius, int64_t tile, int64_t tile_columns, const float* farthest, int64_t* rows)
{
    const PosedCamera camera(pose, pinhole, height, width);
    const float focal = std::max(camera.lens.fx, camera.lens.fy);
    int64_t found = 0;
    for (int64_t block = 0; block < blocks; ++block) {
        if (voxel_counts[block] == 0 || stale[block] != 0) {
            continue;
        }
        float p[3];
        camera.to_camera(centres + 3 * block, p);
        if (!(p[2] > -radius && p[2] < reach + radius)) {
            continue;
        }
        const float z = std::max(p[2], radius), footprint = focal * radius / z;
        int64_t u, v;
        if (!camera.pixel(p[0], p[1], z, footprint, &u, &v)) {
            continue;
        }
        const bool open = farthest[v / tile * tile_columns + u / tile] > p[2] - radius;
        if (open || footprint > float(TILES_AROUND * tile)) {
            rows[found++] = block;
        }
    }
    return found;
}

// Slots of the voxels in blocks (count) that a ray of the view passed on its way to a surface
// clearly behind, and that were not seen as late as the view. Writes at most `capacity` of them.
KERNEL int64_t seen_through(
    const int64_t* rows, int64_t count, const int32_t* index, const Voxel* voxels,
    const float* nearest, int64_t height, int64_t width, const double* pose, const float* pinhole,
    float slack, int64_t stamp_ns, int64_t* slots, int64_t capacity)
{
    const PosedCamera camera(pose, pinhole, height, width);
    int64_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t* entries = index + CELLS * rows[i];
        int64_t of_block[CELLS];  // their memory is fetched before any of them is looked at
        int present = 0;
        for (int cell = 0; cell < CELLS; ++cell) {
            if (cell % GROUP == 0 && is_empty(entries + cell)) {
                cell += GROUP - 1;
            } else if (entries[cell] != 0) {
                of_block[present++] = entries[cell] - 1;
                __builtin_prefetch(voxels + entries[cell] - 1);
            }
        }
        for (int n = 0; n < present && found < capacity; ++n) {
            const Voxel& voxel = voxels[of_block[n]];
            if (voxel.stamp_ns < stamp_ns
                && camera.sees_through(voxel.position, nearest, width, slack)) {
                slots[found++] = of_block[n];
            }
        }
    }
    return found;
}

// Fractions of a ray between which its height is in bottom..top; first >= last if never. start and
// end: heights of its ends.
static void crossing(
    double start, double end, double bottom, double top, double* first, double* last)
{
    const double rise = end - start;
    if (rise == 0) {
        const bool within = bottom <= start && start <= top;
        *first = within ? 0.0 : 1.0;
        *last = within ? 1.0 : 0.0;
        return;
    }
    const double a = (bottom - start) / rise, b = (top - start) / rise;
    *first = std::clamp(std::min(a, b), 0.0, 1.0);
    *last = std::clamp(std::max(a, b), 0.0, 1.0);
}

// The angle of a direction, as std::atan2 has it, to 1e-5 rad: rays are sorted into sectors by it.
static double angle_of(double y, double x)
{
    const double across = std::fabs(y), along = std::fabs(x);
    const double longer = std::max(std::max(across, along), 1e-300);
    const double slope = std::min(across, along) / longer, square = slope * slope;
    // Minimax over 0..1 (Hastings, Approximations for Digital Computers, 1955).
    double series = 0.05265332 - 0.01172120 * square;
    series = -0.11643287 + series * square;
    series = 0.19354346 + series * square;
    series = -0.33262347 + series * square;
    double angle = slope * (0.99997726 + series * square);
    angle = across > along ? M_PI / 2 - angle : angle;
    angle = x < 0 ? M_PI - angle : angle;
    return y < 0 ? -angle : angle;
}

// Every step-th pixel of a view, as for `free_depth`, -> out (rows, columns): its depth in map
// units, 0 where it proves nothing.
KERNEL void trusted_depths(
    const float* depth, int64_t stride, const float* confidence, int64_t height, int64_t width,
    float scale, float min_confidence, int64_t step, float* out)
{
    for (int64_t v = 0; v < height; v += step) {
        for (int64_t u = 0; u < width; u += step) {
            const int64_t at = v * width + u;
            *out++ = trusted_depth(depth[at * stride], scale, confidence[at], min_confidence);
        }
    }
}

// The ground below rays: depth (rows, columns) of every step-th pixel, as `trusted_depths` has it.
// plane: a x + b y + c z + d is the height above the floor. edges (2, rays, 3): near and far edge
// of the fan of ground that rays crossed in -low..high before they met an obstacle in low..high,
// less one cell of `resolution`; z is 0. Returns 0 when no ray crossed it.
KERNEL int32_t ground_fan(
    const float* depth, int64_t rows, int64_t columns, int64_t step, const double* pose,
    const double* pinhole, const double* plane, double low, double high,
    double resolution, int64_t rays, double* edges)
{
    struct Ray {
        double x, y, first, last, reach, height, turn;
    };
    std::vector<Ray> crossed;
    crossed.reserve(rows * columns);
    const double origin[3] = {pose[3], pose[7], pose[11]};
    const double start =
        origin[0] * plane[0] + origin[1] * plane[1] + origin[2] * plane[2] + plane[3];
    double sum_x = 0, sum_y = 0;
    for (int64_t v = 0; v < rows * step; v += step) {
        for (int64_t u = 0; u < columns * step; u += step) {
            const float z = *depth++;
            if (z == 0) {
                continue;
            }
            const double p[3] = {
                (u - pinhole[2]) / pinhole[0] * z, (v - pinhole[3]) / pinhole[1] * z, z};
            double d[3], end = start, first, last;
            for (int row = 0; row < 3; ++row) {
                const double* turn = pose + 4 * row;
                d[row] = turn[0] * p[0] + turn[1] * p[1] + turn[2] * p[2];
                end += d[row] * plane[row];
            }
            crossing(start, end, -low, high, &first, &last);
            const double reach = std::sqrt(d[0] * d[0] + d[1] * d[1]);
            if (first < last && reach > 0) {
                crossed.push_back({d[0], d[1], first * reach, last * reach, reach, end, 0.0});
                sum_x += d[0];
                sum_y += d[1];
            }
        }
    }
    if (crossed.empty()) {
        return 0;
    }
    // Angles from the middle direction, so that no fan is cut at 180 degrees.
    const double ahead = std::atan2(sum_y, sum_x), c = std::cos(ahead), s = std::sin(ahead);
    double least = M_PI, most = -M_PI;
    for (Ray& ray : crossed) {
        ray.turn = angle_of(ray.y * c - ray.x * s, ray.x * c + ray.y * s);
        least = std::min(least, ray.turn);
        most = std::max(most, ray.turn);
    }
    const double width_rad = (most - least + 1e-9) / double(rays);
    std::vector<double> near(rays, INFINITY), far(rays, 0.0), obstacle(rays, INFINITY);
    for (const Ray& ray : crossed) {
        const int64_t place = int64_t((ray.turn - least) / width_rad);
        const int64_t sector = std::clamp<int64_t>(place, 0, rays - 1);
        near[sector] = std::min(near[sector], ray.first);
        far[sector] = std::max(far[sector], ray.last);
        if (low < ray.height && ray.height < high) {
            obstacle[sector] = std::min(obstacle[sector], ray.reach);
        }
    }
    for (int64_t i = 0; i < rays; ++i) {
        double end = std::min(far[i], obstacle[i] - resolution), begin = std::min(near[i], end);
        if (!(end > 0)) {
            begin = end = 0;
        }
        const double angle = ahead + least + (double(i) + 0.5) * width_rad;
        for (int side = 0; side < 2; ++side) {
            double* edge = edges + 3 * (side * rays + i);
            const double reach = side == 0 ? begin : end;
            edge[0] = origin[0] + reach * std::cos(angle);
            edge[1] = origin[1] + reach * std::sin(angle);
            edge[2] = 0.0;
        }
    }
    return 1;
}
