// The fused single-layer ops that the Keras layers call. Their kernels are in
// incremental_kernels.cc.

#include "custom_ops/ops/common.h"
#include "tensorflow/core/framework/op.h"

namespace reuse_tf {
namespace {

REGISTER_OP("ReuseTF>IncrementalState")
    .Input("id: int64")
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
activation: With activation_arguments, one of kernels/arithmetic/activations.h.
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
activation: With activation_arguments, one of kernels/arithmetic/activations.h.
outputs: [N, units].
)doc");

}  // namespace
}  // namespace reuse_tf
