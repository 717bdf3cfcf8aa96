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
#include <utility>
#include <vector>

#include "custom_ops/kernels/changed.h"
#include "custom_ops/kernels/lazy_buffer.h"
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
  void Update(int64_t width, const InstructionSet& set,
              std::vector<int32_t>* changed, float* tree) const {
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
        set.sum(from + first * width, std::min(kArity, children - first), width,
                to + parent * width);
      }
      changed->resize(parents);
    }
  }

 private:
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

// Leaves that were computed before, by what was in them. A slot holds the last
// comer, and the number of slots has a bound: so has the memory, and nothing
// has ever to be thrown out.
class LeafMemo {
 public:
  LeafMemo(int64_t units, int64_t max_bytes)
      : units_(units),
        stride_((2 + units + 3) / 4 * 4),
        max_slots_(max_bytes / (stride_ * int64_t{sizeof(float)})) {
    Clear();
  }
  void Clear() {
    slots_ = kFirstSlots;
    used_ = 0;
    data_ = LazyBuffer<float>(slots_ * stride_ + kLine);
  }

  void Prefetch(int32_t leaf, int32_t id) const {
    const float* slot = Slot(Key(leaf, id));
    __builtin_prefetch(slot);
    __builtin_prefetch(slot + stride_ - 1);
  }
  // The sum for the leaf with these contents, or null.
  const float* Find(int32_t leaf, int32_t id) const {
    const uint64_t key = Key(leaf, id);
    const float* slot = Slot(key);
    return KeyOf(slot) == key ? slot + 2 : nullptr;
  }
  void Insert(int32_t leaf, int32_t id, const float* sum) {
    if (2 * used_ > slots_ && 2 * slots_ <= max_slots_) Grow();
    Put(Key(leaf, id), sum);
  }

 private:
  static constexpr int64_t kFirstSlots = 1024;
  static constexpr int64_t kLine = 16;  // floats of a cache line

  static uint64_t Key(int32_t leaf, int32_t id) {  // never 0, which is empty
    return (uint64_t{static_cast<uint32_t>(leaf)} + 1) << 32 |
           static_cast<uint32_t>(id);
  }
  static uint64_t KeyOf(const float* slot) {
    uint64_t key;
    std::memcpy(&key, slot, sizeof(key));
    return key;
  }
  static float* FirstSlot(const LazyBuffer<float>& data) {
    constexpr uintptr_t kBytes = kLine * sizeof(float);
    const auto begin = reinterpret_cast<uintptr_t>(data.data());
    return reinterpret_cast<float*>((begin + kBytes - 1) / kBytes * kBytes);
  }
  float* Slot(uint64_t key) const {
    key *= 0x9e3779b97f4a7c15u;
    return FirstSlot(data_) + ((key ^ key >> 32) & (slots_ - 1)) * stride_;
  }
  void Put(uint64_t key, const float* sum) {
    float* slot = Slot(key);
    used_ += KeyOf(slot) == 0;
    std::memcpy(slot, &key, sizeof(key));
    std::memcpy(slot + 2, sum, units_ * sizeof(float));
  }
  void Grow() {
    const LazyBuffer<float> old = std::move(data_);
    const float* begin = FirstSlot(old);
    const float* end = begin + slots_ * stride_;
    slots_ *= 2;
    used_ = 0;
    data_ = LazyBuffer<float>(slots_ * stride_ + kLine);
    for (const float* slot = begin; slot < end; slot += stride_) {
      if (KeyOf(slot) != 0) Put(KeyOf(slot), slot + 2);
    }
  }

  int64_t units_, stride_, max_slots_;
  int64_t slots_ = 0, used_ = 0;
  LazyBuffer<float> data_;  // slots of a key, in two floats, and the sums
};

// The geometry of a dense layer over `leaves` times `depth` inputs, of which
// the last leaf may lack some.
class DenseSum {
 public:
  DenseSum(int64_t inputs, int64_t depth, int64_t units)
      : inputs_(inputs),
        depth_(depth),
        units_(units),
        tree_((inputs + depth - 1) / depth) {}
  int64_t leaves() const { return tree_.leaves(); }
  int64_t nodes() const { return tree_.nodes(); }
  int64_t units() const { return units_; }

  // Recomputes leaves, and what depends on them, in trees [streams, nodes,
  // units]. The last node of a stream's tree is its product with weights
  // [inputs, units]. `changes` is sorted by leaf, so that the weights of a leaf
  // are read once for all streams. row_of(change) points to the leaf's inputs.
  template <typename RowOf>
  void Update(const std::vector<LeafChange>& changes, int64_t streams,
              const RowOf& row_of, const float* weights,
              const InstructionSet& set, const ParallelFor& parallel,
              float* trees) const {
    Compute(changes, row_of, weights, set, parallel, trees);
    Ancestors(changes, streams, set, trees);
  }

  // The sum of the rows themselves: the product with an identity for each leaf.
  // Requires units == depth.
  template <typename RowOf>
  void Sum(const std::vector<LeafChange>& changes, int64_t streams,
           const RowOf& row_of, const InstructionSet& set, float* trees) const {
    for (const LeafChange& change : changes) {
      std::memcpy(Node(change, trees), row_of(change), units_ * sizeof(float));
    }
    Ancestors(changes, streams, set, trees);
  }

  // Update where id_of(change) says what is in a leaf: one that was computed
  // before is taken from `memo`.
  template <typename RowOf, typename IdOf>
  void Update(const std::vector<LeafChange>& changes, int64_t streams,
              const RowOf& row_of, const IdOf& id_of, const float* weights,
              const InstructionSet& set, const ParallelFor& parallel,
              LeafMemo* memo, float* trees) const {
    constexpr size_t kAhead = 12;
    thread_local std::vector<LeafChange> unknown;
    unknown.clear();
    for (size_t i = 0; i < changes.size(); ++i) {
      if (i + kAhead < changes.size()) {
        memo->Prefetch(changes[i + kAhead].leaf, id_of(changes[i + kAhead]));
      }
      const float* sum = memo->Find(changes[i].leaf, id_of(changes[i]));
      if (sum == nullptr) {
        unknown.push_back(changes[i]);
      } else {
        std::memcpy(Node(changes[i], trees), sum, units_ * sizeof(float));
      }
    }
    Compute(unknown, row_of, weights, set, parallel, trees);
    for (const LeafChange& change : unknown) {
      memo->Insert(change.leaf, id_of(change), Node(change, trees));
    }
    Ancestors(changes, streams, set, trees);
  }

 private:
  float* Node(const LeafChange& change, float* trees) const {
    return trees + (change.stream * nodes() + change.leaf) * units_;
  }

  template <typename RowOf>
  void Compute(const std::vector<LeafChange>& changes, const RowOf& row_of,
               const float* weights, const InstructionSet& set,
               const ParallelFor& parallel, float* trees) const {
    constexpr int64_t kBlock = 32;
    const int64_t count = changes.size();
    parallel((count + kBlock - 1) / kBlock, kBlock * depth_ * (1 + units_ / 8),
             [&](int64_t begin, int64_t end) {
               Leaves(changes.data() + begin * kBlock,
                      changes.data() + std::min(end * kBlock, count), row_of,
                      weights, set, trees);
             });
  }

  template <typename RowOf>
  void Leaves(const LeafChange* begin, const LeafChange* end,
              const RowOf& row_of, const float* weights,
              const InstructionSet& set, float* trees) const {
    // From this many streams on, a leaf's weights are worth laying out for the
    // matrix kernel.
    constexpr int64_t kWorthPacking = 4;
    thread_local std::vector<float> gathered, panels;
    thread_local std::vector<const float*> rows, matrices;
    thread_local std::vector<float*> nodes;
    rows.clear();
    matrices.clear();
    nodes.clear();
    const auto multiply_pairs = [&](int64_t depth) {
      set.pairs(rows.data(), matrices.data(), rows.size(), depth, units_,
                weights + inputs_ * units_, nodes.data());
      rows.clear();
      matrices.clear();
      nodes.clear();
    };
    for (const LeafChange* run = begin; run < end;) {
      const int64_t first = run->leaf * depth_;
      const int64_t depth = std::min(depth_, inputs_ - first);
      const float* b = weights + first * units_;
      const LeafChange* next = run + 1;
      while (next < end && next->leaf == run->leaf) ++next;
      if (next - run < kWorthPacking) {
        if (depth < depth_) multiply_pairs(depth_);  // of the leaves before
        for (; run < next; ++run) {
          rows.push_back(row_of(*run));
          matrices.push_back(b);
          nodes.push_back(Node(*run, trees));
        }
        if (depth < depth_) multiply_pairs(depth);
        continue;
      }
      gathered.resize((next - run) * depth);
      for (int64_t i = 0; i < next - run; ++i) {
        std::memcpy(gathered.data() + i * depth, row_of(run[i]),
                    depth * sizeof(float));
      }
      panels.resize(set.Padded(units_) * depth);
      set.Pack(b, units_, depth, units_, panels.data());
      set.Multiply(gathered.data(), depth, 1, next - run, depth, panels.data(),
                   nullptr, units_,
                   [&](int64_t i) { return Node(run[i], trees); });
      run = next;
    }
    multiply_pairs(depth_);
  }

  void Ancestors(const std::vector<LeafChange>& changes, int64_t streams,
                 const InstructionSet& set, float* trees) const {
    thread_local std::vector<std::vector<int32_t>> leaves;
    leaves.resize(std::max<size_t>(leaves.size(), streams));
    for (int64_t n = 0; n < streams; ++n) leaves[n].clear();
    for (const LeafChange& c : changes) leaves[c.stream].push_back(c.leaf);
    for (int64_t n = 0; n < streams; ++n) {
      tree_.Update(units_, set, &leaves[n], trees + n * nodes() * units_);
    }
  }

  int64_t inputs_, depth_, units_;
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
        mask.SetLine(n, leaves);
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

#endif  // REUSE_TF_KERNELS_DENSE_SUM_H_
