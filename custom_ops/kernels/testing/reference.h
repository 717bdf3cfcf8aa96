// The kernels again, as plain loops that follow the definitions: slow, easy to
// check by reading, and what the tests compare with.
#ifndef REUSE_TF_KERNELS_TESTING_REFERENCE_H_
#define REUSE_TF_KERNELS_TESTING_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "custom_ops/kernels/arithmetic/join.h"
#include "custom_ops/kernels/arithmetic/pool.h"
#include "custom_ops/kernels/arithmetic/row_ops.h"
#include "custom_ops/kernels/patches/window.h"

namespace reuse_tf {
namespace reference {

// The id of the input pixel under tap (ky, kx) at output (y, x) of an image, or
// -1 if the tap lies in the padding.
inline int32_t PixelId(const Window& w, int64_t image, int64_t y, int64_t x,
                       int64_t ky, int64_t kx) {
  const int64_t on_y = y * w.stride_height - w.pad_top + ky * w.dilation_height;
  const int64_t on_x = x * w.stride_width - w.pad_left + kx * w.dilation_width;
  // Between the pixels of the grid.
  if (on_y % w.up_height != 0 || on_x % w.up_width != 0) return -1;
  const int64_t in_y = on_y / w.up_height, in_x = on_x / w.up_width;
  if (on_y < 0 || in_y >= w.height || on_x < 0 || in_x >= w.width) return -1;
  return static_cast<int32_t>((image * w.height + in_y) * w.width + in_x);
}

// The patches of every position of every image, [positions, taps].
inline std::vector<int32_t> AllPatches(const Window& w, int64_t images) {
  std::vector<int32_t> patches;
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t y = 0; y < w.out_height; ++y) {
      for (int64_t x = 0; x < w.out_width; ++x) {
        for (int64_t ky = 0; ky < w.kernel_height; ++ky) {
          for (int64_t kx = 0; kx < w.kernel_width; ++kx) {
            patches.push_back(PixelId(w, n, y, x, ky, kx));
          }
        }
      }
    }
  }
  return patches;
}

// Which pixels of [pixels, channels] changed, as 0 or 1; makes `seen` agree
// there.
template <typename T>
std::vector<char> UpdateSeen(const std::vector<T>& now, int64_t channels,
                             float threshold, std::vector<T>* seen) {
  std::vector<char> changed(now.size() / channels, 0);
  for (size_t i = 0; i < now.size(); ++i) {
    const float a = static_cast<float>(now[i]);
    const float b = static_cast<float>((*seen)[i]);
    const bool differs = threshold == 0
                             ? std::memcmp(&now[i], &(*seen)[i], sizeof(T)) != 0
                         : std::isnan(a) || std::isnan(b)
                             ? true
                             : a != b && std::fabs(a - b) > threshold;
    if (differs) changed[i / channels] = 1;
  }
  for (size_t i = 0; i < now.size(); ++i) {
    if (changed[i / channels]) (*seen)[i] = now[i];
  }
  return changed;
}

// The positions that have a changed pixel in their patch.
inline std::vector<int32_t> ChangedPositions(const Window& w, int64_t images,
                                             const std::vector<char>& changed) {
  const std::vector<int32_t> patches = AllPatches(w, images);
  std::vector<int32_t> positions;
  for (int64_t i = 0; i < images * w.positions(); ++i) {
    bool any = false;
    for (int64_t tap = 0; tap < w.taps(); ++tap) {
      const int32_t pixel = patches[i * w.taps() + tap];
      any = any || (pixel >= 0 && changed[pixel]);
    }
    if (any) positions.push_back(static_cast<int32_t>(i));
  }
  return positions;
}

// An activation as its definition has it.
inline double Activate(const std::string& name, const std::vector<float>& a,
                       double v) {
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  const auto softplus = [](double x) {
    return x > 30 ? x : std::log1p(std::exp(x));
  };
  const double hard_sigmoid = v <= -3 ? 0 : v >= 3 ? 1 : v / 6 + 0.5;
  if (name == "linear") return v;
  if (name == "relu") return std::max(v, 0.0);
  if (name == "general_relu") {
    return v > a[2] ? std::min<double>(v, a[1]) : a[0] * (v - a[2]);
  }
  if (name == "relu6") return std::min(std::max(v, 0.0), 6.0);
  if (name == "leaky_relu") return v < 0 ? a[0] * v : v;
  if (name == "elu") return v < 0 ? a[0] * (std::exp(v) - 1) : v;
  if (name == "celu") return v < 0 ? a[0] * (std::exp(v / a[0]) - 1) : v;
  if (name == "selu") {
    return 1.0507009873554805 *
           (v < 0 ? 1.6732632423543772 * (std::exp(v) - 1) : v);
  }
  if (name == "sigmoid") return sigmoid(v);
  if (name == "hard_sigmoid") return hard_sigmoid;
  if (name == "log_sigmoid") return -softplus(-v);
  if (name == "sparse_sigmoid") return v <= -1 ? 0 : v >= 1 ? 1 : (v + 1) / 2;
  if (name == "tanh") return std::tanh(v);
  if (name == "hard_tanh") return v < -1 ? -1 : v > 1 ? 1 : v;
  if (name == "clip") return std::min(std::max<double>(v, a[0]), double{a[1]});
  if (name == "tanh_shrink") return v - std::tanh(v);
  if (name == "silu") return v * sigmoid(v);
  if (name == "hard_silu") return v * hard_sigmoid;
  if (name == "mish") return v * std::tanh(softplus(v));
  if (name == "softplus") return softplus(v);
  if (name == "sparse_plus") {
    return v <= -1 ? 0 : v >= 1 ? v : (v + 1) * (v + 1) / 4;
  }
  if (name == "squareplus") return (v + std::sqrt(v * v + a[0])) / 2;
  if (name == "softsign") return v / (1 + std::fabs(v));
  if (name == "soft_shrink") {
    return v > a[0] ? v - a[0] : v < -a[0] ? v + a[0] : 0;
  }
  if (name == "hard_shrink") return v > a[0] || v < -a[0] ? v : 0;
  if (name == "threshold") return v > a[0] ? v : a[1];
  if (name == "gelu") return 0.5 * v * std::erfc(-v / std::sqrt(2.0));
  if (name == "tanh_gelu") {
    return 0.5 * v *
           (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) *
                          (v + 0.044715 * v * v * v)));
  }
  if (name == "exponential") return std::exp(v);
  return NAN;
}

// A value, and the sum of the absolute values of what was added up for it: the
// rounding error of any order of additions is in proportion to that.
struct Sum {
  double value = 0, size = 0;
  void Add(double term) {
    value += term;
    size += std::fabs(term);
  }
};

// A patch, [taps] ids of rows [*, channels], times one filter of a grouped
// kernel [taps, channels / groups, filters], plus bias [filters] unless null.
inline Sum Convolve(const float* rows, const int32_t* patch, int64_t taps,
                    int64_t channels, const float* kernel, const float* bias,
                    int64_t filters, int64_t groups, int64_t filter) {
  const int64_t group_channels = channels / groups;
  const int64_t group = filter / (filters / groups);
  Sum sum;
  for (int64_t tap = 0; tap < taps; ++tap) {
    if (patch[tap] < 0) continue;
    for (int64_t c = 0; c < group_channels; ++c) {
      const double value =
          rows[patch[tap] * channels + group * group_channels + c];
      sum.Add(value * kernel[(tap * group_channels + c) * filters + filter]);
    }
  }
  if (bias != nullptr) sum.Add(bias[filter]);
  return sum;
}

// One value of a join, of one value of each input. None for a concatenation.
inline double Join(JoinKind kind, const std::vector<double>& values) {
  double result = values[0];
  for (size_t i = 1; i < values.size(); ++i) {
    const double v = values[i];
    if (kind == JoinKind::kAdd || kind == JoinKind::kAverage) result += v;
    if (kind == JoinKind::kSubtract) result -= v;
    if (kind == JoinKind::kMultiply) result *= v;
    if (kind == JoinKind::kPRelu) result = result > 0 ? result : v * result;
    const bool unordered = std::isnan(result) || std::isnan(v);
    if (kind == JoinKind::kMaximum) {
      result = unordered ? NAN : std::max(result, v);
    }
    if (kind == JoinKind::kMinimum) {
      result = unordered ? NAN : std::min(result, v);
    }
  }
  return kind == JoinKind::kAverage ? result / values.size() : result;
}

// One value of a pooling, of the values inside of its window.
inline double Pool(Pooling kind, const std::vector<double>& values) {
  double sum = 0, top = std::numeric_limits<float>::lowest();
  for (const double v : values) {
    sum += v;
    if (v > top) top = v;
  }
  return kind == Pooling::kMax   ? top
         : kind == Pooling::kSum ? sum
                                 : sum / values.size();
}

// (x - mean) / sqrt(variance + epsilon).
inline std::vector<double> Normalize(std::vector<double> values,
                                     double epsilon) {
  double mean = 0, variance = 0;
  for (const double v : values) mean += v / values.size();
  for (const double v : values) {
    variance += (v - mean) * (v - mean) / values.size();
  }
  for (double& v : values) v = (v - mean) / std::sqrt(variance + epsilon);
  return values;
}

}  // namespace reference
}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_TESTING_REFERENCE_H_
