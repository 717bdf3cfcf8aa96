// The matrix kernel: rows of patches times the kernel of a convolution.
//
// The result for a row has the same bits however many rows are computed beside
// it, on however many threads: what was computed in one frame can stand beside
// what is computed in another.
#ifndef REUSE_TF_KERNELS_ARITHMETIC_MATMUL_H_
#define REUSE_TF_KERNELS_ARITHMETIC_MATMUL_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "custom_ops/kernels/arithmetic/activations.h"
#include "custom_ops/kernels/arithmetic/row_ops.h"
#include "custom_ops/kernels/base/parallel.h"
#include "custom_ops/kernels/patches/window.h"

namespace reuse_tf {

// The innermost loops (simd.inc, activations.inc) as compiled for one
// instruction set.
struct InstructionSet {
  static constexpr int kMaxRows = 12, kMaxVectors = 3;
  using Strip = void (*)(const float* a, int64_t stride, int64_t step,
                         int64_t depth, const float* b, const float* bias,
                         int64_t columns, float* const* out);
  const char* name;
  int lanes, rows, vectors;
  Strip strips[kMaxRows][kMaxVectors];
  void (*depthwise)(const float* const* rows, int64_t taps, int64_t channels,
                    const float* kernel, const float* bias, float* out);
  void (*pairs)(const float* const* a, const float* const* b, int64_t count,
                int64_t depth, int64_t columns, const float* end,
                float* const* out);
  void (*sum)(const float* rows, int64_t count, int64_t width, float* out);
  void (*lines)(const float* const* a, int64_t count, const float* b,
                int64_t depth, int64_t columns, const float* next,
                float* const* out);
  const Activation::Form* activations;
  int activation_count;

  // `columns` rounded up to whole vectors: the width of panels side by side.
  int64_t Padded(int64_t columns) const {
    return (columns + lanes - 1) / lanes * lanes;
  }

  // Lays out b, [depth, columns] with rows `stride` values apart, as panels
  // [depth, panel width] behind each other, zero-padded to whole vectors.
  // `panels` has Padded(columns) * depth values.
  void Pack(const float* b, int64_t stride, int64_t depth, int64_t columns,
            float* panels) const;
  // The same of the transpose: b is [columns, depth].
  void PackTransposed(const float* b, int64_t stride, int64_t depth,
                      int64_t columns, float* panels) const;

  // out[r][0, columns) = a[r, 0:depth] * b + bias for `count` rows of a and b
  // in panels; a[r, i] stands at r * stride + i * step; bias has
  // Padded(columns) values or is null. out(r) tells where row r goes.
  template <typename Out>
  void Multiply(const float* a, int64_t stride, int64_t step, int64_t count,
                int64_t depth, const float* panels, const float* bias,
                int64_t columns, const Out& out) const {
    const int64_t panel = lanes * vectors, padded = Padded(columns);
    const int64_t strip_count = (count + rows - 1) / rows;
    for (int64_t c = 0; c < padded; c += panel) {
      const int64_t width = std::min(panel, padded - c);
      // Strips of nearly equal height: one of a single row would take nearly
      // as long as a full one.
      for (int64_t s = 0, first = 0; s < strip_count; ++s) {
        const int64_t height = (count - first) / (strip_count - s);
        float* to[kMaxRows];
        for (int64_t r = 0; r < height; ++r) to[r] = out(first + r) + c;
        strips[height - 1][width / lanes - 1](
            a + first * stride, stride, step, depth, panels,
            bias == nullptr ? nullptr : bias + c, columns - c, to);
        first += height;
      }
      panels += width * depth;
    }
  }
};

// Those that this processor runs, the fastest first.
const std::vector<const InstructionSet*>& InstructionSets();
// The one that everything is computed with: the fastest, or the one that the
// environment variable REUSE_TF_ISA names, read once. Results have the same
// bits within a set, and are equal to rounding between sets.
const InstructionSet& ActiveInstructionSet();

// The kernel and bias of a convolution, laid out for the strips: for each group
// a run of panels [depth, panel width], zero-padded to whole vectors. Those of
// a depthwise convolution, [taps, channels, filters of each], become one kernel
// [taps, channels] for each filter of a channel.
class PackedKernel {
 public:
  // `kernel` is [taps, channels / groups, filters] as Keras keeps it; `bias` is
  // [filters] or null. Requires that groups divides channels and filters.
  void Pack(const float* kernel, const float* bias, int64_t taps,
            int64_t channels, int64_t filters, int64_t groups,
            const InstructionSet& set = ActiveInstructionSet());

  int64_t taps() const { return taps_; }
  int64_t channels() const { return channels_; }
  int64_t filters() const { return filters_; }
  // Multiply-adds for one position.
  int64_t cost() const { return taps_ * (channels_ / groups_) * filters_; }

  // table[out_id(i), :] = ops(patch i * kernel + bias), where patch i is the
  // rows patches[i, 0:taps] of `rows` [*, channels], -1 being a row of zeros;
  // out_id(i) is ids[i], or i if ids is null. Runs on the calling thread.
  void Multiply(const float* rows, const int32_t* patches, int64_t count,
                const RowOps& ops, const int32_t* ids, float* table) const;

  // Cuts `count` patches into blocks and calls body(first, size) for each, on
  // several threads if there is enough work.
  template <typename Body>
  void ForBlocks(int64_t count, const ParallelFor& parallel,
                 const Body& body) const {
    // A core makes some 16 multiply-adds a cycle; a value is gathered in less
    // than one.
    const int64_t cycles =
        block_ * (cost() / 16 + taps_ * (4 + channels_ / 4) + filters_ / 4);
    const int64_t blocks = (count + block_ - 1) / block_;
    if (blocks <= 1) {
      if (count > 0) body(int64_t{0}, count);
      return;
    }
    parallel(blocks, cycles, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        body(i * block_, std::min(block_, count - i * block_));
      }
    });
  }

 private:
  bool depthwise() const { return groups_ == channels_ && groups_ > 1; }
  void MultiplyDepthwise(const float* rows, const int32_t* patch,
                         float* out) const;

  const InstructionSet* set_ = nullptr;
  int64_t taps_ = 0, channels_ = 0, filters_ = 0, groups_ = 1;
  int64_t group_filters_ = 0, depth_ = 0, padded_ = 0;
  // Patches multiplied at once: enough to use each panel several times, few
  // enough to stay in cache.
  int64_t block_ = 1;
  bool has_bias_ = false;
  // [groups, padded * depth] and [groups, padded]; if depthwise, [filters of a
  // channel, taps, channels] and [filters of a channel, channels].
  std::vector<float> panels_, bias_;
  std::vector<float> zeros_;  // a row of the padding, if depthwise
};

// Computes a convolution of `rows`, an activation map [*, channels] on the
// grid of `window`, at some of its positions, into table [positions, filters].
void ConvolvePositions(const Window& window, const PackedKernel& kernel,
                       const RowOps& ops, const float* rows,
                       const int32_t* positions, int64_t count,
                       const ParallelFor& parallel, float* table);

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_ARITHMETIC_MATMUL_H_
