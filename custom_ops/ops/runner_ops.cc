// The runner: a whole network as one op.

#include <algorithm>
#include <memory>
#include <mutex>
#include <new>

#include "custom_ops/kernels/network.h"
#include "custom_ops/ops/common.h"
#include "custom_ops/ops/held_weight.h"
#include "custom_ops/ops/program.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/resource_mgr.h"

namespace reuse_tf {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::ResourceHandle;
using tensorflow::Tensor;
using tensorflow::Var;
using tensorflow::core::RefCountPtr;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

REGISTER_OP("ReuseTF>RunnerState")
    .Attr("program: list(string)")
    .Attr("reuse: {'content', 'temporal'}")
    .Attr("max_rows: int >= 0 = 0")
    .Output("state: resource")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(R"doc(
Makes a network that steps through the frames of streams. It lives as long as
the handle.

program: The network, line by line (program.h).
max_rows: The most rows that each table holds; 0 for about 400 MB in all.
)doc");

REGISTER_OP("ReuseTF>RunnerStep")
    .Attr("T: {float, uint8}")
    .Attr("num_weights: int >= 0")
    .Input("state: resource")
    .Input("frames: T")
    .Input("weights: num_weights * resource")
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
weights: The variables, in the order in which the program mentions them.
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
  RunnerState(const NetworkSpec& spec, const Network::Options& options)
      : spec(spec), weight_sizes(spec.WeightSizes()), network(spec, options) {
    // Later only when some weight changes.
    if (weight_sizes.empty()) network.SetWeights({}, true);
  }
  std::string DebugString() const override { return "network of a runner"; }

  const NetworkSpec spec;
  const std::vector<int64_t> weight_sizes;

  std::mutex mu;
  Network network;
  std::vector<HeldWeight> weights;
  std::vector<const float*> pointers;  // to the held weights
};

absl::Status GetState(OpKernelContext* context,
                      RefCountPtr<RunnerState>* state) {
  return tensorflow::LookupResource(
      context, tensorflow::HandleFromInput(context, 0), state);
}

class RunnerStateOp : public OpKernel {
 public:
  explicit RunnerStateOp(OpKernelConstruction* context) : OpKernel(context) {
    std::vector<std::string> program;
    std::string reuse;
    OP_REQUIRES_OK(context, context->GetAttr("program", &program));
    OP_REQUIRES_OK(context, context->GetAttr("reuse", &reuse));
    OP_REQUIRES_OK(context, context->GetAttr("max_rows", &options_.max_rows));
    OP_REQUIRES_OK(context, CheckCountable("max_rows", options_.max_rows));
    OP_REQUIRES_OK(context, ParseProgram(program, &spec_));
    options_.reuse = reuse == "content" ? Reuse::kContent : Reuse::kTemporal;
  }

  void Compute(OpKernelContext* context) override {
    Tensor* handle = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, {}, &handle));
    try {
      handle->scalar<ResourceHandle>()() =
          ResourceHandle::MakeRefCountingHandle(
              new RunnerState(spec_, options_), context->device()->name());
    } catch (const std::bad_alloc&) {
      context->CtxFailure(absl::ResourceExhaustedError(absl::StrCat(
          "no memory for tables of max_rows = ", options_.max_rows)));
    }
  }

 private:
  NetworkSpec spec_;
  Network::Options options_;
};

template <typename T>
class RunnerStepOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    RefCountPtr<RunnerState> state;
    OP_REQUIRES_OK(context, GetState(context, &state));
    const FrameShape& shape = state->spec.frame;
    const Tensor& frames = context->input(1);
    OP_REQUIRES(
        context,
        frames.dims() == 4 && frames.dim_size(1) == shape.height &&
            frames.dim_size(2) == shape.width &&
            frames.dim_size(3) == shape.channels &&
            shape.bytes == (sizeof(T) == 1),
        absl::InvalidArgumentError(absl::StrCat(
            "frames must be ", shape.bytes ? "uint8" : "float32", " [N, ",
            shape.height, ", ", shape.width, ", ", shape.channels, "], got ",
            tensorflow::DataTypeString(frames.dtype()), " ",
            frames.shape().DebugString())));
    const int64_t streams = frames.dim_size(0);
    int64_t pixels = shape.pixels();
    for (const auto& stage : state->spec.stages) {
      pixels = std::max(pixels, stage.window.positions());
    }
    OP_REQUIRES_OK(context, CheckCountable("the number of positions of a layer",
                                           streams * pixels));
    Tensor* outputs = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(
                                0, {streams, state->spec.units()}, &outputs));
    if (streams == 0) return;
    const std::lock_guard<std::mutex> lock(state->mu);
    OP_REQUIRES_OK(context, UpdateWeights(context, state.get()));
    state->network.Step(frames.flat<T>().data(), streams, OpThreads(context),
                        outputs->flat<float>().data());
  }

 private:
  static absl::Status UpdateWeights(OpKernelContext* context,
                                    RunnerState* state) {
    const size_t count = context->num_inputs() - 2;
    if (count != state->weight_sizes.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("weights must be ", state->weight_sizes.size(),
                       " variables, got ", count));
    }
    bool changed = state->weights.size() != count, moved = changed;
    state->weights.resize(count);
    state->pointers.resize(count);
    for (size_t i = 0; i < count; ++i) {
      RefCountPtr<Var> variable;
      TF_RETURN_IF_ERROR(tensorflow::LookupResource(
          context, tensorflow::HandleFromInput(context, i + 2), &variable));
      changed |= state->weights[i].Update(variable.get());
      const Tensor& now = state->weights[i].tensor();
      if (now.dtype() != tensorflow::DT_FLOAT ||
          now.NumElements() != state->weight_sizes[i]) {
        state->weights.clear();
        return absl::InvalidArgumentError(absl::StrCat(
            "weights[", i, "] must have ", state->weight_sizes[i],
            " float32 values, got ", tensorflow::DataTypeString(now.dtype()),
            " ", now.shape().DebugString()));
      }
      const float* pointer = now.flat<float>().data();
      moved |= pointer != state->pointers[i];
      state->pointers[i] = pointer;
    }
    if (changed || moved) state->network.SetWeights(state->pointers, changed);
    return absl::OkStatus();
  }
};

class RunnerResetOp : public OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(OpKernelContext* context) override {
    RefCountPtr<RunnerState> state;
    OP_REQUIRES_OK(context, GetState(context, &state));
    const Tensor& streams = context->input(1);
    OP_REQUIRES_OK(context, CheckRank("streams", streams, 1, "[M]"));
    OP_REQUIRES_OK(context, CheckIds("streams", streams, 0,
                                     std::numeric_limits<int32_t>::max()));
    const std::lock_guard<std::mutex> lock(state->mu);
    if (streams.NumElements() == 0) state->network.Reset();
    for (int64_t i = 0; i < streams.NumElements(); ++i) {
      state->network.Reset(streams.flat<int32_t>()(i));
    }
  }
};

class RunnerStatsOp : public OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(OpKernelContext* context) override {
    RefCountPtr<RunnerState> state;
    OP_REQUIRES_OK(context, GetState(context, &state));
    const std::lock_guard<std::mutex> lock(state->mu);
    const Network& network = state->network;
    const NetworkStats& stats = network.stats();
    const std::vector<int64_t> rows = network.Rows();
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
    totals->vec<int64_t>()(3) = network.reuse() == Reuse::kContent;
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
      tables->matrix<int64_t>()(i, 1) = network.max_rows()[i];
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
    Name("ReuseTF>RunnerStats").Device(tensorflow::DEVICE_CPU), RunnerStatsOp);

}  // namespace
}  // namespace reuse_tf
