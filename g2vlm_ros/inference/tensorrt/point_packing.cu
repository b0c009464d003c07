// SPDX-License-Identifier: Apache-2.0
// Packs points into the 20 bytes of geometry/point_cloud.py: x, y, z, 0x00RRGGBB, confidence.
// Compiled as plain C++ one thread does all, which a test runs.
#include "../../kernels/pixel.cuh"

// Whether pixel i of views of width x height belongs into the cloud. ignored: pixels that nobody
// wants, or null.
ON_BOTH bool is_packed(
    const float* points, const float* confidence, const uint8_t* ignored, int i, int width,
    int height, float min_confidence, float edge_step)
{
    const int view = i / (width * height) * (width * height);
    return !(ignored && ignored[i]) && is_trusted(confidence[i], min_confidence)
        && is_valid(points + 3ll * view, i % width, i / width % height, width, height, edge_step);
}

ON_BOTH PackedPoint pack_point(
    const float* point, const uint8_t* colour, float confidence, const float* affine)
{
    float place[3];
    transform(affine, point, place);
    return packed_point(place, colour, confidence);
}

// Dense clouds in the order of the pixels, in three steps: each block counts its valid points,
// one thread sums the counts up, each block writes behind those before it.

#define THREADS 256

#ifdef __CUDACC__
#define DEVICE_KERNEL extern "C" __global__ void
#else
#define DEVICE_KERNEL extern "C" void
#endif

// counts become the number of points before each block; counts[blocks] is that of all.
DEVICE_KERNEL sum_counts(uint32_t* counts, int blocks)
{
    uint32_t before = 0;
    for (int i = 0; i < blocks; ++i) {
        const uint32_t own = counts[i];
        counts[i] = before;
        before += own;
    }
    counts[blocks] = before;
}

#ifdef __CUDACC__

__device__ inline uint32_t rank_in_block(bool valid, uint32_t* total)
{
    __shared__ uint32_t warps[THREADS / 32];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t votes = __ballot_sync(0xffffffffu, valid);
    if (lane == 0) {
        warps[warp] = __popc(votes);
    }
    __syncthreads();
    uint32_t before = 0, sum = 0;
    for (uint32_t i = 0; i < THREADS / 32; ++i) {
        before += i < warp ? warps[i] : 0;
        sum += warps[i];
    }
    *total = sum;
    return before + __popc(votes & ((1u << lane) - 1));
}

DEVICE_KERNEL count_points(
    const float* points, const float* confidence, const uint8_t* ignored, int pixels, int width,
    int height, float min_confidence, float edge_step, uint32_t* counts)
{
    const int i = blockIdx.x * THREADS + threadIdx.x;
    const bool valid = i < pixels
        && is_packed(points, confidence, ignored, i, width, height, min_confidence, edge_step);
    uint32_t total;
    rank_in_block(valid, &total);
    if (threadIdx.x == 0) {
        counts[blockIdx.x] = total;
    }
}

DEVICE_KERNEL write_points(
    const float* points, const uint8_t* colours, const float* confidence,
    const uint8_t* ignored, const float* affines, int pixels, int width, int height,
    float min_confidence, float edge_step, const uint32_t* counts, PackedPoint* out)
{
    const int i = blockIdx.x * THREADS + threadIdx.x;
    const bool valid = i < pixels
        && is_packed(points, confidence, ignored, i, width, height, min_confidence, edge_step);
    uint32_t total;
    const uint32_t rank = rank_in_block(valid, &total);
    if (valid) {
        const float* affine = affines + 12 * (i / (width * height));
        out[counts[blockIdx.x] + rank] =
            pack_point(points + 3ll * i, colours + 3ll * i, confidence[i], affine);
    }
}

#else

DEVICE_KERNEL count_points(
    const float* points, const float* confidence, const uint8_t* ignored, int pixels, int width,
    int height, float min_confidence, float edge_step, uint32_t* counts)
{
    for (int i = 0; i < pixels; ++i) {
        uint32_t* count = counts + i / THREADS;
        *count = i % THREADS ? *count : 0;
        *count += is_packed(points, confidence, ignored, i, width, height, min_confidence, edge_step);
    }
}

DEVICE_KERNEL write_points(
    const float* points, const uint8_t* colours, const float* confidence,
    const uint8_t* ignored, const float* affines, int pixels, int width, int height,
    float min_confidence, float edge_step, const uint32_t* counts, PackedPoint* out)
{
    uint32_t rank = 0;
    for (int i = 0; i < pixels; ++i) {
        rank = i % THREADS ? rank : counts[i / THREADS];
        if (is_packed(points, confidence, ignored, i, width, height, min_confidence, edge_step)) {
            const float* affine = affines + 12 * (i / (width * height));
            out[rank++] = pack_point(points + 3ll * i, colours + 3ll * i, confidence[i], affine);
        }
    }
}

#endif
