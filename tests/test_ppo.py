"""PPO: formulas in plain loops, and again by other means."""

import math
import statistics

import keras
import numpy as np
import pytest
import tensorflow as tf

from reuse_tf.learning import ppo, reinforce
from reuse_tf.policies import build_network
from reuse_tf.policies.evaluators import evaluator


def softmax(row):
    """The probabilities of one row of logits, in Python's floats."""
    powers = [math.exp(logit - max(row)) for logit in row]
    return [power / sum(powers) for power in powers]


def batch(seed=0, size=256, num_actions=6, dtype=np.float32):
    """Logits, actions, old log-probabilities and advantages.

    Of ratios on both sides of a clip of 0.2, far and near, and within.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (size, num_actions)).astype(dtype)
    actions = rng.integers(num_actions, size=size)
    rows = zip(logits, actions, strict=True)
    old = np.log([softmax(row)[action] for row, action in rows])
    old -= rng.choice([0, 0.05, 0.5], size) * rng.choice([-1, 1], size)
    return logits, actions, old.astype(dtype), rng.normal(size=size)


def ratios_of(logits, actions, old):
    return [
        softmax(row)[action] / math.exp(before)
        for row, action, before in zip(logits, actions, old, strict=True)
    ]


# -- Advantages --------------------------------------------------------------


def played(seed, steps, num_envs):
    """A rollout, and the parts of episodes in it.

    Returns:
        The first four arguments of `generalized_advantages`; and for each
        environment a list of `(begin, end, last)`: the steps of a part, and
        the value of what came after it.
    """
    rng = np.random.default_rng(seed)
    shape = steps, num_envs
    rewards, values, final_values = rng.normal(size=(3, *shape))
    newest = rng.normal(size=num_envs)
    terminated = rng.random(shape) < 0.15
    truncated = ~terminated & (rng.random(shape) < 0.15)
    parts = []
    for env in range(num_envs):
        begin, of_env = 0, []
        for step in range(steps):
            if terminated[step, env]:
                last = 0.0
            elif truncated[step, env]:
                last = final_values[step, env]
            elif step == steps - 1:
                last = newest[env]
            else:
                continue
            of_env.append((begin, step + 1, last))
            begin = step + 1
        parts.append(of_env)
    next_values = np.concatenate([values[1:], newest[None]])
    next_values[truncated] = final_values[truncated]
    next_values[terminated] = 0
    return (rewards, values, next_values, ~(terminated | truncated)), parts


def recursively(rewards, values, last, discount, lambda_):
    """Advantages of one part of an episode, from its end backwards."""
    advantages, advantage, following = [], 0.0, last
    for reward, value in zip(rewards[::-1], values[::-1], strict=True):
        error = reward + discount * following - value
        advantage = error + discount * lambda_ * advantage
        advantages.insert(0, advantage)
        following = value
    return advantages


def by_returns_of_n_steps(rewards, values, last, discount, lambda_):
    """The same, as means of returns of n steps, weighted by powers of lambda.

    The weights of returns that would go beyond the end fall to the last one.
    """
    values = [*values, last]
    advantages = []
    for t in range(len(rewards)):
        total = 0.0
        left = len(rewards) - t
        for n in range(1, left + 1):
            return_ = discount**n * values[t + n] + sum(
                discount**k * rewards[t + k] for k in range(n)
            )
            weight = lambda_ ** (n - 1) * (1 if n == left else 1 - lambda_)
            total += weight * return_
        advantages.append(total - values[t])
    return advantages


@pytest.mark.parametrize("how", [recursively, by_returns_of_n_steps])
@pytest.mark.parametrize(
    ("discount", "lambda_"),
    [(0.99, 0.95), (0.9, 0.5), (1, 1), (0.9, 0), (0, 1)],
)
@pytest.mark.parametrize(("steps", "num_envs"), [(1, 2), (2, 30), (25, 3)])
def test_advantages(how, discount, lambda_, steps, num_envs):
    arguments, parts = played(steps, steps, num_envs)
    rewards, values, *_ = arguments
    ends = [last == 0 for of_env in parts for *_, last in of_env]
    assert any(ends) and not all(ends)
    advantages, targets = ppo.generalized_advantages(
        *arguments, discount, lambda_
    )
    assert advantages.dtype == targets.dtype == np.float64
    assert advantages.shape == targets.shape == (steps, num_envs)
    for env, of_env in enumerate(parts):
        for begin, end, last in of_env:
            part = slice(begin, end), env
            want = how(rewards[part], values[part], last, discount, lambda_)
            np.testing.assert_allclose(advantages[part], want, atol=1e-12)
            np.testing.assert_allclose(
                targets[part], want + values[part], atol=1e-12
            )


def test_advantages_worked_by_hand():
    # Terminated and truncated after the first step, and not at all.
    advantages, targets = ppo.generalized_advantages(
        rewards=[[1, 1, 1], [2, 2, 2]],
        values=[[10, 10, 10], [20, 20, 20]],
        next_values=[[0, 4, 20], [8, 8, 8]],
        continues=[[False, False, True], [True, True, True]],
        discount=0.5,
        lambda_=0.5,
    )
    # The last step: 2 + 0.5 * 8 - 20.
    assert advantages[1].tolist() == [-14, -14, -14]
    # 1 - 10; 1 + 0.5 * 4 - 10; 1 + 0.5 * 20 - 10 + 0.25 * -14.
    assert advantages[0].tolist() == [-9, -7, -2.5]
    assert targets.tolist() == [[1, 3, 7.5], [6, 6, 6]]


def test_with_a_lambda_of_1_targets_are_discounted_returns():
    rewards = np.random.default_rng(0).normal(size=9)
    values = np.arange(9.0)
    _, targets = ppo.generalized_advantages(
        rewards[:, None],
        values[:, None],
        [*values[1:, None], [0]],
        np.ones((9, 1), bool),
        0.8,
        1,
    )
    np.testing.assert_allclose(
        targets[:, 0], reinforce.discounted_returns(rewards, 0.8), atol=1e-12
    )


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_advantages_of_nothing(shape):
    zeros = np.zeros(shape)
    for array in ppo.generalized_advantages(
        zeros, zeros, zeros, zeros == 0, 0.9, 0.9
    ):
        assert array.shape == shape


def test_arguments_are_left_as_they_are():
    arguments, _ = played(0, 5, 2)
    copies = [array.copy() for array in arguments]
    ppo.generalized_advantages(*arguments, 0.9, 0.9)
    for array, copy in zip(arguments, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


ZEROS, TRUE = np.zeros((4, 2)), np.ones((4, 2), bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ZEROS[0], ZEROS, ZEROS, TRUE, 0.9, 0.9), "`rewards` of shape"),
        ((ZEROS, ZEROS[:3], ZEROS, TRUE, 0.9, 0.9), "`values` of shape"),
        ((ZEROS, ZEROS, ZEROS[:, :1], TRUE, 0.9, 0.9), "`next_values` of shap"),
        ((ZEROS, ZEROS, ZEROS, TRUE[:, :1], 0.9, 0.9), "`continues` of shape"),
        ((ZEROS, ZEROS, ZEROS, ZEROS, 0.9, 0.9), "`continues` to be booleans"),
        ((ZEROS, ZEROS, ZEROS, TRUE, 1.1, 0.9), "`discount` in"),
        ((ZEROS, ZEROS, ZEROS, TRUE, 0.9, -0.1), "`lambda_` in"),
        ((ZEROS, ZEROS, ZEROS, TRUE, 0.9, math.nan), "`lambda_` in"),
    ],
)
def test_wrong_arguments_of_advantages_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        ppo.generalized_advantages(*arguments)


def test_normalize_advantages():
    values = np.random.default_rng(0).normal(3, 5, 256)
    got = ppo.normalize_advantages(values)
    assert got.dtype == tf.float64
    mean = sum(values) / 256
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 256)
    np.testing.assert_allclose(
        got, [(value - mean) / deviation for value in values], rtol=1e-7
    )
    assert statistics.fmean(got.numpy()) == pytest.approx(0, abs=1e-12)
    assert statistics.pstdev(got.numpy()) == pytest.approx(1)
    np.testing.assert_allclose(
        ppo.normalize_advantages([1.0, 3.0], epsilon=1.0), [-0.5, 0.5]
    )
    in_float32 = ppo.normalize_advantages(values.astype(np.float32))
    assert in_float32.dtype == tf.float32
    np.testing.assert_allclose(in_float32, got, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 3, 256])
# Sums of these are rounded; their mean is another number.
@pytest.mark.parametrize("value", [0.0, 0.1, 1e9 / 3])
def test_equal_advantages_become_0(dtype, size, value):
    got = ppo.normalize_advantages(np.full(size, value, dtype))
    np.testing.assert_array_equal(got, np.zeros(size, dtype))


# -- Losses ------------------------------------------------------------------


def test_log_probabilities():
    logits, actions, *_ = batch()
    got = ppo.log_probabilities(logits, actions)
    want = [
        math.log(softmax(row)[action])
        for row, action in zip(logits, actions, strict=True)
    ]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    one_hot = keras.ops.one_hot(actions, 6)
    np.testing.assert_allclose(
        got,
        keras.ops.sum(one_hot * keras.ops.log_softmax(logits), -1),
        rtol=1e-5,
    )
    # Where the probability is too small for a number.
    assert ppo.log_probabilities([[0.0, 1000.0]], [0]).numpy() == [-1000]


def piecewise(logits, actions, old, advantages, clip):
    """The clipped objective by the sign of each advantage, by Keras."""
    ops = keras.ops
    probabilities = ops.softmax(logits)
    one_hot = ops.one_hot(actions, logits.shape[1], dtype=probabilities.dtype)
    ratios = ops.sum(probabilities * one_hot, -1) / ops.exp(old)
    advantages = ops.cast(advantages, ratios.dtype)
    bounded = ops.where(
        advantages > 0,
        ops.where(ratios > 1 + clip, 1 + clip, ratios),
        ops.where(ratios < 1 - clip, 1 - clip, ratios),
    )
    return -ops.mean(bounded * advantages)


@pytest.mark.parametrize("clip", [0, 0.1, 0.2, 2])
def test_clipped_policy_loss(clip):
    logits, actions, old, advantages = batch()
    got = ppo.clipped_policy_loss(logits, actions, old, advantages, clip)
    assert got.dtype == tf.float32 and got.shape == ()
    total = 0.0
    for ratio, advantage in zip(
        ratios_of(logits, actions, old), advantages, strict=True
    ):
        clipped = min(max(ratio, 1 - clip), 1 + clip)
        total -= min(ratio * advantage, clipped * advantage)
    assert got.numpy() == pytest.approx(total / 256, rel=1e-4, abs=1e-6)
    assert got.numpy() == pytest.approx(
        float(piecewise(logits, actions, old, advantages, clip)),
        rel=1e-4,
        abs=1e-6,
    )


def test_the_clipped_loss_worked_by_hand():
    # Probabilities of 1/4 and 3/4, and ratios of 2, 1/2, and 1.
    logits = [[0.0, math.log(3)]] * 3
    actions, old = [1, 0, 0], np.log([3 / 8, 1 / 2, 1 / 4])
    for advantages, want in (
        ([10, 0, 0], -12),  # Clipped.
        ([-10, 0, 0], 20),  # The worse one of both counts.
        ([0, 10, 0], -5),
        ([0, -10, 0], 8),  # Clipped.
        ([0, 0, 10], -10),
    ):
        got = ppo.clipped_policy_loss(logits, actions, old, advantages, 0.2)
        assert got.numpy() == pytest.approx(want / 3, rel=1e-5)


@pytest.mark.parametrize("clip", [0.1, 0.2])
def test_the_gradient_of_the_clipped_loss(clip):
    logits, actions, old, advantages = batch(dtype=np.float64)
    watched = [tf.constant(array) for array in (logits, old, advantages)]
    gradients = []
    for loss_of in (ppo.clipped_policy_loss, piecewise):
        with tf.GradientTape() as tape:
            tape.watch(watched)
            loss = loss_of(watched[0], actions, *watched[1:], clip)
        gradients.append(tape.gradient(loss, watched))
    (gradient, *of_constants), (other, *_) = gradients
    assert of_constants == [None, None]
    want = np.zeros((256, 6))
    clipped = 0
    for b, ratio in enumerate(ratios_of(logits, actions, old)):
        if (ratio > 1 + clip and advantages[b] > 0) or (
            ratio < 1 - clip and advantages[b] < 0
        ):
            clipped += 1
            continue
        for a, probability in enumerate(softmax(logits[b])):
            want[b, a] = (
                -advantages[b] * ratio * ((a == actions[b]) - probability) / 256
            )
    assert 20 < clipped < 200
    np.testing.assert_allclose(gradient, want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient, other, rtol=1e-9, atol=1e-12)


def test_the_first_gradient_is_that_of_reinforce():
    logits, actions, _, advantages = batch()
    logits = tf.constant(logits)
    old = ppo.log_probabilities(logits, actions).numpy()
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        loss = ppo.clipped_policy_loss(logits, actions, old, advantages, 0.1)
        other = reinforce.policy_gradient_loss(logits, actions, advantages)
    np.testing.assert_allclose(
        tape.gradient(loss, logits),
        tape.gradient(other, logits) / 256,
        rtol=1e-5,
        atol=1e-8,
    )


def test_value_loss():
    rng = np.random.default_rng(0)
    values, targets = rng.normal(size=(2, 256)).astype(np.float32)
    got = ppo.value_loss(values, targets)
    assert got.dtype == tf.float32
    squares = [(v - t) ** 2 for v, t in zip(values, targets, strict=True)]
    assert got.numpy() == pytest.approx(sum(squares) / 256, rel=1e-5)
    assert got.numpy() == pytest.approx(
        float(keras.losses.MeanSquaredError()(targets, values)), rel=1e-5
    )


@pytest.mark.parametrize("clip", [0, 0.1, 1])
def test_clipped_value_loss(clip):
    rng = np.random.default_rng(0)
    values, targets, old = rng.normal(size=(3, 256)).astype(np.float32)
    variable = tf.Variable(values)
    with tf.GradientTape() as tape:
        got = ppo.value_loss(variable, targets, old, clip)
    total, slopes = 0.0, []
    for value, target, before in zip(values, targets, old, strict=True):
        bounded = min(max(value, before - clip), before + clip)
        square, clipped = (value - target) ** 2, (bounded - target) ** 2
        total += max(square, clipped)
        is_bound = clipped > square
        slopes.append(0 if is_bound else 2 * (value - target) / 256)
    assert got.numpy() == pytest.approx(total / 256, rel=1e-5)
    np.testing.assert_allclose(
        tape.gradient(got, variable), slopes, rtol=1e-5, atol=1e-7
    )
    # The larger square is that of the larger error.
    errors = np.stack([values, np.clip(values, old - clip, old + clip)])
    worst = np.abs(errors - targets).max(0)
    assert got.numpy() == pytest.approx(np.mean(worst**2), rel=1e-5)


def test_no_gradient_flows_into_targets():
    tensors = list(tf.random.normal([3, 5]))
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = ppo.value_loss(*tensors, 0.1)
    _, *of_constants = tape.gradient(loss, tensors)
    assert of_constants == [None, None]


def test_mean_entropy():
    logits, *_ = batch()
    got = ppo.mean_entropy(logits)
    assert got.dtype == tf.float32
    nats = [-sum(p * math.log(p) for p in softmax(row)) for row in logits]
    assert got.numpy() == pytest.approx(sum(nats) / 256, rel=1e-5)
    assert got.numpy() == pytest.approx(
        float(
            keras.losses.CategoricalCrossentropy(from_logits=True)(
                keras.ops.softmax(logits), logits
            )
        ),
        rel=1e-5,
    )


@pytest.mark.parametrize("clip", [0.01, 0.1, 0.5])
def test_clip_fraction(clip):
    logits, actions, old, _ = batch()
    out = [abs(ratio - 1) > clip for ratio in ratios_of(logits, actions, old)]
    assert 0 < sum(out) < 256
    got = ppo.clip_fraction(logits, actions, old, clip)
    assert got.dtype == tf.float32
    assert got.numpy() == pytest.approx(sum(out) / 256)
    # What gets no gradient, whether an action was good or bad.
    logits = tf.constant(logits)
    clipped = np.zeros(256, bool)
    for advantages in (np.ones(256), -np.ones(256)):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = ppo.clipped_policy_loss(
                logits, actions, old, advantages, clip
            )
        clipped |= ~np.any(tape.gradient(loss, logits), -1)
    assert got.numpy() == clipped.mean()


def test_approximate_kl():
    logits, actions, old, _ = batch()
    got = ppo.approximate_kl(logits, actions, old)
    assert got.dtype == tf.float32
    terms = [r - 1 - math.log(r) for r in ratios_of(logits, actions, old)]
    assert got.numpy() == pytest.approx(sum(terms) / 256, rel=1e-4)
    # Of a policy of 1/4 and 3/4 that does what it is expected to, exactly the
    # divergence of the present one, of 1/2 and 1/2.
    old = np.log([1 / 4, 3 / 4, 3 / 4, 3 / 4])
    got = ppo.approximate_kl(np.zeros((4, 2)), [0, 1, 1, 1], old)
    exact = keras.losses.KLDivergence()([[1 / 4, 3 / 4]], [[1 / 2, 1 / 2]])
    assert got.numpy() == pytest.approx(float(exact), rel=1e-6)
    same = ppo.log_probabilities(logits, actions)
    assert ppo.approximate_kl(logits, actions, same).numpy() == 0


# -- What is refused, and graphs ---------------------------------------------

LOGITS = np.zeros((4, 3), np.float32)
ACTIONS = np.zeros(4, np.int32)
ONES = np.ones(4, np.float32)
POLICY = {
    "logits": LOGITS,
    "actions": ACTIONS,
    "old_log_probs": -ONES,
    "advantages": ONES,
    "clip": 0.1,
}
VALUE = {"values": ONES, "targets": ONES, "old_values": ONES, "clip": 0.1}
FUNCTIONS = {
    ppo.log_probabilities: ("logits", "actions"),
    ppo.clipped_policy_loss: tuple(POLICY),
    ppo.clip_fraction: ("logits", "actions", "old_log_probs", "clip"),
    ppo.approximate_kl: ("logits", "actions", "old_log_probs"),
    ppo.mean_entropy: ("logits",),
    ppo.value_loss: tuple(VALUE),
    ppo.normalize_advantages: ("advantages",),
}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("logits", LOGITS[0], "of shape"),
        ("logits", LOGITS[None], "of shape"),
        ("logits", LOGITS.astype(int), "to be floats"),
        ("actions", ACTIONS[:3], "of shape"),
        ("actions", ACTIONS[:, None], "of shape"),
        ("actions", ONES, "to be integers"),
        ("old_log_probs", ONES[:3], "of shape"),
        ("old_log_probs", ONES[:, None], "of shape"),
        ("advantages", ONES[:, None], "of shape"),
        ("advantages", np.float32(1), "of shape"),
        ("clip", -0.1, "not to be negative"),
        ("clip", math.nan, "not to be negative"),
        ("values", ONES[:, None], "of shape"),
        ("values", ACTIONS, "to be floats"),
        ("targets", ONES[:3], "of shape"),
        ("targets", ONES[:, None], "of shape"),
        ("old_values", ONES[:, None], "of shape"),
        ("old_values", None, "with `clip`"),
    ],
)
def test_wrong_arguments_are_refused(name, value, expected):
    given = [f for f, names in FUNCTIONS.items() if name in names]
    assert given
    for function in given:
        arguments = {**POLICY, **VALUE, name: value}
        arguments = {key: arguments[key] for key in FUNCTIONS[function]}
        with pytest.raises(ValueError, match=f"`{name}` {expected}"):
            function(**arguments)


@pytest.mark.parametrize("action", [-1, 3])
def test_an_action_that_is_not_there_is_refused(action):
    with pytest.raises(tf.errors.InvalidArgumentError):
        ppo.log_probabilities(LOGITS, [0, 0, action, 0])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_work_in_graphs(function, known):
    logits, actions, old, advantages = batch(size=8)
    rng = np.random.default_rng(0)
    values, targets, old_values = rng.normal(size=(3, 8)).astype(np.float32)
    arguments = {
        "logits": logits,
        "actions": actions,
        "old_log_probs": old,
        "advantages": advantages.astype(np.float32),
        "values": values,
        "targets": targets,
        "old_values": old_values,
        "clip": np.float32(0.1),
    }
    arguments = [arguments[name] for name in FUNCTIONS[function]]
    signature = [
        tf.TensorSpec(array.shape if known else None, array.dtype)
        for array in map(np.asarray, arguments)
    ]
    in_graph = tf.function(function, input_signature=signature)
    np.testing.assert_allclose(
        in_graph(*arguments), function(*arguments), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("reuse", ["auto", "none"])
@pytest.mark.parametrize("acts", [False, True])
def test_minibatches_are_of_the_frames_asked_for(reuse, acts):
    """Whether acting has recorded them or not, and with more than were."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 2, (8, 6, 5, 1), np.uint8)
    model = build_network("paper", (6, 5, 1), 3, filters=(4,), value=True)
    of = evaluator(model, reuse)
    if acts:
        of.begin()
        for i in range(0, 8, 2):  # two streams
            of.act(frames[i : i + 2])
    minibatch = of.minibatches(frames[:6])
    for numbers in [5, 0, 3], [2], range(6):
        outputs = of.outputs_fn(minibatch(np.array(numbers)))
        wants = model(frames[np.array(numbers)])
        for name, want in wants.items():
            np.testing.assert_allclose(
                outputs[name], want, rtol=1e-5, atol=1e-6
            )
