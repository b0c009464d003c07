// SPDX-License-Identifier: Apache-2.0
// Packs points into the 20 bytes of geometry/point_cloud.py: x, y, z, 0x00RRGGBB, confidence.
// The same source compiles as plain C++, where a test checks its arithmetic (PACK_ON_CPU).

#ifndef PACK_ON_CPU
#define PACK_INLINE static __device__ __forceinline__
#else
#include <cmath>
#define PACK_INLINE static inline
#endif

struct PackedPoint {
    float x, y, z;
    unsigned int rgb;
    float confidence;
};
static_assert(sizeof(PackedPoint) == 20, "the layout of geometry/point_cloud.py");

// As core.geometry.depth_edges for one neighbour.
PACK_INLINE bool is_edge(float depth, float beside, float edge_step)
{
    return fabsf(depth - beside) > edge_step * fminf(depth, beside);
}

// As core.cloud.valid_points for pixel i of views of width x height: finite, in front of the
// camera, known well enough, not at a depth step. An edge_step of 0 keeps steps.
PACK_INLINE bool is_valid(
    const float* points, const float* confidence, int i, int width, int height,
    float min_confidence, float edge_step)
{
    const float* p = points + 3ll * i;
    const float sum = p[0] + p[1] + p[2];
    if (!(sum - sum == 0.0f) || !(p[2] > 0.0f)) {
        return false;
    }
    if (min_confidence > 0.0f && !(confidence[i] >= min_confidence)) {
        return false;
    }
    if (!(edge_step > 0.0f)) {
        return true;
    }
    const int u = i % width, v = i / width % height;
    const long long row = 3ll * width;
    return !(u > 0 && is_edge(p[2], p[2 - 3], edge_step))
        && !(u < width - 1 && is_edge(p[2], p[2 + 3], edge_step))
        && !(v > 0 && is_edge(p[2], p[2 - row], edge_step))
        && !(v < height - 1 && is_edge(p[2], p[2 + row], edge_step));
}

// affine: 3 x 4, row-major, with the scale in its left part.
PACK_INLINE PackedPoint pack_point(
    const float* p, const unsigned char* colour, float confidence, const float* affine)
{
    PackedPoint out;
    out.x = affine[0] * p[0] + affine[1] * p[1] + affine[2] * p[2] + affine[3];
    out.y = affine[4] * p[0] + affine[5] * p[1] + affine[6] * p[2] + affine[7];
    out.z = affine[8] * p[0] + affine[9] * p[1] + affine[10] * p[2] + affine[11];
    out.rgb = (unsigned int)colour[0] << 16 | (unsigned int)colour[1] << 8 | colour[2];
    out.confidence = confidence;
    return out;
}

#ifndef PACK_ON_CPU

// Dense clouds in the order of the pixels, in three steps: each block counts its valid points,
// one thread sums the counts up, each block writes behind those before it.

#define THREADS 256

PACK_INLINE unsigned int rank_in_block(bool valid, unsigned int* total)
{
    __shared__ unsigned int warps[THREADS / 32];
    const unsigned int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned int votes = __ballot_sync(0xffffffffu, valid);
    if (lane == 0) {
        warps[warp] = __popc(votes);
    }
    __syncthreads();
    unsigned int before = 0, sum = 0;
    for (unsigned int i = 0; i < THREADS / 32; ++i) {
        before += i < warp ? warps[i] : 0;
        sum += warps[i];
    }
    *total = sum;
    return before + __popc(votes & ((1u << lane) - 1));
}

extern "C" __global__ void count_points(
    const float* points, const float* confidence, int pixels, int width, int height,
    float min_confidence, float edge_step, unsigned int* counts)
{
    const int i = blockIdx.x * THREADS + threadIdx.x;
    const bool valid = i < pixels
        && is_valid(points, confidence, i, width, height, min_confidence, edge_step);
    unsigned int total;
    rank_in_block(valid, &total);
    if (threadIdx.x == 0) {
        counts[blockIdx.x] = total;
    }
}

// counts become the number of points before each block; counts[blocks] is that of all.
extern "C" __global__ void sum_counts(unsigned int* counts, int blocks)
{
    unsigned int before = 0;
    for (int i = 0; i < blocks; ++i) {
        const unsigned int own = counts[i];
        counts[i] = before;
        before += own;
    }
    counts[blocks] = before;
}

extern "C" __global__ void write_points(
    const float* points, const unsigned char* colours, const float* confidence,
    const float* affines, int pixels, int width, int height, float min_confidence,
    float edge_step, const unsigned int* counts, PackedPoint* out)
{
    const int i = blockIdx.x * THREADS + threadIdx.x;
    const bool valid = i < pixels
        && is_valid(points, confidence, i, width, height, min_confidence, edge_step);
    unsigned int total;
    const unsigned int rank = rank_in_block(valid, &total);
    if (valid) {
        const float* affine = affines + 12 * (i / (width * height));
        out[counts[blockIdx.x] + rank] =
            pack_point(points + 3ll * i, colours + 3ll * i, confidence[i], affine);
    }
}

#endif
