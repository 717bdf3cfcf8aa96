// Draws from a softmax.
#ifndef REUSE_TF_KERNELS_BASE_SAMPLE_H_
#define REUSE_TF_KERNELS_BASE_SAMPLE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace reuse_tf {

// The first index whose cumulative probability under the softmax of `logits`
// [count] is above `uniform`, a number in [0, 1): inverse transform sampling.
// -1 if a logit is NaN, or the largest is infinite.
inline int64_t Sample(const float* logits, int64_t count, double uniform) {
  const double largest = *std::max_element(logits, logits + count);
  const auto weight = [&](int64_t i) { return std::exp(logits[i] - largest); };
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += weight(i);
  if (std::isnan(total)) return -1;
  // The last one has what rounding leaves.
  double cumulative = 0;
  int64_t i = 0;
  while (i < count - 1 && (cumulative += weight(i)) <= uniform * total) ++i;
  return i;
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_BASE_SAMPLE_H_
