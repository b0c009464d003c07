// SPDX-License-Identifier: Apache-2.0
// The robust similarity between two reconstructions of one view, with what its covariance needs.
#include "kernel.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "sim3.h"

constexpr double CAUCHY = 2.385;  // standard deviations at which the loss bends, 95 % efficient
constexpr double MIN_SPREAD = 1e-6;
constexpr double CONVERGED = 1e-6;  // of angle (rad) and logarithm of scale

// The points of one view in the source and in the target window; n of each.
struct Pairs {
    const double *source, *target, *weights;
    const double* range;  // of the target points from the camera
    const double* direction;  // (n, 3) unit, from the camera to the target points
    const double* centre;  // the camera in the target
    int64_t n;
};

// Weighted least squares in closed form (Umeyama, PAMI 1991). False when the points lie on a line.
static bool closed_form(const Pairs& pairs, const std::vector<double>& weights, Sim3* fit)
{
    double total = 0, from[3] = {}, to[3] = {};
    for (int64_t k = 0; k < pairs.n; ++k) {
        total += weights[k];
        for (int i = 0; i < 3; ++i) {
            from[i] += weights[k] * pairs.source[3 * k + i];
            to[i] += weights[k] * pairs.target[3 * k + i];
        }
    }
    if (!(total > 0 && total < INFINITY)) {
        return false;
    }
    for (int i = 0; i < 3; ++i) {
        from[i] /= total;
        to[i] /= total;
    }
    double covariance[9] = {}, variance = 0;
    for (int64_t k = 0; k < pairs.n; ++k) {
        const double w = weights[k] / total;
        for (int i = 0; i < 3; ++i) {
            const double b = w * (pairs.target[3 * k + i] - to[i]);
            const double a = pairs.source[3 * k + i] - from[i];
            variance += w * a * a;
            for (int j = 0; j < 3; ++j) {
                covariance[3 * i + j] += b * (pairs.source[3 * k + j] - from[j]);
            }
        }
    }
    double singular[3];
    if (!nearest_rotation(covariance, fit->rotation, singular)) {
        return false;
    }
    fit->scale = (singular[0] + singular[1] + singular[2]) / variance;
    std::fill(fit->translation, fit->translation + 3, 0.0);
    double turned[3];
    fit->apply(from, turned);
    for (int i = 0; i < 3; ++i) {
        fit->translation[i] = to[i] - turned[i];
    }
    return true;
}

// Closed form with Cauchy weights. A relative error of depth grows with depth: each point is
// weighed by its inverse variance.
static bool robust_closed_form(const Pairs& pairs, int64_t steps, Sim3* fit)
{
    std::vector<double> base(pairs.n), weights, error(pairs.n), sorted;
    for (int64_t k = 0; k < pairs.n; ++k) {
        base[k] = pairs.weights[k] / (pairs.range[k] * pairs.range[k]);
    }
    weights = base;
    for (int64_t step = 0; step < steps; ++step) {
        if (!closed_form(pairs, weights, fit)) {
            return false;
        }
        if (step + 1 == steps) {
            break;
        }
        for (int64_t k = 0; k < pairs.n; ++k) {
            double p[3];
            fit->apply(pairs.source + 3 * k, p);
            for (int i = 0; i < 3; ++i) {
                p[i] -= pairs.target[3 * k + i];
            }
            error[k] = std::sqrt(dot(p, p)) / pairs.range[k];
        }
        sorted = error;
        const double spread = std::max(1.4826 * median_of(sorted), MIN_SPREAD);
        for (int64_t k = 0; k < pairs.n; ++k) {
            const double relative = error[k] / spread;
            weights[k] = base[k] / (1 + relative * relative);
        }
    }
    return true;
}

// Residuals of a fit as seen from the camera: logarithm of the range, and direction.
struct Residuals {
    std::vector<double> moved, unit, reach, log_range, turn;
    double range_spread, turn_spread;

    explicit Residuals(int64_t n)
        : moved(3 * n), unit(3 * n), reach(n), log_range(n), turn(n), sorted(n)
    {}

    void update(const Sim3& fit, const Pairs& pairs)
    {
        for (int64_t k = 0; k < pairs.n; ++k) {
            double *p = &moved[3 * k], *u = &unit[3 * k], off[3];
            fit.apply(pairs.source + 3 * k, p);
            for (int i = 0; i < 3; ++i) {
                u[i] = p[i] - pairs.centre[i];
            }
            reach[k] = std::max(std::sqrt(dot(u, u)), 1e-9);
            for (int i = 0; i < 3; ++i) {
                u[i] /= reach[k];
                off[i] = u[i] - pairs.direction[3 * k + i];
            }
            turn[k] = std::sqrt(dot(off, off));
            log_range[k] = std::log(reach[k] / pairs.range[k]);
            sorted[k] = std::fabs(log_range[k]);
        }
        range_spread = std::max(CAUCHY * 1.4826 * median_of(sorted), MIN_SPREAD);
        sorted = turn;
        turn_spread = std::max(CAUCHY * median_of(sorted) / 1.1774, MIN_SPREAD);
    }

private:
    std::vector<double> sorted;
};

// Weight of the reweighted step, and mean second derivative, of the Cauchy loss.
static void cauchy(
    double error, double spread, double degrees, double weight, double* first, double* second)
{
    const double squared = (error / spread) * (error / spread), robust = 1 / (1 + squared);
    *first = weight * robust / (spread * spread);
    *second = *first * (1 - 2 * robust * squared / degrees);
}

// The derivative (7) of functional . p by rotation, translation and logarithm of scale.
static void row_of(const double* p, const double* functional, double* row)
{
    cross(p, functional, row);
    std::copy(functional, functional + 3, row + 3);
    row[6] = dot(functional, p);
}

// Adds across times J'J, with J (3, 7) the motion of p, and along times row row'; upper half only.
static void add_normal(
    double across, double along, const double* p, const double* row, double* sum)
{
    const double x = p[0], y = p[1], z = p[2], square = dot(p, p);
    const double motion[28] = {
        square - x * x, -x * y, -x * z, 0, -z, y, 0,
        square - y * y, -y * z, z, 0, -x, 0,
        square - z * z, -y, x, 0, 0,
        1, 0, 0, x,
        1, 0, y,
        1, z,
        square};
    int at = 0;
    for (int i = 0; i < 7; ++i) {
        for (int j = i; j < 7; ++j, ++at) {
            sum[at] += across * motion[at] + along * row[i] * row[j];
        }
    }
}

static void unpack(const double* half, double (&full)[7][7])
{
    int at = 0;
    for (int i = 0; i < 7; ++i) {
        for (int j = i; j < 7; ++j, ++at) {
            full[i][j] = full[j][i] = half[at];
        }
    }
}

// Fits target_from_source over the n points of one view: closed form with Cauchy weights, then
// Gauss-Newton on the direction and the logarithm of the range from the camera, each with the
// spread that it shows. Depth errs along the ray, and squared distances would shrink the scale.
// fit (13): scale, rotation, translation. hessian (7, 7): of the reweighted step. curvature
// (7, 7): with the second derivative of the loss. pulls (patches, 7): the gradient, summed up by
// the patch that a point is of; block_of (n) < patches. Returns 0 when the points cannot fix a
// similarity, else 1.
KERNEL int32_t fit_view(
    const double* source, const double* target, const double* weights, const double* range,
    const double* direction, const int64_t* block_of, int64_t n, const double* centre,
    int64_t patches, int64_t robust_steps, int64_t polish_steps, double* fit_out, double* hessian,
    double* curvature, double* pulls)
{
    const Pairs pairs{source, target, weights, range, direction, centre, n};
    Sim3 fit;
    if (n < 3 || !robust_closed_form(pairs, robust_steps, &fit)) {
        return 0;
    }
    Residuals residuals(n);
    double full[7][7];
    for (int64_t step = 0; step <= polish_steps; ++step) {
        const bool last = step == polish_steps;  // for the covariance
        residuals.update(fit, pairs);
        double half[28] = {}, bent[28] = {}, gradient[7] = {};
        std::fill(pulls, pulls + 7 * patches, 0.0);
        for (int64_t k = 0; k < n; ++k) {
            const double *p = &residuals.moved[3 * k], *u = &residuals.unit[3 * k];
            const double reach = residuals.reach[k], square = reach * reach;
            double by_range, by_turn, range_bend, turn_bend;
            cauchy(residuals.log_range[k], residuals.range_spread, 1, weights[k],
                   &by_range, &range_bend);
            cauchy(residuals.turn[k], residuals.turn_spread, 2, weights[k],
                   &by_turn, &turn_bend);
            double along[7], pull[3], row[7];
            row_of(p, u, along);
            // Across the ray is everything less what is along it.
            add_normal(by_turn / square, (by_range - by_turn) / square, p, along, half);
            double off[3];
            for (int i = 0; i < 3; ++i) {
                off[i] = u[i] - direction[3 * k + i];
            }
            const double out_of_plane = dot(u, off);
            for (int i = 0; i < 3; ++i) {
                const double across = off[i] - u[i] * out_of_plane;
                pull[i] = (u[i] * by_range * residuals.log_range[k] + across * by_turn) / reach;
            }
            row_of(p, pull, row);
            for (int i = 0; i < 7; ++i) {
                gradient[i] += row[i];
            }
            if (last) {
                add_normal(turn_bend / square, (range_bend - turn_bend) / square, p, along, bent);
                for (int i = 0; i < 7; ++i) {
                    pulls[7 * block_of[k] + i] += row[i];
                }
            }
        }
        if (last) {
            unpack(half, full);
            std::memcpy(hessian, full, sizeof(full));
            unpack(bent, full);
            std::memcpy(curvature, full, sizeof(full));
            break;
        }
        unpack(half, full);
        double motion[7];
        for (double& g : gradient) {
            g = -g;
        }
        solve_symmetric(full, gradient, 1e-14, motion);
        fit = composed(exponential(motion), fit);
        double most = std::fabs(motion[6]);
        for (int i = 0; i < 3; ++i) {
            most = std::max(most, std::fabs(motion[i]));
        }
        if (most < CONVERGED) {
            step = polish_steps - 1;
        }
    }
    fit_out[0] = fit.scale;
    std::copy(fit.rotation, fit.rotation + 9, fit_out + 1);
    std::copy(fit.translation, fit.translation + 3, fit_out + 10);
    return 1;
}
