// SPDX-License-Identifier: Apache-2.0
// Smooth surfaces of a window with their normals, and the direction that most of them agree is up.
#include "kernel.h"

#include <algorithm>
#include <vector>

#include "small_matrix.h"

// Pixel (row, column) of a grid (rows, columns) is (reach + step * row, reach + step * column) of
// a view. Its normal spans the pixels `reach` beside it, and is in the window's frame by poses
// (views, 4, 4) window_from_camera. points (views, height, width, 3) -> normals (views, rows,
// columns, 3), NaN where depth bends by max_bend of itself or more.
KERNEL void surface_normals(
    const float* points, const float* poses, int64_t views, int64_t rows, int64_t columns,
    int64_t height, int64_t width, int64_t reach, int64_t step, double max_bend, double* normals)
{
    for (int64_t i = 0; i < views; ++i) {
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t v = reach + step * row;
            const float* line = points + 3 * (i * height + v) * width;
            for (int64_t column = 0; column < columns; ++column, normals += 3) {
                const float* p = line + 3 * (reach + step * column);
                const int64_t beside = 3 * reach, across = 3 * reach * width;
                surface_normal(p, p - beside, p + beside, p - across, p + across, poses + 16 * i,
                               max_bend, normals);
            }
        }
    }
}

// The surfaces of such a grid with points middle (views, rows, columns) apart by `strides` floats,
// in the frame of the window: places (n, 3), unit normals (n, 3) and blocks (n), which of side x
// side patches of which view (height, width) they are of. Returns n.
KERNEL int64_t surfaces(
    const float* middle, const int64_t* strides, const double* of_pixels, const float* poses,
    int64_t views, int64_t rows, int64_t columns, int64_t height, int64_t width, int64_t reach,
    int64_t step, int64_t side, double* places, double* normals, int64_t* blocks)
{
    int64_t n = 0;
    for (int64_t i = 0; i < views; ++i) {
        const float* pose = poses + 16 * i;
        for (int64_t row = 0; row < rows; ++row) {
            for (int64_t column = 0; column < columns; ++column, of_pixels += 3) {
                if (std::isnan(of_pixels[0])) {
                    continue;
                }
                const int64_t at = i * strides[0] + row * strides[1] + column * strides[2];
                const int64_t v = reach + step * row, u = reach + step * column;
                const float* p = middle + at;
                const double depth = p[2];
                for (int axis = 0; axis < 3; ++axis) {
                    const float* turn = pose + 4 * axis;
                    places[3 * n + axis] =
                        turn[0] * double(p[0]) + turn[1] * double(p[1]) + turn[2] * depth
                        + turn[3];
                    normals[3 * n + axis] = of_pixels[axis];
                }
                blocks[n++] = (i * side + v * side / height) * side + u * side / width;
            }
        }
    }
    return n;
}

// Turns `up` (3, unit) towards the direction to which most normals (n, 3) are parallel or
// perpendicular, in steps with ever narrower gates (rad). Normals count less the farther off they
// are, by half at soft_rad; open: weight of where the search stands. Of the last gate: off_rad
// (n), how far each normal is off level or upright; walls (3, 3), second moment of the upright
// surfaces' normals; level_weight, sum of the weights of level surfaces.
KERNEL void structure_up(
    const double* normals, int64_t n, const double* gates_rad, int64_t gates, double soft_rad,
    double open, double* up, double* off_rad, double* walls, double* level_weight)
{
    for (int64_t gate = 0; gate < gates; ++gate) {
        double floors[9] = {}, total = 0;
        std::fill(walls, walls + 9, 0.0);
        *level_weight = 0;
        for (int64_t k = 0; k < n; ++k) {
            const double* normal = normals + 3 * k;
            const double rise = std::asin(std::min(std::fabs(dot(normal, up)), 1.0));
            const bool is_level = rise > M_PI / 4;
            off_rad[k] = std::min(rise, M_PI / 2 - rise);
            if (!(off_rad[k] < gates_rad[gate])) {
                continue;
            }
            const double relative = off_rad[k] / soft_rad, weight = 1 / (1 + relative * relative);
            total += weight;
            *level_weight += is_level ? weight : 0.0;
            double* moment = is_level ? floors : walls;
            for (int a = 0; a < 3; ++a) {
                for (int b = 0; b < 3; ++b) {
                    moment[3 * a + b] += weight * normal[a] * normal[b];
                }
            }
        }
        // What no surface tells stays as it was.
        double matrix[3][3], values[3], vectors[3][3];
        for (int a = 0; a < 3; ++a) {
            for (int b = 0; b < 3; ++b) {
                const double still = open * total * ((a == b) - up[a] * up[b]);
                matrix[a][b] = walls[3 * a + b] - floors[3 * a + b] + still;
            }
        }
        symmetric_eigen(matrix, values, vectors);
        int least = 0;
        for (int k = 1; k < 3; ++k) {
            least = values[k] < values[least] ? k : least;
        }
        double found[3] = {vectors[0][least], vectors[1][least], vectors[2][least]};
        const double sign = dot(found, up) > 0 ? 1.0 : -1.0;
        for (int axis = 0; axis < 3; ++axis) {
            up[axis] = sign * found[axis];
        }
    }
}
