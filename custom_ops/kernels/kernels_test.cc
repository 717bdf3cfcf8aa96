// Compares every kernel with plain loops (reference.h) over random cases, and
// their bits with those of the same values computed in other company, in
// another order, and on several threads. Prints each check that failed; exits
// with 1 if there is one.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "custom_ops/kernels/changed.h"
#include "custom_ops/kernels/dense_sum.h"
#include "custom_ops/kernels/float_mode.h"
#include "custom_ops/kernels/group_norm.h"
#include "custom_ops/kernels/intern.h"
#include "custom_ops/kernels/join.h"
#include "custom_ops/kernels/matmul.h"
#include "custom_ops/kernels/parallel.h"
#include "custom_ops/kernels/pool.h"
#include "custom_ops/kernels/reference.h"
#include "custom_ops/kernels/row_ops.h"
#include "custom_ops/kernels/rows.h"
#include "custom_ops/kernels/testing.h"
#include "custom_ops/kernels/window.h"

namespace reuse_tf {
namespace {

Window RandomWindow(Random* random, bool wide) {
  Window w;
  w.height = random->Int(1, 9);
  w.width =
      wide ? random->Pick<int64_t>({1, 7, 62, 63, 64, 65, 127, 128, 129, 200})
           : random->Int(1, 12);
  w.kernel_height = random->Int(1, 5);
  w.kernel_width = random->Int(1, 5);
  w.stride_height = random->Int(1, 3);
  w.stride_width = random->Int(1, 3);
  w.dilation_height = random->Int(1, 3);
  w.dilation_width = random->Int(1, 3);
  Pad(random->Chance(50), &w);
  return w;
}

void TestPadding() {
  for (int64_t size = 1; size <= 12; ++size) {
    for (int64_t kernel = 1; kernel <= 5; ++kernel) {
      for (int64_t stride = 1; stride <= 4; ++stride) {
        for (int64_t dilation = 1; dilation <= 3; ++dilation) {
          const int64_t extent = (kernel - 1) * dilation + 1;
          int64_t pad = -1, out = -1, fitting = 0;
          PadAxis(false, size, kernel, stride, dilation, &pad, &out);
          for (int64_t i = 0; i + extent <= size; i += stride) ++fitting;
          CHECK(pad == 0);
          CHECK(out == fitting);
          PadAxis(true, size, kernel, stride, dilation, &pad, &out);
          int64_t starts = 0;
          for (int64_t i = 0; i < size; i += stride) ++starts;
          CHECK(out == starts);
          // What is added is no more than needed, the odd one after the end.
          const int64_t needed =
              std::max<int64_t>(0, (starts - 1) * stride + extent - size);
          CHECK(pad == needed / 2);
        }
      }
    }
  }
}

void TestPatchIds() {
  Random random(1);
  for (int i = 0; i < 200; ++i) {
    const Window w = RandomWindow(&random, false);
    const int64_t images = random.Int(1, 3), taps = w.taps();
    const std::vector<int32_t> want = reference::AllPatches(w, images);
    std::vector<int32_t> positions(images * w.positions());
    std::iota(positions.begin(), positions.end(), 0);
    random.Shuffle(&positions);
    std::vector<int32_t> got(positions.size() * taps, -7);
    PatchIds(w, positions.data(), positions.size(), got.data());
    for (size_t p = 0; p < positions.size(); ++p) {
      CHECK(SameBits(got.data() + p * taps, want.data() + positions[p] * taps,
                     taps));
    }
  }
}

// Changes some of the values, in ways that comparisons may get wrong.
template <typename T>
void Change(Random* random, std::vector<T>* values) {
  const int64_t percent = random->Pick<int64_t>({0, 0, 1, 5, 30, 100});
  for (T& value : *values) {
    if (!random->Chance(percent)) continue;
    if constexpr (std::is_same_v<T, float>) {
      value =
          random->Pick<float>({random->Float(), value + 0.05f, value - 0.05f,
                               NAN, -NAN, INFINITY, -INFINITY, 0.f, -0.f});
    } else {
      value = static_cast<T>(random->Int(0, 5));
    }
  }
  // The corners, where loops begin and end.
  if (random->Chance(30)) values->front() = T(9);
  if (random->Chance(30)) values->back() = T(8);
}

template <typename T>
void TestChanges(uint32_t seed) {
  Random random(seed);
  for (int i = 0; i < 150; ++i) {
    const Window w = RandomWindow(&random, true);
    const int64_t images = random.Int(1, 3);
    const int64_t channels = random.Pick<int64_t>({1, 1, 2, 3, 4, 20});
    const float threshold =
        random.Chance(50) ? 0 : random.Pick({0.06f, 0.5f, 2.f});
    std::vector<T> now(images * w.pixels() * channels, T(1));
    std::vector<T> seen = now;
    for (int frame = 0; frame < 4; ++frame) {
      Change(&random, &now);
      std::vector<T> want_seen = seen, parallel_seen = seen;
      const std::vector<char> want =
          reference::UpdateSeen(now, channels, threshold, &want_seen);
      PixelMask mask, parallel_mask;
      mask.Resize(images * w.height, w.width);
      parallel_mask.Resize(images * w.height, w.width);
      UpdateSeen(now.data(), seen.data(), images * w.height, w.width, channels,
                 threshold, Serial, &mask);
      UpdateSeen(now.data(), parallel_seen.data(), images * w.height, w.width,
                 channels, threshold, Threads(i), &parallel_mask);
      CHECK(SameBits(seen, want_seen));
      CHECK(SameBits(parallel_seen, want_seen));
      std::vector<char> got(want.size(), 0), parallel_got = got;
      for (int64_t line = 0; line < images * w.height; ++line) {
        int64_t last = -1;
        mask.ForEach(line, [&](int64_t x) {
          CHECK(last < x && x < w.width);
          got[line * w.width + x] = 1;
          last = x;
        });
        parallel_mask.ForEach(
            line, [&](int64_t x) { parallel_got[line * w.width + x] = 1; });
      }
      CHECK(SameBits(got, want));
      CHECK(SameBits(parallel_got, want));
      std::vector<int32_t> positions = {-5};  // is overwritten
      ChangedPositions(w, images, mask, &positions);
      CHECK(SameBits(positions, reference::ChangedPositions(w, images, want)));
      // The pixels under the window at some of these.
      PixelMask asked, covered;
      asked.Resize(images * w.out_height, w.out_width);
      covered.Resize(images * w.height, w.width);
      std::vector<char> want_covered(images * w.pixels(), 0);
      std::vector<char> got_covered(want_covered.size(), 0);
      for (const int32_t at : positions) {
        if (random.Chance(50)) continue;
        asked.Set(at / w.out_width, at % w.out_width);
        std::vector<int32_t> patch(w.taps());
        PatchIds(w, &at, 1, patch.data());
        for (const int32_t pixel : patch) {
          if (pixel >= 0) want_covered[pixel] = 1;
        }
      }
      for (int64_t n = 0; n < images; ++n) {
        CoveredPixels(w, n, asked, &covered);
      }
      std::vector<int32_t> pixels;
      covered.Append(0, images * w.height, &pixels);
      CHECK(covered.Count() == static_cast<int64_t>(pixels.size()));
      for (const int32_t pixel : pixels) got_covered[pixel] = 1;
      CHECK(SameBits(got_covered, want_covered));
    }
  }
}

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

// Denormals are zero while the mode lasts, and no longer.
void TestFlushDenormals() {
  volatile float small = 1e-30f, tiny = 1e-40f, scale = 1e-10f;
  CHECK(small * scale != 0 && tiny * 1e5f != 0);
  {
    const FlushDenormals outer;
    CHECK(small * scale == 0 && tiny * 1e5f == 0);
    {
      const FlushDenormals inner;
    }
    CHECK(small * scale == 0);
  }
  CHECK(small * scale != 0 && tiny * 1e5f != 0);
}

// Arguments that an activation can have.
std::vector<float> RandomArguments(const Activation::Form& form,
                                   Random* random) {
  std::vector<float> arguments(form.arguments);
  for (float& value : arguments) value = random->Int(1, 40) / 16.f;
  if (form.name == std::string("general_relu")) {
    arguments = {random->Pick({0.f, 0.25f}), random->Pick({1.5f, INFINITY}),
                 random->Pick({0.f, 0.5f})};
  }
  return arguments;
}

Activation RandomActivation(Random* random, const InstructionSet& set) {
  const Activation::Form& form =
      set.activations[random->Int(0, set.activation_count - 1)];
  Activation activation;
  CHECK(Activation::Make(form.name, RandomArguments(form, random), &activation,
                         set));
  return activation;
}

void TestActivations(const InstructionSet& set) {
  Activation activation;
  CHECK(activation.linear());
  CHECK(!Activation::Make("", {}, &activation));
  CHECK(!Activation::Make("relu", {1}, &activation));
  CHECK(!Activation::Make("elu", {}, &activation));
  Random random(8);
  std::vector<float> values;
  for (int i = -240; i <= 240; ++i) values.push_back(i / 16.f);
  for (const float value : {60.f, 1e-6f, -1e-6f}) values.push_back(value);
  for (int f = 0; f < set.activation_count; ++f) {
    const Activation::Form& form = set.activations[f];
    const std::string name = form.name;
    if (name == "softmax" || name == "log_softmax") continue;
    for (int i = 0; i < 8; ++i) {
      const std::vector<float> arguments = RandomArguments(form, &random);
      CHECK(Activation::Make(name, arguments, &activation, set));
      CHECK(activation.linear() == (name == "linear"));
      std::vector<float> got = values;
      activation.Apply(got.data(), got.size());
      for (size_t k = 0; k < got.size(); ++k) {
        const double want = reference::Activate(name, arguments, values[k]);
        CHECK(std::fabs(got[k] - want) <=
              3e-6 * (1 + std::fabs(want) + std::fabs(values[k])) +
                  1e-5 * std::fabs(want) * (name == "exponential"));
        float alone = values[k];
        activation.Apply(&alone, 1);
        CHECK(SameBits(&alone, &got[k], 1));
      }
    }
  }
}

// The difference from `want` in units of its last place. Numbers too small to
// be normal may be zero.
double Ulps(float got, double want) {
  const double smallest = std::numeric_limits<float>::min();
  const int exponent = std::ilogb(std::max(std::fabs(want), smallest));
  if (std::fabs(want) < smallest && std::fabs(got) <= smallest) return 0;
  return std::fabs(got - want) / std::ldexp(1, exponent - 23);
}

// Those that are made of exp, over all sizes of values.
void TestPrecision(const InstructionSet& set) {
  Random random(15);
  std::vector<float> values = {0.f, -0.f};
  for (int i = 0; i < 20000; ++i) {
    const float mantissa = 1 + random.Int(0, (1 << 23) - 1) / 8388608.f;
    values.push_back((i % 2 == 0 ? 1 : -1) *
                     std::ldexp(mantissa, random.Int(-30, 6)));
  }
  struct Bound {
    const char* name;
    std::vector<float> arguments;
    double lowest, highest, ulps;
  };
  for (const Bound& bound : std::initializer_list<Bound>{
           {"exponential", {}, -200, 88.7228, 2},
           {"elu", {1}, -200, 200, 2},
           {"sigmoid", {}, -87, 200, 3},
           {"silu", {}, -87, 200, 4},
           {"tanh", {}, -200, 200, 4},
           {"softplus", {}, -87, 200, 3},
           {"mish", {}, -87, 200, 4},
       }) {
    Activation activation;
    CHECK(Activation::Make(bound.name, bound.arguments, &activation, set));
    std::vector<float> got = values;
    activation.Apply(got.data(), got.size());
    for (size_t i = 0; i < values.size(); ++i) {
      if (values[i] < bound.lowest || values[i] > bound.highest) continue;
      const double want =
          reference::Activate(bound.name, bound.arguments, values[i]);
      CHECK(Ulps(got[i], want) <= bound.ulps);
    }
  }
}

// At the ends of the numbers, and beyond.
void TestLimits(const InstructionSet& set) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  struct Case {
    const char* name;
    std::vector<float> arguments;
    float at, want;
  };
  for (const Case& c : std::initializer_list<Case>{
           {"exponential", {}, kInf, kInf},   {"exponential", {}, 1e30f, kInf},
           {"exponential", {}, 88.73f, kInf}, {"exponential", {}, -87.34f, 0},
           {"exponential", {}, -1e30f, 0},    {"exponential", {}, -kInf, 0},
           {"elu", {2}, kInf, kInf},          {"elu", {2}, -kInf, -2},
           {"elu", {2}, -1e30f, -2},          {"celu", {-1}, -kInf, -kInf},
           {"celu", {-1}, -90, -kInf},        {"sigmoid", {}, kInf, 1},
           {"sigmoid", {}, -kInf, 0},         {"silu", {}, kInf, kInf},
           {"silu", {}, -1e30f, 0},           {"tanh", {}, kInf, 1},
           {"tanh", {}, -kInf, -1},           {"softplus", {}, kInf, kInf},
           {"softplus", {}, -kInf, 0},        {"log_sigmoid", {}, -kInf, -kInf},
           {"mish", {}, kInf, kInf},          {"mish", {}, -1e30f, 0},
           {"gelu", {}, kInf, kInf},          {"gelu", {}, -1e30f, 0},
           {"tanh_gelu", {}, kInf, kInf},     {"tanh_gelu", {}, -1e30f, 0},
       }) {
    Activation activation;
    CHECK(Activation::Make(c.name, c.arguments, &activation, set));
    std::vector<float> row = {c.at, NAN, -NAN, 1};
    activation.Apply(row.data(), row.size());
    CHECK(row[0] == c.want);
    CHECK(std::isnan(row[1]) && std::isnan(row[2]) && std::isfinite(row[3]));
  }
}

// Softmax and its logarithm are of whole rows.
void TestRowActivations(const InstructionSet& set) {
  Random random(7);
  Activation softmax, log_softmax;
  CHECK(Activation::Make("softmax", {}, &softmax, set));
  CHECK(Activation::Make("log_softmax", {}, &log_softmax, set));
  for (int i = 0; i < 200; ++i) {
    const int64_t size = random.Int(1, 40);
    std::vector<float> x = random.Floats(size);
    if (random.Chance(20)) x[random.Int(0, size - 1)] = 3000;
    double sum = 0;
    const double top = *std::max_element(x.begin(), x.end());
    for (const double v : x) sum += std::exp(v - top);
    std::vector<float> got = x, logs = x;
    softmax.Apply(got.data(), size);
    log_softmax.Apply(logs.data(), size);
    for (int64_t c = 0; c < size; ++c) {
      CHECK(std::fabs(got[c] - std::exp(x[c] - top) / sum) <= 1e-6);
      const double want = x[c] - top - std::log(sum);
      CHECK(std::fabs(logs[c] - want) <= 1e-6 * (1 + std::fabs(top)));
    }
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

void TestAddProduct(const InstructionSet& set) {
  Random random(13);
  for (int i = 0; i < 100; ++i) {
    const int64_t depth = random.Int(1, 9), columns = random.Int(1, 40);
    const std::vector<float> a = random.Floats(depth);
    const std::vector<float> b = random.Floats(depth * columns);
    const std::vector<float> before = random.Floats(columns);
    std::vector<float> out = before;
    set.add_product(a.data(), b.data(), depth, columns, out.data());
    for (int64_t c = 0; c < columns; ++c) {
      reference::Sum want;
      want.Add(before[c]);
      for (int64_t k = 0; k < depth; ++k) {
        want.Add(static_cast<double>(a[k]) * b[k * columns + c]);
      }
      CHECK(Near(out[c], want, depth + 1));
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
    for (int frame = 0; frame < 3; ++frame) {
      // Down as well as up; nothing but -infinity.
      const int64_t percent = frame == 1 ? 3 : 100;
      for (float& value : now) {
        if (!random.Chance(percent)) continue;
        value = frame == 2 ? -INFINITY : random.Float() - 5;
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
          for (int64_t leaf = 0; leaf < leaves; ++leaf) {
            want = std::max(want, now[(n * leaves + leaf) * units + u]);
          }
          CHECK(trees[(n + 1) * size - units + u] == want);
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
    const int64_t streams = 1 + i % 9;
    const int64_t depth = random.Pick<int64_t>({1, 7, 32, 32, 80});
    // More than 64 leaves, some of the time: their mask has two words.
    const int64_t inputs =
        i % 5 == 0 ? depth * 65 + random.Int(0, 80) : random.Int(1, 300);
    const int64_t units = random.Int(1, 40);
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

void TestInterning() {
  Random random(12);
  for (int i = 0; i < 40; ++i) {
    const int64_t words = random.Int(1, 7);
    const int64_t max_rows = random.Pick<int64_t>({1, 50, 5000});
    // With weak hashes, down to one for all keys.
    const uint64_t hash_mask = random.Pick<uint64_t>({0, 7, ~uint64_t{}});
    InternTable table(words, max_rows, hash_mask);
    for (int round = 0; round < 2; ++round) {
      std::map<std::vector<int32_t>, int32_t> want;
      const int64_t kinds = random.Pick<int64_t>({2, 30, 3000});
      bool full = false;
      for (int step = 0; step < 6 && !full; ++step) {
        const int64_t count = random.Int(0, hash_mask == 0 ? 200 : 900);
        std::vector<int32_t> keys(count * words, -1), ids(count, -7);
        for (int64_t k = 0; k < count; ++k) {
          // Keys that differ in a single word, the first or the last.
          const int64_t at = random.Chance(50) ? 0 : words - 1;
          keys[k * words + at] = random.Int(0, kinds);
          const std::vector<int32_t> key(keys.begin() + k * words,
                                         keys.begin() + (k + 1) * words);
          want.emplace(key, static_cast<int32_t>(want.size()));
        }
        full = static_cast<int64_t>(want.size()) > max_rows;
        CHECK(table.Intern(keys.data(), count, ids.data()) == !full);
        for (int64_t k = 0; k < count && !full; ++k) {
          const std::vector<int32_t> key(keys.begin() + k * words,
                                         keys.begin() + (k + 1) * words);
          CHECK(ids[k] == want[key]);
          CHECK(SameBits(table.key(ids[k]), key.data(), words));
        }
        if (!full) CHECK(table.size() == static_cast<int64_t>(want.size()));
      }
      table.Clear();
      CHECK(table.size() == 0);
    }
  }
}

// Every range once; what a body throws comes out, when all have ended.
void TestShareWork() {
  Random random(10);
  for (int i = 0; i < 300; ++i) {
    const int64_t total = random.Int(1, 50), ranges = random.Int(1, total);
    const int64_t bad = random.Chance(50) ? random.Int(0, total - 1) : -1;
    std::vector<std::atomic<int>> called(total);
    std::atomic<int> running{0};
    std::vector<std::thread> threads;
    std::vector<std::function<void()>> late;
    bool threw = false;
    try {
      ShareWork(
          total, ranges, 3,
          [&](std::function<void()> work) {
            if (threads.size() == 1 && i % 3 == 0) throw std::bad_alloc();
            if (i % 2 == 0) threads.emplace_back(work);
            late.push_back(work);
          },
          [&](int64_t begin, int64_t end) {
            ++running;
            for (int64_t k = begin; k < end; ++k) ++called[k];
            if (begin <= bad && bad < end) {
              --running;
              throw std::length_error("bad");
            }
            --running;
          });
    } catch (const std::length_error&) {
      threw = true;
    }
    CHECK(running == 0);
    CHECK(threw == (bad >= 0));
    for (const auto& work : late) work();
    for (std::thread& thread : threads) thread.join();
    for (const auto& count : called) CHECK(count == 1 || (threw && count == 0));
  }
}

// However large a kernel, stride or dilation is, what lies under it is found,
// and at once.
void TestHugeWindows() {
  Random random(11);
  const int64_t huge = std::numeric_limits<int32_t>::max();
  for (int i = 0; i < 400; ++i) {
    Window w;
    w.height = random.Int(1, 3);
    w.width = random.Pick<int64_t>({1, 5, 70});
    // As large as all that counts, then far larger.
    const auto size = [&] { return random.Pick<int64_t>({1, 2, 3, huge}); };
    w.kernel_height = size();
    w.kernel_width = size();
    w.stride_height = size();
    w.stride_width = size();
    w.dilation_height = size();
    w.dilation_width = size();
    Pad(random.Chance(70), &w);
    PixelMask mask, out;
    mask.Resize(w.height, w.width);
    std::vector<std::pair<int64_t, int64_t>> pixels;
    for (int k = 0; k < 3; ++k) {
      const int64_t y = random.Int(0, w.height - 1);
      const int64_t x = random.Int(0, w.width - 1);
      mask.Set(y, x);
      pixels.push_back({y, x});
    }
    out.Resize(w.out_height, w.out_width);
    ChangedPositions(w, 0, mask, &out);
    // Whether a tap stands at `offset` from the first.
    const auto covers = [](int64_t offset, int64_t kernel, int64_t dilation) {
      return offset >= 0 && offset % dilation == 0 &&
             offset / dilation < kernel;
    };
    const auto under = [&](int64_t y, int64_t x, int64_t out_y, int64_t out_x) {
      return covers(y - (out_y * w.stride_height - w.pad_top), w.kernel_height,
                    w.dilation_height) &&
             covers(x - (out_x * w.stride_width - w.pad_left), w.kernel_width,
                    w.dilation_width);
    };
    PixelMask covered;
    covered.Resize(w.height, w.width);
    CoveredPixels(w, 0, out, &covered);
    const auto marked = [](const PixelMask& m, int64_t y, int64_t x) {
      return (m.line(y)[x / 64] >> (x % 64) & 1) != 0;
    };
    for (int64_t y = 0; y < w.out_height; ++y) {
      for (int64_t x = 0; x < w.out_width; ++x) {
        bool any = false;
        for (const auto& [py, px] : pixels) any |= under(py, px, y, x);
        CHECK(marked(out, y, x) == any);
      }
    }
    for (int64_t y = 0; y < w.height; ++y) {
      for (int64_t x = 0; x < w.width; ++x) {
        bool any = false;
        for (int64_t oy = 0; oy < w.out_height; ++oy) {
          for (int64_t ox = 0; ox < w.out_width; ++ox) {
            any |= marked(out, oy, ox) && under(y, x, oy, ox);
          }
        }
        CHECK(marked(covered, y, x) == any);
      }
    }
  }
}

void TestSizes() {
  const int64_t most = std::numeric_limits<int64_t>::max();
  int64_t product = 0;
  CHECK(Multiply({3, 4, 5}, &product) && product == 60);
  CHECK(Multiply({most, 1}, &product) && product == most);
  CHECK(Multiply({most, 2, 0}, &product) && product == 0);
  CHECK(!Multiply({most, 2}, &product) && product == most);
  CHECK(!Multiply({int64_t{1} << 32, int64_t{1} << 32}, &product));
  for (const auto& make : std::initializer_list<std::function<void()>>{
           [&] { Product({most, 3}); }, [&] { LazyBuffer<float> buffer(most); },
           [&] { InternTable table(int64_t{1} << 40, int64_t{1} << 40); }}) {
    bool threw = false;
    try {
      make();
    } catch (const std::bad_alloc&) {
      threw = true;
    }
    CHECK(threw);
  }
}

int Main() {
  TestShareWork();
  TestHugeWindows();
  TestSizes();
  TestPadding();
  TestPatchIds();
  TestChanges<float>(10);
  TestChanges<uint8_t>(11);
  TestRows<float>(20);
  TestRows<double>(21);
  TestRows<uint8_t>(22);
  TestFlushDenormals();
  TestRowOps();
  TestRowNormalization();
  TestGroupNorm();
  TestJoins();
  TestPooling();
  TestInterning();
  std::string names;
  for (const InstructionSet* set : InstructionSets()) {
    names += std::string(" ") + set->name;
    TestActivations(*set);
    TestPrecision(*set);
    {
      const FlushDenormals flush;
      TestPrecision(*set);
    }
    TestLimits(*set);
    TestRowActivations(*set);
    TestMultiply(*set);
    TestPairs(*set);
    TestAddProduct(*set);
    TestConvolution(*set);
    TestSumTree(*set);
    TestMaxTree(*set);
    TestSumOfRows(*set);
    TestSpecialValues(*set);
    TestSpecialValuesInGroups(*set);
    TestDenseSum(*set);
  }
  const char* chosen = std::getenv("REUSE_TF_ISA");
  CHECK(ActiveInstructionSet().name ==
        std::string(chosen != nullptr ? chosen
                                      : InstructionSets().front()->name));
  return Report("instruction sets:" + names);
}

}  // namespace
}  // namespace reuse_tf

int main() { return reuse_tf::Main(); }
