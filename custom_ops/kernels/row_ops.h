// What is applied to rows as they are computed: activations and other functions
// of a single row.
#ifndef REUSE_TF_KERNELS_ROW_OPS_H_
#define REUSE_TF_KERNELS_ROW_OPS_H_

#include <cstdint>
#include <vector>

#include "custom_ops/kernels/activations.h"

namespace reuse_tf {

// A function of one row, applied in place.
struct RowOp {
  enum Kind {
    kActivation,
    kAffine,  // x * scale + offset, each of one value or one for each channel
  };
  Kind kind = kActivation;
  Activation activation;
  std::vector<float> scale, offset;

  void Apply(float* x, int64_t n) const {
    if (kind == kActivation) return activation.Apply(x, n);
    const int64_t step = scale.size() > 1, shift = offset.size() > 1;
    for (int64_t i = 0; i < n; ++i) {
      x[i] = x[i] * scale[i * step] + offset[i * shift];
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

#endif  // REUSE_TF_KERNELS_ROW_OPS_H_
