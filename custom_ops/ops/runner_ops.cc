// The runner: a whole network as one op.

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>

#include "custom_ops/kernels/graph/network.h"
#include "custom_ops/ops/common.h"
#include "custom_ops/ops/held_weight.h"
#include "custom_ops/ops/node_list.h"
#include "custom_ops/ops/structure_outputs.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/resource_mgr.h"

namespace reuse_tf {
namespace {

using tensorflow::Var;

REGISTER_OP("ReuseTF>RunnerState")
    .Attr("nodes: list(string)")
    .Attr("reuse: {'auto', 'content', 'temporal'}")
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

nodes: The network, line by line (node_list.h).
max_rows: The most rows that each table holds; 0 for about 400 MB in all.
weights: The variables, in the order in which the nodes mention them.
address: For reuse_tf_runner_step.
)doc");

REGISTER_OP("ReuseTF>RunnerStep")
    .Attr("T: {float, uint8}")
    .Attr("num_outputs: int >= 1 = 1")
    .Input("state: resource")
    .Input("frames: T")
    .Output("outputs: num_outputs * float")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle scalar, frames;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 0, &scalar));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &frames));
      for (int i = 0; i < c->num_outputs(); ++i) {
        c->set_output(i, c->MakeShape({c->Dim(frames, 0), c->UnknownDim(),
                                       c->UnknownDim(), c->UnknownDim()}));
      }
      return absl::OkStatus();
    })
    .Doc(R"doc(
The network's outputs for one more frame of each stream.

state: Of RunnerState.
frames: [N, H, W, C], of the shape and type that the nodes say.
outputs: Of each output node [N, height, width, channels].
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
    .Attr("num_patches: int >= 0")
    .Attr("num_shown: int >= 1")
    .Attr("num_states: int >= 0")
    .Input("state: resource")
    .Output("pixels: float")
    .Output("order: int32")
    .Output("patches: num_patches * int32")
    .Output("pairs: num_shown * int32")
    .Output("contents: num_shown * int32")
    .Output("runs: num_shown * int32")
    .Output("states: num_states * int32")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle scalar;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 0, &scalar));
      return SetStructureShapes(c, c->UnknownDim());
    })
    .Doc(R"doc(
Ends a recording, and gives the memory of the tables back: what VideoStructure
would say of the streams, one after the other. `order` has the frames in the
order of the steps, and in a step in that of the streams. All is empty if there
is nothing, if the tables were cleared while it was under way, or if a map is
never of content reuse.
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
      c->set_output(0, c->Vector(5));
      c->set_output(1, c->Vector(3));
      c->set_output(2, c->Matrix(c->UnknownDim(), 6));
      c->set_output(3, c->Matrix(c->UnknownDim(), 2));
      return absl::OkStatus();
    })
    .Doc(R"doc(
What the network has counted since it was made or reset.

totals: frames, clears of the tables, switches between the kinds of reuse, and
  how many map nodes are of content reuse and of temporal reuse at present.
seconds: Spent on structure, on rows, and on nodes of a whole map.
maps: For each node but frames and weights: positions, changed positions, new
  rows, multiply-adds, those of a dense network, and 1 if its rows are those of
  content reuse, else 0.
rows: For the frames and each map node: rows in use, and their bound.
)doc");

class RunnerState : public tensorflow::ResourceBase {
 public:
  RunnerState(const Graph& graph, const Network::Options& options,
              std::vector<RefCountPtr<Var>> variables, ParallelFor threads)
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

  const Graph graph_;
  const std::vector<int64_t> weight_sizes_;
  const std::vector<RefCountPtr<Var>> variables_;
  const ParallelFor threads_;

  std::mutex mu_;
  Network network_;
  bool known_ = false;  // whether the network has the weights that are held
  std::vector<HeldWeight> weights_;
  std::vector<const float*> pointers_;   // to the held weights
  const float* last_outputs_ = nullptr;  // where the last step wrote
};

class RunnerStateOp : public GuardedOp {
 public:
  explicit RunnerStateOp(OpKernelConstruction* context) : GuardedOp(context) {
    std::vector<std::string> nodes;
    std::string reuse;
    OP_REQUIRES_OK(context, context->GetAttr("nodes", &nodes));
    OP_REQUIRES_OK(context, context->GetAttr("reuse", &reuse));
    OP_REQUIRES_OK(context, context->GetAttr("max_rows", &options_.max_rows));
    OP_REQUIRES_OK(context, CheckCountable("max_rows", {options_.max_rows}));
    OP_REQUIRES_OK(context, ParseNodeList(nodes, &graph_));
    options_.reuse = reuse == "auto"      ? Network::Choice::kAuto
                     : reuse == "content" ? Network::Choice::kContent
                                          : Network::Choice::kTemporal;
  }

  void DoCompute(OpKernelContext* context) override {
    Tensor *handle = nullptr, *address = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, {}, &handle));
    OP_REQUIRES_OK(context, context->allocate_output(1, {}, &address));
    const size_t count = graph_.WeightSizes().size();
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
    auto* state = new RunnerState(graph_, options_, std::move(variables),
                                  OpThreads(context));
    handle->scalar<ResourceHandle>()() =
        ResourceHandle::MakeRefCountingHandle(state, context->device()->name());
    address->scalar<int64_t>()() = reinterpret_cast<intptr_t>(state);
  }

 private:
  Graph graph_;
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
    const Graph& graph = state->graph();
    OP_REQUIRES_OK(context, CheckFrames(frames, graph.frame, "N"));
    OP_REQUIRES(
        context,
        context->num_outputs() == static_cast<int>(graph.outputs.size()),
        absl::InvalidArgumentError(absl::StrCat(
            "num_outputs must be that of the nodes, ", graph.outputs.size(),
            ", got ", context->num_outputs())));
    const int64_t streams = frames.dim_size(0);
    std::vector<float*> outputs;
    for (const int32_t i : graph.outputs) {
      const Node& node = graph.nodes[i];
      Tensor* output = nullptr;
      OP_REQUIRES_OK(
          context,
          AllocateOutput(context, static_cast<int>(outputs.size()),
                         {streams, node.height, node.width, node.channels},
                         &output));
      outputs.push_back(output->flat<float>().data());
    }
    if (streams == 0) return;
    OP_REQUIRES_OK(context, state->Step(frames.flat<T>().data(), streams,
                                        outputs.data(), false));
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
    OP_REQUIRES_OK(context, counts_.Read(context));
  }

  void DoCompute(OpKernelContext* context) override {
    RefCountPtr<RunnerState> state;
    OP_REQUIRES_OK(context, GetState(context, &state));
    OP_REQUIRES_OK(context, counts_.CheckAre(StructureCounts(state->graph())));
    state->WithNetwork([&](Network& network) {
      // Where there are states, there are maps that are never recorded.
      std::vector<EpisodeRecorder> recorders = network.TakeRecording();
      OutputStructure(context, network.structure(), &recorders, {});
    });
    state->Release();
  }

 private:
  StructureCounts counts_;
};

class RunnerStatsOp : public GuardedOp {
 public:
  using GuardedOp::GuardedOp;
  void DoCompute(OpKernelContext* context) override {
    RefCountPtr<RunnerState> state;
    OP_REQUIRES_OK(context, GetState(context, &state));
    const Graph& graph = state->graph();
    NetworkStats stats;
    std::vector<int64_t> rows, max_rows;
    std::vector<bool> content;
    state->WithNetwork([&](const Network& network) {
      stats = network.stats();
      rows = network.Rows();
      max_rows = network.max_rows();
      for (size_t i = 0; i < graph.nodes.size(); ++i) {
        content.push_back(network.reuse(i) == Reuse::kContent);
      }
    });
    std::vector<int64_t> lines, tables;
    int64_t of_content = 0, of_temporal = 0;
    for (size_t i = 0; i < graph.nodes.size(); ++i) {
      const Node& node = graph.nodes[i];
      if (node.kind == Node::kWeights) continue;
      if (node.kind == Node::kFrames || node.has_patches()) {
        tables.insert(tables.end(), {rows[i], max_rows[i]});
        // The frames count where nothing else does.
        if (node.kind != Node::kFrames || StructureCounts(graph).patches == 0) {
          (content[i] ? of_content : of_temporal) += 1;
        }
      }
      if (node.kind == Node::kFrames) continue;
      const NetworkStats::Map& map = stats.maps[i];
      lines.insert(lines.end(),
                   {map.positions, map.changed, map.new_rows, map.multiply_adds,
                    map.dense_multiply_adds, content[i]});
    }
    Output<int64_t>(
        context, 0, {5},
        {stats.frames, stats.clears, stats.switches, of_content, of_temporal});
    Output<double>(
        context, 1, {3},
        {stats.structure_seconds, stats.rows_seconds, stats.dense_seconds});
    Output(context, 2, {static_cast<int64_t>(lines.size()) / 6, 6}, lines);
    Output(context, 3, {static_cast<int64_t>(tables.size()) / 2, 2}, tables);
  }

 private:
  template <typename T>
  static void Output(OpKernelContext* context, int index,
                     const TensorShape& shape, const std::vector<T>& values) {
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(index, shape, &out));
    std::copy(values.begin(), values.end(), out->flat<T>().data());
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
// the usual frame. `address` is that of a living RunnerState; frames, outputs
// and `kept` are as in Network::Step. RunnerStep is to be called, for its
// error, when this returns false. Nothing is thrown out of it.
extern "C" __attribute__((visibility("default"))) bool reuse_tf_runner_step(
    int64_t address, const void* frames, int64_t streams, float* const* outputs,
    bool kept) {
  auto* state = reinterpret_cast<RunnerState*>(address);
  try {
    return state->Step(frames, streams, outputs, kept).ok();
  } catch (...) {
    return false;
  }
}

}  // namespace reuse_tf
