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
//   compact_cells          the cells in use behind each other, which go to the host
//   trusted_depths, nearest_depths, farthest_depths, find_seen_through
//                          which voxels of the map each new view saw through
// The host also gets what it asks for of small grids (window_grids.cuh, take_points, take_pixels).
//
// Each formula is that of the processor's kernels (pixel.cuh, cell.cuh). Compiled as C++ a kernel
// is a loop over its threads, and the tests run that.
#include "device_kernel.cuh"
#include "window_cells.cuh"
#include "window_free_space.cuh"
#include "window_grids.cuh"

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

// Values as halves, those too large for one as the largest.
DEVICE_KERNEL halve(const float* values, int64_t count, uint16_t* out)
{
    FOR_EACH(i, count) {
        out[i] = half_of(values[i]);
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
