"""A tour of reuse-tf, cell by cell: `python examples/tour.py`, or a notebook.

Everything is computed by plain Keras too, and compared.
"""

# %% A video: two shapes that move over stripes.
import keras
import numpy as np
import tensorflow as tf

import reuse_tf

SIZE = 64
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)

stripes = np.zeros((SIZE, SIZE, 1), np.uint8)
stripes[::16] = 40
video = np.tile(stripes, (120, 1, 1, 1))
for t, frame in enumerate(video):
    frame[20:28, t % 56 : t % 56 + 8] = 200
    frame[t // 3 : t // 3 + 5, 40:44] = 120
print("video:", video.dtype, video.shape)

# %% A model that you have.
model = keras.Sequential(
    [
        keras.Input((SIZE, SIZE, 1)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(16, 5, strides=2, activation="relu"),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]
)
want = model.predict(video, verbose=0)

# %% Its layers, replaced by ones that keep what did not change.
converted = reuse_tf.convert(model)
print(reuse_tf.coverage(converted))

outputs = np.concatenate([converted(frame[None]) for frame in video])
np.testing.assert_allclose(outputs, want, rtol=1e-4, atol=1e-5)

first = converted.layers[1].stats
share = first.recomputed_positions / first.positions
print(f"the first convolution recomputed {100 * share:.1f} % of its positions")
assert share < 0.2

# %% Faster: the whole model as one op.
runner = reuse_tf.Runner(model)
print(reuse_tf.coverage(runner))

for frame, of_frame in zip(video, want, strict=True):
    outputs = runner.step(frame[None])  # [1, 64, 64, 1] -> [1, 3]
    np.testing.assert_allclose(outputs[0], of_frame, rtol=1e-4, atol=1e-5)

# %% What that took.
stats = runner.stats
for name, layer in stats.layers.items():
    print(
        f"{name}: {layer.changed} of {layer.positions} positions changed, "
        f"{layer.new_rows} rows were computed ({layer.reuse} reuse)"
    )
made, dense = stats.multiply_adds
print(f"{100 * made / dense:.1f} % of the multiply-adds of plain Keras")
assert stats.frames == len(video) and made < 0.2 * dense

# %% As `model.predict`: an array, a `tf.data.Dataset`, a generator.
outputs = runner.predict(video)
np.testing.assert_allclose(outputs, want, rtol=1e-4, atol=1e-5)

batches = tf.data.Dataset.from_tensor_slices(video).batch(50)
assert np.array_equal(runner.predict(batches, verbose=2), outputs)


# %% A game: catch what falls. Left, stay or right; a step counts 1, 0 or -1.
def play(act, steps=96):
    """Plays, and returns all frames, actions and rewards."""
    frames, actions, rewards = [], [], []
    ball, paddle = SIZE // 2, SIZE // 2
    for t in range(steps):
        height = 4 * t % SIZE
        if height == 0:
            ball = int(rng.integers(4, SIZE - 4))
        frame = stripes.copy()
        frame[height : height + 4, ball - 2 : ball + 2] = 255
        frame[-2:, paddle - 4 : paddle + 4] = 255
        action = act(frame)
        before = abs(ball - paddle)
        paddle = int(np.clip(paddle + 4 * (action - 1), 4, SIZE - 4))
        frames.append(frame)
        actions.append(action)
        rewards.append(np.sign(before - abs(ball - paddle)))
    return np.stack(frames), np.array(actions), np.array(rewards, np.float32)


def sample(frame):
    """An action, drawn from the policy that the runner computes."""
    logits = runner.step(frame[None])[0]
    return int(np.argmax(logits + rng.gumbel(size=3)))


def loss_of(logits, actions, returns):
    """The loss of REINFORCE."""
    picked = tf.gather(tf.nn.log_softmax(logits), actions, batch_dims=1)
    return -tf.reduce_mean(picked * returns)


# %% Five updates, by the gradient of whole episodes: too few to play well.
optimizer = keras.optimizers.Adam(1e-3)
for update in range(5):
    frames, actions, rewards = play(sample)
    # What an action leads to: rewards from then on, each counting less.
    returns = np.zeros_like(rewards)
    following = 0.0
    for t in reversed(range(len(rewards))):
        following = returns[t] = rewards[t] + 0.8 * following
    returns = (returns - returns.mean()) / (returns.std() + 1e-6)

    with tf.GradientTape() as tape:
        loss = loss_of(runner(frames), actions, returns)
    gradients = tape.gradient(loss, model.trainable_variables)

    with tf.GradientTape() as tape:  # the same by plain Keras
        plain_loss = loss_of(model(frames), actions, returns)
    plain_gradients = tape.gradient(plain_loss, model.trainable_variables)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-4, atol=1e-6)
    for one, other in zip(gradients, plain_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)

    optimizer.apply_gradients(
        zip(gradients, model.trainable_variables, strict=True)
    )
    print(f"update {update + 1}: mean reward {rewards.mean():+.2f}")

# %% The next step is of the new weights.
outputs = runner.step(video[:1])
np.testing.assert_allclose(
    outputs, model.predict(video[:1], verbose=0), rtol=1e-4, atol=1e-5
)
assert not np.allclose(outputs, want[:1])
print("done")
