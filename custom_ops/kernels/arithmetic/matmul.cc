#include "custom_ops/kernels/arithmetic/matmul.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "custom_ops/kernels/arithmetic/rows.h"

namespace reuse_tf {
namespace {

#if defined(__aarch64__)
namespace neon {
#define LANES 4
#define STRIP_ROWS 8
#define STRIP_VECTORS 3
#include "custom_ops/kernels/arithmetic/simd.inc"
#undef LANES
#undef STRIP_ROWS
#undef STRIP_VECTORS
}  // namespace neon
#else
namespace baseline {
#define LANES 4
#define STRIP_ROWS 6
#define STRIP_VECTORS 2
#include "custom_ops/kernels/arithmetic/simd.inc"
#undef LANES
#undef STRIP_ROWS
#undef STRIP_VECTORS
}  // namespace baseline
#endif

// Everything included from elsewhere is included above: a function of the
// standard library compiled for a newer processor could otherwise be the one
// that the linker keeps for all.
#if defined(__x86_64__)
#if defined(__clang__)
#define BEGIN_TARGET_AVX2                                            \
  _Pragma(                                                           \
      "clang attribute push(__attribute__((target(\"avx2,fma\"))), " \
      "apply_to = function)")
#define BEGIN_TARGET_AVX512                                         \
  _Pragma(                                                          \
      "clang attribute push(__attribute__((target(\"avx512f\"))), " \
      "apply_to = function)")
#define END_TARGET _Pragma("clang attribute pop")
#else
#define BEGIN_TARGET_AVX2 \
  _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma\")")
#define BEGIN_TARGET_AVX512 \
  _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f\")")
#define END_TARGET _Pragma("GCC pop_options")
#endif

BEGIN_TARGET_AVX2
namespace avx2 {
#define LANES 8
#define STRIP_ROWS 6
#define STRIP_VECTORS 2
#include "custom_ops/kernels/arithmetic/simd.inc"
#undef LANES
#undef STRIP_ROWS
#undef STRIP_VECTORS
}  // namespace avx2
END_TARGET

BEGIN_TARGET_AVX512
namespace avx512 {
#define LANES 16
#define STRIP_ROWS 12
#define STRIP_VECTORS 2
#include "custom_ops/kernels/arithmetic/simd.inc"
#undef LANES
#undef STRIP_ROWS
#undef STRIP_VECTORS
}  // namespace avx512
END_TARGET
#endif  // __x86_64__

}  // namespace

const std::vector<const InstructionSet*>& InstructionSets() {
  static const auto* sets = [] {
    auto* found = new std::vector<const InstructionSet*>;
#if defined(__aarch64__)
    static constexpr InstructionSet neon = neon::Make("neon");
    found->push_back(&neon);
#else
#if defined(__x86_64__)
    static constexpr InstructionSet avx512 = avx512::Make("avx512");
    static constexpr InstructionSet avx2 = avx2::Make("avx2");
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) found->push_back(&avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      found->push_back(&avx2);
    }
#endif
    static constexpr InstructionSet baseline = baseline::Make("baseline");
    found->push_back(&baseline);
#endif
    return found;
  }();
  return *sets;
}

const InstructionSet& ActiveInstructionSet() {
  static const InstructionSet& active = []() -> const InstructionSet& {
    const char* name = std::getenv("REUSE_TF_ISA");
    for (const InstructionSet* set : InstructionSets()) {
      if (name != nullptr && std::strcmp(name, set->name) == 0) return *set;
    }
    return *InstructionSets().front();
  }();
  return active;
}

bool Activation::Make(const std::string& name,
                      const std::vector<float>& arguments,
                      Activation* activation, const InstructionSet& set) {
  for (int i = 0; i < set.activation_count; ++i) {
    const Form& form = set.activations[i];
    if (name != form.name || arguments.size() != form.arguments) continue;
    activation->form_ = name == "linear" ? nullptr : &form;
    activation->arguments_ = arguments;
    return true;
  }
  return false;
}

void InstructionSet::Pack(const float* b, int64_t stride, int64_t depth,
                          int64_t columns, float* panels) const {
  const int64_t panel = lanes * vectors, padded = Padded(columns);
  for (int64_t c = 0; c < padded; c += panel) {
    const int64_t width = std::min(panel, padded - c);
    const int64_t valid = std::min(width, columns - c);
    for (int64_t i = 0; i < depth; ++i, panels += width) {
      std::memcpy(panels, b + i * stride + c, valid * sizeof(float));
      std::fill(panels + valid, panels + width, 0.f);
    }
  }
}

void InstructionSet::PackTransposed(const float* b, int64_t stride,
                                    int64_t depth, int64_t columns,
                                    float* panels) const {
  const int64_t panel = lanes * vectors, padded = Padded(columns);
  for (int64_t c = 0; c < padded; c += panel) {
    const int64_t width = std::min(panel, padded - c);
    for (int64_t k = 0; k < width; ++k) {
      const float* from = b + (c + k) * stride;
      const bool valid = c + k < columns;
      for (int64_t i = 0; i < depth; ++i) {
        panels[i * width + k] = valid ? from[i] : 0.f;
      }
    }
    panels += width * depth;
  }
}

namespace {

// Whether `ids` are of rows behind each other.
bool Consecutive(const int32_t* ids, int64_t count) {
  if (ids[0] < 0) return false;
  for (int64_t i = 1; i < count; ++i) {
    if (ids[i] != ids[0] + i) return false;
  }
  return true;
}

}  // namespace

void PackedKernel::Pack(const float* kernel, const float* bias, int64_t taps,
                        int64_t channels, int64_t filters, int64_t groups,
                        const InstructionSet& set) {
  set_ = &set;
  taps_ = taps;
  channels_ = channels;
  filters_ = filters;
  groups_ = groups;
  group_filters_ = filters / groups;
  depth_ = taps * (channels / groups);
  has_bias_ = bias != nullptr;
  // Some 64 kB of patches: they pass through the second-level cache while a
  // panel stays in the first.
  block_ =
      std::clamp<int64_t>(16384 / std::max<int64_t>(depth_, 1), set.rows, 256);
  block_ = (block_ + set.rows - 1) / set.rows * set.rows;
  zeros_.clear();
  if (depthwise()) {
    zeros_.assign(channels, 0);
    panels_.resize(taps * filters);
    bias_.resize(has_bias_ ? filters : 0);
    const auto split = [&](const float* from, int64_t rows, float* to) {
      for (int64_t m = 0; m < group_filters_; ++m) {
        for (int64_t i = 0; i < rows * channels; ++i) {
          *to++ = from[i * group_filters_ + m];
        }
      }
    };
    split(kernel, taps, panels_.data());
    if (has_bias_) split(bias, 1, bias_.data());
    return;
  }
  padded_ = set.Padded(group_filters_);
  panels_.resize(groups * padded_ * depth_);
  bias_.assign(has_bias_ ? groups * padded_ : 0, 0);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * group_filters_;
    set.Pack(kernel + first, filters, depth_, group_filters_,
             panels_.data() + g * padded_ * depth_);
    if (has_bias_) {
      std::memcpy(bias_.data() + g * padded_, bias + first,
                  group_filters_ * sizeof(float));
    }
  }
}

void PackedKernel::Multiply(const float* rows, const int32_t* patches,
                            int64_t count, const RowOps& ops,
                            const int32_t* ids, float* table) const {
  thread_local std::vector<float> gathered;
  const int64_t group_channels = channels_ / groups_;
  for (int64_t start = 0; start < count; start += block_) {
    const int64_t size = std::min(block_, count - start);
    const int32_t* from = patches + start * taps_;
    const auto out = [=](int64_t i) {
      return table + (ids == nullptr ? start + i : ids[start + i]) * filters_;
    };
    if (depthwise()) {
      for (int64_t i = 0; i < size; ++i) {
        MultiplyDepthwise(rows, from + i * taps_, out(i));
      }
    } else {
      // Rows behind each other in the table are multiplied where they stand.
      const bool in_place = taps_ == 1 && Consecutive(from, size);
      if (!in_place) gathered.resize(size * depth_);
      for (int64_t g = 0; g < groups_; ++g) {
        const float* a = rows + g * group_channels;
        if (in_place) {
          a += from[0] * channels_;
        } else {
          GatherRows(a, channels_, group_channels, from, size * taps_,
                     gathered.data());
          a = gathered.data();
        }
        set_->Multiply(a, in_place ? channels_ : depth_, 1, size, depth_,
                       panels_.data() + g * padded_ * depth_,
                       has_bias_ ? bias_.data() + g * padded_ : nullptr,
                       group_filters_,
                       [&](int64_t i) { return out(i) + g * group_filters_; });
      }
    }
    if (!ops.empty()) {
      for (int64_t i = 0; i < size; ++i) ops.Apply(out(i), filters_);
    }
  }
}

void PackedKernel::MultiplyDepthwise(const float* rows, const int32_t* patch,
                                     float* out) const {
  thread_local std::vector<const float*> taps;
  taps.resize(taps_);
  for (int64_t t = 0; t < taps_; ++t) {
    taps[t] = patch[t] < 0 ? zeros_.data() : rows + patch[t] * channels_;
  }
  const auto multiply = [&](int64_t m, float* to) {
    set_->depthwise(taps.data(), taps_, channels_,
                    panels_.data() + m * depth_ * channels_,
                    has_bias_ ? bias_.data() + m * channels_ : nullptr, to);
  };
  if (group_filters_ == 1) return multiply(0, out);
  thread_local std::vector<float> products;
  products.resize(channels_);
  for (int64_t m = 0; m < group_filters_; ++m) {
    multiply(m, products.data());
    for (int64_t c = 0; c < channels_; ++c) {
      out[c * group_filters_ + m] = products[c];
    }
  }
}

void ConvolvePositions(const Window& window, const PackedKernel& kernel,
                       const RowOps& ops, const float* rows,
                       const int32_t* positions, int64_t count,
                       const ParallelFor& parallel, float* table) {
  kernel.ForBlocks(count, parallel, [&](int64_t first, int64_t size) {
    thread_local std::vector<int32_t> patches;
    patches.resize(size * kernel.taps());
    PatchIds(window, positions + first, size, patches.data());
    kernel.Multiply(rows, patches.data(), size, ops, positions + first, table);
  });
}

}  // namespace reuse_tf
