// Compares what is done with rows, one by one, with plain loops.

#include "custom_ops/kernels/arithmetic/rows.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "custom_ops/kernels/arithmetic/group_norm.h"
#include "custom_ops/kernels/arithmetic/join.h"
#include "custom_ops/kernels/arithmetic/matmul.h"
#include "custom_ops/kernels/arithmetic/pool.h"
#include "custom_ops/kernels/arithmetic/row_ops.h"
#include "custom_ops/kernels/testing/reference.h"
#include "custom_ops/kernels/testing/testing.h"

namespace reuse_tf {
namespace {

template <typename T>
void TestRows(uint32_t seed) {
  Random random(seed);
  for (int i = 0; i < 200; ++i) {
    const int64_t channels = random.Int(1, 17), first = random.Int(0, 3);
    const int64_t stride = first + channels + random.Int(0, 3);
    const int64_t table_rows = random.Int(1, 6), count = random.Int(0, 12);
    std::vector<T> table(table_rows * stride);
    for (T& value : table) value = static_cast<T>(random.Int(0, 100));
    std::vector<int32_t> ids(count);
    for (int32_t& id : ids) id = random.Int(-1, table_rows - 1);
    std::vector<T> gathered(count * channels, T(77));
    GatherRows(table.data() + first, stride, channels, ids.data(), count,
               gathered.data());
    std::vector<T> sums(table_rows * channels, T(3)), want_sums = sums;
    ScatterAddRows(gathered.data(), channels, ids.data(), count, sums.data());
    std::vector<T> replaced = sums;
    std::vector<int32_t> inside;
    for (const int32_t id : ids) inside.push_back(std::max(id, 0));
    ScatterRows(gathered.data(), channels, inside.data(), count,
                replaced.data());
    std::vector<T> want_replaced = sums;
    for (int64_t m = 0; m < count; ++m) {
      for (int64_t c = 0; c < channels; ++c) {
        const T value = gathered[m * channels + c];
        CHECK(value ==
              (ids[m] < 0 ? T(0) : table[ids[m] * stride + first + c]));
        if (ids[m] >= 0) want_sums[ids[m] * channels + c] += value;
        want_replaced[inside[m] * channels + c] = value;
      }
    }
    CHECK(SameBits(sums, want_sums));
    CHECK(SameBits(replaced, want_replaced));
  }
}

void TestRowOps() {
  Random random(9);
  CHECK(RowOps(Activation()).empty());
  for (int i = 0; i < 100; ++i) {
    const int64_t size = random.Int(1, 9);
    const std::vector<float> x = random.Floats(size);
    RowOps ops(RandomActivation(&random, ActiveInstructionSet()));
    ops.insert(ops.begin(), RowOp());
    ops[0].kind = RowOp::kAffine;
    ops[0].scale = random.Floats(random.Chance(50) ? 1 : size);
    ops[0].offset = random.Floats(random.Chance(50) ? 1 : size);
    std::vector<float> want(size);
    for (int64_t c = 0; c < size; ++c) {
      want[c] = x[c] * ops[0].scale[ops[0].scale.size() > 1 ? c : 0] +
                ops[0].offset[ops[0].offset.size() > 1 ? c : 0];
    }
    if (ops.size() > 1) ops[1].activation.Apply(want.data(), size);
    std::vector<float> got = x;
    ops.Apply(got.data(), size);
    CHECK(SameBits(got, want));
  }
}

bool Close(float got, double want) {
  if (std::isnan(want)) return std::isnan(got);
  return got == want || std::fabs(got - want) <= 2e-6 * (1 + std::fabs(want));
}

void TestRowNormalization() {
  Random random(16);
  for (int i = 0; i < 100; ++i) {
    const int64_t size = random.Int(1, 40);
    const std::vector<float> x = random.Floats(size);
    RowOp op;
    op.kind = RowOp::kLayerNorm;
    op.epsilon = random.Pick({1e-3f, 0.5f});
    op.scale = random.Floats(size);
    op.offset = random.Floats(size);
    std::vector<float> got = x;
    op.Apply(got.data(), size);
    const std::vector<double> want =
        reference::Normalize({x.begin(), x.end()}, op.epsilon);
    for (int64_t c = 0; c < size; ++c) {
      CHECK(Close(got[c], want[c] * op.scale[c] + op.offset[c]));
    }
    op.kind = RowOp::kPRelu;
    got = x;
    op.Apply(got.data(), size);
    for (int64_t c = 0; c < size; ++c) {
      CHECK(got[c] == (x[c] > 0 ? x[c] : x[c] * op.scale[c]));
    }
  }
}

void TestGroupNorm() {
  Random random(17);
  for (int i = 0; i < 60; ++i) {
    const int64_t groups = random.Int(1, 5), width = random.Int(1, 9);
    const int64_t positions = random.Int(1, 12), channels = groups * width;
    const std::vector<float> rows = random.Floats(positions * channels);
    // Positions share rows.
    std::vector<int32_t> ids(positions);
    for (int32_t& id : ids) id = random.Int(0, positions - 1);
    const float epsilon = random.Pick({1e-3f, 0.5f});
    std::vector<float> got(positions * channels + 1, 77.f);
    GroupNorm([&](int64_t p) { return rows.data() + ids[p] * channels; },
              positions, channels, groups, epsilon, got.data());
    for (int64_t g = 0; g < groups; ++g) {
      std::vector<double> values;
      for (const int32_t id : ids) {
        const float* row = rows.data() + id * channels + g * width;
        values.insert(values.end(), row, row + width);
      }
      const std::vector<double> want = reference::Normalize(values, epsilon);
      for (int64_t k = 0; k < positions * width; ++k) {
        CHECK(
            Close(got[k / width * channels + g * width + k % width], want[k]));
      }
    }
    CHECK(got.back() == 77.f);
  }
}

void TestJoins() {
  Random random(18);
  for (int i = 0; i < 400; ++i) {
    const auto kind = static_cast<JoinKind>(i % 8);
    const bool two = kind == JoinKind::kSubtract || kind == JoinKind::kPRelu;
    const bool concatenate = kind == JoinKind::kConcatenate;
    const int64_t count = two ? 2 : random.Int(2, 4);
    int64_t channels = random.Int(1, 40);
    std::vector<std::vector<float>> tables;
    std::vector<JoinInput> inputs;
    std::vector<int32_t> patch;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t size = concatenate         ? random.Int(1, 20)
                           : random.Chance(25) ? 1
                                               : channels;
      const int64_t rows = random.Int(1, 5);
      tables.push_back(random.Floats(rows * size));
      if (random.Chance(10)) tables.back()[0] = NAN;
      patch.push_back(random.Int(0, rows - 1));
      inputs.push_back({nullptr, size});
    }
    std::vector<double> want;
    if (concatenate) channels = 0;
    for (int64_t k = 0; k < count; ++k) {
      inputs[k].rows = tables[k].data();
      if (!concatenate) continue;
      const float* row = tables[k].data() + patch[k] * inputs[k].channels;
      want.insert(want.end(), row, row + inputs[k].channels);
      channels += inputs[k].channels;
    }
    for (int64_t c = 0; c < channels && !concatenate; ++c) {
      std::vector<double> values;
      for (int64_t k = 0; k < count; ++k) {
        const int64_t size = inputs[k].channels;
        values.push_back(tables[k][patch[k] * size + (size > 1 ? c : 0)]);
      }
      want.push_back(reference::Join(kind, values));
    }
    std::vector<float> got(channels + 1, 77.f);
    JoinRows(kind, inputs.data(), count, patch.data(), channels, got.data());
    for (int64_t c = 0; c < channels; ++c) CHECK(Close(got[c], want[c]));
    CHECK(got[channels] == 77.f);
  }
}

void TestPooling() {
  Random random(19);
  for (int i = 0; i < 300; ++i) {
    const auto kind = static_cast<Pooling>(i % 3);
    const int64_t channels = random.Int(1, 20), taps = random.Int(1, 9);
    const int64_t rows_count = random.Int(1, 6), count = random.Int(1, 4);
    std::vector<float> rows = random.Floats(rows_count * channels);
    if (random.Chance(20)) rows[0] = random.Pick({NAN, INFINITY, -INFINITY});
    std::vector<int32_t> patches(count * taps);
    const int64_t percent = random.Pick<int64_t>({0, 40, 90});
    for (int32_t& id : patches) {
      id = random.Chance(percent) ? -1 : random.Int(0, rows_count - 1);
    }
    std::vector<float> got(count * channels + 1, 77.f);
    PoolPatches(kind, rows.data(), channels, patches.data(), taps, count,
                got.data());
    for (int64_t k = 0; k < count * channels; ++k) {
      std::vector<double> values;
      for (int64_t t = 0; t < taps; ++t) {
        const int32_t id = patches[k / channels * taps + t];
        if (id >= 0) values.push_back(rows[id * channels + k % channels]);
      }
      CHECK(Close(got[k], reference::Pool(kind, values)));
    }
    CHECK(got.back() == 77.f);
  }
}

int Main() {
  TestRows<float>(20);
  TestRows<double>(21);
  TestRows<uint8_t>(22);
  TestRowOps();
  TestRowNormalization();
  TestGroupNorm();
  TestJoins();
  TestPooling();
  return Report();
}

}  // namespace
}  // namespace reuse_tf

int main() { return reuse_tf::Main(); }
