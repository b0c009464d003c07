// SPDX-License-Identifier: Apache-2.0
// The pinhole cameras that explain point maps best.
#include "kernel.h"

// Sums of the least-squares line y = slope x + offset over finite x.
struct Line {
    double n = 0, x = 0, y = 0, xx = 0, xy = 0;

    void add(double px, double py)
    {
        if (px - px == 0) {
            ++n;
            x += px;
            y += py;
            xx += px * px;
            xy += px * py;
        }
    }

    void solve(double* slope, double* offset) const
    {
        *slope = (xy - x * y / n) / (xx - x * x / n);
        *offset = (y - *slope * x) / n;
    }
};

// u = fx x/z + cx and v = fy y/z + cy by least squares over every step-th pixel of points (views,
// height, width, 3) -> pinholes (views, 4) of fx, fy, cx, cy; not finite where no camera fits.
KERNEL void pinholes_of_points(
    const float* points, int64_t views, int64_t height, int64_t width, int64_t step,
    double* pinholes)
{
    for (int64_t i = 0; i < views; ++i) {
        Line across, down;
        for (int64_t v = 0; v < height; v += step) {
            for (int64_t u = 0; u < width; u += step) {
                const float* p = points + 3 * ((i * height + v) * width + u);
                across.add(p[0] / double(p[2]), double(u));
                down.add(p[1] / double(p[2]), double(v));
            }
        }
        double* camera = pinholes + 4 * i;
        across.solve(camera, camera + 2);
        down.solve(camera + 1, camera + 3);
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
