// SPDX-License-Identifier: Apache-2.0
// Normal equations of a window's adjustment (mapping/window_adjustment.py). The unknowns of a view
// are its motion (rotation, translation; right tangent) and the logarithms of depth at its knots.
#include "kernel.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "small_matrix.h"

constexpr int MOTION = 6, CORNERS = 4;
constexpr double MEDIAN_TO_STD = 1.4826;

// What both kinds of evidence share. relative: (views, views, 4, 4), [target][source].
struct Window {
    int64_t views, knots;
    const double *relative, *log_depth;
    double cauchy, nearest;

    int64_t per_view() const { return MOTION + knots; }
    int64_t unknowns() const { return views * per_view(); }
    const double* target_from_source(int64_t target, int64_t source) const
    {
        return relative + 16 * (target * views + source);
    }
    double robust(double error) const
    {
        return 1 / (1 + error * error / (cauchy * cauchy));
    }
};

// A point of the source, its depth corrected, and as the target sees it.
struct Moved {
    double point[3], seen[3];
};

// The knots around a pixel, and how near it is to each.
struct Knots {
    int64_t at[CORNERS];
    double share[CORNERS];

    double mean(const double* values) const
    {
        double sum = 0;
        for (int k = 0; k < CORNERS; ++k) {
            sum += values[at[k]] * share[k];
        }
        return sum;
    }
};

// Two or more columns and rows of knots, spread over an image.
struct KnotGrid {
    int64_t columns, rows, width, height;

    Knots around(double x, double y) const
    {
        const double across = place((x + 0.5) / width * columns - 0.5, columns);
        const double down = place((y + 0.5) / height * rows - 0.5, rows);
        const int64_t left = std::min(int64_t(across), columns - 2);
        const int64_t top = std::min(int64_t(down), rows - 2);
        const double u = across - left, v = down - top;
        const int64_t corner = top * columns + left;
        return {{corner, corner + 1, corner + columns, corner + columns + 1},
                {(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u}};
    }

private:
    static double place(double value, int64_t knots)  // 0 for what is no number
    {
        return std::max(0.0, std::min(value, double(knots - 1)));
    }
};

static Moved move_point(
    const Window& window, int64_t source, int64_t target, const double* point, const Knots& knots)
{
    const double* pose = window.target_from_source(target, source);
    const double stretch = std::exp(knots.mean(window.log_depth + source * window.knots));
    Moved moved;
    for (int i = 0; i < 3; ++i) {
        moved.point[i] = stretch * point[i];
    }
    for (int i = 0; i < 3; ++i) {
        const double* row = pose + 4 * i;
        moved.seen[i] = dot(row, moved.point) + row[3];
    }
    moved.seen[2] = std::max(moved.seen[2], window.nearest * moved.point[2]);
    return moved;
}

// Derivatives of slope . seen: by the motions of source and target, by the logarithm of the depth
// in the source, which is returned.
static double pose_row(
    const double* pose, const Moved& moved, const double* slope, double* by_source,
    double* by_target)
{
    double away[3], turned[3];
    for (int i = 0; i < 3; ++i) {
        away[i] = slope[0] * pose[i] + slope[1] * pose[4 + i] + slope[2] * pose[8 + i];
    }
    cross(moved.point, away, by_source);
    cross(moved.seen, slope, turned);
    for (int i = 0; i < 3; ++i) {
        by_source[3 + i] = away[i];
        by_target[i] = -turned[i];
        by_target[3 + i] = -slope[i];
    }
    return dot(away, moved.point);
}

// Sums over the rows of one pair of views: unknowns of the source, then of the target. The hessian
// is symmetric: each pair of unknowns is summed up once, on either side of the diagonal.
class PairSums {
public:
    explicit PairSums(const Window& window)
        : per_view_(window.per_view()), size_(2 * per_view_), hessian_(size_ * size_),
          gradient_(size_)
    {
    }

    void clear()
    {
        std::fill(hessian_.begin(), hessian_.end(), 0.0);
        std::fill(gradient_.begin(), gradient_.end(), 0.0);
    }

    // hessian += left' right over the given columns, gradient += left residual. Columns come in
    // the same order of their kinds each time; what is added in all must be symmetric.
    void add(
        const int64_t* columns, int count, const double* left, const double* right,
        double residual)
    {
        for (int i = 0; i < count; ++i) {
            double* row = &hessian_[columns[i] * size_];
            for (int j = i; j < count; ++j) {
                row[columns[j]] += left[i] * right[j];
            }
            gradient_[columns[i]] += left[i] * residual;
        }
    }

    // The same of two dense rows (size,), subtracted.
    void subtract(const double* left, const double* right, double residual)
    {
        for (int64_t i = 0; i < size_; ++i) {
            for (int64_t j = i; j < size_; ++j) {
                hessian_[i * size_ + j] -= left[i] * right[j];
            }
            gradient_[i] -= left[i] * residual;
        }
    }

    void move_into(
        int64_t source, int64_t target, int64_t unknowns, double* hessian, double* gradient)
    {
        for (int64_t i = 0; i < size_; ++i) {
            const int64_t row = global(i, source, target);
            for (int64_t j = 0; j < size_; ++j) {
                const double sum = hessian_[i * size_ + j] + hessian_[j * size_ + i];
                hessian[row * unknowns + global(j, source, target)] += i == j ? sum / 2 : sum;
            }
            gradient[row] += gradient_[i];
        }
        clear();
    }

    int64_t size() const { return size_; }

private:
    int64_t global(int64_t column, int64_t source, int64_t target) const
    {
        return column < per_view_ ? source * per_view_ + column
                                  : target * per_view_ + column - per_view_;
    }

    int64_t per_view_, size_;
    std::vector<double> hessian_, gradient_;
};

// One track: its residual (x/z, y/z) and the derivatives of it.
struct TrackRows {
    Knots knots;
    double residual[2], along[2], length;
    double by_source[2][MOTION], by_target[2][MOTION];
};

static TrackRows track_rows(
    const Window& window, int64_t source, int64_t target, const double* point,
    const Knots& knots, const double* ray)
{
    const Moved moved = move_point(window, source, target, point, knots);
    TrackRows rows;
    rows.knots = knots;
    const double* pose = window.target_from_source(target, source);
    for (int axis = 0; axis < 2; ++axis) {
        double slope[3] = {0, 0, 0};
        slope[axis] = 1 / moved.seen[2];
        slope[2] = -moved.seen[axis] / (moved.seen[2] * moved.seen[2]);
        rows.residual[axis] = moved.seen[axis] / moved.seen[2] - ray[axis];
        rows.along[axis] =
            pose_row(pose, moved, slope, rows.by_source[axis], rows.by_target[axis]);
    }
    rows.length = std::max(std::hypot(rows.along[0], rows.along[1]), 1e-9);
    return rows;
}

// A residual across the epipolar line, and along it, where an error of depth moves it.
static void split(const TrackRows& rows, double* across, double* along)
{
    const double x = rows.along[0] / rows.length, y = rows.along[1] / rows.length;
    *along = rows.residual[0] * x + rows.residual[1] * y;
    *across = rows.residual[1] * x - rows.residual[0] * y;
}

// Deviation of tracks in pixels, from residuals across epipolar lines; square of the relative
// deviation of single depths, from what residuals along them have more, where parallax is large.
static void track_noise(
    const std::vector<TrackRows>& rows, const double* pixel, double min_px, double max_point,
    double* std_px, double* point_variance)
{
    std::vector<double> errors, lengths, excess, noise;
    for (size_t i = 0; i < rows.size(); ++i) {
        double across, along;
        split(rows[i], &across, &along);
        errors.push_back(std::fabs(across) / pixel[i]);
        lengths.push_back(rows[i].length);
    }
    *std_px = std::max(min_px, MEDIAN_TO_STD * median_of(errors));
    const double far = median_of(lengths);
    for (size_t i = 0; i < rows.size(); ++i) {
        if (rows[i].length >= far) {
            double across, along;
            split(rows[i], &across, &along);
            excess.push_back(std::fabs(along) / rows[i].length);
            noise.push_back(*std_px * pixel[i] / rows[i].length);
        }
    }
    const double total = MEDIAN_TO_STD * median_of(excess), known = median_of(noise);
    *point_variance =
        std::clamp(total * total - known * known, 0.0, max_point * max_point);
}

// Adds what `count` tracks say to hessian and gradient of all unknowns. Tracks of a pair of views
// follow each other. points (count, 3) in the source, at pixels `places` (count, 2) of an image of
// width x height; rays (count, 2) in the target, pixel (count,) the size of one there. pair_std:
// deviation of what a whole pair has wrong in common (an unknown, eliminated). alike: tracks that
// count as one.
// noise (2,): deviation of tracks in pixels, relative deviation of single depths.
KERNEL void track_equations(
    int64_t views, int64_t knot_columns, int64_t knot_rows, const double* relative,
    const double* log_depth, double nearest, int64_t width, int64_t height, int64_t count,
    const int64_t* source, const int64_t* target, const double* points, const double* places,
    const double* rays, const double* pixel, double cauchy, double min_px, double max_point,
    double pair_std, double alike, double* hessian, double* gradient, double* noise)
{
    const KnotGrid grid{knot_columns, knot_rows, width, height};
    const Window window{views, knot_columns * knot_rows, relative, log_depth, cauchy, nearest};
    std::vector<TrackRows> rows(count);
    for (int64_t i = 0; i < count; ++i) {
        const Knots knots = grid.around(places[2 * i], places[2 * i + 1]);
        rows[i] =
            track_rows(window, source[i], target[i], points + 3 * i, knots, rays + 2 * i);
    }
    double std_px, point_variance;
    track_noise(rows, pixel, min_px, max_point, &std_px, &point_variance);
    noise[0] = std_px;
    noise[1] = std::sqrt(point_variance);
    PairSums sums(window);
    const int64_t size = sums.size();
    std::vector<double> common(2 * size), scaled(2 * size);
    double total[3] = {0, 0, 0}, pull[2] = {0, 0};  // xx, xy, yy
    constexpr int COLUMNS = 2 * MOTION + CORNERS;
    for (int64_t i = 0; i < count; ++i) {
        const TrackRows& row = rows[i];
        double across, along;
        split(row, &across, &along);
        const double base = std::pow(std_px * pixel[i], 2);
        const double far = base + point_variance * row.length * row.length;
        // Of errors in two directions, the median is 1.18 deviations of one.
        const double error = std::sqrt(across * across / base + along * along / far) / 1.1774;
        const double weight = window.robust(error) / alike;
        const double x = row.along[0] / row.length, y = row.along[1] / row.length;
        const double xx = weight * (x * x / far + y * y / base);
        const double xy = weight * x * y * (1 / far - 1 / base);
        const double yy = weight * (y * y / far + x * x / base);

        int64_t columns[COLUMNS];
        double jacobian[2][COLUMNS], weighted[2][COLUMNS];
        for (int k = 0; k < MOTION; ++k) {
            columns[k] = k;
            columns[MOTION + k] = window.per_view() + k;
            for (int axis = 0; axis < 2; ++axis) {
                jacobian[axis][k] = row.by_source[axis][k];
                jacobian[axis][MOTION + k] = row.by_target[axis][k];
            }
        }
        for (int k = 0; k < CORNERS; ++k) {
            columns[2 * MOTION + k] = MOTION + row.knots.at[k];
            for (int axis = 0; axis < 2; ++axis) {
                jacobian[axis][2 * MOTION + k] = row.along[axis] * row.knots.share[k];
            }
        }
        for (int k = 0; k < COLUMNS; ++k) {
            weighted[0][k] = xx * jacobian[0][k] + xy * jacobian[1][k];
            weighted[1][k] = xy * jacobian[0][k] + yy * jacobian[1][k];
            common[columns[k]] += weighted[0][k];
            common[size + columns[k]] += weighted[1][k];
        }
        sums.add(columns, COLUMNS, weighted[0], jacobian[0], row.residual[0]);
        sums.add(columns, COLUMNS, weighted[1], jacobian[1], row.residual[1]);
        total[0] += xx;
        total[1] += xy;
        total[2] += yy;
        pull[0] += xx * row.residual[0] + xy * row.residual[1];
        pull[1] += xy * row.residual[0] + yy * row.residual[1];
        if (i + 1 < count && source[i + 1] == source[i] && target[i + 1] == target[i]) {
            continue;
        }
        const double known = 1 / (pair_std * pair_std);
        const double a = total[0] + known, b = total[1], c = total[2] + known;
        const double determinant = a * c - b * b;
        for (int64_t k = 0; k < size; ++k) {
            scaled[k] = (c * common[k] - b * common[size + k]) / determinant;
            scaled[size + k] = (a * common[size + k] - b * common[k]) / determinant;
        }
        sums.subtract(&scaled[0], &common[0], pull[0]);
        sums.subtract(&scaled[size], &common[size], pull[1]);
        sums.move_into(source[i], target[i], window.unknowns(), hessian, gradient);
        std::fill(common.begin(), common.end(), 0.0);
        std::fill(total, total + 3, 0.0);
        std::fill(pull, pull + 2, 0.0);
    }
}

// How far `count` tracks end from where poses and depth put them, in pixels of the target;
// arguments as of `track_equations`.
KERNEL void track_errors(
    int64_t views, int64_t knot_columns, int64_t knot_rows, const double* relative,
    const double* log_depth, double nearest, int64_t width, int64_t height, int64_t count,
    const int64_t* source, const int64_t* target, const double* points, const double* places,
    const double* rays, const double* pixel, double* errors)
{
    const KnotGrid grid{knot_columns, knot_rows, width, height};
    const Window window{views, knot_columns * knot_rows, relative, log_depth, 1, nearest};
    for (int64_t i = 0; i < count; ++i) {
        const Knots knots = grid.around(places[2 * i], places[2 * i + 1]);
        const Moved moved = move_point(window, source[i], target[i], points + 3 * i, knots);
        const double x = moved.seen[0] / moved.seen[2] - rays[2 * i];
        const double y = moved.seen[1] / moved.seen[2] - rays[2 * i + 1];
        errors[i] = std::sqrt(x * x + y * y) / pixel[i];
    }
}

// A point of the source that the target sees on a smooth surface.
struct SurfaceRow {
    int64_t index;
    Knots here, there;
    double residual, steep, along;
    double by_source[MOTION], by_target[MOTION];
};

// Adds how far points of the source (as in `track_equations`) lie off the target's surface, as
// logarithms of depth. maps float32 (views, height, width, 4): logarithm of the depth, its slopes
// per pixel, not 0 at edges; cameras (views, 4): fx, fy, cx, cy of that size. Returns the relative
// deviation of depth between views; 0, and nothing is added, for fewer than min_points.
KERNEL double surface_equations(
    int64_t views, int64_t knot_columns, int64_t knot_rows, const double* relative,
    const double* log_depth, double nearest, int64_t width, int64_t height, int64_t count,
    const int64_t* source, const int64_t* target, const double* points, const double* places,
    const float* maps, const double* cameras, double cauchy, double border_px,
    int64_t min_points, double min_std, double alike, double* hessian, double* gradient)
{
    const KnotGrid grid{knot_columns, knot_rows, width, height};
    const int64_t knots = knot_columns * knot_rows;
    const Window window{views, knots, relative, log_depth, cauchy, nearest};
    std::vector<SurfaceRow> rows;
    std::vector<double> errors;
    for (int64_t i = 0; i < count; ++i) {
        const Knots here = grid.around(places[2 * i], places[2 * i + 1]);
        const Moved moved = move_point(window, source[i], target[i], points + 3 * i, here);
        const double* camera = cameras + 4 * target[i];
        const double near = 1 / moved.seen[2];
        const double x = camera[0] * moved.seen[0] * near + camera[2];
        const double y = camera[1] * moved.seen[1] * near + camera[3];
        if (!(x > border_px && x < width - border_px - 1 && y > border_px &&
              y < height - border_px - 1)) {
            continue;
        }
        const double column = std::nearbyint(x), line = std::nearbyint(y);
        const float* map =
            maps + 4 * ((target[i] * height + int64_t(line)) * width + int64_t(column));
        if (map[3] != 0) {
            continue;
        }
        SurfaceRow row;
        row.index = i;
        row.here = here;
        row.there = grid.around(x, y);
        const double surface = map[0] + map[1] * (x - column) + map[2] * (y - line) +
            row.there.mean(log_depth + target[i] * knots);
        row.residual = std::log(moved.seen[2]) - surface;
        if (!(row.residual - row.residual == 0)) {
            continue;
        }
        const double across = map[1] * camera[0] * near, down = map[2] * camera[1] * near;
        const double slope[3] = {
            -across, -down, near * (1 + across * moved.seen[0] + down * moved.seen[1])};
        row.along = pose_row(
            window.target_from_source(target[i], source[i]), moved, slope, row.by_source,
            row.by_target);
        // Errors of place show more where the surface is steep along the ray.
        row.steep = std::max(std::sqrt(dot(slope, slope)) * moved.seen[2], 1.0);
        errors.push_back(std::fabs(row.residual) / row.steep);
        rows.push_back(row);
    }
    if (int64_t(rows.size()) < min_points) {
        return 0;
    }
    const double spread = MEDIAN_TO_STD * median_of(errors), std = std::max(min_std, spread);
    PairSums sums(window);
    constexpr int COLUMNS = 2 * (MOTION + CORNERS);
    for (size_t r = 0; r < rows.size(); ++r) {
        const SurfaceRow& row = rows[r];
        const int64_t i = row.index;
        const double robust = window.robust(row.residual / row.steep / std);
        const double weight = robust * robust / std::pow(std * row.steep, 2) / alike;
        int64_t columns[COLUMNS];
        double jacobian[COLUMNS], weighted[COLUMNS];
        for (int k = 0; k < MOTION; ++k) {
            columns[k] = k;
            jacobian[k] = row.by_source[k];
            columns[MOTION + k] = window.per_view() + k;
            jacobian[MOTION + k] = row.by_target[k];
        }
        for (int k = 0; k < CORNERS; ++k) {
            columns[2 * MOTION + k] = MOTION + row.here.at[k];
            jacobian[2 * MOTION + k] = row.along * row.here.share[k];
            columns[2 * MOTION + CORNERS + k] = window.per_view() + MOTION + row.there.at[k];
            jacobian[2 * MOTION + CORNERS + k] = -row.there.share[k];
        }
        for (int k = 0; k < COLUMNS; ++k) {
            weighted[k] = weight * jacobian[k];
        }
        sums.add(columns, COLUMNS, weighted, jacobian, row.residual);
        const bool last = r + 1 == rows.size();
        if (last || source[rows[r + 1].index] != source[i] ||
            target[rows[r + 1].index] != target[i]) {
            sums.move_into(source[i], target[i], window.unknowns(), hessian, gradient);
        }
    }
    return spread;
}

// Where a source sees points (count, 3) of a target: place (count, 2) in pixels, and depth.
KERNEL void see_points(
    const float* points, int64_t count, const float* source_from_target, const float* camera,
    float* place, float* depth)
{
    const Pinhole lens = {camera[0], camera[1], camera[2], camera[3]};
    for (int64_t i = 0; i < count; ++i) {
        const SeenAt seen = seen_at(points + 3 * i, source_from_target, lens);
        place[2 * i] = seen.x;
        place[2 * i + 1] = seen.y;
        depth[i] = seen.depth;
    }
}
