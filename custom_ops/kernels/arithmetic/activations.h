// Activations: what is applied to rows as they are computed.
#ifndef REUSE_TF_KERNELS_ARITHMETIC_ACTIVATIONS_H_
#define REUSE_TF_KERNELS_ARITHMETIC_ACTIVATIONS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace reuse_tf {

struct InstructionSet;  // matmul.h
const InstructionSet& ActiveInstructionSet();

// An activation by its name, which is that of keras.activations where it has
// the arguments of that, and its arguments. The default is the linear one. The
// table of all is in activations.inc.
//
// But for softmax and its logarithm, a value's result has the same bits
// wherever in a row it stands.
class Activation {
 public:
  struct Form {
    const char* name;
    size_t arguments;
    // Applies it to a row of n values in place.
    void (*apply)(const float* arguments, float* row, int64_t n);
  };

  // False if there is no such activation, or not with so many arguments.
  static bool Make(const std::string& name, const std::vector<float>& arguments,
                   Activation* activation,
                   const InstructionSet& set = ActiveInstructionSet());

  bool linear() const { return form_ == nullptr; }
  void Apply(float* row, int64_t n) const {
    if (form_ != nullptr) form_->apply(arguments_.data(), row, n);
  }

 private:
  const Form* form_ = nullptr;
  std::vector<float> arguments_;
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_ARITHMETIC_ACTIVATIONS_H_
