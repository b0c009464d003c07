// SPDX-License-Identifier: Apache-2.0
// Normal equations of a pose graph over similarities, whose unknowns are the right tangents of its
// free nodes. A similarity is a row of 13: scale, rotation, translation.
#include "kernel.h"

#include "sim3.h"

namespace {

// Sums over the unknowns; without a matrix only the cost is of interest.
struct Equations {
    double *hessian, *gradient;
    int64_t unknowns;

    // Adds J' information J and J' pull for two ends of an edge (the same one twice, or both).
    void add_block(
        int64_t here, int64_t there, const double (&first)[7][7], const double (&second)[7][7])
    {
        for (int i = 0; i < 7; ++i) {
            double* row = hessian + (7 * here + i) * unknowns + 7 * there;
            for (int j = 0; j < 7; ++j) {
                double sum = 0;
                for (int k = 0; k < 7; ++k) {
                    sum += first[k][i] * second[k][j];
                }
                row[j] += sum;
            }
        }
    }

    void add_pull(int64_t here, const double (&jacobian)[7][7], const double* pull)
    {
        for (int i = 0; i < 7; ++i) {
            for (int k = 0; k < 7; ++k) {
                gradient[7 * here + i] += jacobian[k][i] * pull[k];
            }
        }
    }
};

void times(const double* matrix, const double (&right)[7][7], double (&out)[7][7])
{
    for (int i = 0; i < 7; ++i) {
        for (int j = 0; j < 7; ++j) {
            double sum = 0;
            for (int k = 0; k < 7; ++k) {
                sum += matrix[7 * i + k] * right[k][j];
            }
            out[i][j] = sum;
        }
    }
}

// The squared error of one edge; what leads from its measurement to the poses is the residual.
double add_edge(
    const Sim3& target, const Sim3& source, const Sim3& measured, const double* information,
    int64_t target_row, int64_t source_row, Equations* sums)
{
    const Sim3 between = composed(inverse(target), source);
    double residual[7], pull[7], squared = 0;
    logarithm(composed(between, inverse(measured)), residual);
    for (int i = 0; i < 7; ++i) {
        pull[i] = 0;
        for (int k = 0; k < 7; ++k) {
            pull[i] += information[7 * i + k] * residual[k];
        }
        squared += pull[i] * residual[i];
    }
    if (sums == nullptr) {
        return squared;
    }
    double by_target[7][7] = {}, by_source[7][7], weighed[7][7];
    for (int i = 0; i < 7; ++i) {
        by_target[i][i] = -1;
    }
    adjoint(between, by_source);
    if (target_row >= 0) {
        sums->add_pull(target_row, by_target, pull);
        times(information, by_target, weighed);
        sums->add_block(target_row, target_row, by_target, weighed);
        if (source_row >= 0) {
            sums->add_block(source_row, target_row, by_source, weighed);
        }
    }
    if (source_row >= 0) {
        sums->add_pull(source_row, by_source, pull);
        times(information, by_source, weighed);
        sums->add_block(source_row, source_row, by_source, weighed);
        if (target_row >= 0) {
            sums->add_block(target_row, source_row, by_target, weighed);
        }
    }
    return squared;
}

// The squared error of a node's measured scale: its logarithm and its deviation.
double add_scale(const Sim3& pose, const double* measured, int64_t row, Equations* sums)
{
    const double error = (std::log(pose.scale) - measured[0]) / measured[1];
    if (sums != nullptr) {
        const int64_t at = 7 * row + 6;
        sums->hessian[at * sums->unknowns + at] += 1 / (measured[1] * measured[1]);
        sums->gradient[at] += error / measured[1];
    }
    return error * error;
}

// The squared angle between the map's z and what was measured as up, by its information (3, 3).
double add_up(const Sim3& pose, const double* information, int64_t row, Equations* sums)
{
    const double* z = pose.rotation + 6;
    const double turn[3][3] = {{0, -z[2], z[1]}, {z[2], 0, -z[0]}, {-z[1], z[0], 0}};
    double pull[3], squared = 0;
    for (int i = 0; i < 3; ++i) {
        pull[i] = dot(information + 3 * i, z);
        squared += pull[i] * z[i];
    }
    for (int i = 0; sums != nullptr && i < 3; ++i) {
        for (int k = 0; k < 3; ++k) {
            sums->gradient[7 * row + i] += turn[k][i] * pull[k];
            double* out = sums->hessian + (7 * row + i) * sums->unknowns + 7 * row;
            for (int j = 0; j < 3; ++j) {
                for (int l = 0; l < 3; ++l) {
                    out[j] += turn[k][i] * information[3 * k + l] * turn[l][j];
                }
            }
        }
    }
    return squared;
}

}  // namespace

// poses (nodes, 13) map_from_node; rows (nodes): which unknowns are a node's, -1 where it stands
// still. Edges: ends (edges, 2) target and source, measured (edges, 13) target_from_source,
// information (edges, 7, 7) of its left tangent. Of free nodes: scales (nodes, 2) logarithm of map
// units per unit and its deviation, 0 where there is none; ups (nodes, 3, 3) information of up in
// the node's frame, zero where there is none. hessian (7 f, 7 f) and gradient (7 f) of f free
// nodes are added to, unless f is 0. Returns the sum of squared normalised errors.
KERNEL double graph_equations(
    const double* poses, const int64_t* rows, int64_t nodes, const int64_t* ends,
    const double* measured, const double* information, int64_t edges, const double* scales,
    const double* ups, int64_t free_nodes, double* hessian, double* gradient)
{
    Equations equations{hessian, gradient, 7 * free_nodes};
    Equations* sums = free_nodes > 0 ? &equations : nullptr;
    const Sim3* pose = reinterpret_cast<const Sim3*>(poses);
    const Sim3* edge = reinterpret_cast<const Sim3*>(measured);
    double cost = 0;
    for (int64_t e = 0; e < edges; ++e) {
        const int64_t target = ends[2 * e], source = ends[2 * e + 1];
        cost += add_edge(
            pose[target], pose[source], edge[e], information + 49 * e, rows[target], rows[source],
            sums);
    }
    for (int64_t n = 0; n < nodes; ++n) {
        if (rows[n] < 0) {
            continue;
        }
        if (scales[2 * n + 1] > 0) {
            cost += add_scale(pose[n], scales + 2 * n, rows[n], sums);
        }
        cost += add_up(pose[n], ups + 9 * n, rows[n], sums);
    }
    return cost;
}

// Similarities (count, 13), each moved by its right tangent (count, 7) -> out (count, 13).
KERNEL void move_poses(const double* poses, const double* tangents, int64_t count, double* out)
{
    const Sim3* pose = reinterpret_cast<const Sim3*>(poses);
    for (int64_t n = 0; n < count; ++n) {
        reinterpret_cast<Sim3*>(out)[n] = composed(pose[n], exponential(tangents + 7 * n));
    }
}
