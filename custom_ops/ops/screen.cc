// Reads screens of an emulator for Python.

#include "custom_ops/kernels/base/screen.h"

#include <cstdint>

namespace reuse_tf {

extern "C" __attribute__((visibility("default"))) bool reuse_tf_look_up(
    int64_t step, const uint8_t* screen, int64_t height, int64_t width,
    const uint16_t* table, uint8_t* out) {
  return LookUpEvery(step, screen, height, width, table, out);
}

}  // namespace reuse_tf
