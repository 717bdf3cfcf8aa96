// Puts the incremental ops into graphs where they are run.
//
// In a graph, an incremental layer is a call of a function that computes the
// plain layer, and whose attribute `_implements` names the incremental op, the
// op's attributes, and the id of the layer's state. So a graph can be saved,
// frozen, exported, compiled by XLA and differentiated as that of any Keras
// layer. TensorFlow runs the pass below over each graph that it is about to
// execute itself, and nowhere else; there the op takes the place of the call.
//
// A call that the pass does not see is of a function that is executed on its
// own: then the op takes the place of the function's body.
//
// The pass also finds out whether any graph has Python compute, which may write
// into what a layer gave out: see PythonMayWrite.

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "custom_ops/ops/incremental_state.h"
#include "tensorflow/core/common_runtime/optimization_registry.h"
#include "tensorflow/core/framework/function.h"
#include "tensorflow/core/framework/node_def.pb.h"
#include "tensorflow/core/framework/node_def_util.h"
#include "tensorflow/core/graph/graph.h"
#include "tensorflow/core/platform/protobuf.h"

namespace reuse_tf {
namespace {

using tensorflow::Edge;
using tensorflow::FunctionDef;
using tensorflow::Graph;
using tensorflow::NameAttrList;
using tensorflow::Node;
using tensorflow::NodeDef;

constexpr char kPrefix[] = "reuse_tf: ";  // of what `_implements` says
constexpr char kState[] = "state_id";

// The op that computes what a function does, and its attributes.
std::optional<NameAttrList> Implements(const FunctionDef* function) {
  if (function == nullptr) return std::nullopt;
  const auto found = function->attr().find("_implements");
  if (found == function->attr().end()) return std::nullopt;
  const std::string& text = found->second.s();
  NameAttrList op;
  if (text.rfind(kPrefix, 0) != 0 ||
      !tensorflow::protobuf::TextFormat::ParseFromString(
          text.substr(sizeof kPrefix - 1), &op) ||
      op.attr().count(kState) == 0) {
    return std::nullopt;
  }
  return op;
}

using Output = std::pair<Node*, int>;

// Whether a node has Python compute with NumPy arrays of a layer's type.
// TensorFlow lets it write into those that it is given.
template <typename AnyNode>
bool IsPython(const std::string& op, const AnyNode& node) {
  if (op != "PyFunc" && op != "PyFuncStateless") return false;
  std::vector<tensorflow::DataType> types;
  return !GetNodeAttr(node, "Tin", &types).ok() ||
         std::count(types.begin(), types.end(), tensorflow::DT_FLOAT) > 0;
}

bool CallsPython(const tensorflow::GraphOptimizationPassOptions& options) {
  for (const Node* node : (*options.graph)->op_nodes()) {
    if (IsPython(node->type_string(), node->attrs())) return true;
  }
  if (options.flib_def == nullptr) return false;
  for (const std::string& name : options.flib_def->ListFunctionNames()) {
    const FunctionDef* function = options.flib_def->Find(name);
    if (function == nullptr) continue;
    for (const NodeDef& node : function->node_def()) {
      if (IsPython(node.op(), node)) return true;
    }
  }
  return false;
}

// Adds the op, with the state that it works on, to run after the nodes
// `before`.
absl::Status AddOp(Graph* graph, const NameAttrList& implements,
                   const std::string& name, const std::string& device,
                   const std::vector<Output>& inputs,
                   const std::vector<Node*>& before, Node** op) {
  absl::Status status;
  NodeDef state_def;
  state_def.set_name(graph->NewName(name + "/state"));
  state_def.set_op("ReuseTF>StateById");
  state_def.set_device(device);
  (*state_def.mutable_attr())["id"] = implements.attr().at(kState);
  Node* const state = graph->AddNode(state_def, &status);
  TF_RETURN_IF_ERROR(status);
  NodeDef def;
  def.set_name(name);
  def.set_op("ReuseTF>" + implements.name());
  def.set_device(device);
  *def.mutable_attr() = implements.attr();
  def.mutable_attr()->erase(kState);
  *op = graph->AddNode(def, &status);
  TF_RETURN_IF_ERROR(status);
  // Within a loop or a branch, all that leads to a node must be within it.
  graph->AddControlEdge(inputs.front().first, state);
  graph->AddEdge(state, 0, *op, 0);
  for (size_t i = 0; i < inputs.size(); ++i) {
    graph->AddEdge(inputs[i].first, inputs[i].second, *op, i + 1);
  }
  for (Node* node : before) graph->AddControlEdge(node, *op);
  return absl::OkStatus();
}

absl::Status ReplaceCall(Graph* graph, const NameAttrList& implements,
                         Node* call) {
  std::vector<Output> inputs(call->num_inputs());
  std::vector<Node*> before, after;  // by control edges
  std::vector<std::pair<Node*, int>> users;
  for (const Edge* edge : call->in_edges()) {
    if (edge->IsControlEdge()) {
      before.push_back(edge->src());
    } else {
      inputs[edge->dst_input()] = {edge->src(), edge->src_output()};
    }
  }
  for (const Edge* edge : call->out_edges()) {
    if (edge->IsControlEdge()) {
      after.push_back(edge->dst());
    } else {
      users.emplace_back(edge->dst(), edge->dst_input());
    }
  }
  const std::string name = call->name();  // by which it may be fetched
  const std::string device = call->requested_device();
  graph->RemoveNode(call);
  Node* op = nullptr;
  TF_RETURN_IF_ERROR(
      AddOp(graph, implements, name, device, inputs, before, &op));
  for (Node* node : after) graph->AddControlEdge(op, node);
  for (const auto& [user, input] : users) graph->AddEdge(op, 0, user, input);
  return absl::OkStatus();
}

absl::Status ReplaceBody(Graph* graph, const NameAttrList& implements) {
  std::vector<Output> inputs;
  std::vector<Node*> body;
  Node* result = nullptr;
  for (Node* node : graph->op_nodes()) {
    if (node->IsArg()) {
      int index = 0;
      TF_RETURN_IF_ERROR(GetNodeAttr(node->attrs(), "index", &index));
      if (static_cast<size_t>(index) >= inputs.size()) {
        inputs.resize(index + 1, {nullptr, 0});
      }
      inputs[index].first = node;
    } else if (node->IsRetval()) {
      if (result != nullptr) return absl::OkStatus();  // not one of ours
      result = node;
    } else {
      body.push_back(node);
    }
  }
  if (result == nullptr || inputs.empty()) return absl::OkStatus();
  for (const Output& input : inputs) {
    if (input.first == nullptr) return absl::OkStatus();
  }
  for (Node* node : body) graph->RemoveNode(node);
  Node* op = nullptr;
  TF_RETURN_IF_ERROR(AddOp(graph, implements, graph->NewName("incremental"),
                           result->requested_device(), inputs, {}, &op));
  graph->AddEdge(op, 0, result, 0);
  // What nothing leads to is removed from a graph.
  for (Node* node : graph->op_nodes()) {
    if (node->in_edges().empty()) {
      graph->AddControlEdge(graph->source_node(), node);
    }
    if (node->out_edges().empty()) {
      graph->AddControlEdge(node, graph->sink_node());
    }
  }
  return absl::OkStatus();
}

class IncrementalPass : public tensorflow::GraphOptimizationPass {
 public:
  absl::Status Run(
      const tensorflow::GraphOptimizationPassOptions& options) override {
    if (options.graph == nullptr) return absl::OkStatus();
    Graph* const graph = options.graph->get();
    if (!PythonMayWrite() && CallsPython(options)) PythonMayWrite() = true;
    if (options.is_function_graph) {
      if (const auto op = Implements(options.function_def)) {
        return ReplaceBody(graph, *op);
      }
    }
    std::vector<std::pair<Node*, NameAttrList>> calls;
    for (Node* node : graph->op_nodes()) {
      if (!node->IsPartitionedCall() || node->num_inputs() == 0) continue;
      const tensorflow::AttrValue* function = node->attrs().Find("f");
      if (function == nullptr) continue;
      // Nodes may bring a library of their own.
      const FunctionDef* def =
          options.flib_def == nullptr
              ? nullptr
              : options.flib_def->Find(function->func().name());
      if (def == nullptr) def = graph->flib_def().Find(function->func().name());
      if (const auto op = Implements(def)) calls.push_back({node, *op});
    }
    for (const auto& [call, op] : calls) {
      TF_RETURN_IF_ERROR(ReplaceCall(graph, op, call));
    }
    return absl::OkStatus();
  }
};

// Keeps the calls apart until the pass above has seen them. Said in the graph
// itself, it would hinder whoever else takes the graph: TensorFlow Lite, say.
class KeepCallsPass : public tensorflow::GraphOptimizationPass {
 public:
  absl::Status Run(
      const tensorflow::GraphOptimizationPassOptions& options) override {
    if (options.flib_def == nullptr) return absl::OkStatus();
    for (const std::string& name : options.flib_def->ListFunctionNames()) {
      const FunctionDef* function = options.flib_def->Find(name);
      if (!Implements(function)) continue;
      FunctionDef kept = *function;
      (*kept.mutable_attr())["_noinline"].set_b(true);
      TF_RETURN_IF_ERROR(options.flib_def->ReplaceFunction(name, kept));
    }
    return absl::OkStatus();
  }
};

// Before and behind TensorFlow's inlining of functions, which has phase 10.
REGISTER_OPTIMIZATION(tensorflow::OptimizationPassRegistry::PRE_PLACEMENT, 5,
                      KeepCallsPass);
REGISTER_OPTIMIZATION(tensorflow::OptimizationPassRegistry::PRE_PLACEMENT, 50,
                      IncrementalPass);

}  // namespace
}  // namespace reuse_tf
