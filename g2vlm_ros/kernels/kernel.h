// SPDX-License-Identifier: Apache-2.0
// What all kernels share. Arrays are C-contiguous; checks.py checks their shapes and types, so
// that a kernel may believe its arguments. Lengths are in map or model units, depth is z of the
// optical frame, the centre of the top-left pixel is (0, 0).
#pragma once

#include "view_pairs.cuh"

#include <cmath>
#include <cstdint>
#include <cstring>

#define KERNEL extern "C" __attribute__((visibility("default")))
