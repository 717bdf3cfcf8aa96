// Group normalization of a map.
#ifndef REUSE_TF_KERNELS_ARITHMETIC_GROUP_NORM_H_
#define REUSE_TF_KERNELS_ARITHMETIC_GROUP_NORM_H_

#include <cmath>
#include <cstdint>

namespace reuse_tf {

// out[p, c] = (x - mean) / sqrt(variance + epsilon), with the mean and variance
// of each of `groups` groups of channels over all positions; row_of(p) points
// to the channels of position p. Sums are in double precision, in the order of
// the positions.
template <typename RowOf>
void GroupNorm(const RowOf& row_of, int64_t positions, int64_t channels,
               int64_t groups, float epsilon, float* out) {
  const int64_t width = channels / groups;
  const double count = static_cast<double>(positions) * width;
  for (int64_t first = 0; first < channels; first += width) {
    const auto sum = [&](const auto& f) {
      double total = 0;
      for (int64_t p = 0; p < positions; ++p) {
        const float* row = row_of(p) + first;
        for (int64_t c = 0; c < width; ++c) total += f(row[c]);
      }
      return total;
    };
    const double mean = sum([](double x) { return x; }) / count;
    const double variance =
        sum([mean](double x) { return (x - mean) * (x - mean); }) / count;
    const double scale = 1 / std::sqrt(variance + epsilon);
    for (int64_t p = 0; p < positions; ++p) {
      const float* row = row_of(p) + first;
      for (int64_t c = 0; c < width; ++c) {
        out[p * channels + first + c] =
            static_cast<float>((row[c] - mean) * scale);
      }
    }
  }
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_ARITHMETIC_GROUP_NORM_H_
