// What is applied to rows as they are computed: activations and other functions
// of a single row.
#ifndef REUSE_TF_KERNELS_ROW_OPS_H_
#define REUSE_TF_KERNELS_ROW_OPS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

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

// A function of one row, applied in place.
struct RowOp {
  enum Kind {
    kActivation,
    kRelu,     // of three parameters, as keras.layers.ReLU
    kSoftmax,  // over the row
    kAffine,   // x * scale + offset, each of one value or one for each channel
  };
  Kind kind = kActivation;
  Activation activation = Activation::kLinear;
  float negative_slope = 0, max_value = INFINITY, threshold = 0;
  std::vector<float> scale, offset;

  void Apply(float* x, int64_t n) const {
    switch (kind) {
      case kActivation:
        return Activate(activation, x, n);
      case kRelu:
        for (int64_t i = 0; i < n; ++i) {
          const float v = x[i];
          x[i] = v > threshold         ? std::min(v, max_value)
                 : negative_slope != 0 ? negative_slope * (v - threshold)
                 // Keras lets a NaN through here unless there is a threshold.
                 : v != v && threshold == 0 ? v
                                            : 0;
        }
        return;
      case kSoftmax: {
        const float top = *std::max_element(x, x + n);
        float sum = 0;
        for (int64_t i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - top);
        for (int64_t i = 0; i < n; ++i) x[i] /= sum;
        return;
      }
      case kAffine: {
        const int64_t step = scale.size() > 1, shift = offset.size() > 1;
        for (int64_t i = 0; i < n; ++i) {
          x[i] = x[i] * scale[i * step] + offset[i * shift];
        }
        return;
      }
    }
  }
};

// Functions applied one after the other.
struct RowOps : std::vector<RowOp> {
  RowOps() = default;
  explicit RowOps(Activation activation) {
    if (activation != Activation::kLinear) {
      emplace_back();
      back().activation = activation;
    }
  }
  void Apply(float* x, int64_t n) const {
    for (const RowOp& op : *this) op.Apply(x, n);
  }
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_ROW_OPS_H_
