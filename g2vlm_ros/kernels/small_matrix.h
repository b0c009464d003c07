// SPDX-License-Identifier: Apache-2.0
// Eigenvalues and singular values of matrices of a few rows, by Jacobi rotations (Golub & Van
// Loan, Matrix Computations, 8.5 and 8.6). Matrices are row-major.
#pragma once

#include "kernel.h"

#include <algorithm>
#include <cmath>
#include <vector>

constexpr int MAX_SWEEPS = 30;  // far more than the 5 to 8 that are needed

// The tangent of the smaller angle of a Jacobi rotation; theta: cotangent of twice the angle.
inline double tangent_of(double theta)
{
    return std::copysign(1.0, theta) / (std::fabs(theta) + std::hypot(theta, 1.0));
}

// Eigenvalues (unsorted) of a symmetric N x N matrix, which is destroyed; eigenvectors are the
// columns of `vectors`.
template <int N>
void symmetric_eigen(double (&a)[N][N], double (&values)[N], double (&vectors)[N][N])
{
    for (int i = 0; i < N; ++i) {
        for (int j = 0; j < N; ++j) {
            vectors[i][j] = i == j;
        }
    }
    for (int sweep = 0; sweep < MAX_SWEEPS; ++sweep) {
        double off = 0, all = 0;
        for (int i = 0; i < N; ++i) {
            for (int j = 0; j < N; ++j) {
                all += a[i][j] * a[i][j];
                off += i == j ? 0 : a[i][j] * a[i][j];
            }
        }
        if (!(off > 1e-32 * all)) {
            break;
        }
        for (int p = 0; p < N; ++p) {
            for (int q = p + 1; q < N; ++q) {
                if (a[p][q] == 0) {
                    continue;
                }
                const double theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
                const double t = tangent_of(theta);
                const double c = 1 / std::hypot(t, 1.0), s = t * c;
                for (int k = 0; k < N; ++k) {
                    const double x = a[k][p], y = a[k][q];
                    a[k][p] = c * x - s * y;
                    a[k][q] = s * x + c * y;
                }
                for (int k = 0; k < N; ++k) {
                    const double x = a[p][k], y = a[q][k];
                    a[p][k] = c * x - s * y;
                    a[q][k] = s * x + c * y;
                }
                for (int k = 0; k < N; ++k) {
                    const double x = vectors[k][p], y = vectors[k][q];
                    vectors[k][p] = c * x - s * y;
                    vectors[k][q] = s * x + c * y;
                }
            }
        }
    }
    for (int i = 0; i < N; ++i) {
        values[i] = a[i][i];
    }
}

// Least-squares solution of a symmetric system; zero along eigenvectors whose eigenvalue is less
// than `tolerance` of the largest one, of which the system says nothing.
template <int N>
void solve_symmetric(
    const double (&matrix)[N][N], const double (&right)[N], double tolerance, double (&x)[N])
{
    double a[N][N], values[N], vectors[N][N], largest = 0;
    std::copy(&matrix[0][0], &matrix[0][0] + N * N, &a[0][0]);
    symmetric_eigen(a, values, vectors);
    for (int i = 0; i < N; ++i) {
        largest = std::max(largest, std::fabs(values[i]));
        x[i] = 0;
    }
    for (int k = 0; k < N; ++k) {
        if (!(std::fabs(values[k]) > tolerance * largest)) {
            continue;
        }
        double along = 0;
        for (int i = 0; i < N; ++i) {
            along += vectors[i][k] * right[i];
        }
        for (int i = 0; i < N; ++i) {
            x[i] += vectors[i][k] * along / values[k];
        }
    }
}

inline void cross(const double* a, const double* b, double* out)
{
    out[0] = a[1] * b[2] - a[2] * b[1];
    out[1] = a[2] * b[0] - a[0] * b[2];
    out[2] = a[0] * b[1] - a[1] * b[0];
}

inline double dot(const double* a, const double* b)
{
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

// The rotation (3, 3) that maximises trace(rotation' m), and the singular values of m, largest
// first, the last one negative where m reflects. False when m has rank below 2 (1e-12), where the
// rotation is open. One-sided Jacobi: the columns of m are turned until they are orthogonal.
inline bool nearest_rotation(const double* m, double* rotation, double* singular)
{
    double left[3][3], right[3][3];  // columns as rows: left[k] = m right[k]
    for (int k = 0; k < 3; ++k) {
        for (int i = 0; i < 3; ++i) {
            left[k][i] = m[3 * i + k];
            right[k][i] = i == k;
        }
    }
    for (int sweep = 0; sweep < MAX_SWEEPS; ++sweep) {
        bool turned = false;
        for (int p = 0; p < 2; ++p) {
            for (int q = p + 1; q < 3; ++q) {
                const double pp = dot(left[p], left[p]), qq = dot(left[q], left[q]);
                const double pq = dot(left[p], left[q]);
                if (!(std::fabs(pq) > 1e-16 * std::sqrt(pp * qq))) {
                    continue;
                }
                turned = true;
                const double theta = (qq - pp) / (2 * pq);
                const double t = tangent_of(theta);
                const double c = 1 / std::hypot(t, 1.0), s = t * c;
                for (int i = 0; i < 3; ++i) {
                    const double x = left[p][i], y = left[q][i], u = right[p][i], v = right[q][i];
                    left[p][i] = c * x - s * y;
                    left[q][i] = s * x + c * y;
                    right[p][i] = c * u - s * v;
                    right[q][i] = s * u + c * v;
                }
            }
        }
        if (!turned) {
            break;
        }
    }
    int order[3] = {0, 1, 2};
    double size[3];
    for (int k = 0; k < 3; ++k) {
        size[k] = std::sqrt(dot(left[k], left[k]));
    }
    std::sort(order, order + 3, [&](int a, int b) { return size[a] > size[b]; });
    for (int k = 0; k < 3; ++k) {
        singular[k] = size[order[k]];
    }
    if (!(singular[1] > 1e-12 * std::max(singular[0], 1e-300))) {
        return false;
    }
    // Two axes fix the third one of a rotation.
    double u[3][3], v[3][3];
    for (int k = 0; k < 2; ++k) {
        for (int i = 0; i < 3; ++i) {
            u[k][i] = left[order[k]][i] / singular[k];
            v[k][i] = right[order[k]][i];
        }
    }
    cross(u[0], u[1], u[2]);
    cross(v[0], v[1], v[2]);
    double image[3];  // m v2: along u2, or against it where m reflects
    for (int i = 0; i < 3; ++i) {
        image[i] = m[3 * i] * v[2][0] + m[3 * i + 1] * v[2][1] + m[3 * i + 2] * v[2][2];
    }
    singular[2] = dot(image, u[2]);
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) {
            rotation[3 * i + j] = u[0][i] * v[0][j] + u[1][i] * v[1][j] + u[2][i] * v[2][j];
        }
    }
    return true;
}

// The median, as numpy has it; the values are left in another order.
inline double median_of(std::vector<double>& values)
{
    const size_t half = values.size() / 2;
    std::nth_element(values.begin(), values.begin() + half, values.end());
    const double upper = values[half];
    if (values.size() % 2) {
        return upper;
    }
    return 0.5 * (upper + *std::max_element(values.begin(), values.begin() + half));
}
