// What nvcc gives a kernel without being asked, for a host compiler and without a CUDA toolkit.
#pragma once

#include "kernel.h"
#include "types.h"

#include "atomics.h"
#include "collectives.h"
#include "half.h"
#include "intrinsics.h"

// Library copies are not instrumented, so the checker would not see them: assign values or write a loop.
#pragma GCC poison memcpy memset memmove
