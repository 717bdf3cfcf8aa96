// The runner: a whole network as one op. Its kernels are in runner_kernels.cc.

#include "custom_ops/ops/common.h"
#include "custom_ops/ops/structure_outputs.h"
#include "tensorflow/core/framework/op.h"

namespace reuse_tf {
namespace {

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
    .Attr("num_variables: int >= 0")
    .Input("state: resource")
    .Input("frames: T")
    .Input("variables: num_variables * resource")
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
variables: In a graph those of RunnerState, for it to keep the order of steps
  and assignments. Not looked at.
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

}  // namespace
}  // namespace reuse_tf
