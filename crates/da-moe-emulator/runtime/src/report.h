// What went wrong, where, and who did it.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <string>

namespace emu {

// In the order of `Kind` in Rust; 0 there is no report.
enum class Kind : int {
    Race = 1,
    OutOfBounds,
    Uninitialised,
    Divergence,
    Deadlock,
    Livelock,
    Misaligned,
    ReadOnly,
    Async,
    StackOverflow,
    Memory,
    Launch,
};

// A code address of a kernel, as an offset into its module; 0: none.
using Site = uint32_t;

// A short text of fixed size. A failing fibre is abandoned, so nothing on its stack may own memory.
template <size_t N>
struct Text {
    char text[N];

    __attribute__((format(printf, 2, 3))) explicit Text(const char* format, ...) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, N, format, arguments);
        va_end(arguments);
    }
    operator const char*() const {
        return text;
    }
};

// "file:line" of a code address, and the calls that were inlined around it.
std::string describe_site(Site site);
// The text with paths below the working directory made relative to it.
std::string relative_paths(std::string text);
Site site_of(const void* return_address);
// Whether an address lies in the module's own constants and tables.
bool in_module(uintptr_t address);

}  // namespace emu
