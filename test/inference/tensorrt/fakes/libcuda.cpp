// SPDX-License-Identifier: Apache-2.0
// A FAKE CUDA driver (libcuda.so.1) for tests without a GPU. Device memory is host memory, copies
// are memcpy, streams run at once, and kernels for points run as C++.
//
// Between cuStreamBeginCapture and EndCapture work is kept instead of done; a graph does it again.
// FAKE_CUDA_DRIVER=12060 makes it a driver of CUDA 12.6: entry points of later versions are refused,
// as NVIDIA documents for cuGetProcAddress. lose_context() makes every later call fail.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include PACK_SOURCE
#include POINTS_SOURCE
#define STORE_ON_CPU
#include STORE_SOURCE

namespace {

enum : int { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700 };
constexpr size_t TOTAL = size_t(1) << 30;

bool lost = false;
int context;  // only its address matters
thread_local void* current = nullptr;
size_t used = 0;
std::string launches;
using Work = std::vector<std::function<void()>>;
Work* recording = nullptr;

int driver_level()
{
    const char* text = std::getenv("FAKE_CUDA_DRIVER");
    return text ? std::atoi(text) : 13000;
}

template <class T> T argument(void** arguments, int index) { return *static_cast<T*>(arguments[index]); }

int done_or_recorded(std::function<void()> job)
{
    if (recording) recording->push_back(job);
    else job();
    return SUCCESS;
}

void store_token(unsigned blocks, void** a)
{
    const auto* keys = argument<const uint4*>(a, 0);
    const auto* values = argument<const uint4*>(a, 1);
    auto* key_buffer = argument<uint4*>(a, 2);
    auto* value_buffer = argument<uint4*>(a, 3);
    const auto* stored = argument<const long long*>(a, 4);
    const int rows = argument<int>(a, 5), units = argument<int>(a, 6), places = argument<int>(a, 7);
    done_or_recorded([=] {
        for (int i = 0; i < int(blocks) * THREADS && i < rows * units; ++i) {
            store_unit(keys, key_buffer, *stored, i, units, places);
            store_unit(values, value_buffer, *stored, i, units, places);
        }
    });
}

// A kernel with the arguments that cuLaunchKernel gets.
template <class... Types, size_t... I>
void run(void (*kernel)(Types...), void** a, std::index_sequence<I...>)
{
    kernel(argument<Types>(a, I)...);
}

template <class... Types> bool run(void (*kernel)(Types...), void** a)
{
    run(kernel, a, std::index_sequence_for<Types...>());
    return true;
}

bool run_for_points(const std::string& name, void** a)
{
#define RUN_IF_NAMED(kernel) if (name == #kernel) return run(kernel, a);
    RUN_IF_NAMED(count_points)
    RUN_IF_NAMED(write_points)
    RUN_IF_NAMED(find_not_finite)
    RUN_IF_NAMED(take_points)
    RUN_IF_NAMED(set_rays)
    RUN_IF_NAMED(scale_points)
    RUN_IF_NAMED(surface_grid)
    RUN_IF_NAMED(fusion_factors)
    RUN_IF_NAMED(multi_view_confidence)
    RUN_IF_NAMED(see_grid)
    RUN_IF_NAMED(add_points)
    RUN_IF_NAMED(compact_cells)
    RUN_IF_NAMED(take_pixels)
    RUN_IF_NAMED(halve)
    RUN_IF_NAMED(distrust)
    RUN_IF_NAMED(uneven_bits)
    RUN_IF_NAMED(warp_image)
    RUN_IF_NAMED(lines_of_rows)
    RUN_IF_NAMED(surface_normals)
    RUN_IF_NAMED(trusted_depths)
    RUN_IF_NAMED(nearest_depths)
    RUN_IF_NAMED(farthest_depths)
    RUN_IF_NAMED(find_seen_through)
    return false;
}

}  // namespace

#define ENTRY extern "C" __attribute__((visibility("default"))) int
#define FAIL_IF_LOST if (lost) return ILLEGAL_ADDRESS

extern "C" void lose_context() { lost = true; }
extern "C" const char* launched_kernels() { return launches.c_str(); }
extern "C" uint64_t used_bytes() { return used; }

ENTRY cuInit(unsigned) { return std::getenv("FAKE_CUDA_NO_DEVICE") ? 100 : SUCCESS; }
ENTRY cuDriverGetVersion(int* version) { *version = driver_level(); return SUCCESS; }
ENTRY cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal ? 101 : SUCCESS; }

// As seen on an H100: what lies behind the name in the caller's buffer is only partly zeroed.
ENTRY cuDeviceGetName(char* name, int size, int)
{
    std::memset(name, 0, size < 50 ? size : 50);
    std::snprintf(name, size, "Fake GPU");
    return SUCCESS;
}

ENTRY cuDeviceGetAttribute(int* value, int attribute, int)
{
    *value = attribute == 75 ? 8 : attribute == 76 ? 9 : 0;  // compute capability, major and minor
    return SUCCESS;
}

ENTRY cuDevicePrimaryCtxRetain(void** out, int) { FAIL_IF_LOST; *out = &context; return SUCCESS; }
ENTRY cuDevicePrimaryCtxRelease(int) { return SUCCESS; }
ENTRY cuCtxSetCurrent(void* wanted) { FAIL_IF_LOST; current = wanted; return SUCCESS; }
ENTRY cuMemGetInfo(size_t* free, size_t* total) { *total = TOTAL; *free = TOTAL - used; return SUCCESS; }

ENTRY cuMemAlloc(uint64_t* address, size_t size)
{
    FAIL_IF_LOST;
    if (current != &context) return 201;
    if (used + size > TOTAL) return OUT_OF_MEMORY;
    size_t* block = static_cast<size_t*>(std::aligned_alloc(256, (size + 511) / 256 * 256));
    block[0] = size;
    used += size;
    *address = reinterpret_cast<uint64_t>(block) + 256;
    return SUCCESS;
}

ENTRY cuMemFree(uint64_t address)
{
    FAIL_IF_LOST;
    size_t* block = reinterpret_cast<size_t*>(address - 256);
    used -= block[0];
    std::free(block);
    return SUCCESS;
}

ENTRY cuMemHostAlloc(void** address, size_t size, unsigned)
{
    FAIL_IF_LOST;
    if (size > TOTAL) return OUT_OF_MEMORY;
    *address = std::malloc(size);
    return SUCCESS;
}

ENTRY cuStreamCreate(void** stream, unsigned) { FAIL_IF_LOST; *stream = std::malloc(1); return SUCCESS; }
ENTRY cuStreamSynchronize(void*) { FAIL_IF_LOST; return SUCCESS; }
ENTRY cuStreamWaitEvent(void*, void*, unsigned) { FAIL_IF_LOST; return SUCCESS; }
ENTRY cuEventCreate(void** event, unsigned) { FAIL_IF_LOST; *event = std::malloc(1); return SUCCESS; }
ENTRY cuEventRecord(void*, void*) { FAIL_IF_LOST; return SUCCESS; }
ENTRY cuEventSynchronize(void*) { FAIL_IF_LOST; return SUCCESS; }
ENTRY cuEventElapsedTime(float* ms, void*, void*) { FAIL_IF_LOST; *ms = 2.0f; return SUCCESS; }

static int copied(void* to, const void* from, size_t size)
{
    FAIL_IF_LOST;
    return done_or_recorded([=] { std::memcpy(to, from, size); });
}

ENTRY cuMemcpyHtoDAsync(uint64_t to, const void* from, size_t size, void*)
{
    return copied(reinterpret_cast<void*>(to), from, size);
}
ENTRY cuMemcpyDtoHAsync(void* to, uint64_t from, size_t size, void*)
{
    return copied(to, reinterpret_cast<void*>(from), size);
}
ENTRY cuMemcpyDtoDAsync(uint64_t to, uint64_t from, size_t size, void*)
{
    return copied(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), size);
}

struct Copy2D {
    size_t src_x, src_y;
    int src_type;
    const void* src_host;
    uint64_t src_device;
    void* src_array;
    size_t src_pitch, dst_x, dst_y;
    int dst_type;
    void* dst_host;
    uint64_t dst_device;
    void* dst_array;
    size_t dst_pitch, width, height;
};

ENTRY cuMemcpy2DAsync(const Copy2D* given, void*)
{
    FAIL_IF_LOST;
    const Copy2D c = *given;
    const bool plain = !c.src_x && !c.src_y && !c.dst_x && !c.dst_y && c.src_type == 2 && c.dst_type == 2;
    if (!plain || c.width > c.src_pitch || c.width > c.dst_pitch) return INVALID_VALUE;
    return done_or_recorded([=] {
        for (size_t row = 0; row < c.height; ++row) {
            std::memcpy(reinterpret_cast<char*>(c.dst_device) + row * c.dst_pitch,
                        reinterpret_cast<const char*>(c.src_device) + row * c.src_pitch, c.width);
        }
    });
}

ENTRY cuMemsetD8Async(uint64_t to, unsigned char value, size_t size, void*)
{
    FAIL_IF_LOST;
    return done_or_recorded([=] { std::memset(reinterpret_cast<void*>(to), value, size); });
}

ENTRY cuStreamBeginCapture(void*, int mode)
{
    FAIL_IF_LOST;
    if (recording || mode != 1) return INVALID_VALUE;  // 1: thread local
    recording = new Work;
    return SUCCESS;
}

ENTRY cuStreamEndCapture(void*, void** graph)
{
    FAIL_IF_LOST;
    if (!recording) return INVALID_VALUE;
    *graph = recording;
    recording = nullptr;
    return SUCCESS;
}

ENTRY cuGraphInstantiateWithFlags(void** run, void* graph, unsigned long long flags)
{
    FAIL_IF_LOST;
    if (flags) return INVALID_VALUE;
    *run = new Work(*static_cast<Work*>(graph));
    return SUCCESS;
}

ENTRY cuGraphLaunch(void* run, void*)
{
    FAIL_IF_LOST;
    for (const auto& job : *static_cast<Work*>(run)) job();
    return SUCCESS;
}

ENTRY cuGraphDestroy(void* graph) { delete static_cast<Work*>(graph); return SUCCESS; }
ENTRY cuGraphExecDestroy(void* run) { delete static_cast<Work*>(run); return SUCCESS; }

ENTRY cuModuleLoadData(void** module, const void* image)
{
    FAIL_IF_LOST;
    if (std::memcmp(image, "FAKE", 4)) return INVALID_VALUE;
    *module = std::malloc(1);
    return SUCCESS;
}

ENTRY cuModuleGetFunction(void** function, void*, const char* name)
{
    FAIL_IF_LOST;
    *function = strdup(name);
    return SUCCESS;
}

ENTRY cuLaunchKernel(void* function, unsigned blocks, unsigned gy, unsigned gz, unsigned threads,
                     unsigned by, unsigned bz, unsigned shared, void*, void** arguments, void** extra)
{
    FAIL_IF_LOST;
    const std::string name = static_cast<const char*>(function);
    if (gy != 1 || gz != 1 || by != 1 || bz != 1 || shared || extra) return INVALID_VALUE;
    if (threads == THREADS && run_for_points(name, arguments)) {}
    else if (name == "sum_counts" && blocks == 1 && threads == 1) run(sum_counts, arguments);
    else if (name == "store_token" && threads == THREADS) store_token(blocks, arguments);
    else if (name == "write_anywhere") lost = true;  // of `make gpu`; the next call says so
    else return NOT_FOUND;
    launches += name + " " + std::to_string(blocks) + "x" + std::to_string(threads) + "\n";
    return SUCCESS;
}

ENTRY cuGetProcAddress_v2(const char* symbol, void** function, int version, uint64_t, int* status);

ENTRY cuGetProcAddress(const char* symbol, void** function, int version, uint64_t flags)
{
    return cuGetProcAddress_v2(symbol, function, version, flags, nullptr);
}

ENTRY cuGetProcAddress_v2(const char* symbol, void** function, int version, uint64_t, int* status)
{
#define KNOWN(name) { #name, reinterpret_cast<void*>(name) }
    static const struct { const char* name; void* function; } known[] = {
        KNOWN(cuInit), KNOWN(cuDriverGetVersion), KNOWN(cuDeviceGet), KNOWN(cuDeviceGetName),
        KNOWN(cuDeviceGetAttribute), KNOWN(cuDevicePrimaryCtxRetain),
        KNOWN(cuDevicePrimaryCtxRelease), KNOWN(cuCtxSetCurrent), KNOWN(cuMemGetInfo),
        KNOWN(cuMemAlloc), KNOWN(cuMemFree), KNOWN(cuMemHostAlloc), KNOWN(cuStreamCreate),
        KNOWN(cuStreamSynchronize), KNOWN(cuStreamWaitEvent), KNOWN(cuEventCreate),
        KNOWN(cuEventRecord), KNOWN(cuEventElapsedTime), KNOWN(cuEventSynchronize),
        KNOWN(cuMemcpyHtoDAsync),
        KNOWN(cuMemcpyDtoHAsync), KNOWN(cuMemcpyDtoDAsync), KNOWN(cuModuleLoadData),
        KNOWN(cuModuleGetFunction), KNOWN(cuLaunchKernel), KNOWN(cuGetProcAddress_v2),
        KNOWN(cuMemcpy2DAsync), KNOWN(cuMemsetD8Async), KNOWN(cuStreamBeginCapture),
        KNOWN(cuStreamEndCapture), KNOWN(cuGraphInstantiateWithFlags), KNOWN(cuGraphLaunch),
        KNOWN(cuGraphDestroy), KNOWN(cuGraphExecDestroy),
        {"cuGraphInstantiate", reinterpret_cast<void*>(cuGraphInstantiateWithFlags)},
        {"cuGetProcAddress", reinterpret_cast<void*>(cuGetProcAddress_v2)},
    };
    *function = nullptr;
    if (version > driver_level()) return INVALID_VALUE;
    for (const auto& each : known) {
        if (!std::strcmp(each.name, symbol)) *function = each.function;
    }
    if (status) *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
