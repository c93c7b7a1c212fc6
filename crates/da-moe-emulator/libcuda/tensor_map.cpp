// Tensor maps: what the tensor memory accelerator is told of a tensor, encoded by the emulator for itself.
#include "driver.h"

using namespace driver;

namespace {

constexpr uint32_t MOST_DIMENSIONS = 5;
constexpr uintptr_t MAP_ALIGN = 64;
constexpr int FIRST_WITH_MAPS = 9;  // compute capability

// Bytes of an element by CUtensorMapDataType, up to BFLOAT16. Later ones are packed, or change what they copy.
constexpr uint32_t ELEMENT_BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
// Widths by CUtensorMapSwizzle. Later ones exchange larger pieces, which the emulator does not do.
constexpr uint32_t SWIZZLE_BYTES[] = {0, 32, 64, 128};
constexpr int NO_INTERLEAVE = 0, MOST_PROMOTION = 3, FILL_WITH_ZEROS = 0;

template <class T, size_t N>
bool is_known(const T (&)[N], int number) {
    return number >= 0 && number < static_cast<int>(N);
}

}  // namespace

EXPORT Result cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* address, const uint64_t* dims,
                                     const uint64_t* strides, const uint32_t* box, const uint32_t* steps,
                                     int interleave, int swizzle, int promotion, int fill) {
    return call("cuTensorMapEncodeTiled", Needs::Driver, [&](Session& session) -> Result {
        session.note("%p, %u dimensions", address, rank);
        if (Settings::get().gpu.major < FIRST_WITH_MAPS) {
            return NotSupported;
        }
        if (!map || reinterpret_cast<uintptr_t>(map) % MAP_ALIGN != 0 || !rank || rank > MOST_DIMENSIONS) {
            return InvalidValue;
        }
        if (!dims || !box || !steps || (rank > 1 && !strides)) {
            return InvalidValue;
        }
        if (!is_known(ELEMENT_BYTES, type) || !is_known(SWIZZLE_BYTES, swizzle) || interleave != NO_INTERLEAVE ||
            promotion < 0 || promotion > MOST_PROMOTION || fill != FILL_WITH_ZEROS) {
            return InvalidValue;
        }
        // The step along the innermost dimension is ignored.
        if (std::any_of(steps + 1, steps + rank, [](uint32_t step) { return step != 1; })) {
            return InvalidValue;
        }
        emu::TensorMapShape shape{};
        shape.rank = rank;
        shape.element_bytes = ELEMENT_BYTES[type];
        shape.swizzle = SWIZZLE_BYTES[swizzle];
        std::copy_n(dims, rank, shape.dims);
        std::copy_n(strides, rank - 1, shape.strides);
        std::copy_n(box, rank, shape.box_dims);
        if (emulator_tensor_map(session->machine, map, reinterpret_cast<Address>(address), &shape) != 0) {
            fprintf(stderr, "libcuda of the emulator: %s\n", emulator_message(session->machine));
            return InvalidValue;
        }
        return Success;
    });
}
