// What the ops of incremental_ops.cc do.

#include <mutex>
#include <numeric>
#include <utility>

#include "absl/strings/str_format.h"
#include "custom_ops/kernels/arithmetic/dense_sum.h"
#include "custom_ops/kernels/arithmetic/matmul.h"
#include "custom_ops/kernels/arithmetic/rows.h"
#include "custom_ops/kernels/patches/changed.h"
#include "custom_ops/ops/common.h"
#include "custom_ops/ops/incremental_state.h"
#include "tensorflow/core/framework/resource_mgr.h"

namespace reuse_tf {
namespace {

// Gives out a handle to a state, and with it the reference.
void OutputState(OpKernelContext* context,
                 RefCountPtr<IncrementalState> state) {
  Tensor* handle = nullptr;
  OP_REQUIRES_OK(context, context->allocate_output(0, {}, &handle));
  handle->scalar<ResourceHandle>()() = ResourceHandle::MakeRefCountingHandle(
      state.release(), context->device()->name());
}

// The id is no attribute, as TensorFlow keeps a kernel for each value of one.
class IncrementalStateOp : public GuardedOp {
 public:
  using GuardedOp::GuardedOp;
  void DoCompute(OpKernelContext* context) override {
    const Tensor& id = context->input(0);
    OP_REQUIRES(context, tensorflow::TensorShapeUtils::IsScalar(id.shape()),
                tensorflow::errors::InvalidArgument("id must be a scalar, got ",
                                                    id.shape().DebugString()));
    OutputState(context, RefCountPtr<IncrementalState>(
                             new IncrementalState(id.scalar<int64_t>()())));
  }
};

class StateByIdOp : public GuardedOp {
 public:
  explicit StateByIdOp(OpKernelConstruction* context)
      : GuardedOp(context), own_(new IncrementalState) {
    OP_REQUIRES_OK(context, context->GetAttr("id", &id_));
  }
  void DoCompute(OpKernelContext* context) override {
    RefCountPtr<IncrementalState> state = LivingStates::Get().Find(id_);
    if (!state) state = own_.GetNewRef();
    OutputState(context, std::move(state));
  }

 private:
  int64_t id_ = 0;
  const RefCountPtr<IncrementalState> own_;
};

class ResetStateOp : public GuardedOp {
 public:
  using GuardedOp::GuardedOp;
  void DoCompute(OpKernelContext* context) override {
    RefCountPtr<IncrementalState> state;
    OP_REQUIRES_OK(context, GetState(context, &state));
    state->Reset();
  }
};

class StateStatsOp : public GuardedOp {
 public:
  using GuardedOp::GuardedOp;
  void DoCompute(OpKernelContext* context) override {
    RefCountPtr<IncrementalState> state;
    OP_REQUIRES_OK(context, GetState(context, &state));
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, {5}, &out));
    const std::lock_guard<std::mutex> lock(state->mu);
    std::copy(state->stats.begin(), state->stats.end(),
              out->flat<int64_t>().data());
  }
};

// What the two layer ops have in common: kernel, bias, activation, and whether
// the state still belongs to them.
class IncrementalOp : public GuardedOp {
 public:
  explicit IncrementalOp(OpKernelConstruction* context) : GuardedOp(context) {
    std::string name;
    std::vector<float> arguments;
    OP_REQUIRES_OK(context, context->GetAttr("activation", &name));
    OP_REQUIRES_OK(context,
                   context->GetAttr("activation_arguments", &arguments));
    OP_REQUIRES(
        context, Activation::Make(name, arguments, &activation_),
        absl::InvalidArgumentError(absl::StrCat(
            "activation must be one of kernels/arithmetic/activations.h, got ",
            name, " with ", arguments.size(), " arguments")));
    OP_REQUIRES_OK(context, context->GetAttr("use_bias", &use_bias_));
    attributes_ = absl::StrCat(context->def().op(), " ", name, " ", use_bias_);
    for (const float argument : arguments) {
      absl::StrAppend(&attributes_, " ", absl::StrFormat("%a", argument));
    }
  }

 protected:
  absl::Status CheckBias(const Tensor& bias, int64_t units) const {
    TF_RETURN_IF_ERROR(CheckRank("bias", bias, 1, "[filters]"));
    if (bias.dim_size(0) != (use_bias_ ? units : 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("bias must have ", use_bias_ ? units : 0,
                       " values, got shape ", bias.shape().DebugString()));
    }
    return absl::OkStatus();
  }

  // Whether all must be computed afresh: what the state holds is of other
  // inputs, weights or attributes. `weights` is told whether the weights are
  // others. Marks the state as invalid.
  // `written_to` if somebody may write to what was given out.
  bool Begin(IncrementalState* state, const Tensor& inputs,
             const Tensor& kernel, const Tensor& bias, bool written_to,
             bool* weights) const {
    const bool valid =
        std::exchange(state->valid, false) && !(state->given_out && written_to);
    const bool kernel_changed = state->kernel.Update(kernel);
    const bool bias_changed = state->bias.Update(bias);
    *weights = kernel_changed || bias_changed || !valid ||
               state->attributes != attributes_;
    const bool fresh = *weights || state->seen.shape() != inputs.shape();
    state->attributes = attributes_;
    return fresh;
  }

  bool use_bias_ = true;
  Activation activation_;
  std::string attributes_;
};

class IncrementalConv2DOp : public IncrementalOp {
 public:
  explicit IncrementalConv2DOp(OpKernelConstruction* context)
      : IncrementalOp(context) {
    OP_REQUIRES_OK(context, window_.Read(context));
    OP_REQUIRES_OK(context, context->GetAttr("groups", &groups_));
    OP_REQUIRES_OK(context, context->GetAttr("threshold", &threshold_));
    OP_REQUIRES(context, threshold_ >= 0,
                absl::InvalidArgumentError(absl::StrCat(
                    "threshold must not be negative, got ", threshold_)));
    absl::StrAppend(&attributes_, " ", window_.strides[0], " ",
                    window_.strides[1], " ", window_.dilations[0], " ",
                    window_.dilations[1], " ", window_.same, " ", groups_, " ",
                    threshold_);
  }

  void DoCompute(OpKernelContext* context) override {
    RefCountPtr<IncrementalState> state;
    OP_REQUIRES_OK(context, GetState(context, &state));
    const Tensor& inputs = context->input(1);
    const Tensor& kernel = context->input(2);
    const Tensor& bias = context->input(3);
    OP_REQUIRES_OK(context, CheckRank("inputs", inputs, 4, "[N, H, W, C]"));
    OP_REQUIRES_OK(context, CheckRank("kernel", kernel, 4,
                                      "[height, width, C / groups, filters]"));
    const int64_t streams = inputs.dim_size(0), channels = inputs.dim_size(3);
    const int64_t filters = kernel.dim_size(3);
    OP_REQUIRES_OK(context, CheckBias(bias, filters));
    OP_REQUIRES(context,
                kernel.NumElements() > 0 && groups_ <= channels &&
                    channels == kernel.dim_size(2) * groups_ &&
                    filters % groups_ == 0,
                absl::InvalidArgumentError(absl::StrCat(
                    "kernel must be [height, width, C / groups, filters] with "
                    "groups = ",
                    groups_, " dividing the filters, got ",
                    kernel.shape().DebugString(), " for inputs ",
                    inputs.shape().DebugString())));
    const Window window = window_.Over(inputs.dim_size(1), inputs.dim_size(2),
                                       kernel.dim_size(0), kernel.dim_size(1));
    OP_REQUIRES_OK(context, CheckCountable("the number of input pixels",
                                           {streams, window.pixels()}));
    OP_REQUIRES_OK(context, CheckCountable("the number of output positions",
                                           {streams, window.positions()}));
    const int64_t positions = streams * window.positions();
    TensorShape out_shape;
    OP_REQUIRES_OK(context,
                   TensorShape::BuildTensorShape(
                       {streams, window.out_height, window.out_width, filters},
                       &out_shape));
    if (positions == 0) {
      Tensor* out = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(0, out_shape, &out));
      return;
    }
    const ParallelFor parallel = OpThreads(context);
    const std::lock_guard<std::mutex> lock(state->mu);
    const bool copied = PythonMayWrite();
    bool weights = false;
    const bool fresh =
        Begin(state.get(), inputs, kernel, bias, copied, &weights);
    if (weights) {
      state->packed.Pack(kernel.flat<float>().data(),
                         use_bias_ ? bias.flat<float>().data() : nullptr,
                         window.taps(), channels, filters, groups_);
    }
    if (fresh) {
      state->spare = Tensor();
      state->behind.clear();
      OP_REQUIRES_OK(context, IncrementalState::MakeFresh(
                                  context, inputs.shape(), &state->seen));
      OP_REQUIRES_OK(context, IncrementalState::MakeFresh(context, out_shape,
                                                          &state->table));
      const float* from = inputs.flat<float>().data();
      float* to = state->seen.flat<float>().data();
      parallel(inputs.NumElements(), 1, [=](int64_t begin, int64_t end) {
        std::memcpy(to + begin, from + begin, (end - begin) * sizeof(float));
      });
      state->positions.resize(positions);
      std::iota(state->positions.begin(), state->positions.end(), 0);
    } else {
      state->mask.Resize(streams * window.height, window.width);
      UpdateSeen(inputs.flat<float>().data(), state->seen.flat<float>().data(),
                 streams * window.height, window.width, channels, threshold_,
                 parallel, &state->mask);
      ChangedPositions(window, streams, state->mask, &state->positions);
      OP_REQUIRES_OK(context,
                     state->MakeWritable(context, filters, state->positions));
    }
    const int64_t count = state->positions.size();
    ConvolvePositions(window, state->packed, RowOps(activation_),
                      state->seen.flat<float>().data(), state->positions.data(),
                      count, parallel, state->table.flat<float>().data());
    state->valid = true;
    state->Count(streams, positions, count, count * state->packed.cost(),
                 positions * state->packed.cost());
    state->given_out = !copied;
    if (!copied) {
      context->set_output(0, state->table);
      return;
    }
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, out_shape, &out));
    const float* from = state->table.flat<float>().data();
    float* to = out->flat<float>().data();
    parallel(out->NumElements(), 1, [=](int64_t begin, int64_t end) {
      std::memcpy(to + begin, from + begin, (end - begin) * sizeof(float));
    });
  }

 private:
  WindowAttributes window_;
  int64_t groups_ = 1;
  float threshold_ = 0;
};

class IncrementalDenseOp : public IncrementalOp {
 public:
  static constexpr int64_t kLeaf = 32;  // inputs of a leaf of the tree

  using IncrementalOp::IncrementalOp;

  void DoCompute(OpKernelContext* context) override {
    RefCountPtr<IncrementalState> state;
    OP_REQUIRES_OK(context, GetState(context, &state));
    const Tensor& inputs = context->input(1);
    const Tensor& kernel = context->input(2);
    const Tensor& bias = context->input(3);
    OP_REQUIRES_OK(context, CheckRank("inputs", inputs, 2, "[N, D]"));
    OP_REQUIRES_OK(context, CheckRank("kernel", kernel, 2, "[D, units]"));
    const int64_t streams = inputs.dim_size(0), depth = inputs.dim_size(1);
    const int64_t units = kernel.dim_size(1);
    OP_REQUIRES_OK(context, CheckBias(bias, units));
    OP_REQUIRES(context, kernel.dim_size(0) == depth,
                absl::InvalidArgumentError(absl::StrCat(
                    "kernel must be [D, units] for inputs [N, D], got ",
                    kernel.shape().DebugString(), " for ",
                    inputs.shape().DebugString())));
    Tensor* outputs = nullptr;
    OP_REQUIRES_OK(context,
                   AllocateOutput(context, 0, {streams, units}, &outputs));
    if (outputs->NumElements() == 0) return;
    const std::lock_guard<std::mutex> lock(state->mu);
    bool weights = false;
    const bool fresh =
        Begin(state.get(), inputs, kernel, bias, false, &weights);
    const DenseSum sum(depth, kLeaf, units);
    if (fresh) {
      OP_REQUIRES_OK(context, IncrementalState::MakeFresh(
                                  context, inputs.shape(), &state->seen));
      TensorShape shape;
      OP_REQUIRES_OK(context, TensorShape::BuildTensorShape(
                                  {streams, sum.nodes(), units}, &shape));
      OP_REQUIRES_OK(
          context, IncrementalState::MakeFresh(context, shape, &state->table));
    }
    float* trees = state->table.flat<float>().data();
    float* seen = state->seen.flat<float>().data();
    const ParallelFor parallel = OpThreads(context);
    std::vector<LeafChange> changes;
    ChangedLeaves(inputs.flat<float>().data(), streams, depth, kLeaf, fresh,
                  parallel, seen, &changes);
    const InstructionSet& set = ActiveInstructionSet();
    sum.ComputeLeaves(
        changes,
        [=](const LeafChange& change) {
          return seen + change.stream * depth + change.leaf * kLeaf;
        },
        kernel.flat<float>().data(), set, parallel, trees);
    sum.UpdateSums(changes, streams, set, trees);
    state->valid = true;
    const int64_t leaves = streams * sum.leaves();
    const int64_t recomputed = changes.size();
    state->Count(streams, leaves, recomputed, recomputed * kLeaf * units,
                 leaves * kLeaf * units);
    for (int64_t n = 0; n < streams; ++n) {
      const float* root = trees + ((n + 1) * sum.nodes() - 1) * units;
      float* out = outputs->flat<float>().data() + n * units;
      for (int64_t u = 0; u < units; ++u) {
        out[u] = use_bias_ ? root[u] + bias.flat<float>()(u) : root[u];
      }
      activation_.Apply(out, units);
    }
  }
};

REGISTER_KERNEL_BUILDER(
    Name("ReuseTF>IncrementalState").Device(tensorflow::DEVICE_CPU),
    IncrementalStateOp);
REGISTER_KERNEL_BUILDER(
    Name("ReuseTF>StateById").Device(tensorflow::DEVICE_CPU), StateByIdOp);
REGISTER_KERNEL_BUILDER(
    Name("ReuseTF>ResetState").Device(tensorflow::DEVICE_CPU), ResetStateOp);
REGISTER_KERNEL_BUILDER(
    Name("ReuseTF>StateStats").Device(tensorflow::DEVICE_CPU), StateStatsOp);
REGISTER_KERNEL_BUILDER(
    Name("ReuseTF>IncrementalConv2D").Device(tensorflow::DEVICE_CPU),
    IncrementalConv2DOp);
REGISTER_KERNEL_BUILDER(
    Name("ReuseTF>IncrementalDense").Device(tensorflow::DEVICE_CPU),
    IncrementalDenseOp);

}  // namespace
}  // namespace reuse_tf
