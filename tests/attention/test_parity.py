"""The parity task and the small networks that are trained on it."""

import pytest
import torch

from tutor.attention.parity import Mixing, Recurrent, accuracy, fit, parity


def test_parity_by_hand():
    # the ones of 1 0 1 1 add up to 1, 1, 2, 3: odd, odd, even, odd
    bits, odd = parity(3, 9, torch.Generator().manual_seed(0))
    assert (torch.tensor([[1, 0, 1, 1]]).cumsum(1) % 2).tolist() == [[1, 1, 0, 1]]
    assert odd[2].tolist() == [sum(bits[2, :i + 1].tolist()) % 2 for i in range(9)] and 0 < bits.sum() < 27


@pytest.mark.parametrize("build", [lambda: Recurrent("gru", 4), lambda: Mixing("softmax"), lambda: Mixing("linear")],
                         ids=["recurrent", "softmax", "linear"])
def test_no_network_sees_the_future(build):
    torch.manual_seed(0)
    model = build()
    bits = torch.zeros(1, 12, dtype=torch.long)
    changed = bits.clone()
    changed[0, 8:] = 1
    before, after = model(bits), model(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8], rtol=0, atol=1e-5)
    assert (before[:, 8] - after[:, 8]).abs().max() > 1e-4


def test_a_short_training_teaches_a_state_and_is_repeatable():
    models = [fit(lambda: Recurrent("elman"), steps=120, longest=16, seed=0) for _ in range(2)]
    for one, two in zip(*(model.parameters() for model in models)):
        assert torch.equal(one, two)
    untrained = fit(lambda: Recurrent("elman"), steps=0, seed=0)
    assert accuracy(models[0], 40).mean() > 0.95 > 0.7 > accuracy(untrained, 40).mean()


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fit(lambda: Recurrent("elman", 2), steps=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="softmax or linear"):
        Mixing("tanh")
    with pytest.raises(ValueError, match="cell must be"):
        Recurrent("vanilla")
