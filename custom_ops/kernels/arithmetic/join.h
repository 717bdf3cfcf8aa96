// Joining rows of several maps: sums, products and the like.
#ifndef REUSE_TF_KERNELS_ARITHMETIC_JOIN_H_
#define REUSE_TF_KERNELS_ARITHMETIC_JOIN_H_

#include <algorithm>
#include <cstdint>

namespace reuse_tf {

enum class JoinKind {
  kAdd,
  kSubtract,
  kMultiply,
  kAverage,
  kMaximum,
  kMinimum,
  kConcatenate,
  kPRelu,  // of x and alpha: x where it is positive, else alpha * x
};

// The rows of one of the maps that are joined, with as many channels as the
// result, or, but for a concatenation, one, which then is that of all.
struct JoinInput {
  const float* rows;
  int64_t channels;
};

namespace internal {

template <typename F>
void Combine(const JoinInput& input, const float* row, int64_t channels,
             float* out, const F& f) {
  if (input.channels == channels) {
    for (int64_t c = 0; c < channels; ++c) out[c] = f(out[c], row[c]);
  } else {
    const float value = row[0];
    for (int64_t c = 0; c < channels; ++c) out[c] = f(out[c], value);
  }
}

inline void Combine(JoinKind kind, const JoinInput& input, const float* row,
                    int64_t channels, float* out) {
  const auto with = [&](const auto& f) {
    Combine(input, row, channels, out, f);
  };
  switch (kind) {
    case JoinKind::kAdd:
    case JoinKind::kAverage:
      return with([](float a, float b) { return a + b; });
    case JoinKind::kSubtract:
      return with([](float a, float b) { return a - b; });
    case JoinKind::kMultiply:
      return with([](float a, float b) { return a * b; });
    // A NaN stays one.
    case JoinKind::kMaximum:
      return with([](float a, float b) { return a > b || a != a ? a : b; });
    case JoinKind::kMinimum:
      return with([](float a, float b) { return a < b || a != a ? a : b; });
    case JoinKind::kPRelu:
      return with([](float a, float b) { return a > 0 ? a : a * b; });
    case JoinKind::kConcatenate:
      return;
  }
}

}  // namespace internal

// out[0, channels) = the rows of a patch, row patch[i] of input i, joined.
inline void JoinRows(JoinKind kind, const JoinInput* inputs, int64_t count,
                     const int32_t* patch, int64_t channels, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const JoinInput& input = inputs[i];
    const float* row = input.rows + patch[i] * input.channels;
    if (kind == JoinKind::kConcatenate) {
      out = std::copy_n(row, input.channels, out);
    } else if (i > 0) {
      internal::Combine(kind, input, row, channels, out);
    } else if (input.channels == channels) {
      std::copy_n(row, channels, out);
    } else {
      std::fill_n(out, channels, row[0]);
    }
  }
  if (kind == JoinKind::kAverage) {
    for (int64_t c = 0; c < channels; ++c) out[c] /= count;
  }
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_ARITHMETIC_JOIN_H_
