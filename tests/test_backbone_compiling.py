"""A compiled backbone: the same tokens, one shape however full a batch is, plain where it fails."""

from dataclasses import replace

import pytest
import torch
from vis4mer.extract.backbones import compiling
from vis4mer.extract.backbones.loading import load_backbone
from vis4mer.extract.readers import get_reader
from vis4mer.extract.stages.makers import provenance

PLAIN = torch.compile


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("vit_tiny_patch16_224@32", weights="random:0", device="cpu")


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are made; they run as they are, without a compiler."""
    made = []

    def counting(graph, _):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda m, **kw: PLAIN(m, backend=counting, **kw))
    return made


def pixels(frames, *, colours_last=True):
    """uint8 noise; readers lay colours out last in memory, or first where frames were copied."""
    generator = torch.Generator().manual_seed(frames)
    shape = (frames, 32, 32, 3)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    frames_first = noise.permute(0, 3, 1, 2)
    return frames_first if colours_last else frames_first.contiguous()


def test_batches_that_are_not_full_give_their_own_tokens_and_need_no_further_graph(
    backbone, graphs
):
    compiled, note = compiling.compile_backbone(backbone, batch_frames=5)
    assert note is None
    assert compiled.compiled_frames == 5
    first = len(graphs)
    for frames, colours_last in ((5, True), (3, True), (1, True), (5, False), (2, False)):
        given = pixels(frames, colours_last=colours_last)
        found, expected = compiled.encode(given), backbone.encode(given)
        torch.testing.assert_close(found.patch, expected.patch, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.prefix, expected.prefix, rtol=1e-5, atol=1e-5)
    assert len(graphs) == first > 0
    assert provenance(compiled, get_reader("pyav"))["compiled"] == "torch.compile"
    assert "compiled" not in provenance(backbone, get_reader("pyav"))


@pytest.mark.usefixtures("graphs")
def test_clips_that_fill_no_batch(backbone):
    class Clips(torch.nn.Module):
        """One token a clip: the mean colour of its frames."""

        def forward(self, values):
            return values.mean(dim=(2, 3, 4))[:, None]  # B 1 3

    clips = replace(
        backbone, module=Clips(), grid=(1, 1), num_prefix=0, dim=3, clip_frames=2, name="clips"
    )
    compiled, note = compiling.compile_backbone(clips, batch_frames=6)
    assert note is None
    torch.testing.assert_close(compiled.encode(pixels(4)).patch, clips.encode(pixels(4)).patch)
    assert compiled.encode(pixels(2)).patch.shape == (1, 1, 3)


def test_other_tokens_are_not_taken(backbone, monkeypatch):
    class Wrong(torch.nn.Module):
        def forward(self, values):
            return backbone.module(values) * 1.1

    monkeypatch.setattr(torch, "compile", lambda _, **__: Wrong())
    kept, note = compiling.compile_backbone(backbone, batch_frames=2)
    assert kept is backbone
    assert note is not None
    assert "compiled tokens are off by 0.1 of their norm" in note


def test_without_a_compiler_the_plain_one_goes_on(backbone, monkeypatch):
    def none(_, **__):
        raise RuntimeError("no compiler\nwas found")

    monkeypatch.setattr(torch, "compile", none)
    kept, note = compiling.compile_backbone(backbone, batch_frames=2)
    assert kept is backbone
    assert note is not None
    assert note.startswith("the backbone runs uncompiled: RuntimeError: no compiler")
