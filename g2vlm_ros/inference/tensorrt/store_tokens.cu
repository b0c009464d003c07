// SPDX-License-Identifier: Apache-2.0
// Puts the keys and values of one new token into the buffers of all layers and heads, at a place
// that stands in device memory: so the step can be recorded once and replayed for every token.
// The same source compiles as plain C++, where a test runs it (STORE_ON_CPU).

#ifndef STORE_ON_CPU
#define STORE_INLINE static __device__ __forceinline__
#else
#define STORE_INLINE static inline
struct uint4 { unsigned int x, y, z, w; };
#endif

// Unit i of a token: `units` of 16 bytes for each of the rows (layers x heads), in a buffer of
// `places` tokens per row.
STORE_INLINE void store_unit(const uint4* token, uint4* buffer, long long place, int i, int units, int places)
{
    const long long row = i / units;
    buffer[(row * places + place) * units + i % units] = token[i];
}

#ifndef STORE_ON_CPU

extern "C" __global__ void store_token(
    const uint4* keys, const uint4* values, uint4* key_buffer, uint4* value_buffer,
    const long long* stored, int rows, int units, int places)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < rows * units) {
        store_unit(keys, key_buffer, *stored, i, units, places);
        store_unit(values, value_buffer, *stored, i, units, places);
    }
}

#endif
