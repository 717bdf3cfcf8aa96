// The differentiable path: the structure of a video, and the arithmetic over
// its distinct rows, each with its gradient as an op of its own. Their kernels
// are in episode_kernels.cc.

#include "custom_ops/ops/common.h"
#include "custom_ops/ops/structure_outputs.h"
#include "tensorflow/core/framework/op.h"

namespace reuse_tf {
namespace {

// A shape function whose outputs have the shapes of inputs.
template <int... kInputs>
absl::Status ShapesOf(InferenceContext* c) {
  int i = 0;
  for (const int input : {kInputs...}) c->set_output(i++, c->input(input));
  return absl::OkStatus();
}

REGISTER_OP("ReuseTF>VideoStructure")
    .Attr("nodes: list(string)")
    .Attr("num_patches: int >= 0")
    .Attr("num_shown: int >= 1")
    .Attr("num_states: int >= 0")
    .Attr("T: {float, uint8}")
    .Input("frames: T")
    .Output("pixels: float")
    .Output("order: int32")
    .Output("patches: num_patches * int32")
    .Output("pairs: num_shown * int32")
    .Output("contents: num_shown * int32")
    .Output("runs: num_shown * int32")
    .Output("states: num_states * int32")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle frames;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &frames));
      return SetStructureShapes(c, c->Dim(frames, 3));
    })
    .Doc(R"doc(
Finds what is distinct in a video, at every layer of a network.

nodes: The network, line by line (node_list.h).
frames: [T, H, W, C].
pixels: The distinct pixels, [U, C].
order: By frame, its number in `runs`: [T], from 0 on.
patches: For each window and join whose rows are not one a frame, in the order
  of the nodes, the distinct patches, as ids of the rows before, [M, taps]; -1
  is padding.
pairs: For each shown map, that is one that an output is or that a dense layer,
  a global pooling, a reshaping or a group normalization looks at, the distinct
  (position, row) pairs, ordered by position, [D, 2].
contents: Of these, what a tile of positions shows, as pairs; -1 where it
  reaches beyond the map, [E, 16].
runs: Of these, that a tile shows a content: tile, content, first frame, last
  frame + 1, [K, 4].
states: For each node of a value a frame that windows or joins of other kinds
  look at: by frame, the last one, itself or before, that changed what the node
  is made of, [T]. Row position + state * positions is the node's.
)doc");

REGISTER_OP("ReuseTF>TakeFrames")
    .Attr("nodes: list(string)")
    .Attr("num_patches: int >= 0")
    .Attr("num_shown: int >= 1")
    .Attr("num_states: int >= 0")
    .Attr("Tids: {int32, int64} = DT_INT32")
    .Input("frames: Tids")
    .Input("pixels: float")
    .Input("order: int32")
    .Input("patches: num_patches * int32")
    .Input("pairs: num_shown * int32")
    .Input("contents: num_shown * int32")
    .Input("runs: num_shown * int32")
    .Input("states: num_states * int32")
    .Output("taken_pixels: float")
    .Output("taken_order: int32")
    .Output("taken_patches: num_patches * int32")
    .Output("taken_pairs: num_shown * int32")
    .Output("taken_contents: num_shown * int32")
    .Output("taken_runs: num_shown * int32")
    .Output("taken_states: num_states * int32")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle frames, pixels;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 1, &frames));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &pixels));
      return SetStructureShapes(c, c->Dim(pixels, 1));
    })
    .Doc(R"doc(
The structure of some frames of a video, out of that of all of them.

nodes: Those of VideoStructure, as the others from pixels on.
frames: The places in `order` of the frames wanted, [F], in any order, and as
  often as wanted.
taken_pixels: From here on as of VideoStructure, for these frames: what none of
  them shows is left out.
)doc");

REGISTER_OP("ReuseTF>FrameIds")
    .Attr("height: int >= 1")
    .Attr("width: int >= 1")
    .Input("pairs: int32")
    .Input("contents: int32")
    .Input("runs: int32")
    .Input("order: int32")
    .Output("ids: int32")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle order;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 1, &order));
      int64_t height = 0, width = 0;
      TF_RETURN_IF_ERROR(c->GetAttr("height", &height));
      TF_RETURN_IF_ERROR(c->GetAttr("width", &width));
      c->set_output(0, c->Matrix(c->Dim(order, 0), height * width));
      return absl::OkStatus();
    })
    .Doc(R"doc(
The row that each position of a shown map shows in each frame.

pairs, contents, runs, order: Of VideoStructure.
ids: [T, height * width], by frame in the order of `order`.
)doc");

REGISTER_OP("ReuseTF>PatchProduct")
    .Attr("groups: int >= 1 = 1")
    .Attr("relu: bool = false")
    .Attr("constant: bool = false")
    .Input("rows: float")
    .Input("patches: int32")
    .Input("kernel: float")
    .Input("bias: float")
    .Output("products: float")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle rows, patches, kernel, bias;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &rows));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &patches));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 4, &kernel));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 1, &bias));
      c->set_output(0, c->Matrix(c->Dim(patches, 0), c->Dim(kernel, 3)));
      return absl::OkStatus();
    })
    .Doc(R"doc(
A convolution over rows: sparse_gather(rows, patches) * kernel + bias, gathered
block by block.

rows: [U, C].
patches: [M, taps], each in [-1, U).
kernel: [kernel height, kernel width, C / groups, filters].
bias: [filters], or [0] for none.
relu: Whether negative results become 0.
constant: Whether nothing that is learned stands before `rows`: their gradient is
  not computed then, and taken for zeros.
products: [M, filters].
)doc");

REGISTER_OP("ReuseTF>PatchProductGrad")
    .Attr("groups: int >= 1 = 1")
    .Attr("relu: bool = false")
    .Attr("constant: bool = false")
    .Input("rows: float")
    .Input("patches: int32")
    .Input("kernel: float")
    .Input("products: float")
    .Input("gradient: float")
    .Output("rows_gradient: float")
    .Output("kernel_gradient: float")
    .Output("bias_gradient: float")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle products;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 2, &products));
      c->set_output(0, c->input(0));
      c->set_output(1, c->input(2));
      c->set_output(2, c->Vector(c->Dim(products, 1)));
      return absl::OkStatus();
    })
    .Doc(R"doc(
The gradients of PatchProduct for rows, kernel and bias.
)doc");

REGISTER_OP("ReuseTF>PatchPool")
    .Attr("kind: {'max', 'mean', 'sum'}")
    .Input("rows: float")
    .Input("patches: int32")
    .Output("pooled: float")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle rows, patches;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &rows));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &patches));
      c->set_output(0, c->Matrix(c->Dim(patches, 0), c->Dim(rows, 1)));
      return absl::OkStatus();
    })
    .Doc(R"doc(
A pooling over rows: the maximum, the mean or the sum of each patch, padding
left out.

rows: [U, C].
patches: [M, taps], each in [-1, U).
pooled: [M, C].
)doc");

REGISTER_OP("ReuseTF>PatchPoolGrad")
    .Attr("kind: {'max', 'mean', 'sum'}")
    .Input("rows: float")
    .Input("patches: int32")
    .Input("gradient: float")
    .Output("rows_gradient: float")
    .SetShapeFn(ShapesOf<0>)
    .Doc(R"doc(
The gradient of PatchPool. That of a maximum goes to the first row that has it.
)doc");

REGISTER_OP("ReuseTF>ContentProduct")
    .Input("rows: float")
    .Input("pairs: int32")
    .Input("contents: int32")
    .Input("weights: float")
    .Output("sums: float")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle rows, pairs, contents, weights;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &rows));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &pairs));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 2, &contents));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 3, &weights));
      c->set_output(0, c->Matrix(c->Dim(contents, 0), c->Dim(weights, 2)));
      return absl::OkStatus();
    })
    .Doc(R"doc(
Each content's part in a dense layer over a map: the sum over its pairs of
rows[row] * weights[position].

rows: [U, C].
pairs: (position, row), ordered by position, [D, 2].
contents: Pairs, or -1, [E, size].
weights: [positions, C, units].
sums: [E, units].
)doc");

REGISTER_OP("ReuseTF>ContentProductGrad")
    .Input("rows: float")
    .Input("pairs: int32")
    .Input("contents: int32")
    .Input("weights: float")
    .Input("gradient: float")
    .Output("rows_gradient: float")
    .Output("weights_gradient: float")
    .SetShapeFn(ShapesOf<0, 3>)
    .Doc(R"doc(
The gradients of ContentProduct for rows and weights.
)doc");

REGISTER_OP("ReuseTF>RunSum")
    .Input("values: float")
    .Input("runs: int32")
    .Input("order: int32")
    .Output("sums: float")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle values, order;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &values));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 1, &order));
      c->set_output(0, c->Matrix(c->Dim(order, 0), c->Dim(values, 1)));
      return absl::OkStatus();
    })
    .Doc(R"doc(
The sum, at each frame, of the values of the contents that the tiles show.

values: By content, [E, units].
runs: (tile, content, first frame, last frame + 1), [K, 4]; those of a tile do
  not overlap.
order: Of the structure, [T], for the number of frames: a number alone could ask
  for any amount of memory.
sums: [T, units], by the numbers that the runs give the frames.
)doc");

REGISTER_OP("ReuseTF>RunSumGrad")
    .Input("gradient: float")
    .Input("runs: int32")
    .Input("values: float")
    .Output("values_gradient: float")
    .SetShapeFn(ShapesOf<2>)
    .Doc(R"doc(
The gradient of RunSum: for each content the sum of the gradient over its runs.
)doc");

}  // namespace
}  // namespace reuse_tf
