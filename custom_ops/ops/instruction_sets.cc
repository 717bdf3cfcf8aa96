// Tells Python which instruction sets there are; matmul.cc chooses one.

#include <string>

#include "custom_ops/kernels/arithmetic/matmul.h"

namespace reuse_tf {

// The instruction sets that this processor runs, the fastest first, with spaces
// between them.
extern "C" __attribute__((visibility("default"))) const char*
reuse_tf_instruction_sets() {
  static const std::string* names = [] {
    auto* joined = new std::string;
    for (const InstructionSet* set : InstructionSets()) {
      *joined += (joined->empty() ? "" : " ") + std::string(set->name);
    }
    return joined;
  }();
  return names->c_str();
}

}  // namespace reuse_tf
