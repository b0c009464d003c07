// SPDX-License-Identifier: Apache-2.0
// What the kernels of a GPU share. Compiled as C++ a kernel is a loop over its threads, and the
// tests run that, by one thread of the processor and by several at once.
#pragma once

#include "view_pairs.cuh"

#ifdef __CUDACC__
#define DEVICE_KERNEL extern "C" __global__ void
#define FOR_EACH(i, count) \
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; \
    if (i < (count))

template <class T> __device__ T add_to(T* sum, T value) { return atomicAdd(sum, value); }

// What a place held before it got the value, which it only gets where it held 0.
__device__ inline int64_t claim(int64_t* place, int64_t value)
{
    return int64_t(atomicCAS(reinterpret_cast<unsigned long long*>(place), 0ull,
                             static_cast<unsigned long long>(value)));
}
// A place that is to hold the largest of the values.
__device__ inline void raise_to(int32_t* place, int32_t value)
{
    if (value > *place) {  // which spares most of the waiting for each other
        atomicMax(place, value);
    }
}
#else
#define DEVICE_KERNEL extern "C" void

// Threads of the processor may share a kernel, as those of a GPU do: each takes every `parts`-th
// index from its own one on.
static thread_local int64_t part = 0, parts = 1;
extern "C" int32_t take_part(int64_t own, int64_t all)
{
    part = own;
    parts = all;
    return 0;
}
#define FOR_EACH(i, count) for (int64_t i = part; i < (count); i += parts)

template <class T> T add_to(T* sum, T value)
{
    T before = *sum, after = before + value;
    while (!__atomic_compare_exchange(
        sum, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        after = before + value;
    }
    return before;
}

inline int64_t claim(int64_t* place, int64_t value)
{
    int64_t before = 0;
    __atomic_compare_exchange(
        place, &before, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return before;
}

inline void raise_to(int32_t* place, int32_t value)
{
    int32_t before = *place;
    while (before < value
           && !__atomic_compare_exchange(
               place, &before, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}
#endif

ON_BOTH int32_t bits_of(float value)
{
    int32_t bits;  // of numbers not below 0 they have the numbers' order
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

// The nearest half, ties to even; beyond the largest one that, NaN stays.
ON_BOTH uint16_t half_of(float value)
{
    constexpr float LARGEST = 65504.0f, SMALLEST_NORMAL = 6.103515625e-5f;
    const float size = least(fabsf(value), LARGEST);
    const int sign = bits_of(value) < 0 ? 0x8000 : 0;
    if (value != value) {
        return uint16_t(sign | 0x7e00);
    }
    if (size < SMALLEST_NORMAL) {  // added to 1/2, its last bits are those of a half
        return uint16_t(sign | (bits_of(size + 0.5f) - bits_of(0.5f)));
    }
    const int32_t bits = bits_of(size), odd = bits >> 13 & 1;
    return uint16_t(sign | (bits + 0xfff + odd - (112 << 23)) >> 13);
}
