// Activations: what is applied to rows as they are computed.
#ifndef REUSE_TF_KERNELS_ACTIVATIONS_H_
#define REUSE_TF_KERNELS_ACTIVATIONS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace reuse_tf {

// An activation by its name, which is that of keras.activations where it has
// the arguments of that, and its arguments. The default is the linear one.
class Activation {
 public:
  struct Form {
    const char* name;
    size_t arguments;
    // Applies it to a row of n values in place.
    void (*apply)(const float* arguments, float* row, int64_t n);
  };
  static const std::vector<Form>& Forms();

  // False if there is no such activation, or not with so many arguments.
  static bool Make(const std::string& name, const std::vector<float>& arguments,
                   Activation* activation);

  bool linear() const { return form_ == nullptr; }
  void Apply(float* row, int64_t n) const {
    if (form_ != nullptr) form_->apply(arguments_.data(), row, n);
  }

 private:
  const Form* form_ = nullptr;
  std::vector<float> arguments_;
};

namespace activations {

// The row functions of single values, f(arguments, value).
template <typename F>
void Each(const float* a, float* x, int64_t n, F f) {
  for (int64_t i = 0; i < n; ++i) x[i] = f(a, x[i]);
}

inline float Sigmoid(float v) { return 1 / (1 + std::exp(-v)); }
inline float Softplus(float v) {
  return v > 0 ? v + std::log1p(std::exp(-v)) : std::log1p(std::exp(v));
}
// A NaN stays one.
inline float Clip(float v, float low, float high) {
  return v < low ? low : v > high ? high : v;
}
inline float HardSigmoid(float v) { return Clip(v + 3, 0, 6) / 6; }

}  // namespace activations

// The one table of activations. `a` are the arguments.
inline const std::vector<Activation::Form>& Activation::Forms() {
  using activations::Clip, activations::Each, activations::HardSigmoid,
      activations::Sigmoid, activations::Softplus;
#define EACH(expression)                                                  \
  [](const float* a, float* x, int64_t n) {                               \
    Each(a, x, n, []([[maybe_unused]] const float* a, float v) -> float { \
      return expression;                                                  \
    });                                                                   \
  }
  static const auto* forms = new std::vector<Form>{
      {"linear", 0, [](const float*, float*, int64_t) {}},
      {"relu", 0, EACH(v < 0 ? 0.f : v)},
      // Negative slope, maximum, threshold. A NaN is not above the threshold.
      {"general_relu", 3,
       EACH(v > a[2]     ? std::min(v, a[1])
            : a[0] != 0  ? a[0] * (v - a[2])
            : v != v && a[2] == 0 ? v
                                  : 0)},
      {"relu6", 0, EACH(Clip(v, 0, 6))},
      {"leaky_relu", 1, EACH(v > 0 ? v : a[0] * v)},
      {"elu", 1, EACH(v > 0 ? v : a[0] * std::expm1(v))},
      {"celu", 1, EACH(v > 0 ? v : a[0] * std::expm1(v / a[0]))},
      {"selu", 0,
       EACH(1.05070098f * (v > 0 ? v : 1.67326324f * std::expm1(v)))},
      {"sigmoid", 0, EACH(Sigmoid(v))},
      {"hard_sigmoid", 0, EACH(HardSigmoid(v))},
      {"log_sigmoid", 0, EACH(-Softplus(-v))},
      {"sparse_sigmoid", 0, EACH(Clip(0.5f * (v + 1), 0, 1))},
      {"tanh", 0, EACH(std::tanh(v))},
      {"hard_tanh", 0, EACH(Clip(v, -1, 1))},
      {"tanh_shrink", 0, EACH(v - std::tanh(v))},
      {"silu", 0, EACH(v * Sigmoid(v))},
      {"hard_silu", 0, EACH(v * HardSigmoid(v))},
      {"mish", 0, EACH(v * std::tanh(Softplus(v)))},
      {"softplus", 0, EACH(Softplus(v))},
      {"sparse_plus", 0,
       EACH(v <= -1 ? 0.f : v < 1 ? 0.25f * (v + 1) * (v + 1) : v)},
      {"squareplus", 1, EACH((v + std::sqrt(v * v + a[0])) / 2)},
      {"softsign", 0, EACH(v / (1 + std::fabs(v)))},
      {"soft_shrink", 1, EACH(v > a[0] ? v - a[0] : v < -a[0] ? v + a[0] : 0)},
      {"hard_shrink", 1, EACH(std::fabs(v) > a[0] ? v : 0)},
      // Threshold, and what stands for values up to it.
      {"threshold", 2, EACH(v > a[0] ? v : a[1])},
      {"gelu", 0, EACH(0.5f * v * (1 + std::erf(v * 0.70710678f)))},
      {"tanh_gelu", 0,
       EACH(0.5f * v *
            (1 + std::tanh(0.79788456f * (v + 0.044715f * v * v * v))))},
      {"exponential", 0, EACH(std::exp(v))},
      {"softmax", 0,
       [](const float*, float* x, int64_t n) {
         const float top = *std::max_element(x, x + n);
         float sum = 0;
         for (int64_t i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - top);
         for (int64_t i = 0; i < n; ++i) x[i] /= sum;
       }},
      {"log_softmax", 0,
       [](const float*, float* x, int64_t n) {
         const float top = *std::max_element(x, x + n);
         float sum = 0;
         for (int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - top);
         const float offset = top + std::log(sum);
         for (int64_t i = 0; i < n; ++i) x[i] -= offset;
       }},
  };
#undef EACH
  return *forms;
}

inline bool Activation::Make(const std::string& name,
                             const std::vector<float>& arguments,
                             Activation* activation) {
  for (const Form& form : Forms()) {
    if (name != form.name || arguments.size() != form.arguments) continue;
    activation->form_ = name == "linear" ? nullptr : &form;
    activation->arguments_ = arguments;
    return true;
  }
  return false;
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_ACTIVATIONS_H_
