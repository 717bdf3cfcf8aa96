// The resource behind a runner: a network and the variables that it uses.
#ifndef REUSE_TF_OPS_RUNNER_STATE_H_
#define REUSE_TF_OPS_RUNNER_STATE_H_

#include <algorithm>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "custom_ops/kernels/graph/network.h"
#include "custom_ops/ops/common.h"
#include "custom_ops/ops/held_weight.h"
#include "tensorflow/core/framework/resource_mgr.h"

namespace reuse_tf {

class RunnerState : public tensorflow::ResourceBase {
 public:
  RunnerState(const Graph& graph, const Network::Options& options,
              std::vector<RefCountPtr<tensorflow::Var>> variables,
              ParallelFor threads)
      : graph_(graph),
        weight_sizes_(graph.WeightSizes()),
        variables_(std::move(variables)),
        threads_(std::move(threads)),
        network_(graph, options),
        weights_(weight_sizes_.size()),
        pointers_(weight_sizes_.size()) {}
  std::string DebugString() const override { return "network of a runner"; }

  const Graph& graph() const { return graph_; }

  // frames [streams, height, width, channels] to outputs, as Network::Step.
  absl::Status Step(const void* frames, int64_t streams, float* const* outputs,
                    bool kept) {
    int64_t pixels = 0;
    for (const Node& node : graph_.nodes) {
      pixels = std::max(pixels, node.pixels());
    }
    TF_RETURN_IF_ERROR(CheckCountable("the number of positions of a layer",
                                      {streams, pixels}));
    const std::lock_guard<std::mutex> lock(mu_);
    TF_RETURN_IF_ERROR(UpdateWeights());
    // Another call may have come in between.
    kept = kept && last_outputs_ == outputs[0];
    last_outputs_ = nullptr;
    network_.Step(frames, streams, threads_, outputs, kept);
    last_outputs_ = outputs[0];
    return absl::OkStatus();
  }

  // Gives up all memory that the next step can fill again. Nobody holds the
  // weights then: an optimizer can write to them in place.
  void Release() {
    const std::lock_guard<std::mutex> lock(mu_);
    // Before anything can throw: the network is without weights then.
    known_ = false;
    for (HeldWeight& weight : weights_) weight.Reset();
    network_.Release();
  }

  // Calls f(network) while nobody else does.
  template <typename F>
  auto WithNetwork(const F& f) {
    const std::lock_guard<std::mutex> lock(mu_);
    return f(network_);
  }

 private:
  absl::Status UpdateWeights() {
    bool changed = !known_, moved = changed;
    known_ = false;
    for (size_t i = 0; i < weights_.size(); ++i) {
      changed |= weights_[i].Update(variables_[i].get());
      const Tensor& now = weights_[i].tensor();
      if (now.dtype() != tensorflow::DT_FLOAT ||
          now.NumElements() != weight_sizes_[i]) {
        return absl::InvalidArgumentError(absl::StrCat(
            "weights[", i, "] must have ", weight_sizes_[i],
            " float32 values, got ", tensorflow::DataTypeString(now.dtype()),
            " ", now.shape().DebugString()));
      }
      const float* pointer = now.flat<float>().data();
      moved |= pointer != pointers_[i];
      pointers_[i] = pointer;
    }
    if (changed || moved) network_.SetWeights(pointers_, changed);
    known_ = true;
    return absl::OkStatus();
  }

  const Graph graph_;
  const std::vector<int64_t> weight_sizes_;
  const std::vector<RefCountPtr<tensorflow::Var>> variables_;
  const ParallelFor threads_;

  std::mutex mu_;
  Network network_;
  bool known_ = false;  // whether the network has the weights that are held
  std::vector<HeldWeight> weights_;
  std::vector<const float*> pointers_;   // to the held weights
  const float* last_outputs_ = nullptr;  // where the last step wrote
};

}  // namespace reuse_tf

#endif  // REUSE_TF_OPS_RUNNER_STATE_H_
