/* Parameters of every kernel: plain C, shared with Rust (src/cuda/abi.rs is generated from this file and the stages' below).
 *
 * One struct is one kernel's only argument, passed by value. Pointers are device addresses; sizes are SPEC.md's letters:
 * T tokens, D width, E routed experts, C = E + Z candidates, K = k_max slots, B sequences, H heads. Strides are in
 * elements. "Storage" means f32, bf16 or f16, told by the kernel's name. A pointer that may be null says so.
 *
 * Members are ordered by size, so that no struct has padding. */
#pragma once
#include "abi/importance.h"
#include "abi/gate.h"
#include "abi/permute.h"
#include "abi/experts.h"
#include "abi/combine.h"
