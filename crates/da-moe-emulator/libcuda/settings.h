// What the library is told by the environment: which GPU it plays, and what is to go wrong.
#pragma once

#include <cstdint>
#include <string>

#include "results.h"

namespace driver {

// The facts of a GPU that decide what runs on it.
struct Gpu {
    const char* name;
    int major, minor;
    int multiprocessors;
    int shared_block;  // bytes of shared memory that a block may have, of those of a multiprocessor
    int shared_multiprocessor;
    int l2_bytes;
};

struct Settings {
    Gpu gpu;
    int devices;
    int driver_version;
    uint64_t memory_bytes;
    bool pageable;
    bool launch_blocking;
    uint64_t seed;
    // The launch that fails with `fault`, and the launch after which nothing ends; counted from 1, 0 is none.
    uint64_t fail_launch, hang_launch;
    // The kernel whose first launch fails.
    std::string fail_kernel;
    Result fault;
    // The function that is refused with `refusal`.
    std::string refuse_call;
    Result refusal;
    // Microseconds that each recorded piece of work takes, for others to come in between.
    uint64_t slow_recording;
    std::string log;

    static const Settings& get();
};

}  // namespace driver
