// The activations that are applied to rows as they are computed.
#ifndef REUSE_TF_KERNELS_ACTIVATION_H_
#define REUSE_TF_KERNELS_ACTIVATION_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

namespace reuse_tf {

enum class Activation {
  kLinear,
  kRelu,
  kRelu6,
  kLeakyRelu,
  kElu,
  kSelu,
  kSigmoid,
  kTanh,
  kSilu,
  kSoftplus,
  kGelu,
};

// By the names of keras.activations; false if there is no such one here.
inline bool ParseActivation(const std::string& name, Activation* activation) {
  static constexpr struct {
    const char* name;
    Activation activation;
  } kNames[] = {
      {"linear", Activation::kLinear},   {"relu", Activation::kRelu},
      {"relu6", Activation::kRelu6},     {"leaky_relu", Activation::kLeakyRelu},
      {"elu", Activation::kElu},         {"selu", Activation::kSelu},
      {"sigmoid", Activation::kSigmoid}, {"tanh", Activation::kTanh},
      {"silu", Activation::kSilu},       {"softplus", Activation::kSoftplus},
      {"gelu", Activation::kGelu},
  };
  for (const auto& entry : kNames) {
    if (name == entry.name) {
      *activation = entry.activation;
      return true;
    }
  }
  return false;
}

// Applies the activation to n values in place. Every form lets a NaN through.
inline void Activate(Activation activation, float* x, int64_t n) {
  const auto each = [x, n](auto f) {
    for (int64_t i = 0; i < n; ++i) x[i] = f(x[i]);
  };
  switch (activation) {
    case Activation::kLinear:
      return;
    case Activation::kRelu:
      return each([](float v) { return v < 0 ? 0.f : v; });
    case Activation::kRelu6:
      return each([](float v) { return v < 0 ? 0.f : v > 6 ? 6.f : v; });
    case Activation::kLeakyRelu:  // the slope of keras.activations.leaky_relu
      return each([](float v) { return v < 0 ? 0.2f * v : v; });
    case Activation::kElu:
      return each([](float v) { return v < 0 ? std::expm1(v) : v; });
    case Activation::kSelu:
      return each([](float v) {
        return 1.05070098f * (v < 0 ? 1.67326324f * std::expm1(v) : v);
      });
    case Activation::kSigmoid:
      return each([](float v) { return 1 / (1 + std::exp(-v)); });
    case Activation::kTanh:
      return each([](float v) { return std::tanh(v); });
    case Activation::kSilu:
      return each([](float v) { return v / (1 + std::exp(-v)); });
    case Activation::kSoftplus:
      return each([](float v) {
        return v > 0 ? v + std::log1p(std::exp(-v)) : std::log1p(std::exp(v));
      });
    case Activation::kGelu:
      return each(
          [](float v) { return 0.5f * v * (1 + std::erf(v * 0.70710678f)); });
  }
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_ACTIVATION_H_
