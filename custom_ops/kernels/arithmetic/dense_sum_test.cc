// Compares trees of sums and maxima with plain loops, and the bits of those
// that are kept up to date with those of others computed afresh.

#include "custom_ops/kernels/arithmetic/dense_sum.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "custom_ops/kernels/base/float_mode.h"
#include "custom_ops/kernels/testing/reference.h"
#include "custom_ops/kernels/testing/testing.h"

namespace reuse_tf {
namespace {

void TestSumTree(const InstructionSet& set) {
  Random random(5);
  for (int i = 0; i < 60; ++i) {
    const int64_t leaves = i < 20 ? i : random.Int(20, 700);
    const int64_t width = random.Int(1, 9);
    const SumTree tree(leaves);
    CHECK(tree.leaves() == std::max<int64_t>(leaves, 1));
    const int64_t count = tree.leaves();
    std::vector<float> kept(tree.nodes() * width, NAN);
    std::vector<uint64_t> all(tree.words(0), 0), changed;
    for (int64_t leaf = 0; leaf < count; ++leaf) {
      all[leaf / 64] |= uint64_t{1} << (leaf % 64);
    }
    changed = all;
    for (int step = 0; step < 6; ++step) {
      ForEachBit(changed.data(), tree.words(0), [&](int64_t leaf) {
        for (int64_t u = 0; u < width; ++u) {
          kept[leaf * width + u] = random.Float();
        }
      });
      tree.SumAbove(0, changed.data(), width, set, kept.data());
      std::vector<float> fresh(tree.nodes() * width, NAN);
      std::copy_n(kept.begin(), count * width, fresh.begin());
      std::vector<uint64_t> bits = all;
      tree.SumAbove(0, bits.data(), width, set, fresh.data());
      CHECK(SameBits(kept, fresh));
      for (int64_t u = 0; u < width; ++u) {
        reference::Sum want;
        for (int64_t leaf = 0; leaf < count; ++leaf) {
          want.Add(kept[leaf * width + u]);
        }
        CHECK(Near(kept[(tree.nodes() - 1) * width + u], want, 40));
      }
      changed.assign(tree.words(0), 0);
      const int64_t percent = random.Pick<int64_t>({0, 1, 20, 100});
      for (int64_t leaf = 0; leaf < count; ++leaf) {
        if (!random.Chance(percent)) continue;
        changed[leaf / 64] |= uint64_t{1} << (leaf % 64);
      }
    }
  }
}

// Maxima, of leaves at some of the nodes only.
void TestMaxTree(const InstructionSet& set) {
  Random random(20);
  for (int i = 0; i < 60; ++i) {
    const int64_t leaves = random.Int(1, 200), units = random.Int(1, 20);
    const int64_t nodes = leaves + random.Int(0, 60), streams = 2;
    std::vector<int32_t> order(nodes);
    std::iota(order.begin(), order.end(), 0);
    random.Shuffle(&order);
    order.resize(leaves);
    const DenseSum sum(leaves * units, units, units, order, nodes, Fold::kMax);
    const int64_t size = sum.nodes() * units;
    std::vector<float> now(streams * leaves * units);
    std::vector<float> seen(now.size()), trees;
    sum.Resize(streams, &trees);
    CHECK(static_cast<int64_t>(trees.size()) == streams * size);
    for (int frame = 0; frame < 5; ++frame) {
      // Down as well as up; with NaNs, and without again; nothing but
      // -infinity.
      const int64_t percent = frame == 1 || frame == 2 ? 3 : 100;
      for (float& value : now) {
        if (!random.Chance(percent)) continue;
        value = frame == 2 ? NAN : frame == 4 ? -INFINITY : random.Float() - 5;
      }
      std::vector<LeafChange> changes;
      ChangedLeaves(now.data(), streams, leaves * units, units, frame == 0,
                    Serial, seen.data(), &changes);
      const auto row_of = [&](const LeafChange& change) {
        return seen.data() + (change.stream * leaves + change.leaf) * units;
      };
      sum.CopyLeaves(changes, row_of, trees.data());
      sum.UpdateSums(changes, streams, set, trees.data());
      for (int64_t n = 0; n < streams; ++n) {
        for (int64_t u = 0; u < units; ++u) {
          float want = -INFINITY;
          bool has_nan = false;
          for (int64_t leaf = 0; leaf < leaves; ++leaf) {
            const float value = now[(n * leaves + leaf) * units + u];
            want = std::max(want, value);
            has_nan |= std::isnan(value);
          }
          const float got = trees[(n + 1) * size - units + u];
          CHECK(has_nan ? std::isnan(got) : got == want);
        }
      }
    }
  }
}

// What a layer over one kind of trees does with a frame of each stream.
struct DenseStep {
  const DenseSum& sum;
  int64_t streams, inputs, depth;
  const std::vector<float>& weights;
  const InstructionSet& set;

  // Returns the number of leaves that were recomputed.
  int64_t operator()(const float* now, bool all, const ParallelFor& parallel,
                     std::vector<float>* seen,
                     std::vector<float>* trees) const {
    std::vector<LeafChange> changes;
    ChangedLeaves(now, streams, inputs, depth, all, parallel, seen->data(),
                  &changes);
    for (size_t i = 1; i < changes.size(); ++i) {
      const LeafChange &a = changes[i - 1], &b = changes[i];
      CHECK(a.leaf < b.leaf || (a.leaf == b.leaf && a.stream < b.stream));
    }
    const auto row_of = [&](const LeafChange& change) {
      return seen->data() + change.stream * inputs + change.leaf * depth;
    };
    sum.ComputeLeaves(changes, row_of, weights.data(), set, parallel,
                      trees->data());
    sum.UpdateSums(changes, streams, set, trees->data());
    return changes.size();
  }
};

void TestDenseSum(const InstructionSet& set) {
  Random random(6);
  for (int i = 0; i < 45; ++i) {
    // Wide ones, and many at once, are computed in other ways.
    const bool wide = i % 3 == 0;
    const int64_t streams =
        i % 15 == 0 ? random.Pick<int64_t>({31, 32, 33, 40}) : 1 + i % 9;
    const int64_t depth = random.Pick<int64_t>({1, 7, 32, 32, 80});
    // More than 64 leaves, some of the time: their mask has two words.
    const int64_t inputs =
        i % 5 == 0 ? depth * 65 + random.Int(0, 80) : random.Int(1, 300);
    const int64_t units =
        wide ? random.Pick<int64_t>({31, 32, 33, 64, 70}) : random.Int(1, 30);
    const std::vector<float> weights = random.Floats(inputs * units);
    const DenseSum sum(inputs, depth, units);
    CHECK(sum.leaves() == (inputs + depth - 1) / depth);
    CHECK(sum.units() == units);
    const int64_t size = sum.nodes() * units;
    const DenseStep step{sum, streams, inputs, depth, weights, set};
    const DenseStep one{sum, 1, inputs, depth, weights, set};
    std::vector<float> now = random.Floats(streams * inputs);
    std::vector<float> seen(now.size(), 77.f), trees(streams * size, 77.f);
    std::vector<float> thread_seen = seen, thread_trees = trees;
    const std::vector<float> first = now;
    for (int frame = 0; frame < 7; ++frame) {
      const bool all = frame == 0;
      int64_t want = 0;
      for (int64_t n = 0; n < streams; ++n) {
        for (int64_t leaf = 0; leaf < sum.leaves(); ++leaf) {
          const int64_t at = n * inputs + leaf * depth;
          const int64_t end = std::min(at + depth, (n + 1) * inputs);
          want += all || !SameBits(now.data() + at, seen.data() + at, end - at);
        }
      }
      CHECK(step(now.data(), all, Serial, &seen, &trees) == want);
      CHECK(SameBits(seen, now));
      step(now.data(), all, Threads(i), &thread_seen, &thread_trees);
      CHECK(SameBits(thread_trees, trees));
      for (int64_t n = 0; n < streams; ++n) {
        // Each stream alone, from nothing.
        const float* x = now.data() + n * inputs;
        std::vector<float> fresh_seen(inputs), fresh(size, 77.f);
        one(x, true, Serial, &fresh_seen, &fresh);
        CHECK(SameBits(fresh.data(), trees.data() + n * size, size));
        for (int64_t u = 0; u < units; ++u) {
          reference::Sum product;
          for (int64_t d = 0; d < inputs; ++d) {
            product.Add(static_cast<double>(x[d]) * weights[d * units + u]);
          }
          CHECK(Near(trees[(n + 1) * size - units + u], product, depth + 40));
        }
      }
      // None, some, all; a NaN and its going away; what was there before.
      if (frame == 1) {
        for (float& value : now) {
          if (random.Chance(3)) value = random.Float();
        }
      }
      if (frame == 2) now = random.Floats(now.size());
      if (frame == 3) now[random.Int(0, now.size() - 1)] = NAN;
      if (frame == 4) {
        for (float& value : now) {
          if (std::isnan(value)) value = -0.f;
        }
        now.back() = 5;
      }
      if (frame == 5) std::copy_n(first.begin(), inputs, now.begin());
    }
  }
}

// The sum of inputs that are as wide as the output.
void TestSumOfRows(const InstructionSet& set) {
  Random random(9);
  for (int i = 0; i < 30; ++i) {
    const int64_t streams = random.Int(1, 4), units = random.Int(1, 40);
    const int64_t leaves = random.Int(1, 100), inputs = leaves * units;
    const DenseSum sum(inputs, units, units);
    const int64_t size = sum.nodes() * units;
    std::vector<float> now = random.Floats(streams * inputs);
    std::vector<float> seen(now.size()), trees(streams * size, 77.f);
    for (int frame = 0; frame < 3; ++frame) {
      std::vector<LeafChange> changes;
      ChangedLeaves(now.data(), streams, inputs, units, frame == 0, Serial,
                    seen.data(), &changes);
      const auto row_of = [&](const LeafChange& change) {
        return seen.data() + change.stream * inputs + change.leaf * units;
      };
      sum.CopyLeaves(changes, row_of, trees.data());
      sum.UpdateSums(changes, streams, set, trees.data());
      for (int64_t n = 0; n < streams; ++n) {
        for (int64_t u = 0; u < units; ++u) {
          reference::Sum want;
          for (int64_t leaf = 0; leaf < leaves; ++leaf) {
            want.Add(now[n * inputs + leaf * units + u]);
          }
          CHECK(Near(trees[(n + 1) * size - units + u], want, 40));
        }
      }
      for (float& value : now) {
        if (random.Chance(1)) value = random.Float();
      }
    }
  }
}

int Main() {
  // As all ops do, and threads by themselves.
  const FlushDenormals flush;
  for (const InstructionSet* set : InstructionSets()) {
    TestSumTree(*set);
    TestMaxTree(*set);
    TestDenseSum(*set);
    TestSumOfRows(*set);
  }
  return Report();
}

}  // namespace
}  // namespace reuse_tf

int main() { return reuse_tf::Main(); }
