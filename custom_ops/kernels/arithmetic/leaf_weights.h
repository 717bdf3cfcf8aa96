// The weights of a dense layer, leaf by leaf: what one position of a map, or
// some of the values of a vector, is multiplied by.
#ifndef REUSE_TF_KERNELS_ARITHMETIC_LEAF_WEIGHTS_H_
#define REUSE_TF_KERNELS_ARITHMETIC_LEAF_WEIGHTS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "custom_ops/kernels/arithmetic/matmul.h"
#include "custom_ops/kernels/base/parallel.h"

namespace reuse_tf {

// A view of weights [inputs, units] as leaves of `depth` inputs, of which the
// last may lack some.
class LeafWeights {
 public:
  LeafWeights(const float* values, int64_t inputs, int64_t depth, int64_t units)
      : values_(values), inputs_(inputs), depth_(depth), units_(units) {}

  // out_of(i)[0:units] = row_of(i)[0:depth] * the weights of leaf_of(i), for i
  // in [0, count), whose leaves ascend, so that the weights of each are read
  // once. A product has the same bits whatever is computed beside it.
  template <typename LeafOf, typename RowOf, typename OutOf>
  void Multiply(int64_t count, const LeafOf& leaf_of, const RowOf& row_of,
                const OutOf& out_of, const InstructionSet& set,
                const ParallelFor& parallel) const {
    // So many at once that threads share wide layers, of few leaves, too.
    constexpr int64_t kMostAtOnce = 32, kWorthSharing = 1 << 17;
    const int64_t work = depth_ * units_;
    const int64_t block = std::clamp<int64_t>(
        kWorthSharing / std::max<int64_t>(work, 1), 1, kMostAtOnce);
    // The weights of a leaf are read by one thread, or laid out by each for so
    // many rows that it makes no difference.
    const auto at = [&](int64_t i) {
      i = std::min(i * block, count);
      const int64_t end = std::min(count, i + 2 * kMostAtOnce);
      while (i > 0 && i < end && leaf_of(i) == leaf_of(i - 1)) ++i;
      return i;
    };
    // Narrow weights are read at some twelve bytes a cycle.
    parallel((count + block - 1) / block,
             block * depth_ * (1 + units_ / (units_ < kWide ? 3 : 8)),
             [&](int64_t begin, int64_t end) {
               MultiplyRange(at(begin), at(end), leaf_of, row_of, out_of, set);
             });
  }

 private:
  // From this many units on, lines of weights are long enough to be read one
  // after the other. Of 32, one row takes 0.8 of the time it takes by pairs,
  // two or more half.
  static constexpr int64_t kWide = 32;

  template <typename LeafOf, typename RowOf, typename OutOf>
  void MultiplyRange(int64_t begin, int64_t end, const LeafOf& leaf_of,
                     const RowOf& row_of, const OutOf& out_of,
                     const InstructionSet& set) const {
    constexpr size_t kPairs = 64;  // at once, whose list stays in cache
    // From this many rows on, a leaf's weights are worth laying out for the
    // matrix kernel.
    const int64_t worth_packing = units_ < kWide ? 4 : 32;
    thread_local std::vector<float> gathered, panels;
    thread_local std::vector<const float*> rows, matrices;
    thread_local std::vector<float*> products;
    const auto clear = [] {
      rows.clear();
      matrices.clear();
      products.clear();
    };
    const auto multiply_pairs = [&](int64_t depth) {
      set.pairs(rows.data(), matrices.data(), rows.size(), depth, units_,
                values_ + inputs_ * units_, products.data());
      clear();
    };
    clear();
    for (int64_t i = begin; i < end;) {
      const int64_t leaf = leaf_of(i);
      const int64_t depth = std::min(depth_, inputs_ - leaf * depth_);
      const float* b = values_ + leaf * depth_ * units_;
      int64_t next = i + 1;
      while (next < end && leaf_of(next) == leaf) ++next;
      if (next - i < worth_packing && units_ >= kWide) {
        for (; i < next; ++i) {
          rows.push_back(row_of(i));
          products.push_back(out_of(i));
        }
        const float* after =
            next < end ? values_ + leaf_of(next) * depth_ * units_ : b;
        set.lines(rows.data(), rows.size(), b, depth, units_, after,
                  products.data());
        clear();
        continue;
      }
      if (next - i < worth_packing) {
        if (depth < depth_) multiply_pairs(depth_);  // of the leaves before
        for (; i < next; ++i) {
          rows.push_back(row_of(i));
          matrices.push_back(b);
          products.push_back(out_of(i));
        }
        if (depth < depth_ || rows.size() >= kPairs) multiply_pairs(depth);
        continue;
      }
      gathered.resize((next - i) * depth);
      for (int64_t k = 0; k < next - i; ++k) {
        std::memcpy(gathered.data() + k * depth, row_of(i + k),
                    depth * sizeof(float));
      }
      panels.resize(set.Padded(units_) * depth);
      set.Pack(b, units_, depth, units_, panels.data());
      set.Multiply(gathered.data(), depth, 1, next - i, depth, panels.data(),
                   nullptr, units_, [&](int64_t k) { return out_of(i + k); });
      i = next;
    }
    multiply_pairs(depth_);
  }

  const float* values_;
  int64_t inputs_, depth_, units_;
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_ARITHMETIC_LEAF_WEIGHTS_H_
