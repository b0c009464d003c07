// SPDX-License-Identifier: Apache-2.0
// Lanczos resampling of 8-bit RGB images, byte for byte that of Pillow 13: one axis after the
// other, weights of 22 fractional bits, rounded and clipped to 8 bits after each.
#include "kernel.h"

#include <algorithm>
#include <cstring>
#include <list>
#include <vector>

constexpr int FRACTION_BITS = 22;
constexpr int HALF = 1 << (FRACTION_BITS - 1);
constexpr double LOBES = 3;

// Eight whole numbers that are computed with at once; compilers make vector instructions of it.
typedef int32_t Eight __attribute__((vector_size(32), may_alias));

// The weights of each output pixel: `taps[i]` of them, from input pixel first[i] on.
struct Weights {
    std::vector<int64_t> first, taps;
    std::vector<int32_t> weight;
    int64_t most_taps;

    const int32_t* of(int64_t i) const { return weight.data() + i * most_taps; }

    Weights(int64_t in, int64_t out) : first(out), taps(out)
    {
        const double scale = double(in) / double(out), blur = std::max(scale, 1.0);
        const double support = LOBES * blur;
        most_taps = int64_t(std::ceil(support)) * 2 + 1;
        weight.assign(out * most_taps, 0);
        std::vector<double> raw(most_taps);
        for (int64_t i = 0; i < out; ++i) {
            const double centre = (double(i) + 0.5) * scale;
            first[i] = std::max<int64_t>(int64_t(centre - support + 0.5), 0);
            taps[i] = std::min<int64_t>(int64_t(centre + support + 0.5), in) - first[i];
            double sum = 0;
            for (int64_t k = 0; k < taps[i]; ++k) {
                raw[k] = lanczos((double(k + first[i]) - centre + 0.5) / blur);
                sum += raw[k];
            }
            for (int64_t k = 0; k < taps[i]; ++k) {
                const double fixed = raw[k] / sum * (1 << FRACTION_BITS);
                weight[i * most_taps + k] = int32_t(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
            }
        }
    }

    static double sinc(double x) { return x == 0 ? 1.0 : std::sin(M_PI * x) / (M_PI * x); }
    static double lanczos(double x)
    {
        return -LOBES <= x && x < LOBES ? sinc(x) * sinc(x / LOBES) : 0.0;
    }
};

// The weights between two sizes. Views of a camera all have the same: the last few are kept.
static const Weights& weights_between(int64_t in, int64_t out)
{
    constexpr size_t KEPT = 4;
    struct Entry {
        int64_t in, out;
        Weights weights;
    };
    thread_local std::list<Entry> entries;  // the one used last comes first
    for (auto entry = entries.begin(); entry != entries.end(); ++entry) {
        if (entry->in == in && entry->out == out) {
            entries.splice(entries.begin(), entries, entry);
            return entry->weights;
        }
    }
    entries.push_front({in, out, Weights(in, out)});
    if (entries.size() > KEPT) {
        entries.pop_back();
    }
    return entries.front().weights;
}

static uint8_t clipped(int32_t value)
{
    return uint8_t(std::clamp(value >> FRACTION_BITS, 0, 255));
}

// Resamples the height. in (height, bytes) -> out (new_height, bytes), bytes = 3 * width.
static void resize_rows(
    const uint8_t* in, int64_t bytes, const Weights& weights, int64_t new_height, uint8_t* out)
{
    constexpr int64_t STRIP = 64;
    for (int64_t y = 0; y < new_height; ++y) {
        const int32_t* weight = weights.of(y);
        const uint8_t* top = in + weights.first[y] * bytes;
        for (int64_t x = 0; x < bytes; x += STRIP) {
            const int64_t size = std::min(STRIP, bytes - x);
            int32_t sum[STRIP];
            for (int64_t b = 0; b < STRIP; ++b) {
                sum[b] = HALF;
            }
            for (int64_t k = 0; k < weights.taps[y]; ++k) {
                const uint8_t* row = top + k * bytes + x;
                const int32_t w = weight[k];
                if (size == STRIP) {
                    for (int64_t b = 0; b < STRIP; ++b) {
                        sum[b] += w * row[b];
                    }
                } else {
                    for (int64_t b = 0; b < size; ++b) {
                        sum[b] += w * row[b];
                    }
                }
            }
            if (size == STRIP) {
                for (int64_t b = 0; b < STRIP; ++b) {
                    out[y * bytes + x + b] = clipped(sum[b]);
                }
            } else {
                for (int64_t b = 0; b < size; ++b) {
                    out[y * bytes + x + b] = clipped(sum[b]);
                }
            }
        }
    }
}

// The pixels of two rows as numbers. A byte follows each in memory, which means nothing as the
// fourth and the eighth number; the lowest byte of a word comes first, as on all these processors.
static Eight two_pixels(const uint8_t* upper, const uint8_t* lower)
{
    int32_t a, b;
    std::memcpy(&a, upper, 4);
    std::memcpy(&b, lower, 4);
    constexpr Eight SHIFT = {0, 8, 16, 24, 0, 8, 16, 24};
    return (Eight{a, a, a, a, b, b, b, b} >> SHIFT) & 255;
}

// Resamples the width. in (height, width, 3) -> out (height, new_width, 3), two rows at a time:
// a pixel of both rows is one vector of eight numbers, two of which mean nothing. TAPS: weights
// that are applied to each pixel, those behind its own are 0; a loop of fixed length is unrolled.
template <int TAPS>
static void resize_columns_by(
    const uint8_t* in, int64_t height, int64_t width, const Weights& weights, int64_t new_width,
    uint8_t* out)
{
    const int64_t taps = TAPS > 0 ? TAPS : weights.most_taps;
    std::vector<int32_t> memory(8 * (width + taps) + 8);
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory.data());
    Eight* pair = reinterpret_cast<Eight*>((start + 31) / 32 * 32);  // at a multiple of 32
    for (int64_t y = 0; y < height; y += 2) {
        const uint8_t* upper = in + 3 * y * width;
        const uint8_t* lower = y + 1 < height ? upper + 3 * width : upper;
        for (int64_t x = 0; x + 1 < width; ++x) {
            pair[x] = two_pixels(upper + 3 * x, lower + 3 * x);
        }
        const uint8_t *a = upper + 3 * (width - 1), *b = lower + 3 * (width - 1);
        pair[width - 1] = Eight{a[0], a[1], a[2], 0, b[0], b[1], b[2], 0};
        uint8_t* first = out + 3 * y * new_width;
        uint8_t* second = y + 1 < height ? first + 3 * new_width : first;
        for (int64_t x = 0; x < new_width; ++x) {
            const int32_t* weight = weights.of(x);
            const Eight* from = pair + weights.first[x];
            Eight sum = {HALF, HALF, HALF, HALF, HALF, HALF, HALF, HALF};
            for (int64_t k = 0; k < taps; ++k) {
                sum += from[k] * weight[k];
            }
            sum >>= FRACTION_BITS;
            sum = sum < 0 ? Eight{} : sum;
            sum = sum > 255 ? Eight{} + 255 : sum;
            for (int c = 0; c < 3; ++c) {
                first[3 * x + c] = uint8_t(sum[c]);
                second[3 * x + c] = uint8_t(sum[4 + c]);
            }
        }
    }
}

static void resize_columns(
    const uint8_t* in, int64_t height, int64_t width, const Weights& weights, int64_t new_width,
    uint8_t* out)
{
    switch (weights.most_taps) {
    case 7:  // enlarged
        return resize_columns_by<7>(in, height, width, weights, new_width, out);
    case 9:  // shrunk to three quarters at least, as 640 to 518
        return resize_columns_by<9>(in, height, width, weights, new_width, out);
    default:
        return resize_columns_by<0>(in, height, width, weights, new_width, out);
    }
}

// in (height, width, 3) -> out (new_height, new_width, 3), RGB. Overshoot is clipped between the
// passes, so that their order matters: Pillow 13 begins with the height where that loses more.
KERNEL void resize_lanczos(
    const uint8_t* in, int64_t height, int64_t width, uint8_t* out, int64_t new_height,
    int64_t new_width)
{
    const Weights& across = weights_between(width, new_width);
    const Weights& down = weights_between(height, new_height);
    const bool rows_first = height - new_height > std::max<int64_t>(0, 2 * (width - new_width));
    if (width == new_width && height == new_height) {
        std::memcpy(out, in, 3 * height * width);
    } else if (width == new_width) {
        resize_rows(in, 3 * width, down, new_height, out);
    } else if (height == new_height) {
        resize_columns(in, height, width, across, new_width, out);
    } else if (rows_first) {
        std::vector<uint8_t> between(3 * new_height * width);
        resize_rows(in, 3 * width, down, new_height, between.data());
        resize_columns(between.data(), new_height, width, across, new_width, out);
    } else {
        std::vector<uint8_t> between(3 * height * new_width);
        resize_columns(in, height, width, across, new_width, between.data());
        resize_rows(between.data(), 3 * new_width, down, new_height, out);
    }
}
