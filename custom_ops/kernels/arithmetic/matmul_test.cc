// Compares products and convolutions with plain loops over random cases, and
// their bits with those of the same values computed in other company, in
// another order, and on several threads.

#include "custom_ops/kernels/arithmetic/matmul.h"

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <string>
#include <vector>

#include "custom_ops/kernels/base/float_mode.h"
#include "custom_ops/kernels/patches/window.h"
#include "custom_ops/kernels/testing/reference.h"
#include "custom_ops/kernels/testing/testing.h"

namespace reuse_tf {
namespace {

// The product alone: panels of every width, strips of every height.
void TestMultiply(const InstructionSet& set) {
  Random random(2);
  for (int i = 0; i < 150; ++i) {
    const int64_t count = random.Int(1, 3 * set.rows),
                  depth = random.Int(1, 40);
    const int64_t columns = random.Int(1, 3 * set.lanes * set.vectors + 1);
    const int64_t stride = columns + random.Int(0, 3);
    const std::vector<float> a = random.Floats(count * depth);
    // Ends with the last row's last column, so that reading on is noticed.
    const std::vector<float> b = random.Floats((depth - 1) * stride + columns);
    std::vector<float> bias = random.Floats(columns);
    bias.resize(set.Padded(columns));
    const float* bias_or_null = random.Chance(50) ? bias.data() : nullptr;
    std::vector<float> panels(set.Padded(columns) * depth);
    set.Pack(b.data(), stride, depth, columns, panels.data());
    const int64_t out_stride = columns + 2;
    std::vector<float> out(count * out_stride, 77.f);
    set.Multiply(a.data(), depth, 1, count, depth, panels.data(), bias_or_null,
                 columns,
                 [&](int64_t r) { return out.data() + r * out_stride; });
    // The same rows, as the columns of a matrix.
    std::vector<float> transposed(count * depth);
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t d = 0; d < depth; ++d) {
        transposed[d * count + r] = a[r * depth + d];
      }
    }
    std::vector<float> same(count * out_stride, 77.f);
    set.Multiply(transposed.data(), 1, count, count, depth, panels.data(),
                 bias_or_null, columns,
                 [&](int64_t r) { return same.data() + r * out_stride; });
    CHECK(SameBits(same, out));
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        reference::Sum want;
        for (int64_t d = 0; d < depth; ++d) {
          want.Add(static_cast<double>(a[r * depth + d]) * b[d * stride + c]);
        }
        if (bias_or_null != nullptr) want.Add(bias[c]);
        CHECK(Near(out[r * out_stride + c], want, depth));
      }
      CHECK(out[r * out_stride + columns] == 77.f);
      CHECK(out[r * out_stride + columns + 1] == 77.f);
      std::vector<float> alone(columns);
      set.Multiply(a.data() + r * depth, depth, 1, 1, depth, panels.data(),
                   bias_or_null, columns,
                   [&](int64_t) { return alone.data(); });
      CHECK(SameBits(alone.data(), out.data() + r * out_stride, columns));
    }
  }
}

// Rows times matrices that lie within a larger one, the last of which ends
// with it: the same bits as those of Multiply.
void TestPairs(const InstructionSet& set) {
  Random random(8);
  for (int i = 0; i < 150; ++i) {
    const int64_t matrices = random.Int(1, 6), depth = random.Int(1, 20);
    const int64_t columns = random.Int(1, 4 * set.lanes + 1);
    const std::vector<float> b = random.Floats(matrices * depth * columns);
    const int64_t count = random.Int(0, 14);
    const std::vector<float> a = random.Floats(count * depth);
    std::vector<float> out(count * (columns + 1), 77.f), want(columns);
    std::vector<const float*> rows, starts;
    std::vector<float*> to;
    for (int64_t p = 0; p < count; ++p) {
      rows.push_back(a.data() + p * depth);
      starts.push_back(b.data() +
                       random.Int(0, matrices - 1) * depth * columns);
      to.push_back(out.data() + p * (columns + 1));
    }
    set.pairs(rows.data(), starts.data(), count, depth, columns,
              b.data() + b.size(), to.data());
    std::vector<float> panels(set.Padded(columns) * depth);
    for (int64_t p = 0; p < count; ++p) {
      set.Pack(starts[p], columns, depth, columns, panels.data());
      set.Multiply(rows[p], depth, 1, 1, depth, panels.data(), nullptr, columns,
                   [&](int64_t) { return want.data(); });
      CHECK(SameBits(to[p], want.data(), columns));
      CHECK(to[p][columns] == 77.f);
    }
  }
}

void TestPackTransposed(const InstructionSet& set) {
  Random random(14);
  for (int i = 0; i < 100; ++i) {
    const int64_t depth = random.Int(1, 9), columns = random.Int(1, 70);
    const int64_t stride = depth + random.Int(0, 3);
    const std::vector<float> b = random.Floats(columns * stride);
    std::vector<float> transposed(depth * columns);
    for (int64_t d = 0; d < depth; ++d) {
      for (int64_t c = 0; c < columns; ++c) {
        transposed[d * columns + c] = b[c * stride + d];
      }
    }
    std::vector<float> want(set.Padded(columns) * depth, 1), got = want;
    set.Pack(transposed.data(), columns, depth, columns, want.data());
    set.PackTransposed(b.data(), stride, depth, columns, got.data());
    CHECK(got == want);
  }
}

void TestLines(const InstructionSet& set) {
  Random random(13);
  for (int i = 0; i < 100; ++i) {
    const int64_t depth = random.Int(1, 20), columns = random.Int(1, 200);
    const std::vector<float> b = random.Floats(depth * columns);
    const int64_t count = random.Int(0, 9);
    const std::vector<float> a = random.Floats(count * depth);
    std::vector<float> out(count * (columns + 1), 77.f), want(columns);
    std::vector<const float*> rows;
    std::vector<float*> to;
    for (int64_t r = 0; r < count; ++r) {
      rows.push_back(a.data() + r * depth);
      to.push_back(out.data() + r * (columns + 1));
    }
    set.lines(rows.data(), count, b.data(), depth, columns, b.data(),
              to.data());
    std::vector<float> panels(set.Padded(columns) * depth);
    set.Pack(b.data(), columns, depth, columns, panels.data());
    for (int64_t r = 0; r < count; ++r) {
      set.Multiply(rows[r], depth, 1, 1, depth, panels.data(), nullptr, columns,
                   [&](int64_t) { return want.data(); });
      CHECK(SameBits(to[r], want.data(), columns));
      CHECK(to[r][columns] == 77.f);
    }
  }
}

void TestConvolution(const InstructionSet& set) {
  Random random(3);
  for (int i = 0; i < 80; ++i) {
    Window w = RandomWindow(&random, i % 4 == 0);
    if (i % 5 == 0) {  // rows of the map itself, which are multiplied in place
      w.kernel_height = w.kernel_width = 1;
      w.stride_height = w.stride_width = random.Int(1, 2);
      Pad(true, &w);
    }
    const int64_t images = random.Int(1, 2), taps = w.taps();
    const int64_t positions = images * w.positions();
    // Dense, grouped, depthwise, and depthwise with a multiplier.
    const int64_t groups = i % 3 == 0   ? 1
                           : i % 6 == 2 ? random.Int(20, 6 * set.lanes)
                                        : random.Int(1, 19);
    const int64_t channels = groups * (i % 3 == 2 ? 1 : random.Int(1, 4));
    const int64_t filters = groups * (groups == 1         ? random.Int(1, 70)
                                      : random.Chance(50) ? 1
                                                          : random.Int(1, 5));
    const RowOps ops(RandomActivation(&random, set));
    const std::vector<float> rows =
        random.Floats(images * w.pixels() * channels);
    const std::vector<float> kernel =
        random.Floats(taps * (channels / groups) * filters);
    const std::vector<float> bias = random.Floats(filters);
    const float* bias_or_null = random.Chance(70) ? bias.data() : nullptr;

    PackedKernel packed;
    if (i % 2 == 0) {  // is as good when used again
      packed.Pack(kernel.data(), nullptr, 1, 1, 1, 1, set);
    }
    packed.Pack(kernel.data(), bias_or_null, taps, channels, filters, groups,
                set);
    CHECK(packed.taps() == taps && packed.channels() == channels &&
          packed.filters() == filters);
    CHECK(packed.cost() == taps * (channels / groups) * filters);

    std::vector<int32_t> all(positions);
    std::iota(all.begin(), all.end(), 0);
    std::vector<float> table(positions * filters, 77.f);
    ConvolvePositions(w, packed, ops, rows.data(), all.data(), positions,
                      Serial, table.data());

    const std::vector<int32_t> patches = reference::AllPatches(w, images);
    std::vector<float> linear(positions * filters, 77.f);
    packed.Multiply(rows.data(), patches.data(), positions, RowOps(), nullptr,
                    linear.data());
    std::vector<float> activated = linear;
    for (int64_t p = 0; p < positions; ++p) {
      ops.Apply(activated.data() + p * filters, filters);
    }
    CHECK(SameBits(table, activated));
    for (int64_t p = 0; p < positions; ++p) {
      for (int64_t f = 0; f < filters; ++f) {
        CHECK(Near(linear[p * filters + f],
                   reference::Convolve(rows.data(), patches.data() + p * taps,
                                       taps, channels, kernel.data(),
                                       bias_or_null, filters, groups, f),
                   taps * channels / groups + 1));
      }
    }

    // On threads, in another order, in other company, alone: the same bits,
    // and no other row is touched.
    std::vector<float> again(positions * filters, 77.f);
    random.Shuffle(&all);
    ConvolvePositions(w, packed, ops, rows.data(), all.data(), positions,
                      Threads(i), again.data());
    CHECK(SameBits(again, table));
    const int64_t some = random.Int(0, positions);
    std::vector<float> part(positions * filters, 77.f);
    ConvolvePositions(w, packed, ops, rows.data(), all.data(), some,
                      Threads(i + 1000), part.data());
    std::vector<float> row(filters), untouched(filters, 77.f);
    for (int64_t p = 0; p < positions; ++p) {
      const int32_t id = all[p];
      CHECK(SameBits(part.data() + id * filters,
                     p < some ? table.data() + id * filters : untouched.data(),
                     filters));
      if (p < 40) {
        const int32_t to = 0;
        packed.Multiply(rows.data(), patches.data() + id * taps, 1, ops,
                        p % 2 == 0 ? &to : nullptr, row.data());
        CHECK(SameBits(row.data(), table.data() + id * filters, filters));
      }
    }
  }
}

void TestSpecialValues(const InstructionSet& set) {
  // 2x2 taps over 3 channels, 5 filters; a NaN stays in its own row.
  const int64_t taps = 4, channels = 3, filters = 5;
  Random random(4);
  std::vector<float> rows = random.Floats(8 * channels);
  const std::vector<float> kernel = random.Floats(taps * channels * filters);
  PackedKernel packed;
  packed.Pack(kernel.data(), nullptr, taps, channels, filters, 1, set);
  rows[0 * channels] = NAN;
  rows[5 * channels] = INFINITY;
  const std::vector<int32_t> patches = {0,  1,  2,  3,  1, 2, 3, 4,
                                        -1, -1, -1, -1, 4, 5, 6, 7};
  const std::vector<int32_t> ids = {0, 1, 2, 3};
  std::vector<float> table(4 * filters);
  packed.Multiply(rows.data(), patches.data(), 4, RowOps(), ids.data(),
                  table.data());
  for (int64_t f = 0; f < filters; ++f) {
    CHECK(std::isnan(table[0 * filters + f]));
    CHECK(std::isfinite(table[1 * filters + f]));
    CHECK(table[2 * filters + f] == 0);
    CHECK(!std::isfinite(table[3 * filters + f]));
  }
}

// A value that is no number reaches the filters of its own group only, however
// the groups are computed.
void TestSpecialValuesInGroups(const InstructionSet& set) {
  Random random(14);
  for (const int64_t width : {1, 2, 4}) {
    for (const int64_t group_filters : {1, 2, 3}) {
      const int64_t taps = 2, groups = 2 * set.lanes + 3;
      const int64_t channels = groups * width, filters = groups * group_filters;
      std::vector<float> rows = random.Floats(4 * channels);
      const std::vector<float> kernel = random.Floats(taps * width * filters);
      PackedKernel packed;
      packed.Pack(kernel.data(), nullptr, taps, channels, filters, groups, set);
      const int64_t bad = random.Int(0, groups - 1);
      rows[2 * channels + bad * width] = NAN;
      const std::vector<int32_t> patches = {1, 2, 3, -1, -1, -1};
      std::vector<float> table(3 * filters);
      packed.Multiply(rows.data(), patches.data(), 3, RowOps(), nullptr,
                      table.data());
      for (int64_t f = 0; f < filters; ++f) {
        CHECK(std::isnan(table[f]) == (f / group_filters == bad));
        CHECK(std::isfinite(table[filters + f]));
        CHECK(table[2 * filters + f] == 0);
      }
    }
  }
}

int Main() {
  // As all ops do, and threads by themselves.
  const FlushDenormals flush;
  const char* chosen = std::getenv("REUSE_TF_ISA");
  CHECK(ActiveInstructionSet().name ==
        std::string(chosen != nullptr ? chosen
                                      : InstructionSets().front()->name));
  for (const InstructionSet* set : InstructionSets()) {
    TestMultiply(*set);
    TestPairs(*set);
    TestPackTransposed(*set);
    TestLines(*set);
    TestConvolution(*set);
    TestSpecialValues(*set);
    TestSpecialValuesInGroups(*set);
  }
  return Report();
}

}  // namespace
}  // namespace reuse_tf

int main() { return reuse_tf::Main(); }
