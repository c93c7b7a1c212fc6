// What compiled kernels say of themselves: read from the fatbins that nvcc writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "results.h"

namespace driver {

struct Parameter {
    size_t offset, bytes;
};

// What a kernel's machine code needs.
struct Facts {
    std::string name;
    int registers = 0;
    int shared_bytes = 0;    // of arrays of fixed size
    int local_bytes = 0;     // of each thread
    int most_threads = 1024; // as its launch bounds say
    unsigned cluster[3]{};   // blocks of a cluster along x, y and z as it is compiled for; zeros: not in clusters
    bool in_clusters = false;  // it runs in no other way
    int binary_version = 0, ptx_version = 0;
    std::vector<Parameter> parameters;
};

// The kernels of an image that a GPU of this architecture runs, or why there are none.
struct Image {
    std::vector<Facts> kernels;
    std::string problem;
    Result result = Success;
};

Image read_image(const void* image, int major, int minor);

}  // namespace driver
