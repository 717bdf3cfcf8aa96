// The runner: a whole network as one op.

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>

#include "custom_ops/kernels/network.h"
#include "custom_ops/ops/common.h"
#include "custom_ops/ops/held_weight.h"
#include "custom_ops/ops/program.h"
#include "custom_ops/ops/structure_outputs.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/resource_mgr.h"

namespace reuse_tf {
namespace {

using tensorflow::Var;

REGISTER_OP("ReuseTF>RunnerState")
    .Attr("program: list(string)")
    .Attr("reuse: {'content', 'temporal'}")
    .Attr("max_rows: int >= 0 = 0")
    .Attr("num_weights: int >= 0")
    .Input("weights: num_weights * resource")
    .Output("state: resource")
    .Output("address: int64")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Scalar());
      c->set_output(1, c->Scalar());
      return absl::OkStatus();
    })
    .Doc(R"doc(
Makes a network that steps through the frames of streams. It lives as long as
the handle.

program: The network, line by line (program.h).
max_rows: The most rows that each table holds; 0 for about 400 MB in all.
weights: The variables, in the order in which the program mentions them.
address: For reuse_tf_runner_step.
)doc");

REGISTER_OP("ReuseTF>RunnerStep")
    .Attr("T: {float, uint8}")
    .Input("state: resource")
    .Input("frames: T")
    .Output("outputs: float")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle scalar, frames;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 0, &scalar));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &frames));
      c->set_output(0, c->Matrix(c->Dim(frames, 0), c->UnknownDim()));
      return absl::OkStatus();
    })
    .Doc(R"doc(
The network's outputs for one more frame of each stream.

state: Of RunnerState.
frames: [N, H, W, C], of the shape and type that the program says.
outputs: [N, units].
)doc");

REGISTER_OP("ReuseTF>RunnerReset")
    .Input("state: resource")
    .Input("streams: int32")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle handle;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 0, &handle));
      return c->WithRank(c->input(1), 1, &handle);
    })
    .Doc(R"doc(
Forgets some streams, or, if `streams` is empty, everything.

streams: The streams to forget, [M].
)doc");

REGISTER_OP("ReuseTF>RunnerRecord")
    .Input("state: resource")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle scalar;
      return c->WithRank(c->input(0), 0, &scalar);
    })
    .Doc(R"doc(
Records the structure of all steps from the next one on.
)doc");

REGISTER_OP("ReuseTF>RunnerRecording")
    .Attr("num_stages: int >= 0")
    .Input("state: resource")
    .Output("pixels: float")
    .Output("pairs: int32")
    .Output("contents: int32")
    .Output("runs: int32")
    .Output("order: int32")
    .Output("patches: num_stages * int32")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle scalar;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 0, &scalar));
      SetStructureShapes(c, c->UnknownDim());
      return absl::OkStatus();
    })
    .Doc(R"doc(
Ends a recording, and gives the memory of the tables back: what VideoStructure
would say of the streams, one after the
other. `order` has the frames in the order of the steps, and in a step in that
of the streams. All is empty if there is nothing, or if the tables were cleared
while it was under way.
)doc");

REGISTER_OP("ReuseTF>RunnerStats")
    .Input("state: resource")
    .Output("totals: int64")
    .Output("seconds: double")
    .Output("maps: int64")
    .Output("rows: int64")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle scalar;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 0, &scalar));
      c->set_output(0, c->Vector(4));
      c->set_output(1, c->Vector(3));
      c->set_output(2, c->Matrix(c->UnknownDim(), 5));
      c->set_output(3, c->Matrix(c->UnknownDim(), 2));
      return absl::OkStatus();
    })
    .Doc(R"doc(
What the network has counted since it was made or reset.

totals: frames, clears of the tables, switches between the kinds of reuse, and
  1 if the present kind is content reuse, else 0.
seconds: Spent on structure, on rows and on the dense sum.
maps: For each window and for the dense sum: positions, changed positions, new
  rows, multiply-adds, and the multiply-adds of a dense network.
rows: For the frames and each window: rows in use, and their bound.
)doc");

class RunnerState : public tensorflow::ResourceBase {
 public:
  RunnerState(const NetworkSpec& spec, const Network::Options& options,
              std::vector<RefCountPtr<Var>> variables, ParallelFor threads)
      : spec_(spec),
        weight_sizes_(spec.WeightSizes()),
        variables_(std::move(variables)),
        threads_(std::move(threads)),
        network_(spec, options),
        weights_(weight_sizes_.size()),
        pointers_(weight_sizes_.size()) {}
  std::string DebugString() const override { return "network of a runner"; }

  const NetworkSpec& spec() const { return spec_; }

  // frames [streams, height, width, channels] to outputs [streams, units].
  absl::Status Step(const void* frames, int64_t streams, float* outputs) {
    int64_t pixels = spec_.frame.pixels();
    for (const auto& stage : spec_.stages) {
      pixels = std::max(pixels, stage.window.positions());
    }
    TF_RETURN_IF_ERROR(CheckCountable("the number of positions of a layer",
                                      {streams, pixels}));
    const std::lock_guard<std::mutex> lock(mu_);
    TF_RETURN_IF_ERROR(UpdateWeights());
    network_.Step(frames, streams, threads_, outputs);
    return absl::OkStatus();
  }

  // Gives up all memory that the next step can fill again. Nobody holds the
  // weights then: an optimizer can write to them in place.
  void Release() {
    const std::lock_guard<std::mutex> lock(mu_);
    network_.Release();
    for (HeldWeight& weight : weights_) weight.Reset();
    known_ = false;
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

  const NetworkSpec spec_;
  const std::vector<int64_t> weight_sizes_;
  const std::vector<RefCountPtr<Var>> variables_;
  const ParallelFor threads_;

  std::mutex mu_;
  Network network_;
  bool known_ = false;  // whether the network has the weights that are held
  std::vector<HeldWeight> weights_;
  std::vector<const float*> pointers_;  // to the held weights
};

class RunnerStateOp : public GuardedOp {
 public:
  explicit RunnerStateOp(OpKernelConstruction* context) : GuardedOp(context) {
    std::vector<std::string> program;
    std::string reuse;
    OP_REQUIRES_OK(context, context->GetAttr("program", &program));
    OP_REQUIRES_OK(context, context->GetAttr("reuse", &reuse));
    OP_REQUIRES_OK(context, context->GetAttr("max_rows", &options_.max_rows));
    OP_REQUIRES_OK(context, CheckCountable("max_rows", {options_.max_rows}));
    OP_REQUIRES_OK(context, ParseProgram(program, &spec_));
    options_.reuse = reuse == "content" ? Reuse::kContent : Reuse::kTemporal;
  }

  void DoCompute(OpKernelContext* context) override {
    Tensor *handle = nullptr, *address = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, {}, &handle));
    OP_REQUIRES_OK(context, context->allocate_output(1, {}, &address));
    const size_t count = spec_.WeightSizes().size();
    OP_REQUIRES(context, static_cast<size_t>(context->num_inputs()) == count,
                absl::InvalidArgumentError(
                    absl::StrCat("weights must be ", count, " variables, got ",
                                 context->num_inputs())));
    std::vector<RefCountPtr<Var>> variables(count);
    for (size_t i = 0; i < count; ++i) {
      OP_REQUIRES_OK(
          context,
          tensorflow::LookupResource(
              context, tensorflow::HandleFromInput(context, i), &variables[i]));
    }
    auto* state = new RunnerState(spec_, options_, std::move(variables),
                                  OpThreads(context));
    handle->scalar<ResourceHandle>()() =
        ResourceHandle::MakeRefCountingHandle(state, context->device()->name());
    address->scalar<int64_t>()() = reinterpret_cast<intptr_t>(state);
  }

 private:
  NetworkSpec spec_;
  Network::Options options_;
};

template <typename T>
class RunnerStepOp : public GuardedOp {
 public:
  using GuardedOp::GuardedOp;

  void DoCompute(OpKernelContext* context) override {
    RefCountPtr<RunnerState> state;
    OP_REQUIRES_OK(context, GetState(context, &state));
    const Tensor& frames = context->input(1);
    OP_REQUIRES_OK(context, CheckFrames(frames, state->spec().frame, "N"));
    const int64_t streams = frames.dim_size(0);
    Tensor* outputs = nullptr;
    OP_REQUIRES_OK(
        context,
        AllocateOutput(context, 0, {streams, state->spec().units()}, &outputs));
    if (streams == 0) return;
    OP_REQUIRES_OK(context, state->Step(frames.flat<T>().data(), streams,
                                        outputs->flat<float>().data()));
  }
};

class RunnerResetOp : public GuardedOp {
 public:
  using GuardedOp::GuardedOp;
  void DoCompute(OpKernelContext* context) override {
    RefCountPtr<RunnerState> state;
    OP_REQUIRES_OK(context, GetState(context, &state));
    const Tensor& streams = context->input(1);
    OP_REQUIRES_OK(context, CheckRank("streams", streams, 1, "[M]"));
    OP_REQUIRES_OK(context, CheckIds("streams", streams, 0, int64_t{1} << 31));
    state->WithNetwork([&](Network& network) {
      if (streams.NumElements() == 0) network.Reset();
      for (int64_t i = 0; i < streams.NumElements(); ++i) {
        network.Reset(streams.flat<int32_t>()(i));
      }
    });
  }
};

class RunnerRecordOp : public GuardedOp {
 public:
  using GuardedOp::GuardedOp;
  void DoCompute(OpKernelContext* context) override {
    RefCountPtr<RunnerState> state;
    OP_REQUIRES_OK(context, GetState(context, &state));
    state->WithNetwork([](Network& network) { network.Record(); });
  }
};

class RunnerRecordingOp : public GuardedOp {
 public:
  explicit RunnerRecordingOp(OpKernelConstruction* context)
      : GuardedOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("num_stages", &stages_));
  }

  void DoCompute(OpKernelContext* context) override {
    RefCountPtr<RunnerState> state;
    OP_REQUIRES_OK(context, GetState(context, &state));
    const NetworkSpec& spec = state->spec();
    OP_REQUIRES(context, stages_ == static_cast<int64_t>(spec.stages.size()),
                absl::InvalidArgumentError(
                    absl::StrCat("num_stages must be that of the program, ",
                                 spec.stages.size(), ", got ", stages_)));
    state->WithNetwork([&](Network& network) {
      const auto recorder = network.TakeRecording();
      OutputStructure(context, spec.frame, network.structure(), recorder.get());
    });
    state->Release();
  }

 private:
  int64_t stages_ = 0;
};

class RunnerStatsOp : public GuardedOp {
 public:
  using GuardedOp::GuardedOp;
  void DoCompute(OpKernelContext* context) override {
    RefCountPtr<RunnerState> state;
    OP_REQUIRES_OK(context, GetState(context, &state));
    NetworkStats stats;
    std::vector<int64_t> rows, max_rows;
    Reuse reuse = Reuse::kContent;
    state->WithNetwork([&](const Network& network) {
      stats = network.stats();
      rows = network.Rows();
      max_rows = network.max_rows();
      reuse = network.reuse();
    });
    Tensor *totals, *seconds, *maps, *tables;
    OP_REQUIRES_OK(context, context->allocate_output(0, {4}, &totals));
    OP_REQUIRES_OK(context, context->allocate_output(1, {3}, &seconds));
    OP_REQUIRES_OK(context,
                   context->allocate_output(
                       2, {static_cast<int64_t>(stats.maps.size()), 5}, &maps));
    OP_REQUIRES_OK(context,
                   context->allocate_output(
                       3, {static_cast<int64_t>(rows.size()), 2}, &tables));
    totals->vec<int64_t>()(0) = stats.frames;
    totals->vec<int64_t>()(1) = stats.clears;
    totals->vec<int64_t>()(2) = stats.switches;
    totals->vec<int64_t>()(3) = reuse == Reuse::kContent;
    seconds->vec<double>()(0) = stats.structure_seconds;
    seconds->vec<double>()(1) = stats.rows_seconds;
    seconds->vec<double>()(2) = stats.dense_seconds;
    for (size_t i = 0; i < stats.maps.size(); ++i) {
      const NetworkStats::Map& map = stats.maps[i];
      auto line = maps->matrix<int64_t>();
      line(i, 0) = map.positions;
      line(i, 1) = map.changed;
      line(i, 2) = map.new_rows;
      line(i, 3) = map.multiply_adds;
      line(i, 4) = map.dense_multiply_adds;
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      tables->matrix<int64_t>()(i, 0) = rows[i];
      tables->matrix<int64_t>()(i, 1) = max_rows[i];
    }
  }
};

REGISTER_KERNEL_BUILDER(
    Name("ReuseTF>RunnerState").Device(tensorflow::DEVICE_CPU), RunnerStateOp);
REGISTER_KERNEL_BUILDER(Name("ReuseTF>RunnerStep")
                            .Device(tensorflow::DEVICE_CPU)
                            .TypeConstraint<float>("T"),
                        RunnerStepOp<float>);
REGISTER_KERNEL_BUILDER(Name("ReuseTF>RunnerStep")
                            .Device(tensorflow::DEVICE_CPU)
                            .TypeConstraint<uint8_t>("T"),
                        RunnerStepOp<uint8_t>);
REGISTER_KERNEL_BUILDER(
    Name("ReuseTF>RunnerReset").Device(tensorflow::DEVICE_CPU), RunnerResetOp);
REGISTER_KERNEL_BUILDER(
    Name("ReuseTF>RunnerRecord").Device(tensorflow::DEVICE_CPU),
    RunnerRecordOp);
REGISTER_KERNEL_BUILDER(
    Name("ReuseTF>RunnerRecording").Device(tensorflow::DEVICE_CPU),
    RunnerRecordingOp);
REGISTER_KERNEL_BUILDER(
    Name("ReuseTF>RunnerStats").Device(tensorflow::DEVICE_CPU), RunnerStatsOp);

}  // namespace

// RunnerStep without TensorFlow around it, which takes several times as long as
// the usual frame. `address` is that of a living RunnerState; frames and
// outputs are as in RunnerStep, which is to be called, for its error, when this
// returns false. Nothing is thrown out of it.
extern "C" __attribute__((visibility("default"))) bool reuse_tf_runner_step(
    int64_t address, const void* frames, int64_t streams, float* outputs) {
  auto* state = reinterpret_cast<RunnerState*>(address);
  try {
    return state->Step(frames, streams, outputs).ok();
  } catch (...) {
    return false;
  }
}

}  // namespace reuse_tf
