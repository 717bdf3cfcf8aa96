// Notices changed weights without being told.
#ifndef REUSE_TF_OPS_HELD_WEIGHT_H_
#define REUSE_TF_OPS_HELD_WEIGHT_H_

#include <cstring>
#include <new>

#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/tensor.h"

namespace reuse_tf {

// A weight as last used.
//
// TensorFlow copies a variable's buffer before it writes to it when someone
// else holds it. This holds it: while the buffer is the same, so are the
// contents, and nothing has to be compared.
class HeldWeight {
 public:
  // Goes on with `now`. True if its contents are others than before.
  bool Update(const tensorflow::Tensor& now) {
    const bool same = SameAs(now);
    held_ = now;
    return !same;
  }

  // The same for a variable. After a scatter update TensorFlow writes to the
  // variable's buffer in place, whoever holds it: then a copy is held, and
  // compared each time.
  bool Update(tensorflow::Var* variable) {
    const tensorflow::tf_shared_lock lock(*variable->mu());
    const tensorflow::Tensor& now = *variable->tensor();
    if (!variable->copy_on_read_mode.load()) return Update(now);
    if (held_.IsInitialized() && Bytes(held_).data() != Bytes(now).data() &&
        SameAs(now)) {
      return false;
    }
    held_ = tensorflow::Tensor(now.dtype(), now.shape());
    if (!held_.IsInitialized()) throw std::bad_alloc();
    std::memcpy(const_cast<char*>(Bytes(held_).data()), Bytes(now).data(),
                Bytes(now).size());
    return true;
  }

  const tensorflow::Tensor& tensor() const { return held_; }
  void Reset() { held_ = tensorflow::Tensor(); }

 private:
  static absl::string_view Bytes(const tensorflow::Tensor& tensor) {
    return tensor.tensor_data();
  }
  bool SameAs(const tensorflow::Tensor& now) const {
    return held_.IsInitialized() && now.dtype() == held_.dtype() &&
           now.shape() == held_.shape() &&
           (Bytes(now).data() == Bytes(held_).data() ||
            Bytes(now) == Bytes(held_));
  }

  tensorflow::Tensor held_;
};

}  // namespace reuse_tf

#endif  // REUSE_TF_OPS_HELD_WEIGHT_H_
