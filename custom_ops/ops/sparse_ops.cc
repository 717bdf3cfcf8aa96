// SparseGather, SparseScatter and ChangedPositions: the stateless parts of an
// incremental layer, as ops of their own.

#include "custom_ops/kernels/arithmetic/rows.h"
#include "custom_ops/kernels/patches/changed.h"
#include "custom_ops/ops/common.h"
#include "tensorflow/core/framework/op.h"

namespace reuse_tf {
namespace {

REGISTER_OP("ReuseTF>SparseGather")
    .Attr("T: {float, double, half, bfloat16, uint8, int32}")
    .Attr("Tids: {int32, int64} = DT_INT32")
    .Input("rows: T")
    .Input("patches: Tids")
    .Output("gathered: T")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle rows, patches;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &rows));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &patches));
      DimensionHandle width;
      TF_RETURN_IF_ERROR(
          c->Multiply(c->Dim(rows, 1), c->Dim(patches, 1), &width));
      c->set_output(0, c->Matrix(c->Dim(patches, 0), width));
      return absl::OkStatus();
    })
    .Doc(R"doc(
Gathers the rows that make up each patch.

rows: Activation table, [U, C].
patches: Row ids, [M, k], each in [-1, U); -1 stands for a row of zeros.
gathered: [M, k * C]: gathered[m, j * C + c] = rows[patches[m, j], c].
)doc");

REGISTER_OP("ReuseTF>SparseGatherGrad")
    .Attr("T: {float, double, half, bfloat16, int32}")
    .Attr("Tids: {int32, int64} = DT_INT32")
    .Input("gradient: T")
    .Input("patches: Tids")
    .Input("num_rows: int64")
    .Output("rows_gradient: T")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle gradient, patches, scalar;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &gradient));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &patches));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 0, &scalar));
      DimensionHandle rows, taps = c->Dim(patches, 1), channels;
      TF_RETURN_IF_ERROR(c->MakeDimForScalarInput(2, &rows));
      if (c->ValueKnown(taps) && c->Value(taps) > 0) {
        TF_RETURN_IF_ERROR(
            c->Divide(c->Dim(gradient, 1), taps, true, &channels));
      } else {
        channels = c->UnknownDim();
      }
      c->set_output(0, c->Matrix(rows, channels));
      return absl::OkStatus();
    })
    .Doc(R"doc(
The transpose of SparseGather: adds each part of a patch to the row it came
from.

gradient: [M, k * C].
patches: Row ids, [M, k], each in [-1, num_rows); what belongs to -1 is dropped.
num_rows: U, a scalar.
rows_gradient: [U, C].
)doc");

REGISTER_OP("ReuseTF>SparseScatter")
    .Attr("T: {float, double, half, bfloat16, uint8, int32}")
    .Attr("Tids: {int32, int64} = DT_INT32")
    .Input("table: T")
    .Input("ids: Tids")
    .Input("rows: T")
    .Output("updated: T")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle table, ids, rows;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &table));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &ids));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 2, &rows));
      DimensionHandle channels, count;
      TF_RETURN_IF_ERROR(
          c->Merge(c->Dim(table, 1), c->Dim(rows, 1), &channels));
      TF_RETURN_IF_ERROR(c->Merge(c->Dim(ids, 0), c->Dim(rows, 0), &count));
      c->set_output(0, c->Matrix(c->Dim(table, 0), channels));
      return absl::OkStatus();
    })
    .Doc(R"doc(
Replaces rows of a table: in place when nobody else holds the table, in a copy
otherwise.

table: [U, C].
ids: The rows to replace, [M], each in [0, U). Of equal ids the last one holds.
rows: [M, C].
updated: [U, C].
)doc");

REGISTER_OP("ReuseTF>ChangedPositions")
    .Attr("T: {float, uint8}")
    .Attr("kernel_size: list(int) >= 2")
    .Attr("strides: list(int) >= 2")
    .Attr("dilations: list(int) >= 2")
    .Attr("padding: {'SAME', 'VALID'}")
    .Attr("threshold: float = 0.0")
    .Input("inputs: T")
    .Input("seen: T")
    .Output("positions: int32")
    .Output("seen_now: T")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle inputs, seen;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &inputs));
      TF_RETURN_IF_ERROR(c->Merge(inputs, c->input(1), &seen));
      c->set_output(0, c->Vector(c->UnknownDim()));
      c->set_output(1, seen);
      return absl::OkStatus();
    })
    .Doc(R"doc(
Finds the output positions of a window whose patch is no longer what was seen.

A pixel has changed if any of its values differs from the one seen: in its bits
if threshold is 0, by more than threshold otherwise (a NaN always does). Only
changed pixels are updated in what is remembered, so that it stays within the
threshold of the input however slowly the input drifts.

inputs: [N, H, W, C].
seen: What was last seen, of the same shape.
positions: The changed positions in ascending order, [M], numbered through the
  batch: (n * output height + y) * output width + x.
seen_now: What to remember: seen, with the changed pixels replaced.
)doc");

template <typename T>
class SparseGatherOp : public GuardedOp {
 public:
  using GuardedOp::GuardedOp;
  void DoCompute(OpKernelContext* context) override {
    const Tensor& rows = context->input(0);
    const Tensor& patches = context->input(1);
    OP_REQUIRES_OK(context, CheckRank("rows", rows, 2, "[U, C]"));
    OP_REQUIRES_OK(context, CheckRank("patches", patches, 2, "[M, k]"));
    Tensor narrow;
    OP_REQUIRES_OK(context, ReadIds(context, "patches", patches, -1,
                                    rows.dim_size(0), &narrow));
    const int64_t channels = rows.dim_size(1);
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context,
                   AllocateOutput(context, 0,
                                  {patches.dim_size(0),
                                   Product({patches.dim_size(1), channels})},
                                  &out));
    if (out->NumElements() == 0) return;
    const T* from = rows.flat<T>().data();
    const int32_t* ids = narrow.flat<int32_t>().data();
    T* to = out->flat<T>().data();
    OpThreads(context)(patches.NumElements(), 4 + channels * sizeof(T) / 8,
                       [=](int64_t begin, int64_t end) {
                         GatherRows(from, channels, channels, ids + begin,
                                    end - begin, to + begin * channels);
                       });
  }
};

template <typename T>
class SparseGatherGradOp : public GuardedOp {
 public:
  using GuardedOp::GuardedOp;
  void DoCompute(OpKernelContext* context) override {
    const Tensor& gradient = context->input(0);
    const Tensor& patches = context->input(1);
    const Tensor& num_rows = context->input(2);
    OP_REQUIRES_OK(context, CheckRank("gradient", gradient, 2, "[M, k * C]"));
    OP_REQUIRES_OK(context, CheckRank("patches", patches, 2, "[M, k]"));
    OP_REQUIRES_OK(context, CheckRank("num_rows", num_rows, 0, "[]"));
    const int64_t taps = patches.dim_size(1);
    const int64_t rows = num_rows.scalar<int64_t>()();
    OP_REQUIRES(context, rows >= 0,
                absl::InvalidArgumentError(
                    absl::StrCat("num_rows must not be negative, got ", rows)));
    OP_REQUIRES(context,
                gradient.dim_size(0) == patches.dim_size(0) &&
                    (taps == 0 ? gradient.dim_size(1) == 0
                               : gradient.dim_size(1) % taps == 0),
                absl::InvalidArgumentError(absl::StrCat(
                    "gradient must be [M, k * C] for patches [M, k], got ",
                    gradient.shape().DebugString(), " for ",
                    patches.shape().DebugString())));
    Tensor narrow;
    OP_REQUIRES_OK(context,
                   ReadIds(context, "patches", patches, -1, rows, &narrow));
    const int64_t channels = taps == 0 ? 0 : gradient.dim_size(1) / taps;
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context, AllocateOutput(context, 0, {rows, channels}, &out));
    auto sums = out->flat<T>();
    sums.setZero();
    if (out->NumElements() == 0) return;
    // On one thread: threads would have to share rows, and the order of
    // additions, so the last bits, would depend on them.
    ScatterAddRows(gradient.flat<T>().data(), channels,
                   narrow.flat<int32_t>().data(), patches.NumElements(),
                   sums.data());
  }
};

template <typename T>
class SparseScatterOp : public GuardedOp {
 public:
  using GuardedOp::GuardedOp;
  void DoCompute(OpKernelContext* context) override {
    const Tensor& table = context->input(0);
    const Tensor& ids = context->input(1);
    const Tensor& rows = context->input(2);
    OP_REQUIRES_OK(context, CheckRank("table", table, 2, "[U, C]"));
    OP_REQUIRES_OK(context, CheckRank("ids", ids, 1, "[M]"));
    OP_REQUIRES_OK(context, CheckRank("rows", rows, 2, "[M, C]"));
    OP_REQUIRES(
        context,
        rows.dim_size(0) == ids.dim_size(0) &&
            rows.dim_size(1) == table.dim_size(1),
        absl::InvalidArgumentError(absl::StrCat(
            "rows must be [M, C] for ids [M] and table [U, C], got ",
            rows.shape().DebugString(), " for ", ids.shape().DebugString(),
            " and ", table.shape().DebugString())));
    Tensor narrow;
    OP_REQUIRES_OK(context,
                   ReadIds(context, "ids", ids, 0, table.dim_size(0), &narrow));
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output(
                                {0}, 0, table.shape(), &out));
    if (out->NumElements() == 0) return;
    T* to = out->flat<T>().data();
    const T* from = table.flat<T>().data();
    if (to != from) {
      std::memcpy(static_cast<void*>(to), from,
                  table.NumElements() * sizeof(T));
    }
    ScatterRows(rows.flat<T>().data(), table.dim_size(1),
                narrow.flat<int32_t>().data(), ids.NumElements(), to);
  }
};

template <typename T>
class ChangedPositionsOp : public GuardedOp {
 public:
  explicit ChangedPositionsOp(OpKernelConstruction* context)
      : GuardedOp(context) {
    OP_REQUIRES_OK(context, attributes_.Read(context));
    OP_REQUIRES_OK(context, context->GetAttr("kernel_size", &kernel_size_));
    OP_REQUIRES_OK(context,
                   WindowAttributes::CheckPair("kernel_size", kernel_size_));
    OP_REQUIRES_OK(context, context->GetAttr("threshold", &threshold_));
    OP_REQUIRES(context, threshold_ >= 0,
                absl::InvalidArgumentError(absl::StrCat(
                    "threshold must not be negative, got ", threshold_)));
  }

  void DoCompute(OpKernelContext* context) override {
    const Tensor& inputs = context->input(0);
    OP_REQUIRES_OK(context, CheckRank("inputs", inputs, 4, "[N, H, W, C]"));
    OP_REQUIRES(context, context->input(1).shape() == inputs.shape(),
                absl::InvalidArgumentError(
                    absl::StrCat("seen must have the shape of inputs, ",
                                 inputs.shape().DebugString(), ", got ",
                                 context->input(1).shape().DebugString())));
    const int64_t images = inputs.dim_size(0), channels = inputs.dim_size(3);
    const Window window =
        attributes_.Over(inputs.dim_size(1), inputs.dim_size(2),
                         kernel_size_[0], kernel_size_[1]);
    OP_REQUIRES_OK(context, CheckCountable("the number of output positions",
                                           {images, window.positions()}));
    const T* before = context->input(1).flat<T>().data();
    Tensor* seen = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output(
                                {1}, 1, inputs.shape(), &seen));
    std::vector<int32_t> positions;
    if (inputs.NumElements() > 0) {
      T* now = seen->flat<T>().data();
      if (now != before) {
        std::memcpy(now, before, inputs.NumElements() * sizeof(T));
      }
      PixelMask mask;
      mask.Resize(images * window.height, window.width);
      UpdateSeen(inputs.flat<T>().data(), now, images * window.height,
                 window.width, channels, threshold_, OpThreads(context), &mask);
      ChangedPositions(window, images, mask, &positions);
    }
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context,
                   context->allocate_output(
                       0, {static_cast<int64_t>(positions.size())}, &out));
    std::copy(positions.begin(), positions.end(), out->flat<int32_t>().data());
  }

 private:
  WindowAttributes attributes_;
  std::vector<int32_t> kernel_size_;
  float threshold_ = 0;
};

#define REGISTER_KERNELS(name, op, type)                      \
  REGISTER_KERNEL_BUILDER(Name("ReuseTF>" name)               \
                              .Device(tensorflow::DEVICE_CPU) \
                              .TypeConstraint<type>("T"),     \
                          op<type>);
#define REGISTER_NUMBERS(type)                                   \
  REGISTER_KERNELS("SparseGather", SparseGatherOp, type)         \
  REGISTER_KERNELS("SparseGatherGrad", SparseGatherGradOp, type) \
  REGISTER_KERNELS("SparseScatter", SparseScatterOp, type)
REGISTER_NUMBERS(float)
REGISTER_NUMBERS(double)
REGISTER_NUMBERS(Eigen::half)
REGISTER_NUMBERS(Eigen::bfloat16)
REGISTER_NUMBERS(int32_t)
REGISTER_KERNELS("SparseGather", SparseGatherOp, uint8_t)
REGISTER_KERNELS("SparseScatter", SparseScatterOp, uint8_t)
REGISTER_KERNELS("ChangedPositions", ChangedPositionsOp, float)
REGISTER_KERNELS("ChangedPositions", ChangedPositionsOp, uint8_t)
#undef REGISTER_NUMBERS
#undef REGISTER_KERNELS

}  // namespace
}  // namespace reuse_tf
