"""Arrays that can only be read whole are refused when they are large, not read."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from vis4mer.store.convert import hdf5, npy
from vis4mer.store.convert.arrays import RefusedArrayError

TOKENS = np.arange(6 * 2 * 4, dtype=np.float32).reshape(6, 2, 4)  # 192 bytes


def test_a_large_array_in_fortran_order_inside_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "f.npz", a=np.asfortranarray(TOKENS))
    np.savez(tmp_path / "c.npz", a=TOKENS)
    with npy.open_npz(tmp_path / "f.npz") as (array,):
        (block,) = array.blocks([(0, 6)])
        np.testing.assert_array_equal(block, TOKENS)
    monkeypatch.setattr(npy, "MAX_WHOLE_BYTES", 191)
    with (
        pytest.raises(RefusedArrayError, match="Fortran order, which are read at once"),
        npy.open_npz(tmp_path / "f.npz"),
    ):
        pass
    with npy.open_npz(tmp_path / "c.npz") as (array,):  # is read frame after frame
        assert [len(block) for block in array.blocks([(0, 3), (3, 6)])] == [3, 3]


def test_large_compressed_chunks_of_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("large", data=TOKENS, chunks=(6, 2, 4), compression="gzip")
        file.create_dataset("small", data=TOKENS, chunks=(1, 2, 4), compression="gzip")
        file.create_dataset("plain", data=TOKENS)
    monkeypatch.setattr(hdf5, "MAX_WHOLE_BYTES", 191)
    with hdf5.open_hdf5(tmp_path / "a.h5") as arrays:
        found = {array.name: array for array in arrays}
        for name in ("small", "plain"):
            (block,) = found[name].blocks([(0, 6)])
            np.testing.assert_array_equal(block, TOKENS)
        with pytest.raises(RefusedArrayError, match="chunks unpack to 192 bytes each"):
            found["large"].blocks([(0, 6)])
