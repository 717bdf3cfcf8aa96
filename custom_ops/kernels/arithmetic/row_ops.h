// What is applied to rows as they are computed: activations and other functions
// of a single row.
#ifndef REUSE_TF_KERNELS_ARITHMETIC_ROW_OPS_H_
#define REUSE_TF_KERNELS_ARITHMETIC_ROW_OPS_H_

#include <cmath>
#include <cstdint>
#include <vector>

#include "custom_ops/kernels/arithmetic/activations.h"

namespace reuse_tf {

// A function of one row, applied in place.
struct RowOp {
  enum Kind {
    kActivation,
    kAffine,  // x * scale + offset, each of one value or one for each channel
    // (x - offset) * scale, each of one value for each channel: near the offset
    // a difference is exact, which one of products is not.
    kCentered,
    // To a mean of 0 and a variance of 1, then affine.
    kLayerNorm,
    kPRelu,  // x where it is positive, else x * scale
  };
  Kind kind = kActivation;
  Activation activation;
  std::vector<float> scale, offset;
  float epsilon = 0;  // added to the variance

  void Apply(float* x, int64_t n) const {
    switch (kind) {
      case kActivation:
        return activation.Apply(x, n);
      case kLayerNorm:
        Normalize(x, n);
        [[fallthrough]];
      case kAffine:
        return ApplyAffine(x, n);
      case kCentered:
        for (int64_t i = 0; i < n; ++i) x[i] = (x[i] - offset[i]) * scale[i];
        return;
      case kPRelu:
        for (int64_t i = 0; i < n; ++i)
          x[i] = x[i] > 0 ? x[i] : x[i] * scale[i];
    }
  }

 private:
  void ApplyAffine(float* x, int64_t n) const {
    const float* a = scale.data();
    const float* b = offset.data();
    // The compiler makes vectors of these.
    if (scale.size() > 1 && offset.size() > 1) {
      for (int64_t i = 0; i < n; ++i) x[i] = x[i] * a[i] + b[i];
    } else if (scale.size() > 1) {
      for (int64_t i = 0; i < n; ++i) x[i] = x[i] * a[i] + b[0];
    } else if (offset.size() > 1) {
      for (int64_t i = 0; i < n; ++i) x[i] = x[i] * a[0] + b[i];
    } else {
      for (int64_t i = 0; i < n; ++i) x[i] = x[i] * a[0] + b[0];
    }
  }
  void Normalize(float* x, int64_t n) const {
    // As many sums side by side as the processor adds at once.
    const auto sum = [&](const auto& f) {
      constexpr int64_t kSums = 8;
      double sums[kSums] = {};
      int64_t i = 0;
      for (; i + kSums <= n; i += kSums) {
        for (int64_t k = 0; k < kSums; ++k) sums[k] += f(x[i + k]);
      }
      double total = 0;
      for (; i < n; ++i) total += f(x[i]);
      for (const double part : sums) total += part;
      return total;
    };
    const double mean = sum([](double v) { return v; }) / n;
    const double variance =
        sum([mean](double v) { return (v - mean) * (v - mean); }) / n;
    const double factor = 1 / std::sqrt(variance + epsilon);
    for (int64_t i = 0; i < n; ++i) {
      x[i] = static_cast<float>((x[i] - mean) * factor);
    }
  }
};

// Functions applied one after the other.
struct RowOps : std::vector<RowOp> {
  RowOps() = default;
  explicit RowOps(const Activation& activation) {
    if (!activation.linear()) {
      emplace_back();
      back().activation = activation;
    }
  }
  void Apply(float* x, int64_t n) const {
    for (const RowOp& op : *this) op.Apply(x, n);
  }
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_ARITHMETIC_ROW_OPS_H_
