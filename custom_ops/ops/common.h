// What the ops share: TensorFlow's threads for the kernels, and the checks.
#ifndef REUSE_TF_OPS_COMMON_H_
#define REUSE_TF_OPS_COMMON_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "custom_ops/kernels/base/float_mode.h"
#include "custom_ops/kernels/base/parallel.h"
#include "custom_ops/kernels/base/sizes.h"
#include "custom_ops/kernels/graph/structure.h"
#include "custom_ops/kernels/patches/window.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace reuse_tf {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::ResourceHandle;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::core::RefCountPtr;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// TensorFlow's own thread pool, as the kernels see it.
inline ParallelFor OpThreads(OpKernelContext* context) {
  auto* pool = context->device()->tensorflow_cpu_worker_threads()->workers;
  return [pool](int64_t total, int64_t cycles,
                const std::function<void(int64_t, int64_t)>& body) {
    // Waking a thread takes as long as a good part of a millisecond's work, and
    // what it does not find in its caches comes on top.
    constexpr double kWorthSharing = 1e6;  // cycles
    // Ranges for each thread, so that all end at about the same time.
    constexpr int64_t kRanges = 4;
    const int64_t threads = pool->NumThreads();
    const double work = static_cast<double>(total) * cycles;
    if (total <= 1 || threads <= 1 || work < kWorthSharing) {
      Serial(total, cycles, body);
      return;
    }
    const int64_t ranges = std::min(total, threads * kRanges);
    ShareWork(
        total, ranges, std::min(threads, ranges) - 1,
        [pool](std::function<void()> work) { pool->Schedule(std::move(work)); },
        body);
  };
}

// An op that nothing is thrown out of: TensorFlow does not expect it, and the
// process would end. What an op keeps from call to call has to be right, or
// marked as unknown, wherever an allocation fails.
class GuardedOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) final {
    const FlushDenormals flush;
    try {
      DoCompute(context);
      return;
    } catch (const std::bad_alloc&) {
    } catch (const std::length_error&) {  // more than a vector can hold
    }
    try {
      context->CtxFailure(NoMemory(context));
    } catch (const std::bad_alloc&) {  // not even for the message
      context->CtxFailure(
          absl::Status(absl::StatusCode::kResourceExhausted, ""));
    }
  }

 protected:
  virtual void DoCompute(OpKernelContext* context) = 0;

 private:
  absl::Status NoMemory(OpKernelContext* context) {
    std::string inputs;
    for (int i = 0; i < context->num_inputs(); ++i) {
      const auto type = context->input_dtype(i);
      if (type == tensorflow::DT_RESOURCE) continue;
      absl::StrAppend(&inputs, inputs.empty() ? " of " : ", ",
                      tensorflow::DataTypeString(type), " ",
                      context->input(i).shape().DebugString());
    }
    return absl::ResourceExhaustedError(absl::StrCat(
        "no memory for ", type_string(), inputs,
        ". What was half done is forgotten; the next call starts afresh."));
  }
};

// The state that an op is given as its first input.
template <typename State>
absl::Status GetState(OpKernelContext* context, RefCountPtr<State>* state) {
  return tensorflow::LookupResource(
      context, tensorflow::HandleFromInput(context, 0), state);
}

// Ids are int32: what they number, the product of `sizes`, must be countable by
// one.
inline absl::Status CheckCountable(const char* what,
                                   std::initializer_list<int64_t> sizes) {
  int64_t count = 0;
  const bool fits = Multiply(sizes, &count);
  if (count > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " must be at most 2^31 - 1, got ", count,
                     fits ? "" : " or more"));
  }
  return absl::OkStatus();
}

// Sizes of several inputs may make up a shape that none can have.
inline absl::Status AllocateOutput(OpKernelContext* context, int index,
                                   std::initializer_list<int64_t> sizes,
                                   Tensor** output) {
  TensorShape shape;
  TF_RETURN_IF_ERROR(TensorShape::BuildTensorShape(sizes, &shape));
  return context->allocate_output(index, shape, output);
}

inline bool IsMatrix(const Tensor& tensor, int64_t rows, int64_t columns) {
  return tensor.dims() == 2 && tensor.dim_size(0) == rows &&
         tensor.dim_size(1) == columns;
}

inline absl::Status CheckRank(const char* name, const Tensor& t, int rank,
                              const char* layout) {
  if (t.dims() != rank) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " must have rank ", rank, " ", layout,
                     ", got shape ", t.shape().DebugString()));
  }
  return absl::OkStatus();
}

// Checks that `lowest` <= ids < count, for ids of type Id.
template <typename Id>
absl::Status CheckIdsOf(const char* name, const Tensor& ids, int32_t lowest,
                        int64_t count) {
  const auto flat = ids.flat<Id>();
  int64_t bad = -1;
  for (int64_t i = 0; i < flat.size(); ++i) {
    if (flat(i) < lowest || flat(i) >= count) bad = i;
  }
  if (bad >= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " must lie in [", lowest, ", ", count, "), got ",
                     flat(bad), " at flat index ", bad));
  }
  return absl::OkStatus();
}

inline absl::Status CheckIds(const char* name, const Tensor& ids,
                             int32_t lowest, int64_t count) {
  return CheckIdsOf<int32_t>(name, ids, lowest, count);
}

// The same for ids that may be int64. Sets *narrow to them as int32.
inline absl::Status ReadIds(OpKernelContext* context, const char* name,
                            const Tensor& ids, int32_t lowest, int64_t count,
                            Tensor* narrow) {
  if (ids.dtype() == tensorflow::DT_INT32) {
    *narrow = ids;
    return CheckIds(name, ids, lowest, count);
  }
  TF_RETURN_IF_ERROR(CheckIdsOf<int64_t>(
      name, ids, lowest,
      std::min<int64_t>(count, std::numeric_limits<int32_t>::max())));
  TF_RETURN_IF_ERROR(
      context->allocate_temp(tensorflow::DT_INT32, ids.shape(), narrow));
  const auto from = ids.flat<int64_t>();
  auto to = narrow->flat<int32_t>();
  for (int64_t i = 0; i < from.size(); ++i) {
    to(i) = static_cast<int32_t>(from(i));
  }
  return absl::OkStatus();
}

// Checks that frames are [*, height, width, channels] of the type and shape
// that a program says; `batch` names the first dimension.
inline absl::Status CheckFrames(const Tensor& frames, const FrameShape& shape,
                                const char* batch) {
  const bool bytes = frames.dtype() == tensorflow::DT_UINT8;
  if (frames.dims() == 4 && frames.dim_size(1) == shape.height &&
      frames.dim_size(2) == shape.width &&
      frames.dim_size(3) == shape.channels && shape.bytes == bytes) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "frames must be ", shape.bytes ? "uint8" : "float32", " [", batch, ", ",
      shape.height, ", ", shape.width, ", ", shape.channels, "], got ",
      tensorflow::DataTypeString(frames.dtype()), " ",
      frames.shape().DebugString()));
}

// The attributes `strides`, `dilations` and `padding` of a window.
struct WindowAttributes {
  std::vector<int32_t> strides, dilations;
  bool same = false;

  template <typename Source>  // OpKernelConstruction or InferenceContext
  absl::Status Read(Source* source) {
    std::string padding;
    TF_RETURN_IF_ERROR(source->GetAttr("strides", &strides));
    TF_RETURN_IF_ERROR(source->GetAttr("dilations", &dilations));
    TF_RETURN_IF_ERROR(source->GetAttr("padding", &padding));
    same = padding == "SAME";
    TF_RETURN_IF_ERROR(CheckPair("strides", strides));
    return CheckPair("dilations", dilations);
  }

  static absl::Status CheckPair(const char* name,
                                const std::vector<int32_t>& pair) {
    if (pair.size() != 2 || pair[0] < 1 || pair[1] < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " must be two positive integers, got [",
                       pair.empty() ? "" : absl::StrCat(pair[0]),
                       pair.size() < 2 ? "" : absl::StrCat(", ", pair[1]),
                       pair.size() > 2 ? ", ..." : "", "]"));
    }
    return absl::OkStatus();
  }

  Window Over(int64_t height, int64_t width, int64_t kernel_height,
              int64_t kernel_width) const {
    Window window;
    window.height = height;
    window.width = width;
    window.kernel_height = kernel_height;
    window.kernel_width = kernel_width;
    window.stride_height = strides[0];
    window.stride_width = strides[1];
    window.dilation_height = dilations[0];
    window.dilation_width = dilations[1];
    Pad(same, &window);
    return window;
  }
};

}  // namespace reuse_tf

#endif  // REUSE_TF_OPS_COMMON_H_
