// The fused single-layer ops that the Keras layers call, and the resource that
// holds what they keep from frame to frame.

#include <array>
#include <mutex>
#include <numeric>
#include <optional>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_format.h"
#include "custom_ops/kernels/arithmetic/dense_sum.h"
#include "custom_ops/kernels/arithmetic/matmul.h"
#include "custom_ops/kernels/arithmetic/rows.h"
#include "custom_ops/kernels/patches/changed.h"
#include "custom_ops/ops/common.h"
#include "custom_ops/ops/held_weight.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/resource_mgr.h"

namespace reuse_tf {
namespace {

using tensorflow::DT_FLOAT;
using tensorflow::DT_INT64;
using tensorflow::DT_RESOURCE;

REGISTER_OP("ReuseTF>IncrementalState")
    .Attr("id: int")
    .Output("state: resource")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(R"doc(
Makes an empty state for one incremental layer. It lives as long as the handle.

id: By which graphs find it, in this process. No two layers have the same.
)doc");

REGISTER_OP("ReuseTF>StateById")
    .Attr("id: int")
    .Output("state: resource")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(R"doc(
Finds the state that IncrementalState made under an id. If there is none, as
where a graph outlives its layer or was read from a file, it is one that this
op keeps for itself.
)doc");

REGISTER_OP("ReuseTF>ResetState")
    .Input("state: resource")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle scalar;
      return c->WithRank(c->input(0), 0, &scalar);
    })
    .Doc(R"doc(
Forgets the buffers of a state and sets its counters to zero.
)doc");

REGISTER_OP("ReuseTF>StateStats")
    .Input("state: resource")
    .Output("stats: int64")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle scalar;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 0, &scalar));
      c->set_output(0, c->Vector(5));
      return absl::OkStatus();
    })
    .Doc(R"doc(
What a state has counted since it was made or reset.

stats: frames, positions, recomputed positions, multiply-adds, and the
  multiply-adds of a dense layer.
)doc");

REGISTER_OP("ReuseTF>IncrementalConv2D")
    .Attr("strides: list(int) >= 2")
    .Attr("dilations: list(int) >= 2")
    .Attr("padding: {'SAME', 'VALID'}")
    .Attr("groups: int >= 1 = 1")
    .Attr("activation: string = 'linear'")
    .Attr("activation_arguments: list(float) = []")
    .Attr("threshold: float = 0.0")
    .Attr("use_bias: bool = true")
    .Input("state: resource")
    .Input("inputs: float")
    .Input("kernel: float")
    .Input("bias: float")
    .Output("outputs: float")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle scalar, inputs, kernel, bias;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 0, &scalar));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &inputs));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 4, &kernel));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 1, &bias));
      WindowAttributes attributes;
      TF_RETURN_IF_ERROR(attributes.Read(c));
      DimensionHandle out[2];
      for (int i = 0; i < 2; ++i) {
        const DimensionHandle size = c->Dim(inputs, 1 + i);
        const DimensionHandle taps = c->Dim(kernel, i);
        if (!c->ValueKnown(size) || !c->ValueKnown(taps)) {
          out[i] = c->UnknownDim();
          continue;
        }
        int64_t pad, positions;
        PadAxis(attributes.same, c->Value(size), c->Value(taps),
                attributes.strides[i], attributes.dilations[i], &pad,
                &positions);
        out[i] = c->MakeDim(positions);
      }
      c->set_output(0, c->MakeShape({c->Dim(inputs, 0), out[0], out[1],
                                     c->Dim(kernel, 3)}));
      return absl::OkStatus();
    })
    .Doc(R"doc(
activation(conv2d(inputs, kernel) + bias), of which only those positions are
recomputed whose patch differs from the one that `state` last saw. Everything
is recomputed when the shape, the weights or an attribute changed.

state: Of IncrementalState. Not to be shared between layers.
inputs: One frame of each of N streams, [N, H, W, C].
kernel: [kernel height, kernel width, C / groups, filters].
bias: [filters]; [0] and ignored if not use_bias.
activation: With activation_arguments, one of kernels/activations.h.
threshold: If not 0, a pixel none of whose values moved by more than this since
  it was last used counts as unchanged, and is used as it was.
outputs: [N, output height, output width, filters].
)doc");

REGISTER_OP("ReuseTF>IncrementalDense")
    .Attr("activation: string = 'linear'")
    .Attr("activation_arguments: list(float) = []")
    .Attr("use_bias: bool = true")
    .Input("state: resource")
    .Input("inputs: float")
    .Input("kernel: float")
    .Input("bias: float")
    .Output("outputs: float")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle scalar, inputs, kernel, bias;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 0, &scalar));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &inputs));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 2, &kernel));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 1, &bias));
      DimensionHandle depth;
      TF_RETURN_IF_ERROR(
          c->Merge(c->Dim(inputs, 1), c->Dim(kernel, 0), &depth));
      c->set_output(0, c->Matrix(c->Dim(inputs, 0), c->Dim(kernel, 1)));
      return absl::OkStatus();
    })
    .Doc(R"doc(
activation(inputs * kernel + bias), as a fixed tree of sums of which only the
leaves whose inputs differ from those that `state` last saw, and their
ancestors, are recomputed.

state: Of IncrementalState. Not to be shared between layers.
inputs: One row for each of N streams, [N, D].
kernel: [D, units].
bias: [units]; [0] and ignored if not use_bias.
activation: With activation_arguments, one of kernels/activations.h.
outputs: [N, units].
)doc");

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
          context->allocate_temp(DT_FLOAT, table.shape(), &spare));
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
    return context->allocate_temp(DT_FLOAT, shape, tensor);
  }

  std::mutex mu;
  // Whether the buffers hold the result for `seen`, the held weights and the
  // op's `attributes`. False while they are being brought up to date, so that a
  // failure leaves nothing stale.
  bool valid = false;
  std::string attributes;
  Tensor seen;   // the inputs, as last used
  Tensor table;  // the activations; or the trees of sums
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

void LivingStates::Add(int64_t id, IncrementalState* state) {
  const std::lock_guard<std::mutex> lock(mu_);
  states_[id] = tensorflow::core::WeakPtr<IncrementalState>(state);
}

void LivingStates::Remove(int64_t id) {
  const std::lock_guard<std::mutex> lock(mu_);
  states_.erase(id);
}

RefCountPtr<IncrementalState> LivingStates::Find(int64_t id) {
  const std::lock_guard<std::mutex> lock(mu_);
  const auto found = states_.find(id);
  return found == states_.end() ? nullptr : found->second.GetNewRef();
}

// Gives out a handle to a state, and with it the reference.
void OutputState(OpKernelContext* context,
                 RefCountPtr<IncrementalState> state) {
  Tensor* handle = nullptr;
  OP_REQUIRES_OK(context, context->allocate_output(0, {}, &handle));
  handle->scalar<ResourceHandle>()() = ResourceHandle::MakeRefCountingHandle(
      state.release(), context->device()->name());
}

class IncrementalStateOp : public GuardedOp {
 public:
  explicit IncrementalStateOp(OpKernelConstruction* context)
      : GuardedOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("id", &id_));
  }
  void DoCompute(OpKernelContext* context) override {
    OutputState(context,
                RefCountPtr<IncrementalState>(new IncrementalState(id_)));
  }

 private:
  int64_t id_ = 0;
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
    OP_REQUIRES(context, Activation::Make(name, arguments, &activation_),
                absl::InvalidArgumentError(absl::StrCat(
                    "activation must be one of kernels/activations.h, got ",
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
  bool Begin(IncrementalState* state, const Tensor& inputs,
             const Tensor& kernel, const Tensor& bias, bool* weights) const {
    const bool valid = std::exchange(state->valid, false);
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
    bool weights = false;
    const bool fresh = Begin(state.get(), inputs, kernel, bias, &weights);
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
    context->set_output(0, state->table);
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
    const bool fresh = Begin(state.get(), inputs, kernel, bias, &weights);
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
