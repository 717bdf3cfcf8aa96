// Compares activations with their definitions, in double precision.

#include "custom_ops/kernels/arithmetic/activations.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "custom_ops/kernels/arithmetic/matmul.h"
#include "custom_ops/kernels/base/float_mode.h"
#include "custom_ops/kernels/testing/testing.h"

namespace reuse_tf {
namespace {

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

int Main() {
  for (const InstructionSet* set : InstructionSets()) {
    TestActivations(*set);
    TestPrecision(*set);
    {
      const FlushDenormals flush;
      TestPrecision(*set);
    }
    TestLimits(*set);
    TestRowActivations(*set);
  }
  return Report();
}

}  // namespace
}  // namespace reuse_tf

int main() { return reuse_tf::Main(); }
