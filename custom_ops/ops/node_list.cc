#include "custom_ops/ops/node_list.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "custom_ops/kernels/base/sizes.h"

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
  // Whole numbers of at most `limit` in size.
  std::vector<int64_t> Numbers(const std::string& words, int64_t limit) {
    std::vector<int64_t> values;
    for (absl::string_view word : absl::StrSplit(words, ',')) {
      values.push_back(0);
      if (!absl::SimpleAtoi(word, &values.back()) || values.back() > limit ||
          values.back() < -limit) {
        good_ = false;
      }
    }
    return values;
  }
  // One of some names.
  template <typename T>
  T Name(std::initializer_list<std::pair<const char*, T>> names) {
    const std::string word = Word();
    for (const auto& [name, value] : names) {
      if (word == name) return value;
    }
    good_ = false;
    return names.begin()->second;
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
  explicit Parser(Graph* graph) : graph_(graph) {}

  void Parse(const std::string& kind, Line* line) {
    if (kind == "output") {
      AddNode();
      const int64_t node = line->Number(0);
      line->Require(IsMap(node));
      if (line->good_so_far()) graph_->outputs.push_back(node);
      return;
    }
    line->Require(graph_->outputs.empty());
    if (ParseFunction(kind, line) || ParseThreshold(kind, line)) return;
    AddNode();
    node_ = Node();
    line->Require((kind == "frames") == graph_->nodes.empty());
    if (!line->good_so_far()) return;
    if (kind == "frames") {
      ParseFrames(line);
    } else if (kind == "weights") {
      node_.kind = Node::kWeights;
      ParseShape(line);
    } else {
      ParseNode(kind, line);
    }
    line->RequireAtMost(kMaxPixels, "height * width",
                        {node_.height, node_.width});
    line->RequireAtMost(kMaxValues, "height * width * channels",
                        {node_.height, node_.width, node_.channels});
    pending_ = line->good_so_far();
  }

  bool complete() const { return !graph_->outputs.empty(); }

 private:
  // What was read last, with its functions.
  void AddNode() {
    if (pending_) graph_->Add(std::move(node_));
    pending_ = false;
  }
  // Whether a number is that of a node that others can look at.
  bool IsMap(int64_t node) const {
    return node < static_cast<int64_t>(graph_->nodes.size()) &&
           graph_->nodes[node].kind != Node::kWeights;
  }

  void ParseShape(Line* line) {
    node_.height = line->Number(1);
    node_.width = line->Number(1);
    node_.channels = line->Number(1);
  }

  void ParseFrames(Line* line) {
    ParseShape(line);
    FrameShape& frame = graph_->frame;
    frame.height = node_.height;
    frame.width = node_.width;
    frame.channels = node_.channels;
    frame.bytes = line->Name<bool>({{"uint8", true}, {"float", false}});
  }

  void ParseNode(const std::string& kind, Line* line) {
    for (const int64_t i : line->Numbers(line->Word(), kMaxValues)) {
      const bool known =
          i >= 0 && i < static_cast<int64_t>(graph_->nodes.size());
      line->Require(known && (IsMap(i) || kind == "join"));
      node_.inputs.push_back(static_cast<int32_t>(i));
    }
    line->Require(kind == "join" || node_.inputs.size() == 1);
    if (!line->good_so_far()) return;
    const Node& from = graph_->input(node_);
    node_.height = node_.width = 1;
    node_.channels = from.channels;
    if (kind == "conv") {
      ParseConv(from, line);
    } else if (kind == "pool") {
      node_.kind = Node::kPool;
      node_.pooling = line->Name<Pooling>({{"max", Pooling::kMax},
                                           {"mean", Pooling::kMean},
                                           {"sum", Pooling::kSum}});
      ParseWindow(from, line);
    } else if (kind == "join") {
      ParseJoin(line);
    } else if (kind == "dense") {
      node_.kind = Node::kDense;
      node_.channels = line->Number(1);
      node_.use_bias = line->Flag();
      line->RequireAtMost(kMaxWeights, "inputs * units",
                          {from.pixels(), from.channels, node_.channels});
    } else if (kind == "global") {
      node_.kind = Node::kGlobal;
      node_.pooling = line->Name<Pooling>(
          {{"mean", Pooling::kMean}, {"max", Pooling::kMax}});
    } else if (kind == "reshape") {
      node_.kind = Node::kReshape;
      ParseShape(line);
      int64_t size = 0;
      line->Require(
          Multiply({node_.height, node_.width, node_.channels}, &size) &&
          size == from.pixels() * from.channels);
    } else if (kind == "permute") {
      ParsePermute(from, line);
    } else {
      line->Require(kind == "group_norm");
      node_.kind = Node::kGroupNorm;
      node_.height = from.height;
      node_.width = from.width;
      node_.groups = line->Number(1);
      node_.epsilon = line->Float();
      line->Require(from.channels % node_.groups == 0);
    }
  }

  void ParsePermute(const Node& from, Line* line) {
    node_.kind = Node::kPermute;
    const auto order = line->Numbers(line->Word(), 2);
    line->Require(std::set<int64_t>(order.begin(), order.end()) ==
                  std::set<int64_t>{0, 1, 2});
    line->Require(order.size() == 3);
    if (!line->good_so_far()) return;
    std::copy(order.begin(), order.end(), node_.order.begin());
    const int64_t sizes[] = {from.height, from.width, from.channels};
    node_.height = sizes[order[0]];
    node_.width = sizes[order[1]];
    node_.channels = sizes[order[2]];
  }

  void ParseConv(const Node& from, Line* line) {
    node_.kind = Node::kConv;
    ParseWindow(from, line);
    node_.channels = line->Number(1);
    node_.groups = line->Number(1);
    node_.use_bias = line->Flag();
    node_.transposed = line->Flag();
    line->Require(from.channels % node_.groups == 0 &&
                  node_.channels % node_.groups == 0 &&
                  !(node_.transposed && node_.groups > 1));
    line->RequireAtMost(kMaxWeights, "taps * channels * filters",
                        {node_.window.taps(), from.channels, node_.channels});
  }

  void ParseWindow(const Node& from, Line* line) {
    Window& window = node_.window;
    window.height = from.height;
    window.width = from.width;
    window.kernel_height = line->Number(1);
    window.kernel_width = line->Number(1);
    window.stride_height = line->Number(1);
    window.stride_width = line->Number(1);
    window.dilation_height = line->Number(1);
    window.dilation_width = line->Number(1);
    window.up_height = line->Number(1);
    window.up_width = line->Number(1);
    // Without a limit, a pooling of one pixel could be the work of any number.
    line->RequireAtMost(4096 + 16 * window.pixels(), "the window's taps",
                        {window.kernel_height, window.kernel_width});
    line->RequireAtMost(
        kMaxPixels, "up * height * width",
        {window.height, window.up_height, window.width, window.up_width});
    const std::string padding = line->Word();
    if (!line->good_so_far()) return;
    if (padding == "SAME" || padding == "VALID") {
      Pad(padding == "SAME", &window);
    } else {
      const std::vector<int64_t> sides = line->Numbers(padding, kMaxPixels);
      line->Require(sides.size() == 4);
      if (!line->good_so_far()) return;
      Pad(sides[0], sides[1], sides[2], sides[3], &window);
    }
    line->Require(window.positions() > 0);
    line->RequireAtMost(kMaxValues, "taps * positions",
                        {window.taps(), window.out_height, window.out_width});
    node_.height = window.out_height;
    node_.width = window.out_width;
  }

  void ParseJoin(Line* line) {
    node_.kind = Node::kJoin;
    node_.join = line->Name<JoinKind>({{"add", JoinKind::kAdd},
                                       {"subtract", JoinKind::kSubtract},
                                       {"multiply", JoinKind::kMultiply},
                                       {"average", JoinKind::kAverage},
                                       {"maximum", JoinKind::kMaximum},
                                       {"minimum", JoinKind::kMinimum},
                                       {"concatenate", JoinKind::kConcatenate},
                                       {"prelu", JoinKind::kPRelu}});
    const bool concatenate = node_.join == JoinKind::kConcatenate;
    const bool two =
        node_.join == JoinKind::kSubtract || node_.join == JoinKind::kPRelu;
    const size_t count = node_.inputs.size();
    line->Require(two ? count == 2 : count >= 2);
    node_.channels = concatenate ? 0 : 1;
    bool any_map = false;
    for (const int32_t i : node_.inputs) {
      const Node& from = graph_->nodes[i];
      any_map |= from.kind != Node::kWeights;
      if (from.pixels() > node_.height * node_.width) {
        node_.height = from.height;
        node_.width = from.width;
      }
      node_.channels = concatenate ? node_.channels + from.channels
                                   : std::max(node_.channels, from.channels);
    }
    line->Require(any_map);
    for (const int32_t i : node_.inputs) {
      const Node& from = graph_->nodes[i];
      line->Require(
          (from.height == node_.height && from.width == node_.width) ||
          (from.pixels() == 1 && !concatenate));
      line->Require(concatenate || from.channels == node_.channels ||
                    from.channels == 1);
    }
    line->RequireAtMost(
        kMaxValues, "inputs * positions",
        {static_cast<int64_t>(count), node_.height, node_.width});
  }

  // Whether the line is one of a function, of the node before it.
  bool ParseFunction(const std::string& kind, Line* line) {
    RowFunction function;
    RowOp* op = &function.op;
    const auto weights = [&](RowFunction::Kind of) {
      function.kind = of;
      function.has_gamma = line->Flag();
      function.has_beta = line->Flag();
    };
    if (kind == "activation") {
      op->kind = RowOp::kActivation;
      const std::string name = line->Word();
      std::vector<float> arguments;
      while (!line->empty()) arguments.push_back(line->Float());
      line->Require(Activation::Make(name, arguments, &op->activation));
    } else if (kind == "affine") {
      op->kind = RowOp::kAffine;
      op->scale = line->Floats();
      op->offset = line->Floats();
      for (const auto* values : {&op->scale, &op->offset}) {
        const int64_t size = values->size();
        line->Require(size == 1 || size == node_.channels);
      }
    } else if (kind == "batch_norm") {
      function.epsilon = line->Float();
      weights(RowFunction::kBatchNorm);
    } else if (kind == "layer_norm") {
      function.epsilon = line->Float();
      weights(RowFunction::kLayerNorm);
    } else if (kind == "scale") {
      weights(RowFunction::kScale);
    } else if (kind == "prelu") {
      function.kind = RowFunction::kPRelu;
    } else if (kind == "normalization") {
      function.kind = RowFunction::kNormalization;
      function.epsilon = line->Float();
      function.values = line->Number(1);
      line->Require(function.values == 1 || function.values == node_.channels);
    } else {
      return false;
    }
    line->Require(pending_ && node_.kind != Node::kWeights);
    if (line->good_so_far()) node_.functions.push_back(function);
    return true;
  }

  // Whether the line is the threshold of the node before it.
  bool ParseThreshold(const std::string& kind, Line* line) {
    if (kind != "threshold") return false;
    node_.threshold = line->Float();
    line->Require(pending_ && node_.kind != Node::kWeights &&
                  node_.threshold > 0);
    return true;
  }

  Graph* graph_;
  Node node_;  // read last, if `pending_`, and not added yet
  bool pending_ = false;
};

}  // namespace

absl::Status ParseNodeList(const std::vector<std::string>& lines,
                           Graph* graph) {
  Parser parser(graph);
  for (const std::string& text : lines) {
    Line line(text);
    const std::string kind = line.Word();
    parser.Parse(kind, &line);
    if (!line.good()) {
      return absl::InvalidArgumentError(
          absl::StrCat("nodes: cannot read \"", text, "\"", line.too_large()));
    }
  }
  if (!parser.complete()) {
    return absl::InvalidArgumentError("nodes must end in an output");
  }
  return absl::OkStatus();
}

}  // namespace reuse_tf
