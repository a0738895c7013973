"""Files of torch's from anyone: read as tensors, refused in one line, whoever reads them."""

from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from caches import make_cache
from released import released_state
from vis4mer.decode.released.importing import import_weights
from vis4mer.extract.backbones.loading import load_backbone
from vis4mer.store.convert.importing import import_tokens
from vis4mer.store.errors import Vis4merError
from vis4mer.store.torchfile import TorchFileError, read_torch

HUGE = torch.zeros(1).expand(1 << 20, 1 << 20)  # four terabytes of one stored number
STRANGE = {
    "terabytes": (HUGE, "claims more values than the file holds"),
    "overlapping": (torch.zeros(5).as_strided((3, 3), (1, 1)), "claims more values than the file"),
    "sparse": (torch.eye(3).to_sparse(), "is no dense tensor"),
    "sparse and huge": (
        torch.sparse_coo_tensor(
            torch.zeros(2, 1).long(), torch.ones(1), (1 << 30, 1 << 30), check_invariants=True
        ),
        "is no dense tensor",
    ),
    "nowhere": (torch.empty(3, device="meta"), "is no dense tensor"),
}
each_kind = pytest.mark.parametrize(("tensor", "words"), STRANGE.values(), ids=list(STRANGE))


@each_kind
@pytest.mark.parametrize("mapped", [False, True])
def test_a_tensor_is_refused_wherever_it_stands(tmp_path, tensor, words, mapped):
    file = tmp_path / "a.pth"
    for content in (
        tensor,
        {"a": torch.ones(2), "b": tensor},
        {"epoch": 3, "s": [({"x": tensor},)]},
    ):
        torch.save(content, file)
        with pytest.raises(TorchFileError, match=words):
            read_torch(file, mapped=mapped)


@each_kind
def test_every_reader_refuses_it_in_one_line(tmp_path, tensor, words):
    file = tmp_path / "a.pth"
    torch.save({"state_dict": released_state(tokens=20) | {"decoder.bias": tensor}}, file)
    cache = make_cache(tmp_path, num_videos=4, frames=4)
    readers = (
        lambda: import_weights(
            file, cache, task="toy/label", tokens="4x2x2", run=tmp_path / "run", window_seconds=4
        ),
        lambda: load_backbone("vit_tiny_patch16_224", weights=str(file), device="cpu"),
        lambda: import_tokens([file], cache=tmp_path / "c.zarr"),
    )
    for read in readers:
        with pytest.raises(Vis4merError, match=words) as caught:
            read()
        assert "\n" not in str(caught.value)
        assert "decoder.bias" in str(caught.value)


def test_what_is_whole_is_read_as_it_is(tmp_path):
    base = torch.arange(12.0)
    inner = {"view": base[4:8], "turned": base.view(3, 4).T, "empty": torch.zeros(0, 5)}
    content = {"model": inner, "epoch": 3, "again": inner, "tied": [base, base]}
    for zipped in (True, False):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        found = read_torch(tmp_path / "a.pt")
        assert found["epoch"] == 3
        for name, tensor in inner.items():
            torch.testing.assert_close(found["model"][name], tensor, rtol=0, atol=0)


def test_a_container_that_holds_itself_is_no_endless_one(tmp_path):
    content = {"a": torch.ones(2)}
    content["itself"] = content
    torch.save(content, tmp_path / "a.pt")
    assert read_torch(tmp_path / "a.pt")["itself"]["a"].tolist() == [1, 1]


@pytest.mark.parametrize("mapped", [False, True])
def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path, mapped):
    torch.save(torch.zeros(1 << 20), tmp_path / "a.pt")
    assert len(read_torch(tmp_path / "a.pt", mapped=mapped)) == 1 << 20
    with (
        ZipFile(tmp_path / "a.pt") as stored,
        ZipFile(tmp_path / "b.pt", "w", ZIP_DEFLATED) as out,
    ):
        for name in stored.namelist():
            out.writestr(name, stored.read(name))
    assert (tmp_path / "b.pt").stat().st_size < 1 << 16
    with pytest.raises(TorchFileError, match="is compressed, which torch never does"):
        read_torch(tmp_path / "b.pt", mapped=mapped)
