#include "custom_ops/ops/program.h"

#include <initializer_list>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "custom_ops/kernels/sizes.h"

namespace reuse_tf {
namespace {

// The words of a line, taken one after the other.
class Line {
 public:
  explicit Line(const std::string& line)
      : words_(absl::StrSplit(line, ' ', absl::SkipEmpty())) {}

  std::string Word() {
    if (next_ == words_.size()) {
      good_ = false;
      return "";
    }
    return words_[next_++];
  }
  // A whole number in [lowest, 2^31).
  int64_t Number(int64_t lowest) {
    int64_t value = lowest;
    if (!absl::SimpleAtoi(Word(), &value) || value < lowest ||
        value > std::numeric_limits<int32_t>::max()) {
      good_ = false;
      return lowest;
    }
    return value;
  }
  bool Flag() { return Number(0) != 0; }
  float Float() { return ToFloat(Word()); }
  std::vector<float> Floats() {
    std::vector<float> values;
    for (absl::string_view value : absl::StrSplit(Word(), ',')) {
      values.push_back(ToFloat(value));
    }
    return values;
  }
  void Require(bool condition) { good_ = good_ && condition; }
  // The same for the product of `sizes`, unless something was wrong before.
  void RequireAtMost(int64_t limit, const char* what,
                     std::initializer_list<int64_t> sizes) {
    int64_t count = 0;
    const bool fits = Multiply(sizes, &count) && count <= limit;
    if (!fits && good_) {
      too_large_ = absl::StrCat(": ", what, " must be at most ", limit);
    }
    good_ = good_ && fits;
  }
  bool empty() const { return next_ == words_.size(); }
  bool good() const { return good_ && empty(); }
  bool good_so_far() const { return good_; }
  const std::string& too_large() const { return too_large_; }

 private:
  float ToFloat(absl::string_view word) {
    float value = 0;
    if (!absl::SimpleAtof(word, &value)) good_ = false;
    return value;
  }

  std::vector<std::string> words_;
  size_t next_ = 0;
  bool good_ = true;
  std::string too_large_;
};

// What a line may ask for: a few words must not take all memory before there is
// a frame or a weight of that size. A map's values are the most that a dense
// network would hold of it.
constexpr int64_t kMaxPixels = 1 << 26;
constexpr int64_t kMaxValues = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxWeights = int64_t{1} << 40;

class Parser {
 public:
  explicit Parser(NetworkSpec* spec) : spec_(spec) {}

  void Parse(const std::string& kind, Line* line) {
    if (kind == "frames") {
      line->Require(ops_ == nullptr);
      FrameShape& frame = spec_->frame;
      frame.height = line->Number(1);
      frame.width = line->Number(1);
      frame.channels = line->Number(1);
      line->RequireAtMost(kMaxPixels, "height * width",
                          {frame.height, frame.width});
      line->RequireAtMost(kMaxValues, "height * width * channels",
                          {frame.height, frame.width, frame.channels});
      const std::string type = line->Word();
      line->Require(type == "uint8" || type == "float");
      frame.bytes = type == "uint8";
      height_ = frame.height;
      width_ = frame.width;
      channels_ = frame.channels;
      ops_ = &spec_->pixel_ops;
      return;
    }
    line->Require(ops_ != nullptr);
    if (kind == "conv" || kind == "max_pool" || kind == "average_pool") {
      line->Require(!flat_);
      ParseStage(kind, line);
    } else if (kind == "flatten" || kind == "average") {
      line->Require(!flat_);
      flat_ = true;
      spec_->average = kind == "average";
      ops_ = &spec_->average_ops;
      after_flatten_ = !spec_->average;
      if (after_flatten_) channels_ *= height_ * width_;
    } else if (kind == "dense") {
      line->Require(flat_);
      spec_->dense.emplace_back();
      spec_->dense.back().units = line->Number(1);
      line->RequireAtMost(kMaxWeights, "inputs * units",
                          {channels_, spec_->dense.back().units});
      channels_ = spec_->dense.back().units;
      spec_->dense.back().use_bias = line->Flag();
      ops_ = &spec_->dense.back().ops;
      after_flatten_ = false;
    } else {
      line->Require(ops_ != nullptr && !after_flatten_);
      NetworkSpec::Op op;
      ParseOp(kind, line, &op);
      if (ops_ != nullptr) ops_->push_back(op);
    }
  }

  bool complete() const { return flat_ && !after_flatten_; }

 private:
  void ParseStage(const std::string& kind, Line* line) {
    spec_->stages.emplace_back();
    NetworkSpec::Stage& stage = spec_->stages.back();
    Window& window = stage.window;
    window.height = height_;
    window.width = width_;
    window.kernel_height = line->Number(1);
    window.kernel_width = line->Number(1);
    window.stride_height = line->Number(1);
    window.stride_width = line->Number(1);
    window.dilation_height = line->Number(1);
    window.dilation_width = line->Number(1);
    const std::string padding = line->Word();
    line->Require(padding == "SAME" || padding == "VALID");
    // Without a limit, a pooling of one pixel could be the work of any number.
    line->RequireAtMost(4096 + 16 * window.pixels(), "the window's taps",
                        {window.kernel_height, window.kernel_width});
    if (!line->good_so_far()) return;
    Pad(padding == "SAME", &window);
    line->Require(window.positions() > 0);
    line->RequireAtMost(kMaxValues, "taps * positions",
                        {window.taps(), window.positions()});
    height_ = window.out_height;
    width_ = window.out_width;
    stage.channels = stage.filters = channels_;
    if (kind == "conv") {
      stage.kind = NetworkSpec::Stage::kConv;
      stage.filters = line->Number(1);
      stage.groups = line->Number(1);
      stage.use_bias = line->Flag();
      line->Require(stage.channels % stage.groups == 0 &&
                    stage.filters % stage.groups == 0);
      line->RequireAtMost(kMaxValues, "positions * filters",
                          {window.positions(), stage.filters});
      line->RequireAtMost(kMaxWeights, "taps * channels * filters",
                          {window.taps(), stage.channels, stage.filters});
    } else {
      stage.kind = kind == "max_pool" ? NetworkSpec::Stage::kMaxPool
                                      : NetworkSpec::Stage::kAveragePool;
    }
    channels_ = stage.filters;
    ops_ = &stage.ops;
  }

  void ParseOp(const std::string& kind, Line* line, NetworkSpec::Op* op) {
    if (kind == "activation") {
      op->op.kind = RowOp::kActivation;
      const std::string name = line->Word();
      std::vector<float> arguments;
      while (!line->empty()) arguments.push_back(line->Float());
      line->Require(Activation::Make(name, arguments, &op->op.activation));
    } else if (kind == "affine") {
      op->op.kind = RowOp::kAffine;
      op->op.scale = line->Floats();
      op->op.offset = line->Floats();
      for (const auto* values : {&op->op.scale, &op->op.offset}) {
        const int64_t size = values->size();
        line->Require(size == 1 || size == channels_);
      }
    } else {
      line->Require(kind == "batch_norm");
      op->batch_norm = true;
      op->epsilon = line->Float();
      op->has_gamma = line->Flag();
      op->has_beta = line->Flag();
    }
  }

  NetworkSpec* spec_;
  std::vector<NetworkSpec::Op>* ops_ = nullptr;  // of the part read last
  int64_t height_ = 0, width_ = 0, channels_ = 0;
  bool flat_ = false, after_flatten_ = false;
};

}  // namespace

absl::Status ParseProgram(const std::vector<std::string>& program,
                          NetworkSpec* spec) {
  Parser parser(spec);
  for (const std::string& text : program) {
    Line line(text);
    const std::string kind = line.Word();
    parser.Parse(kind, &line);
    if (!line.good()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "program: cannot read \"", text, "\"", line.too_large()));
    }
  }
  if (!parser.complete()) {
    return absl::InvalidArgumentError(
        "program must end in average, or in flatten and at least one dense");
  }
  return absl::OkStatus();
}

}  // namespace reuse_tf
