"""Training through `torch.compile`: the same numbers, and none the worse where it fails."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from token_batches import token_batch
from vis4mer.decode.decoders import build_decoder
from vis4mer.decode.training.compiling import compiled_forward
from vis4mer.decode.training.learner import training_loss


def build(batch):
    torch.manual_seed(0)
    options = {"variant": "official", "state_size": 8, "depth": 2}
    return build_decoder("vis4mer", shape=batch.shape, num_outputs=2, options=options)


def there_and_back(model, forward, batch):
    torch.manual_seed(1)
    outputs = forward(batch)
    model.zero_grad()
    training_loss(outputs, torch.tensor([0, 1]), "classification").backward()
    return [outputs.detach(), *(parameter.grad for parameter in model.parameters())]


def assert_all_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_compiled_decoder_computes_the_same_with_the_same_weights():
    batch = token_batch(frames=5, grid=(2, 3), dim=16)
    plain, model = build(batch), build(batch)
    forward = compiled_forward(model, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = there_and_back(model, forward, batch)
    assert_all_same(found, there_and_back(plain, plain, batch))
    assert plain.state_dict().keys() == model.state_dict().keys()


def test_a_copy_of_a_compiled_decoder_has_weights_of_its_own():
    batch = token_batch(frames=5, grid=(2, 3), dim=16)
    model = build(batch).eval()
    forward = compiled_forward(model, backend="aot_eager")
    copied, expected = copy.deepcopy(model), forward(batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert forward(batch).abs().max() == 0
    torch.testing.assert_close(copied(batch), expected, rtol=1e-5, atol=1e-6)


def test_windows_of_other_lengths_need_no_further_graph_for_each():
    """How long they are is known on the host, and no part of what is compiled."""
    made = []
    batches = [token_batch(frames=8, grid=(2, 2), dim=8, seed=n) for n in range(6)]
    for n, batch in enumerate(batches):
        mask = torch.arange(8)[None] < torch.tensor([8, n + 1])[:, None]
        batches[n] = replace(batch, mask=mask, lengths=(8, n + 1))
    torch.manual_seed(0)
    model = build_decoder("mean", shape=batches[0].shape, num_outputs=2, options={}).eval()

    def counting(graph, _):
        made.append(graph)
        return graph.forward

    forward = compiled_forward(model, backend=counting)
    for batch in batches:
        torch.testing.assert_close(forward(batch), model(batch))
    assert 0 < len(made) <= 2


def test_where_compiling_fails_the_decoder_runs_as_it_is(monkeypatch):
    def compiled(_):
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: compiled)
    batch = token_batch(frames=5, grid=(2, 3), dim=16)
    plain, model = build(batch), build(batch)
    forward = compiled_forward(model)
    with pytest.warns(
        RuntimeWarning, match=r"compiled \(RuntimeError: no C\+\+ compiler was found\); going"
    ):
        found = there_and_back(model, forward, batch)
    assert_all_same(found, there_and_back(plain, plain, batch))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forward(batch)


def test_a_compiler_that_fails_midway_leaves_the_numbers_that_are_drawn():
    calls = []

    def failing(graph, _):
        calls.append(graph)
        if len(calls) == 4:
            raise RuntimeError("no more")
        return graph.forward

    batch = token_batch(frames=5, grid=(2, 3), dim=16)
    plain, model = build(batch), build(batch)
    with pytest.warns(RuntimeWarning, match="no more"):
        found = there_and_back(model, compiled_forward(model, backend=failing), batch)
    assert len(calls) == 4
    assert_all_same(found, there_and_back(plain, plain, batch))


def test_an_error_of_the_decoder_itself_is_not_hidden(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    batch = token_batch(frames=5, grid=(2, 3), dim=16)
    model = build(batch)
    monkeypatch.setattr(model, "forward", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compiled_forward(model)(batch)
