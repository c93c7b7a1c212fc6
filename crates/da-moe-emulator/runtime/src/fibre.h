// The switch between stacks.
#pragma once

namespace emu {

// Goes on with the stack at `load`, and stores where to come back in `*save`.
extern "C" __attribute__((visibility("hidden"))) void emulator_switch(void** save, void* load);

// A stack below `top` that starts in `entry` when it is first switched to.
void* new_stack(void* top, void (*entry)());

}  // namespace emu
