// SPDX-License-Identifier: Apache-2.0
// Similarities p -> scale * rotation p + translation, as geometry/sim3.py has them. Their tangent
// is (rotation vector, translation, logarithm of scale), each taken by itself.
#pragma once

#include "small_matrix.h"

#include <algorithm>
#include <cmath>

struct Sim3 {
    double scale = 1, rotation[9] = {1, 0, 0, 0, 1, 0, 0, 0, 1}, translation[3] = {0, 0, 0};

    void apply(const double* p, double* out) const
    {
        for (int i = 0; i < 3; ++i) {
            const double* row = rotation + 3 * i;
            out[i] = scale * (row[0] * p[0] + row[1] * p[1] + row[2] * p[2]) + translation[i];
        }
    }
};
static_assert(sizeof(Sim3) == 13 * sizeof(double), "rows (13,) of the arrays of similarities");

// a_from_b, b_from_c -> a_from_c
inline Sim3 composed(const Sim3& a, const Sim3& b)
{
    Sim3 out;
    out.scale = a.scale * b.scale;
    a.apply(b.translation, out.translation);
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) {
            double sum = 0;
            for (int k = 0; k < 3; ++k) {
                sum += a.rotation[3 * i + k] * b.rotation[3 * k + j];
            }
            out.rotation[3 * i + j] = sum;
        }
    }
    return out;
}

inline Sim3 inverse(const Sim3& a)
{
    Sim3 out;
    out.scale = 1 / a.scale;
    for (int i = 0; i < 3; ++i) {
        out.translation[i] = 0;
        for (int j = 0; j < 3; ++j) {
            out.rotation[3 * i + j] = a.rotation[3 * j + i];
            out.translation[i] -= a.rotation[3 * j + i] * a.translation[j] / a.scale;
        }
    }
    return out;
}

inline Sim3 exponential(const double* tangent)
{
    const double angle = std::sqrt(dot(tangent, tangent));
    const double a = angle > 1e-9 ? std::sin(angle) / angle : 1.0;
    const double b = angle > 1e-9 ? (1 - std::cos(angle)) / (angle * angle) : 0.5;
    const double x = tangent[0], y = tangent[1], z = tangent[2];
    const double skew[9] = {0, -z, y, z, 0, -x, -y, x, 0};
    Sim3 motion;
    motion.scale = std::exp(tangent[6]);
    for (int i = 0; i < 3; ++i) {
        motion.translation[i] = tangent[3 + i];
        for (int j = 0; j < 3; ++j) {
            double square = 0;
            for (int k = 0; k < 3; ++k) {
                square += skew[3 * i + k] * skew[3 * k + j];
            }
            motion.rotation[3 * i + j] += a * skew[3 * i + j] + b * square;
        }
    }
    return motion;
}

// The rotation vector of a rotation; half a turn has two, of which it gives one.
inline void rotation_vector(const double* r, double* vector)
{
    // r - r' = 2 sin(angle) [axis]x
    const double twice[3] = {r[7] - r[5], r[2] - r[6], r[3] - r[1]};
    const double sine = 0.5 * std::sqrt(dot(twice, twice));
    const double cosine = 0.5 * (r[0] + r[4] + r[8] - 1), angle = std::atan2(sine, cosine);
    if (cosine > 0 || sine > 1e-4) {
        const double share = sine > 1e-9 ? 0.5 * angle / sine : 0.5;
        for (int i = 0; i < 3; ++i) {
            vector[i] = share * twice[i];
        }
        return;
    }
    // Near half a turn (r + r') / 2 - cosine I is a multiple of axis axis' ...
    int longest = 0;
    for (int i = 1; i < 3; ++i) {
        longest = r[4 * i] > r[4 * longest] ? i : longest;
    }
    double axis[3];
    for (int i = 0; i < 3; ++i) {
        axis[i] = 0.5 * (r[3 * i + longest] + r[3 * longest + i]) - (i == longest ? cosine : 0);
    }
    // ... whose columns tell it but for its sign.
    const double sign = dot(axis, twice) < 0 ? -1 : 1, length = std::sqrt(dot(axis, axis));
    for (int i = 0; i < 3; ++i) {
        vector[i] = sign * angle * axis[i] / length;
    }
}

inline void logarithm(const Sim3& a, double* tangent)
{
    rotation_vector(a.rotation, tangent);
    std::copy(a.translation, a.translation + 3, tangent + 3);
    tangent[6] = std::log(a.scale);
}

// (7, 7): a exp(d) = exp(adjoint d) a, to first order in d.
inline void adjoint(const Sim3& a, double (&matrix)[7][7])
{
    std::fill(&matrix[0][0], &matrix[0][0] + 49, 0.0);
    for (int j = 0; j < 3; ++j) {
        double column[3], turned[3];
        for (int i = 0; i < 3; ++i) {
            column[i] = a.rotation[3 * i + j];
            matrix[i][j] = column[i];
            matrix[3 + i][3 + j] = a.scale * column[i];
        }
        cross(a.translation, column, turned);
        for (int i = 0; i < 3; ++i) {
            matrix[3 + i][j] = turned[i];
        }
        matrix[3 + j][6] = -a.translation[j];
    }
    matrix[6][6] = 1;
}
