// Pooling over rows, and its gradient.
#ifndef REUSE_TF_KERNELS_ARITHMETIC_POOL_H_
#define REUSE_TF_KERNELS_ARITHMETIC_POOL_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

namespace reuse_tf {

enum class Pooling { kMax, kMean, kSum };

// Pooling over rows: out[i, :] = the maximum, the mean or the sum of the rows
// patches[i, 0:taps], those of -1 left out.
inline void PoolPatches(Pooling kind, const float* rows, int64_t channels,
                        const int32_t* patches, int64_t taps, int64_t count,
                        float* out) {
  const bool max = kind == Pooling::kMax;
  for (int64_t i = 0; i < count; ++i, patches += taps, out += channels) {
    // As in TensorFlow, a maximum passes over NaN, and is finite at least.
    std::fill_n(out, channels, max ? std::numeric_limits<float>::lowest() : 0);
    int64_t inside = 0;
    for (int64_t t = 0; t < taps; ++t) {
      if (patches[t] < 0) continue;
      const float* row = rows + patches[t] * channels;
      if (max) {
        for (int64_t c = 0; c < channels; ++c) {
          out[c] = out[c] < row[c] ? row[c] : out[c];
        }
      } else if (inside++ == 0) {
        std::memcpy(out, row, channels * sizeof(float));
      } else {
        for (int64_t c = 0; c < channels; ++c) out[c] += row[c];
      }
    }
    if (kind == Pooling::kMean) {
      for (int64_t c = 0; c < channels; ++c) out[c] /= inside;
    }
  }
}

// Adds the gradient of that to rows_gradient, which holds zeros before. That of
// a maximum goes to the first row that has it.
inline void PoolGradients(Pooling kind, const float* rows, int64_t channels,
                          const int32_t* patches, int64_t taps, int64_t count,
                          const float* gradient, float* rows_gradient) {
  for (int64_t i = 0; i < count; ++i, patches += taps, gradient += channels) {
    if (kind == Pooling::kMax) {
      for (int64_t c = 0; c < channels; ++c) {
        int32_t best = -1;
        for (int64_t t = 0; t < taps; ++t) {
          const int32_t id = patches[t];
          if (id >= 0 && (best < 0 || rows[id * channels + c] >
                                          rows[best * channels + c])) {
            best = id;
          }
        }
        if (best >= 0) rows_gradient[best * channels + c] += gradient[c];
      }
      continue;
    }
    int64_t parts = 1;
    if (kind == Pooling::kMean) {
      parts = taps - std::count(patches, patches + taps, -1);
    }
    for (int64_t t = 0; t < taps; ++t) {
      if (patches[t] < 0) continue;
      float* row = rows_gradient + patches[t] * channels;
      for (int64_t c = 0; c < channels; ++c) row[c] += gradient[c] / parts;
    }
  }
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_ARITHMETIC_POOL_H_
