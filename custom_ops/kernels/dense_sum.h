// A dense layer kept up to date: a matrix product as a fixed tree of sums,
// of which only the changed leaves and their ancestors are recomputed.
//
// Adding the differences of changed inputs to the last output would be less
// work still, but rounding errors would pile up from frame to frame. A tree
// recomputed along the changed paths has the same bits as one computed afresh.
#ifndef REUSE_TF_KERNELS_DENSE_SUM_H_
#define REUSE_TF_KERNELS_DENSE_SUM_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "custom_ops/kernels/changed.h"
#include "custom_ops/kernels/matmul.h"
#include "custom_ops/kernels/parallel.h"

namespace reuse_tf {

// A tree over `leaves` leaves, its nodes stored level by level, leaves first,
// root last; each node is a row of floats, the sum of at most kArity children.
class SumTree {
 public:
  static constexpr int64_t kArity = 8;

  explicit SumTree(int64_t leaves) : levels_{0, std::max<int64_t>(1, leaves)} {
    for (int64_t size = levels_.back(); size > 1;) {
      size = (size + kArity - 1) / kArity;
      levels_.push_back(levels_.back() + size);
    }
  }
  int64_t leaves() const { return levels_[1]; }
  int64_t nodes() const { return levels_.back(); }

  // Recomputes the ancestors of the nodes `changed`, leaves in ascending order,
  // in tree [nodes, width]. Uses `changed` as working space.
  void Update(int64_t width, std::vector<int32_t>* changed, float* tree) const {
    for (size_t level = 1; level + 1 < levels_.size(); ++level) {
      const int64_t children = levels_[level] - levels_[level - 1];
      const float* from = tree + levels_[level - 1] * width;
      float* to = tree + levels_[level] * width;
      size_t parents = 0;
      for (size_t i = 0; i < changed->size(); ++i) {
        const int32_t parent = (*changed)[i] / kArity;
        if (parents > 0 && (*changed)[parents - 1] == parent) continue;
        (*changed)[parents++] = parent;
        const int64_t first = parent * kArity;
        const int64_t last = std::min(first + kArity, children);
        float* sum = to + parent * width;
        std::memcpy(sum, from + first * width, width * sizeof(float));
        for (int64_t c = first + 1; c < last; ++c) {
          for (int64_t u = 0; u < width; ++u) sum[u] += from[c * width + u];
        }
      }
      changed->resize(parents);
    }
  }

 private:
  std::vector<int64_t> levels_;  // where each level starts, and the end
};

// The geometry of a dense layer over `inputs` values.
class DenseSum {
 public:
  static constexpr int64_t kLeaf = 32;  // inputs

  DenseSum(int64_t inputs, int64_t units)
      : inputs_(inputs), units_(units), tree_((inputs + kLeaf - 1) / kLeaf) {}
  int64_t leaves() const { return tree_.leaves(); }
  int64_t nodes() const { return tree_.nodes(); }

  // Brings trees [streams, nodes, units] up to date where `now` differs from
  // `seen`, both [streams, inputs], or everywhere if `all`; makes `seen` agree
  // with `now`. The last node of a stream's tree is its product with weights
  // [inputs, units]. Returns the number of leaves that were recomputed.
  int64_t Update(const float* now, int64_t streams, bool all,
                 const float* weights, const InstructionSet& set,
                 const ParallelFor& parallel, float* seen, float* trees) const {
    PixelMask mask;
    mask.Resize(streams, leaves());
    const int64_t whole = inputs_ / kLeaf, rest = inputs_ % kLeaf;
    parallel(streams, inputs_, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const float* from = now + n * inputs_;
        float* to = seen + n * inputs_;
        if (all) {
          std::memcpy(to, from, inputs_ * sizeof(float));
          for (int64_t i = 0; i < leaves(); ++i) mask.Set(n, i);
          continue;
        }
        UpdateLine(from, to, whole, kLeaf, 0, mask.line(n));
        from += whole * kLeaf;
        to += whole * kLeaf;
        if (std::memcmp(from, to, rest * sizeof(float)) != 0) {
          std::memcpy(to, from, rest * sizeof(float));
          mask.Set(n, whole);
        }
      }
    });
    // Word by word of the mask, all streams beside each other: the weights of a
    // leaf are read once.
    parallel(mask.words(), streams * 64 * kLeaf * (1 + units_ / 8) / 4,
             [&](int64_t begin, int64_t end) {
               for (int64_t word = begin; word < end; ++word) {
                 ComputeLeaves(seen, streams, mask, word, weights, set, trees);
               }
             });
    int64_t recomputed = 0;
    std::vector<int32_t> changed;
    for (int64_t n = 0; n < streams; ++n) {
      changed.clear();
      mask.ForEach(n, [&](int64_t leaf) { changed.push_back(leaf); });
      recomputed += changed.size();
      tree_.Update(units_, &changed, trees + n * nodes() * units_);
    }
    return recomputed;
  }

 private:
  void ComputeLeaves(const float* x, int64_t streams, const PixelMask& mask,
                     int64_t word, const float* weights,
                     const InstructionSet& set, float* trees) const {
    // From this many streams on, one leaf's weights are worth laying out for
    // the matrix kernel.
    constexpr size_t kWorthPacking = 4;
    uint64_t any = 0;
    for (int64_t n = 0; n < streams; ++n) any |= mask.line(n)[word];
    thread_local std::vector<int32_t> changed;
    thread_local std::vector<float> gathered, panels;
    ForEachBit(&any, 1, [&](int64_t bit) {
      const int64_t leaf = word * 64 + bit, first = leaf * kLeaf;
      const int64_t depth = std::min(kLeaf, inputs_ - first);
      const float* b = weights + first * units_;
      const auto node = [&](int64_t n) {
        return trees + (n * nodes() + leaf) * units_;
      };
      changed.clear();
      for (int64_t n = 0; n < streams; ++n) {
        if (mask.line(n)[word] >> bit & 1) changed.push_back(n);
      }
      if (changed.size() < kWorthPacking) {
        for (const int32_t n : changed) {
          set.row(x + n * inputs_ + first, depth, b, units_,
                  weights + inputs_ * units_, node(n));
        }
        return;
      }
      gathered.resize(changed.size() * depth);
      for (size_t i = 0; i < changed.size(); ++i) {
        std::memcpy(gathered.data() + i * depth,
                    x + changed[i] * inputs_ + first, depth * sizeof(float));
      }
      panels.resize(set.Padded(units_) * depth);
      set.Pack(b, units_, depth, units_, panels.data());
      set.Multiply(gathered.data(), changed.size(), depth, panels.data(),
                   nullptr, units_,
                   [&](int64_t i) { return node(changed[i]); });
    });
  }

  int64_t inputs_, units_;
  SumTree tree_;
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_DENSE_SUM_H_
