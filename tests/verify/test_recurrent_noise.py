"""Recurrent layers whose errors are drawn for many steps at once: the same layers, with errors as they had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from gpucheck.verify import recurrent_noise, sampled_bounds
from gpucheck.verify.noise_model import Wide
from gpucheck.verify.normal_numbers import Normal
from tests.verify.test_noise_model import estimate_of, used

LENGTH, BATCH, WIDTH, HIDDEN = recurrent_noise.STEPS + 5, 3, 4, 6
LAYERS: list[Any] = [
    lambda **how: nn.LSTM(WIDTH, HIDDEN, **how),
    lambda **how: nn.GRU(WIDTH, HIDDEN, **how),
    lambda **how: nn.RNN(WIDTH, HIDDEN, **how),
    lambda **how: nn.RNN(WIDTH, HIDDEN, nonlinearity="relu", **how),
]


class Silent(Normal):
    """Draws the mean each time."""

    def __init__(self) -> None:
        super().__init__(torch.Generator())

    def draw(self, shape: Sequence[int], mean: float, deviation: float) -> Any:
        return torch.full(tuple(shape), mean, dtype=torch.float64)


def flat(result: Any) -> list[Any]:
    output, state = result
    return [output, *(state if isinstance(state, tuple) else [state])]


def called(layer: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The layers that draw at once, each time that they do."""
    made, noisy = list[Any](), recurrent_noise._noisy
    monkeypatch.setattr(recurrent_noise, "_noisy", lambda part, *rest: made.append(part) or noisy(part, *rest))
    recurrent_noise.draw_at_once(layer)
    return made


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"bias": False},
        {"num_layers": 3, "batch_first": True},
        {"bidirectional": True, "num_layers": 2},
    ],
)
@pytest.mark.parametrize("given", ["state", "no state", "no batch"])
def test_without_errors_a_layer_gives_what_torch_gives(
    make: Any, how: Any, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make(**how).double()
    x, state = torch.randn(LENGTH, BATCH, WIDTH).double(), None
    if given == "state":
        count = layer.num_layers * (1 + layer.bidirectional)
        states = torch.randn(2, count, BATCH, HIDDEN).double()
        state = tuple(states) if isinstance(layer, nn.LSTM) else states[0]
    if layer.batch_first:
        x = x.transpose(0, 1)
    if given == "no batch":
        x = x[:, 0] if not layer.batch_first else x[0]
    with torch.no_grad():
        right = flat(layer(x, state))
        made = called(layer, monkeypatch)
        with Wide(torch.float32, Silent()):
            drawn = flat(layer(x, state))
    assert len(made) == 1
    for value, other in zip(right, drawn, strict=True):
        torch.testing.assert_close(other, value, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_errors_are_about_those_of_its_operations(make: Any, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make(num_layers=2).double()
    x = torch.randn(LENGTH, 40, WIDTH).double()
    noise = Normal(torch.Generator().manual_seed(0))

    def deviation() -> float:
        total = 0.0
        with torch.no_grad():
            value = layer(x)[0]
            for _ in range(4):
                with Wide(torch.float32, noise, precision=precision):
                    total += float((layer(x)[0] - value).square().mean())
        return total**0.5

    apart = deviation()
    made = called(layer, monkeypatch)
    assert 0.5 < deviation() / apart < 4 and len(made) == 4


@pytest.mark.parametrize("make", LAYERS)
def test_right_results_stay_within_and_lost_digits_do_not(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make(num_layers=2)
    x = torch.randn(40, LENGTH, WIDTH).transpose(0, 1)
    with torch.no_grad():
        result = layer(x)[0]
        layer.double()
        made = called(layer, monkeypatch)
        estimate, longest = estimate_of(lambda x: layer(x)[0], x)
    assert len(made) == sampled_bounds.SAMPLES and longest == HIDDEN
    assert used(result, estimate) <= 1
    assert used(result * (1 + 2.0**-14), estimate) > 1


def test_each_copy_of_the_inputs_draws_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.LSTM(WIDTH, HIDDEN, batch_first=True).double()
    called(layer, monkeypatch)
    noise, noised = Normal(torch.Generator().manual_seed(0)), list[Any]()
    for copies in (1, 5):
        x = torch.randn(BATCH * copies, LENGTH, WIDTH).double()
        with torch.no_grad(), Wide(torch.float32, noise) as mode:
            layer(x)
        noised.append(mode.noised)
    assert noised[1] == [(5 * size, deviation) for size, deviation in noised[0]]


def test_layers_that_draw_numbers_or_are_not_torchs_own_keep_their_way() -> None:
    class Own(nn.LSTM):
        def forward(self, *given: Any) -> Any:
            return given

    layers = [nn.LSTM(4, 6, 2, dropout=0.5), nn.LSTM(4, 6, proj_size=2), Own(4, 6)]
    for layer in layers:
        recurrent_noise.draw_at_once(layer)
    assert not any("forward" in vars(layer) for layer in layers)
    quiet = nn.LSTM(4, 6, 2, dropout=0.5).eval()
    recurrent_noise.draw_at_once(quiet)
    assert "forward" in vars(quiet)


def test_packed_sequences_go_torchs_way(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.GRU(WIDTH, HIDDEN)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(LENGTH, 2, WIDTH), [LENGTH, 3])
    with torch.no_grad():
        right = layer(packed)[1]
        made = called(layer, monkeypatch)
        assert torch.equal(layer(packed)[1], right) and not made
