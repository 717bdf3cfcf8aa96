// A dense layer kept up to date: a matrix product as a fixed tree of sums,
// of which only the changed leaves and their ancestors are recomputed.
//
// Adding the differences of changed inputs to the last output would be less
// work still, but rounding errors would pile up from frame to frame. A tree
// recomputed along the changed paths has the same bits as one computed afresh.
#ifndef REUSE_TF_KERNELS_ARITHMETIC_DENSE_SUM_H_
#define REUSE_TF_KERNELS_ARITHMETIC_DENSE_SUM_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "custom_ops/kernels/arithmetic/leaf_weights.h"
#include "custom_ops/kernels/arithmetic/matmul.h"
#include "custom_ops/kernels/base/parallel.h"
#include "custom_ops/kernels/base/sizes.h"
#include "custom_ops/kernels/patches/changed.h"

namespace reuse_tf {

// What a node of a tree is of its children.
enum class Fold { kSum, kMax };

// A tree over `leaves` leaves, its nodes stored level by level, leaves first,
// root last; each node is a row of floats, the sum (or maximum) of at most
// kArity children.
class SumTree {
 public:
  static constexpr int64_t kArity = 16;

  explicit SumTree(int64_t leaves, Fold fold = Fold::kSum)
      : fold_(fold), levels_{0, std::max<int64_t>(1, leaves)} {
    for (int64_t size = levels_.back(); size > 1;) {
      size = (size + kArity - 1) / kArity;
      levels_.push_back(levels_.back() + size);
    }
  }
  int64_t leaves() const { return levels_[1]; }
  int64_t nodes() const { return levels_.back(); }
  // Where the nodes of a level begin.
  int64_t first(int64_t level) const { return levels_[level]; }
  // Words that hold a bit for each node of a level.
  int64_t words(int64_t level) const {
    return (levels_[level + 1] - levels_[level] + 63) / 64;
  }

  // Recomputes a node of `level` (of 1 on) from its children, in tree [nodes,
  // width].
  void Sum(int64_t level, int64_t node, int64_t width,
           const InstructionSet& set, float* tree) const {
    const int64_t children = levels_[level] - levels_[level - 1];
    const int64_t begin = node * kArity;
    const int64_t count = std::min(kArity, children - begin);
    const float* from = tree + (levels_[level - 1] + begin) * width;
    float* to = tree + (levels_[level] + node) * width;
    if (fold_ == Fold::kSum) {
      set.sum(from, count, width, to);
      return;
    }
    std::copy_n(from, width, to);
    for (int64_t i = 1; i < count; ++i) {
      from += width;
      for (int64_t c = 0; c < width; ++c) {
        // A NaN stays one, wherever it is.
        const float value = from[c];
        to[c] = value > to[c] || value != value ? value : to[c];
      }
    }
  }

  // Recomputes all ancestors of the nodes of `level` that are marked in `bits`,
  // which serves as working space.
  void SumAbove(int64_t level, uint64_t* bits, int64_t width,
                const InstructionSet& set, float* tree) const {
    static_assert(kArity == 16, "four parents for each word of children");
    for (; level + 2 < static_cast<int64_t>(levels_.size()); ++level) {
      const int64_t count = words(level);
      for (int64_t i = 0; i < count; ++i) {
        const uint64_t word = bits[i];
        const uint64_t parents =
            (word & 0xffff ? 1 : 0) | (word >> 16 & 0xffff ? 2 : 0) |
            (word >> 32 & 0xffff ? 4 : 0) | (word >> 48 ? 8 : 0);
        // Word i / 16 was read before, unless it is this one.
        if (i % 16 == 0) bits[i / 16] = 0;
        bits[i / 16] |= parents << (i % 16 * 4);
      }
      ForEachBit(bits, words(level + 1),
                 [&](int64_t node) { Sum(level + 1, node, width, set, tree); });
    }
  }

 private:
  Fold fold_;
  std::vector<int64_t> levels_;  // where each level starts, and the end
};

// A leaf of one stream's tree that has to be recomputed.
struct LeafChange {
  int32_t leaf, stream;
};

// From stream by stream to leaf by leaf.
inline void SortByLeaf(std::vector<LeafChange>* changes) {
  std::stable_sort(
      changes->begin(), changes->end(),
      [](const LeafChange& a, const LeafChange& b) { return a.leaf < b.leaf; });
}

// The geometry of a dense layer over `leaves` times `depth` inputs, of which
// the last leaf may lack some. A step computes the leaves that changed and then
// updates the sums.
class DenseSum {
 public:
  // Leaf i is node i of the tree, or node order[i] of one of `nodes` leaves,
  // whose others are never written.
  DenseSum(int64_t inputs, int64_t depth, int64_t units,
           std::vector<int32_t> order = {}, int64_t nodes = 0,
           Fold fold = Fold::kSum)
      : inputs_(inputs),
        depth_(depth),
        units_(units),
        order_(std::move(order)),
        leaves_(std::max<int64_t>(1, (inputs + depth - 1) / depth)),
        fold_(fold),
        tree_(order_.empty() ? leaves_ : nodes, fold) {}
  int64_t leaves() const { return leaves_; }
  int64_t nodes() const { return tree_.nodes(); }
  int64_t units() const { return units_; }
  const SumTree& tree() const { return tree_; }
  // Makes room for so many trees, [streams, nodes, units], in which leaves that
  // are never written make no difference.
  void Resize(int64_t streams, std::vector<float>* trees) const {
    trees->resize(
        Product({streams, nodes(), units_}),
        fold_ == Fold::kSum ? 0 : -std::numeric_limits<float>::infinity());
  }

  // Computes leaves of trees [streams, nodes, units], the products of their
  // inputs and their part of weights [inputs, units]. `changes` is sorted by
  // leaf, so that the weights of a leaf are read once for all streams.
  // row_of(change) points to the leaf's inputs.
  template <typename RowOf>
  void ComputeLeaves(const std::vector<LeafChange>& changes,
                     const RowOf& row_of, const float* weights,
                     const InstructionSet& set, const ParallelFor& parallel,
                     float* trees) const {
    LeafWeights(weights, inputs_, depth_, units_)
        .Multiply(
            changes.size(), [&](int64_t i) { return changes[i].leaf; },
            [&](int64_t i) { return row_of(changes[i]); },
            [&](int64_t i) { return Node(changes[i], trees); }, set, parallel);
  }

  // Leaves that are known: row_of(change) points to the leaf itself.
  template <typename RowOf>
  void CopyLeaves(const std::vector<LeafChange>& changes, const RowOf& row_of,
                  float* trees) const {
    for (const LeafChange& change : changes) {
      std::memcpy(Node(change, trees), row_of(change), units_ * sizeof(float));
    }
  }

  // Recomputes what depends on these leaves. The last node of a stream's tree
  // is then the sum of its leaves.
  void UpdateSums(const std::vector<LeafChange>& changes, int64_t streams,
                  const InstructionSet& set, float* trees) const {
    const int64_t words = tree_.words(0);
    thread_local std::vector<uint64_t> bits;
    bits.assign(streams * words, 0);
    for (const LeafChange& change : changes) {
      const int64_t node = NodeOf(change.leaf);
      bits[change.stream * words + node / 64] |= uint64_t{1} << (node % 64);
    }
    for (int64_t n = 0; n < streams; ++n) {
      tree_.SumAbove(0, bits.data() + n * words, units_, set,
                     trees + n * nodes() * units_);
    }
  }

 private:
  int64_t NodeOf(int32_t leaf) const {
    return order_.empty() ? leaf : order_[leaf];
  }
  float* Node(const LeafChange& change, float* trees) const {
    return trees + (change.stream * nodes() + NodeOf(change.leaf)) * units_;
  }

  int64_t inputs_, depth_, units_;
  std::vector<int32_t> order_;
  int64_t leaves_;
  Fold fold_;
  SumTree tree_;
};

// Appends, sorted by leaf, the changes of a dense layer over `now`, compared
// with `seen`, both [streams, inputs], or all leaves if `all`; makes `seen`
// agree with `now`.
inline void ChangedLeaves(const float* now, int64_t streams, int64_t inputs,
                          int64_t depth, bool all, const ParallelFor& parallel,
                          float* seen, std::vector<LeafChange>* changes) {
  const int64_t whole = inputs / depth, rest = inputs % depth;
  const int64_t leaves = std::max<int64_t>(1, whole + (rest > 0));
  PixelMask mask;
  mask.Resize(streams, leaves);
  parallel(streams, inputs, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* from = now + n * inputs;
      float* to = seen + n * inputs;
      if (all) {
        std::memcpy(to, from, inputs * sizeof(float));
        mask.SetLine(n);
        continue;
      }
      UpdateLine(from, to, whole, depth, 0, mask.line(n));
      from += whole * depth;
      to += whole * depth;
      if (std::memcmp(from, to, rest * sizeof(float)) != 0) {
        std::memcpy(to, from, rest * sizeof(float));
        mask.Set(n, whole);
      }
    }
  });
  for (int64_t n = 0; n < streams; ++n) {
    mask.ForEach(n, [&](int64_t leaf) {
      changes->push_back({static_cast<int32_t>(leaf), static_cast<int32_t>(n)});
    });
  }
  if (streams > 1) SortByLeaf(changes);
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_ARITHMETIC_DENSE_SUM_H_
