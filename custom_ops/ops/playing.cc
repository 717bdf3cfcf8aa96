// What playing a game needs besides the network, for Python, by addresses.

#include <cstdint>

#include "custom_ops/kernels/base/sample.h"
#include "custom_ops/kernels/base/screen.h"

namespace reuse_tf {

extern "C" __attribute__((visibility("default"))) bool reuse_tf_look_up(
    int64_t step, const uint8_t* screen, int64_t height, int64_t width,
    const uint16_t* table, uint8_t* out) {
  return LookUpEvery(step, screen, height, width, table, out);
}

extern "C" __attribute__((visibility("default"))) bool reuse_tf_sample(
    const float* logits, int64_t rows, int64_t count, const double* uniforms,
    int64_t* samples) {
  for (int64_t i = 0; i < rows; ++i) {
    samples[i] = Sample(logits + i * count, count, uniforms[i]);
    if (samples[i] < 0) return false;
  }
  return true;
}

}  // namespace reuse_tf
