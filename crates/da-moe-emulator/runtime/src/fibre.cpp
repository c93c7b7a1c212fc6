#include "fibre.h"

#include <cstdint>

#if !defined(__x86_64__)
#error "the emulator switches stacks in x86-64 assembly"
#endif

// What the calling convention preserves is pushed, so that only the stack pointer has to be kept.
asm(R"(
    .text
    .globl emulator_switch
    .hidden emulator_switch
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulator_switch, .-emulator_switch
)");

namespace emu {

void* new_stack(void* top, void (*entry)()) {
    constexpr int preserved = 6;
    auto** stack = static_cast<void**>(top);
    *--stack = nullptr;  // where `entry` would return to: it does not
    *--stack = reinterpret_cast<void*>(entry);
    for (int i = 0; i < preserved; i++) {
        *--stack = nullptr;
    }
    return stack;
}

}  // namespace emu
