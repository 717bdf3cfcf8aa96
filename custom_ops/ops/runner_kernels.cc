// What the ops of runner_ops.cc do.

#include <algorithm>
#include <utility>

#include "custom_ops/kernels/graph/network.h"
#include "custom_ops/ops/common.h"
#include "custom_ops/ops/node_list.h"
#include "custom_ops/ops/runner_state.h"
#include "custom_ops/ops/structure_outputs.h"
#include "tensorflow/core/framework/resource_mgr.h"

namespace reuse_tf {
namespace {

using tensorflow::Var;

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
    // Nothing leads from a handle to what it is of but an op's kernel: for the
    // function below, which is none, it is given out.
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
// and `kept` are as in Network::Step, but for a single output, which is given
// itself. RunnerStep is to be called, for its error, when this returns false.
// Nothing is thrown out of it.
extern "C" __attribute__((visibility("default"))) bool reuse_tf_runner_step(
    int64_t address, const void* frames, int64_t streams, void* outputs,
    bool kept) {
  auto* state = reinterpret_cast<RunnerState*>(address);
  auto* const single = static_cast<float*>(outputs);
  const bool several = state->graph().outputs.size() > 1;
  try {
    return state
        ->Step(frames, streams,
               several ? static_cast<float* const*>(outputs) : &single, kept)
        .ok();
  } catch (...) {
    return false;
  }
}

}  // namespace reuse_tf
