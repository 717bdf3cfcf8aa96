// The resource that holds what a layer keeps from frame to frame.
#ifndef REUSE_TF_OPS_INCREMENTAL_STATE_H_
#define REUSE_TF_OPS_INCREMENTAL_STATE_H_

#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "custom_ops/kernels/arithmetic/matmul.h"
#include "custom_ops/kernels/patches/changed.h"
#include "custom_ops/ops/common.h"
#include "custom_ops/ops/held_weight.h"
#include "tensorflow/core/framework/resource_mgr.h"

namespace reuse_tf {

class IncrementalState;

// The states that are alive, by id. A graph holds no state: it would have to be
// saved, frozen and compiled with it.
class LivingStates {
 public:
  static LivingStates& Get() {
    static auto* const states = new LivingStates;  // outlives every state
    return *states;
  }

  void Add(int64_t id, IncrementalState* state);
  void Remove(int64_t id);
  // Null if there is none of this id.
  RefCountPtr<IncrementalState> Find(int64_t id);

 private:
  std::mutex mu_;
  std::unordered_map<int64_t, tensorflow::core::WeakPtr<IncrementalState>>
      states_;
};

// Whether a graph of this process has Python write into arrays, as
// tf.numpy_function may: then a layer gives out copies of what it keeps. Set
// before such a graph is first run in this process, if that is after the import
// of this package, and never taken back.
inline std::atomic<bool>& PythonMayWrite() {
  static std::atomic<bool> may{false};
  return may;
}

// What a layer keeps from frame to frame.
class IncrementalState : public tensorflow::ResourceBase {
 public:
  // One that cannot be found.
  IncrementalState() = default;

  explicit IncrementalState(int64_t id) : id_(id) {
    LivingStates::Get().Add(*id_, this);
  }

  ~IncrementalState() override {
    if (id_) LivingStates::Get().Remove(*id_);
  }

  std::string DebugString() const override {
    return "state of an incremental layer";
  }

  void Reset() {
    const std::lock_guard<std::mutex> lock(mu);
    valid = false;
    seen = table = spare = Tensor();
    behind.clear();
    kernel.Reset();
    bias.Reset();
    stats.fill(0);
  }

  // Makes `table` writable with the contents it has, given that `changed`
  // rows of `channels` values are about to be overwritten. Callers may still
  // hold the tensor that was given out last: it is never written to. While
  // they do, two tables take turns, and the one that comes back lags behind in
  // a few rows only.
  absl::Status MakeWritable(OpKernelContext* context, int64_t channels,
                            const std::vector<int32_t>& changed) {
    if (changed.empty()) return absl::OkStatus();
    if (table.RefCountIsOne()) {
      if (spare.IsInitialized()) {
        behind.insert(behind.end(), changed.begin(), changed.end());
        if (static_cast<int64_t>(behind.size()) * channels >
            spare.NumElements()) {
          spare = Tensor();
        }
      }
      return absl::OkStatus();
    }
    const float* from = table.flat<float>().data();
    // Rows that are all about to be overwritten need not be copied.
    const bool all =
        static_cast<int64_t>(changed.size()) * channels == table.NumElements();
    if (spare.IsInitialized() && spare.RefCountIsOne()) {
      if (all) behind.clear();
      float* to = spare.flat<float>().data();
      OpThreads(
          context)(behind.size(), channels, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          std::memcpy(to + behind[i] * channels, from + behind[i] * channels,
                      channels * sizeof(float));
        }
      });
    } else {
      TF_RETURN_IF_ERROR(
          context->allocate_temp(tensorflow::DT_FLOAT, table.shape(), &spare));
      float* to = spare.flat<float>().data();
      OpThreads(context)(all ? 0 : table.NumElements(), 1,
                         [=](int64_t begin, int64_t end) {
                           std::memcpy(to + begin, from + begin,
                                       (end - begin) * sizeof(float));
                         });
    }
    std::swap(table, spare);
    behind = changed;
    return absl::OkStatus();
  }

  // Makes `tensor` a writable one of the given shape and unknown contents.
  static absl::Status MakeFresh(OpKernelContext* context,
                                const TensorShape& shape, Tensor* tensor) {
    if (tensor->IsInitialized() && tensor->shape() == shape &&
        tensor->RefCountIsOne()) {
      return absl::OkStatus();
    }
    *tensor = Tensor();  // before the next one, to need less memory
    return context->allocate_temp(tensorflow::DT_FLOAT, shape, tensor);
  }

  std::mutex mu;
  // Whether the buffers hold the result for `seen`, the held weights and the
  // op's `attributes`. False while they are being brought up to date, so that a
  // failure leaves nothing stale.
  bool valid = false;
  std::string attributes;
  Tensor seen;   // the inputs, as last used
  Tensor table;  // the activations; or the trees of sums
  // Whether the table itself was given out, into which somebody may write once
  // PythonMayWrite.
  bool given_out = false;
  Tensor spare;  // an older table, out of date in the rows `behind`
  std::vector<int32_t> behind;
  HeldWeight kernel, bias;
  PackedKernel packed;
  std::vector<int32_t> positions;
  PixelMask mask;
  std::array<int64_t, 5> stats = {};

  void Count(int64_t frames, int64_t positions, int64_t recomputed,
             int64_t multiply_adds, int64_t dense_multiply_adds) {
    stats[0] += frames;
    stats[1] += positions;
    stats[2] += recomputed;
    stats[3] += multiply_adds;
    stats[4] += dense_multiply_adds;
  }

 private:
  const std::optional<int64_t> id_;
};

inline void LivingStates::Add(int64_t id, IncrementalState* state) {
  const std::lock_guard<std::mutex> lock(mu_);
  states_[id] = tensorflow::core::WeakPtr<IncrementalState>(state);
}

inline void LivingStates::Remove(int64_t id) {
  const std::lock_guard<std::mutex> lock(mu_);
  states_.erase(id);
}

inline RefCountPtr<IncrementalState> LivingStates::Find(int64_t id) {
  const std::lock_guard<std::mutex> lock(mu_);
  const auto found = states_.find(id);
  return found == states_.end() ? nullptr : found->second.GetNewRef();
}

}  // namespace reuse_tf

#endif  // REUSE_TF_OPS_INCREMENTAL_STATE_H_
