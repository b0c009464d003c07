// SPDX-License-Identifier: Apache-2.0
// EMPTY TensorRT libraries, over which the real Python bindings of TensorRT load without TensorRT.
//
// Every object that a factory gives is one and the same: all of its virtual methods are `answer_call`,
// and the implementation that TensorRT's inline methods forward to is the object itself. So the
// bindings convert every argument as always, and the test says beforehand what the next calls answer.
// Nothing is built and nothing runs. x86-64 only, as the wheels that are tried here.

#include <cstdint>
#include <cstring>
#include <typeinfo>

extern "C" {

uint64_t answer = 0;       // what calls return; 0, 1, an address, or the address of a text
int answers_shape = 0;     // instead fill a nvinfer1::Dims with `shape`, which the caller has made room for
int64_t shape[2] = {2, 3};
uint64_t arguments[5];     // of the last call, behind `this`
uint64_t calls = 0;

uint64_t answer_call(uint64_t first, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e)
{
    ++calls;
    const uint64_t here[] = {a, b, c, d, e};
    std::memcpy(arguments, here, sizeof here);
    if (answers_shape) {
        auto* words = reinterpret_cast<int64_t*>(first);  // int32 count, then int64 sizes
        std::memset(words, 0, 72);
        words[0] = 2;
        words[1] = shape[0];
        words[2] = shape[1];
        return first;
    }
    return answer;
}

}  // extern "C"

namespace {

constexpr int METHODS = 512;
struct Table {
    void* head[2] = {nullptr, const_cast<std::type_info*>(&typeid(int))};
    void* methods[METHODS];
    Table()
    {
        for (auto& method : methods) {
            method = reinterpret_cast<void*>(answer_call);
        }
    }
} table;

struct Object {
    void** methods = table.methods;
    Object* implementation = this;
} object;

}  // namespace

extern "C" {

void* universal_object() { return &object; }

// What the bindings link against.
int factories_fail = 0;
static void* made() { return factories_fail ? nullptr : &object; }
void* createInferBuilder_INTERNAL(void*, int) { return made(); }
void* createInferRefitter_INTERNAL(void*, void*, int) { return made(); }
void* createInferRuntime_INTERNAL(void*, int) { return made(); }
void* createNvOnnxParser_INTERNAL(void*, void*, int) { return made(); }
void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int) { return made(); }
void* getPluginRegistry() { return made(); }
void* getBuilderPluginRegistry(int) { return made(); }
bool initLibNvInferPlugins(void*, const char*) { return true; }
int getInferLibVersion() { return 0; }
int getNvOnnxParserVersion() { return 0; }
}
