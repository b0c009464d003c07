// SPDX-License-Identifier: Apache-2.0
// A FAKE compiler for CUDA C++ (libnvrtc): its "machine code" is the word that the fake driver loads.
// Source with #error gives a log of one character, the case in which a shared buffer would be written.

#include <cstring>

#define ENTRY extern "C" __attribute__((visibility("default"))) int

namespace {
bool broken;
const char code[] = "FAKE machine code";
}

ENTRY nvrtcCreateProgram(void** program, const char* source, const char*, int, const char**, const char**)
{
    broken = std::strstr(source, "#error") != nullptr;
    *program = &broken;
    return 0;
}

ENTRY nvrtcCompileProgram(void*, int count, const char* const* options)
{
    const bool right = count == 2 && !std::strcmp(options[0], "--gpu-architecture=sm_89")
        && !std::strcmp(options[1], "--fmad=false");
    return broken ? 6 : right ? 0 : 5;
}

ENTRY nvrtcGetProgramLogSize(void*, size_t* size) { *size = 1; return 0; }
ENTRY nvrtcGetProgramLog(void*, char* log) { *log = '?'; return 0; }
ENTRY nvrtcGetCUBINSize(void*, size_t* size) { *size = sizeof code; return 0; }
ENTRY nvrtcGetCUBIN(void*, char* target) { std::memcpy(target, code, sizeof code); return 0; }
ENTRY nvrtcDestroyProgram(void** program) { *program = nullptr; return 0; }
ENTRY nvrtcVersion(int* major, int* minor) { *major = 13; *minor = 0; return 0; }
