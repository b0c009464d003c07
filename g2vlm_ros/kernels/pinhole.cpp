// SPDX-License-Identifier: Apache-2.0
// The pinhole cameras that explain point maps best.
#include "kernel.h"

static void add_to(Line& total, const Line& row)
{
    total.n += row.n;
    total.x += row.x;
    total.y += row.y;
    total.xx += row.xx;
    total.xy += row.xy;
}

static void solve(const Line& line, double* slope, double* offset)
{
    *slope = (line.xy - line.x * line.y / line.n) / (line.xx - line.x * line.x / line.n);
    *offset = (line.y - *slope * line.x) / line.n;
}

// What every step-th row of points (views, height, width, 3) says of their cameras, by every
// step-th of its points -> lines (views, rows).
KERNEL void lines_of_rows(
    const float* points, int64_t views, int64_t height, int64_t width, int64_t step,
    RowLines* lines)
{
    for (int64_t i = 0; i < views; ++i) {
        for (int64_t v = 0; v < height; v += step) {
            *lines++ = RowLines(points + 3 * (i * height + v) * width, v, width, step);
        }
    }
}

// The cameras by least squares -> pinholes (views, 4) of fx, fy, cx, cy; not finite where none
// fits.
KERNEL void pinholes_of_lines(
    const RowLines* lines, int64_t views, int64_t rows, double* pinholes)
{
    for (int64_t i = 0; i < views; ++i) {
        Line across, down;
        for (int64_t row = 0; row < rows; ++row, ++lines) {
            add_to(across, lines->across);
            add_to(down, lines->down);
        }
        double* camera = pinholes + 4 * i;
        solve(across, camera, camera + 2);
        solve(down, camera + 1, camera + 3);
    }
}

// points (views, height, width, 3) of views whose pinholes (views, 4) are known, moved onto the
// rays of their pixels.
KERNEL void set_rays(
    float* points, int64_t views, int64_t height, int64_t width, const float* pinholes)
{
    const Pinhole* lens = reinterpret_cast<const Pinhole*>(pinholes);
    for (int64_t row = 0; row < views * height; ++row) {
        const Pinhole camera = lens[row / height];
        for (int64_t u = 0; camera.known() && u < width; ++u) {
            set_ray(points + 3 * (row * width + u), float(u), float(row % height), camera);
        }
    }
}
