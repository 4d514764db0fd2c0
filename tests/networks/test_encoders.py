import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from polopt.core.errors import UsageError
from polopt.networks.encoders import ImageEncoder, channels_first, is_image, leading_shape, make_encoder


def image(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


def vector(*shape):
    return spaces.Box(-1.0, 1.0, shape, np.float32)


LEADS = st.lists(st.integers(1, 3), max_size=3).map(tuple)


@given(lead=LEADS, shape=st.lists(st.integers(1, 3), max_size=3).map(tuple))
def test_vectors_are_flattened_with_any_leading_dimensions(lead, shape):
    space = vector(*shape)
    obs = torch.randn((*lead, *shape))
    features = make_encoder(space)(obs)
    assert features.shape == (*lead, int(np.prod(shape)))
    assert torch.equal(features.flatten(), obs.flatten())
    assert leading_shape(space, obs) == torch.Size(lead)


def test_uint8_vectors_are_divided_by_255():
    obs = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    torch.testing.assert_close(make_encoder(image(3))(obs), torch.tensor([[0.0, 0.2, 1.0]]))


@given(lead=LEADS, n=st.integers(1, 5), start=st.integers(-2, 3))
def test_discrete_is_one_hot(lead, n, start):
    obs = torch.randint(n, lead)
    features = make_encoder(spaces.Discrete(n, start=start))(obs + start)
    assert torch.equal(features, torch.nn.functional.one_hot(obs, n).to(features.dtype))


def test_multi_discrete_is_one_hot_side_by_side():
    features = make_encoder(spaces.MultiDiscrete([2, 3]))(torch.tensor([[1, 2], [0, 0]]))
    assert features.tolist() == [[0, 1, 0, 0, 1], [1, 0, 1, 0, 0]]
    features = make_encoder(spaces.MultiDiscrete([2, 3], start=[1, -1]))(torch.tensor([2, 1]))
    assert features.tolist() == [0, 1, 0, 0, 1]


@pytest.mark.parametrize("shape", [(84, 3, 84), (64, 1, 96), (4, 84, 3, 84)])
def test_pictures_whose_axes_are_swapped_are_refused(shape):
    with pytest.raises(UsageError, match=r"pictures whose axes are swapped: give \[H, W, C\] or \[C, H, W\]"):
        make_encoder(image(*shape))
    with pytest.raises(UsageError, match="axes are swapped"):
        make_encoder(spaces.Dict({"camera": image(*shape), "speed": vector(2)}))
    assert make_encoder(image(*shape), "flat").size == np.prod(shape)


@pytest.mark.parametrize("shape", [(84, 84, 3), (3, 84, 84), (8, 3, 8), (84, 5, 84)])
def test_other_shapes_are_not(shape):
    make_encoder(image(*shape))
    make_encoder(vector(84, 3, 84))  # numbers, and no picture


def test_multi_binary_is_read_as_numbers():
    assert make_encoder(spaces.MultiBinary(3))(torch.tensor([[1, 0, 1]], dtype=torch.int8)).tolist() == [[1, 0, 1]]


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((84, 84), 1),
        ((84, 84, 3), 3),
        ((3, 84, 84), 3),
        ((4, 84, 84), 4),
        ((4, 84, 84, 3), 12),
        ((4, 3, 84, 84), 12),
        ((36, 40, 3), 3),
        ((10, 10, 7), 7),
        ((5, 5, 2), 2),
    ],
)
def test_images_of_every_layout(shape, channels):
    space = image(*shape)
    encoder = make_encoder(space)
    assert isinstance(encoder, ImageEncoder)
    assert encoder.convolutions[0].in_channels == channels
    for lead in ((), (2,), (2, 1)):
        obs = torch.randint(256, (*lead, *shape), dtype=torch.uint8)
        features = encoder(obs)
        assert features.shape == (*lead, 512)
        torch.testing.assert_close(features.reshape(-1, 512)[0], encoder(obs.reshape(-1, *shape)[0]))


def test_channels_and_frames_land_where_they_should():
    frames = torch.randint(256, (2, 4, 9, 8, 3))
    stacked = channels_first(frames, (4, 9, 8, 3))
    assert stacked.shape == (2, 12, 9, 8)
    for frame in range(4):
        for channel in range(3):
            assert torch.equal(stacked[:, 3 * frame + channel], frames[:, frame, :, :, channel])
    assert torch.equal(channels_first(frames[:, 0], (9, 8, 3))[:, 1], frames[:, 0, :, :, 1])
    assert torch.equal(channels_first(frames[..., 0], (4, 9, 8)), frames[..., 0])


def test_channels_last_equals_channels_first():
    first, last = make_encoder(image(3, 40, 40)), make_encoder(image(40, 40, 3))
    last.load_state_dict(first.state_dict())
    obs = torch.randint(256, (2, 3, 40, 40), dtype=torch.uint8)
    torch.testing.assert_close(first(obs), last(obs.movedim(1, -1)))


def test_nature_network_layers():
    encoder = make_encoder(image(84, 84, 4), init="orthogonal")
    shapes = [tuple(layer.weight.shape) for layer in encoder.convolutions if hasattr(layer, "weight")]
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)]
    assert encoder.linear.in_features == 3136
    assert (encoder.linear.bias == 0).all()


def test_which_spaces_are_images():
    assert is_image(image(84, 84, 3))
    assert not is_image(image(84, 84, 3), "flat")
    assert not is_image(image(128))
    assert not is_image(image(4, 4, 3))
    assert not is_image(vector(40, 40, 3))
    assert is_image(vector(40, 40, 3), "nature-cnn")


def test_dict_observations_join_their_parts_and_leave_the_mask_out():
    space = spaces.Dict(
        {
            "camera": image(36, 36, 3),
            "joints": vector(2, 2),
            "mode": spaces.Discrete(3),
            "inner": spaces.Dict({"x": vector(1)}),
            "action_mask": spaces.MultiBinary(4),
        }
    )
    encoder = make_encoder(space)
    assert encoder.size == 512 + 4 + 3 + 1
    obs = {
        "camera": torch.randint(256, (2, 3, 36, 36, 3), dtype=torch.uint8),
        "joints": torch.randn(2, 3, 2, 2),
        "mode": torch.randint(3, (2, 3)),
        "inner": {"x": torch.randn(2, 3, 1)},
        "action_mask": torch.ones(2, 3, 4, dtype=torch.bool),
    }
    features = encoder(obs)
    assert features.shape == (2, 3, 520)
    assert torch.equal(features, encoder(TensorDict(obs, batch_size=(2, 3))))
    without = {key: value for key, value in obs.items() if key != "action_mask"}
    assert torch.equal(features, encoder(without))
    assert leading_shape(space, obs) == (2, 3)


def test_nature_cnn_in_a_dict_speaks_of_its_images_only():
    space = spaces.Dict({"camera": vector(36, 36, 3), "joints": vector(2)})
    assert make_encoder(space, "nature-cnn").size == 514
    assert make_encoder(space, "auto").size == 36 * 36 * 3 + 2


@pytest.mark.parametrize(
    ("space", "encoder", "words"),
    [
        (spaces.Text(4), "auto", "no network reads the observation space Text"),
        (vector(4), "nature-cnn", "needs image observations, not Box"),
        (spaces.Dict({"action_mask": spaces.MultiBinary(2)}), "auto", "nothing but a mask"),
    ],
)
def test_spaces_that_cannot_be_read_are_refused(space, encoder, words):
    with pytest.raises(UsageError, match=words):
        make_encoder(space, encoder)
