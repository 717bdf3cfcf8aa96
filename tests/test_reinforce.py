"""REINFORCE: hand-worked numbers, and Keras's own losses and optimizers."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from reuse_tf.learning import reinforce
from reuse_tf.learning.optimizer import Adam, Optimizer, make_optimizer
from reuse_tf.learning.settings import Settings
from reuse_tf.policies.policy import build_policy
from reuse_tf.runner import Runner

SHAPE, NUM_ACTIONS = (6, 5, 2), 3


def policy():
    return build_policy(SHAPE, NUM_ACTIONS, (4,), incremental=False)


def episodes(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for length in lengths:
        episode = reinforce.Episode()
        for _ in range(length):
            episode.append(
                rng.integers(0, 256, SHAPE, np.uint8),
                rng.integers(NUM_ACTIONS),
                rng.normal(),
            )
        made.append(episode)
    return made


@pytest.mark.parametrize(
    ("rewards", "discount", "returns"),
    [
        ([1, 2, 3], 0.5, [2.75, 3.5, 3]),
        ([1, 2, 3], 1, [6, 5, 3]),
        ([1, 2, 3], 0, [1, 2, 3]),
        ([0, 0, -8], 0.25, [-0.5, -2, -8]),
        ([7], 0.9, [7]),
        ([], 0.9, []),
    ],
)
def test_discounted_returns(rewards, discount, returns):
    result = reinforce.discounted_returns(rewards, discount)
    assert result.dtype == np.float64
    assert result.tolist() == returns


@pytest.mark.parametrize("discount", [-0.1, 1.1, math.nan])
def test_a_discount_out_of_range_is_refused(discount):
    with pytest.raises(ValueError, match="`discount`.*Received"):
        reinforce.discounted_returns([1.0], discount)


def test_normalize_returns():
    np.testing.assert_allclose(
        reinforce.normalize_returns([1, 3, 3, 1]), [-1, 1, 1, -1], rtol=1e-7
    )
    # Mean 2, variance (4 + 1 + 1 + 4) / 4.
    np.testing.assert_allclose(
        reinforce.normalize_returns([0, 1, 3, 4]),
        np.array([-2, -1, 1, 2]) / math.sqrt(2.5),
        rtol=1e-7,
    )
    np.testing.assert_allclose(
        reinforce.normalize_returns([0, 2], epsilon=1.0), [-0.5, 0.5]
    )
    for number in 5, 0.1, 1234.567:
        equal = np.full(1000, number)
        assert not reinforce.normalize_returns(equal).any()
    assert reinforce.normalize_returns([]).tolist() == []


@pytest.mark.parametrize(
    "function",
    [
        lambda values: reinforce.discounted_returns(values, 0.9),
        reinforce.normalize_returns,
    ],
)
@pytest.mark.parametrize("values", [1.0, [[1.0, 2.0]]])
def test_other_ranks_than_one_are_refused(function, values):
    with pytest.raises(ValueError, match=r"of shape \[T\]. Received: shape"):
        function(values)


def test_policy_gradient_loss():
    # Probabilities 1/4 and 3/4, then 1/2 and 1/2.
    logits = [[0.0, math.log(3)], [5.0, 5.0]]
    for actions, returns, loss in (
        ([1, 0], [1.0, 0.0], math.log(4 / 3)),
        ([0, 0], [1.0, 0.0], math.log(4)),
        ([1, 0], [2.0, -3.0], 2 * math.log(4 / 3) - 3 * math.log(2)),
    ):
        assert reinforce.policy_gradient_loss(
            logits, actions, returns
        ).numpy() == pytest.approx(loss, rel=1e-6)
    empty = reinforce.policy_gradient_loss(
        np.zeros((0, 2), np.float32), np.zeros(0, np.int32), np.zeros(0)
    )
    assert empty.numpy() == 0


def test_the_gradient_is_the_return_times_softmax_minus_one_hot():
    logits = tf.constant([[0.0, math.log(3)], [5.0, 5.0]], tf.float64)
    returns = tf.constant([2.0, -3.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch([logits, returns])
        loss = reinforce.policy_gradient_loss(logits, [1, 0], returns)
    gradient, of_returns = tape.gradient(loss, [logits, returns])
    np.testing.assert_allclose(
        gradient, [[2 * 0.25, 2 * (0.75 - 1)], [-3 * (0.5 - 1), -3 * 0.5]]
    )
    assert of_returns is None


def test_entropy_bonus():
    logits = tf.constant([[0.0, math.log(3)], [5.0, 5.0], [0.0, 1000.0]])
    expected = [
        math.log(4) / 4 + math.log(4 / 3) * 3 / 4,
        math.log(2),
        0.0,
    ]
    for row, nats in zip(logits, expected, strict=True):
        assert reinforce.entropy_bonus(row[None]).numpy() == pytest.approx(nats)
    assert reinforce.entropy_bonus(logits).numpy() == pytest.approx(
        sum(expected)
    )


def test_entropy_of_actions_that_cannot_be_taken():
    """It is that of the others, and so is its gradient."""
    logits = tf.constant([[0.5, -np.inf, 1.0, -np.inf], [0, 0, -np.inf, 2]])
    others = tf.constant([[0.5, 1.0, -1e9], [0, 0, 2]])
    results = []
    for tensor in logits, others:
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            nats = reinforce.entropy_bonus(tensor)
        results.append((nats, tape.gradient(nats, tensor).numpy()))
    (got, of_logits), (want, of_others) = results
    assert got.numpy() == pytest.approx(want.numpy())
    for row, places in enumerate(([0, 2, 1], [0, 1, 3])):
        np.testing.assert_allclose(
            of_logits[row, places], of_others[row], 1e-5, 1e-6
        )
    assert np.isfinite(of_logits).all()


LOGITS = np.zeros((4, 3), np.float32)
ACTIONS = np.zeros(4, np.int32)
RETURNS = np.zeros(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LOGITS[0], ACTIONS, RETURNS), r"`logits` of shape \[T, num_actions"),
        ((LOGITS[None], ACTIONS, RETURNS), r"`logits` of shape"),
        ((LOGITS.astype(int), ACTIONS, RETURNS), "`logits` to be floats"),
        ((LOGITS, ACTIONS[:3], RETURNS), r"`actions` of shape \[T\]"),
        ((LOGITS, ACTIONS[None], RETURNS), "`actions` of shape"),
        ((LOGITS, RETURNS, RETURNS), "`actions` to be integers"),
        ((LOGITS, ACTIONS, RETURNS[:3]), "`returns` of shape"),
        ((LOGITS, ACTIONS, RETURNS[:, None]), "`returns` of shape"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        reinforce.policy_gradient_loss(*arguments)
    if "logits" in message:
        with pytest.raises(ValueError, match=message):
            reinforce.entropy_bonus(arguments[0])


@pytest.mark.parametrize("action", [-1, 3])
def test_an_action_that_is_not_there_is_refused(action):
    with pytest.raises(tf.errors.InvalidArgumentError):
        reinforce.policy_gradient_loss(LOGITS, [0, 0, action, 0], RETURNS)


def test_the_losses_work_in_a_graph_of_unknown_shapes():
    @tf.function(
        input_signature=[
            tf.TensorSpec(None, tf.float32),
            tf.TensorSpec(None, tf.int32),
            tf.TensorSpec(None, tf.float32),
        ]
    )
    def losses(logits, actions, returns):
        return (
            reinforce.policy_gradient_loss(logits, actions, returns),
            reinforce.entropy_bonus(logits),
        )

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 3)).astype(np.float32)
    arguments = logits, rng.integers(3, size=5), rng.normal(size=5)
    loss, entropy = losses(*arguments)
    np.testing.assert_allclose(
        loss, reinforce.policy_gradient_loss(*arguments), rtol=1e-6
    )
    np.testing.assert_allclose(
        entropy, reinforce.entropy_bonus(logits), rtol=1e-6
    )


def test_an_episode_keeps_its_own_frames():
    episode = reinforce.Episode()
    frame = np.zeros(SHAPE, np.uint8)
    episode.append(frame, np.int64(2), np.float32(0.5))
    frame[:] = 1
    frame.flags.writeable = False
    episode.append(frame, 1, 1)
    assert len(episode) == 2
    assert not episode.frames[0].any()
    assert episode.frames[1] is frame
    assert episode.actions == [2, 1]
    assert episode.rewards == [0.5, 1.0]


def keras_gradient(model, played, discount, entropy):
    """The gradient by Keras's cross entropy, weighted by the returns."""
    returns = [
        sum(
            discount**later * reward
            for later, reward in enumerate(episode.rewards[step:])
        )
        for episode in played
        for step in range(len(episode))
    ]
    returns = np.array(returns)
    returns = (returns - returns.mean()) / returns.std()
    frames = np.concatenate([episode.frames for episode in played])
    actions = np.concatenate([episode.actions for episode in played])
    with tf.GradientTape() as tape:
        logits = model(frames)
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="sum"
        )(actions, logits, sample_weight=returns) / len(returns)
        p = keras.ops.softmax(logits)
        nats = -keras.ops.mean(keras.ops.sum(p * keras.ops.log(p), -1))
        loss -= entropy * nats
    return tape.gradient(loss, model.trainable_variables), loss, nats


@pytest.mark.parametrize("entropy", [0.0, 0.3])
@pytest.mark.parametrize("max_frames", [None, 1, 4, 100])
def test_the_gradient_of_episodes_is_keras_s(entropy, max_frames):
    model, played = policy(), episodes(7, 1, 12)
    result = reinforce.policy_gradient(
        model,
        model.trainable_variables,
        played,
        discount=0.9,
        entropy=entropy,
        max_frames=max_frames,
    )
    gradients, loss, nats = keras_gradient(model, played, 0.9, entropy)
    assert result.loss == pytest.approx(float(loss), rel=1e-4, abs=1e-6)
    assert result.entropy == pytest.approx(float(nats), rel=1e-5)
    for got, want in zip(result.gradients, gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("max_frames", [None, 4])
def test_a_structure_takes_the_place_of_the_frames(max_frames):
    model, played = policy(), episodes(7, 12)
    want, loss, _ = keras_gradient(model, played, 0.9, 0.0)
    runner = Runner(model)
    backwards = np.concatenate([episode.frames for episode in played])[::-1]
    structure = runner.structure(backwards)
    for episode in played:
        episode.frames.clear()
    result = reinforce.policy_gradient(
        runner,
        model.trainable_variables,
        played,
        discount=0.9,
        max_frames=max_frames,
        structure=structure._replace(order=structure.order[::-1]),
    )
    assert result.loss == pytest.approx(float(loss), rel=1e-4, abs=1e-6)
    for gradient, other in zip(result.gradients, want, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("max_frames", [None, 4])
def test_a_structure_may_be_of_other_frames_and_of_some_steps(max_frames):
    model, played = policy(), episodes(7, 1, 12)
    want, loss, nats = keras_gradient(model, played, 0.9, 0.3)
    frames = np.concatenate([episode.frames for episode in played])
    runner = Runner(model)
    # Beside others, in another order, and none of the second episode.
    (others,) = episodes(5, seed=1)
    known = [19, 4, 18, 5, 17, 6, 16]
    video = np.concatenate([others.frames, frames[known]])
    numbers = np.full(20, -1)
    numbers[known] = 5 + np.arange(len(known))
    for episode, begin in zip(played, (0, 7, 8), strict=True):
        for step in range(len(episode)):
            if begin + step in known:
                episode.frames[step] = None
    passed = []

    def spy(frames):
        logits = runner(frames)
        passed.append(len(logits))
        return logits

    result = reinforce.policy_gradient(
        spy,
        model.trainable_variables,
        played,
        discount=0.9,
        entropy=0.3,
        max_frames=max_frames,
        structure=runner.structure(video),
        numbers=numbers,
    )
    assert passed == ([13, 7] if max_frames is None else [4, 4, 4, 1, 4, 3])
    assert result.loss == pytest.approx(float(loss), rel=1e-4, abs=1e-6)
    assert result.entropy == pytest.approx(float(nats), rel=1e-5)
    for gradient, other in zip(result.gradients, want, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("max_frames", [None, 3])
def test_frames_are_passed_in_order_and_within_the_bound(max_frames):
    model, played = policy(), episodes(4, 0, 3)
    passed = []

    def spy(frames):
        passed.append(frames)
        return model(frames)

    reinforce.policy_gradient(
        spy,
        model.trainable_variables,
        played,
        discount=0.9,
        max_frames=max_frames,
    )
    lengths = [len(frames) for frames in passed]
    assert lengths == ([7] if max_frames is None else [3, 3, 1])
    np.testing.assert_array_equal(
        np.concatenate(passed),
        [frame for episode in played for frame in episode.frames],
    )


def test_episodes_without_steps_are_refused():
    model = policy()
    with pytest.raises(ValueError, match="at least one step"):
        reinforce.policy_gradient(
            model,
            model.trainable_variables,
            episodes(0, 0),
            discount=0.9,
        )


def test_a_loss_that_is_not_finite_is_an_error():
    model = policy()
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    with pytest.raises(FloatingPointError, match="loss is not finite"):
        reinforce.policy_gradient(
            model,
            model.trainable_variables,
            episodes(5),
            discount=0.9,
        )


@pytest.mark.parametrize("clip_norm", [None, 1e-3, 1e6])
@pytest.mark.parametrize("name", ["Adam", "in place", "RMSprop", "SGD"])
def test_steps_are_those_of_the_keras_optimizer(name, clip_norm):
    make = getattr(keras.optimizers, name.replace("in place", "Adam"))
    model, twin = policy(), policy()
    twin.set_weights(model.get_weights())
    start = model.get_weights()
    expected = make(1e-2, global_clipnorm=clip_norm)
    optimizer = make(1e-2)
    if name == "in place":
        epsilon = 0.1
        optimizer = Adam(1e-2, epsilon=epsilon)
    compiled = Optimizer(optimizer, model.trainable_variables, clip_norm)
    # Compiling leaves no trace.
    assert optimizer.iterations.numpy() == 0
    for got, want in zip(model.get_weights(), start, strict=True):
        np.testing.assert_array_equal(got, want)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        gradients = [
            tf.constant(rng.normal(size=variable.shape), tf.float32)
            for variable in model.trainable_variables
        ]
        norm = compiled.apply(gradients)
        assert norm == pytest.approx(
            math.sqrt(sum(np.square(g).sum() for g in gradients)), rel=1e-5
        )
        if name == "in place":
            # Keras has it beside the root of what is not corrected yet.
            expected.epsilon = epsilon * math.sqrt(1 - 0.999 ** (seed + 1))
        expected.apply(gradients, twin.trainable_variables)
    for got, want in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert optimizer.iterations.numpy() == 3
    # Of which others go on.
    for got, want in zip(optimizer.variables, expected.variables, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_adam_is_that_of_its_paper():
    variable = tf.Variable([0.5, -2.0, 3.0])
    optimizer = Adam(0.01, beta_1=0.8, beta_2=0.99, epsilon=0.3)
    theta, m, v = variable.numpy().astype(np.float64), 0.0, 0.0
    for t in range(1, 8):
        gradient = np.float32([t / 5, -0.01, (-1) ** t])
        m = 0.8 * m + 0.2 * gradient
        v = 0.99 * v + 0.01 * np.square(gradient, dtype=np.float64)
        corrected = m / (1 - 0.8**t), v / (1 - 0.99**t)
        theta -= 0.01 * corrected[0] / (np.sqrt(corrected[1]) + 0.3)
        optimizer.apply([tf.constant(gradient)], [variable])
        np.testing.assert_allclose(variable.numpy(), theta, rtol=1e-5)


def test_rmsprop_of_a2c_is_that_of_tensorflow_1():
    chosen = Settings(algorithm="a2c", learning_rate=0.1, clip_norm=1e9)
    variable = keras.Variable([0.5, -2.0, 3.0])
    optimizer = make_optimizer(chosen, [variable], epsilon=1e-5)
    theta, v = variable.numpy().astype(np.float64), 1.0
    for t in range(1, 8):
        gradient = np.float32([t / 5, -0.01, (-1) ** t])
        v = 0.99 * v + 0.01 * np.square(gradient, dtype=np.float64)
        theta -= 0.1 * gradient / np.sqrt(v + 1e-5)
        optimizer.apply([tf.constant(gradient)])
        np.testing.assert_allclose(variable.numpy(), theta, rtol=1e-5)


def test_what_somebody_holds_is_not_written_to():
    model = policy()
    compiled = Optimizer(Adam(1e-2), model.trainable_variables)
    held = [variable.value.numpy() for variable in model.trainable_variables]
    before = [array.copy() for array in held]
    runner = Runner(model)
    frame = np.zeros((1, *model.input_shape[1:]), np.uint8)
    runner.step(frame)
    gradients = [tf.ones_like(v) for v in model.trainable_variables]
    for _ in range(2):
        compiled.apply(gradients)
        np.testing.assert_allclose(runner.step(frame), model(frame), rtol=1e-5)
    for got, want in zip(held, before, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_leaves_the_weights(value):
    model = policy()
    compiled = Optimizer(
        keras.optimizers.Adam(), model.trainable_variables, 1.0
    )
    before = model.get_weights()
    gradients = [np.zeros(weight.shape, np.float32) for weight in before]
    gradients[-1].flat[-1] = value
    with pytest.raises(FloatingPointError, match="gradient is not finite"):
        compiled.apply([tf.constant(gradient) for gradient in gradients])
    for got, want in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_weight_that_is_not_finite_any_more_is_an_error():
    model = policy()
    compiled = Optimizer(keras.optimizers.SGD(1e38), model.trainable_variables)
    gradients = [tf.zeros_like(v) for v in model.trainable_variables]
    gradients[-1] += 1e4
    with pytest.raises(FloatingPointError, match="logits/kernel.*not finite"):
        compiled.apply(gradients)
