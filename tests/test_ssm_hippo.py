import pytest
import torch
from oracles import dense_legs
from vis4mer.decode.ssm.hippo import legs, legs_nplr


def test_legs_is_the_published_matrix():
    A, B = legs(64)
    expected_A, expected_B = dense_legs(64)
    torch.testing.assert_close(A, expected_A, rtol=1e-14, atol=0)
    torch.testing.assert_close(B, expected_B, rtol=1e-14, atol=0)
    assert A.dtype == torch.float64


@pytest.mark.parametrize("state_size", [2, 8, 64])
def test_nplr_gives_legs_back(state_size):
    A, B = dense_legs(state_size)
    form = legs_nplr(state_size)
    V = torch.cat([form.V, form.V.conj()], dim=1)
    Lambda, P, full_B = (torch.cat([x, x.conj()]) for x in (form.Lambda, form.P, form.B))
    again = V @ (torch.diag(Lambda) - P[:, None] * P.conj()[None]) @ V.conj().T
    identity = torch.eye(state_size, dtype=torch.complex128)
    torch.testing.assert_close(V.conj().T @ V, identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(again, A.to(again.dtype), rtol=0, atol=1e-10)
    torch.testing.assert_close(V @ full_B, B.to(V.dtype), rtol=0, atol=1e-10)


def test_nplr_has_one_fixed_order_and_phase():
    form = legs_nplr(64)
    assert bool((form.Lambda.imag.diff() > 0).all())
    assert float(form.Lambda.imag.min()) > 0
    torch.testing.assert_close(form.Lambda.real, torch.full((32,), -0.5, dtype=torch.float64))
    assert bool((form.P.real > 0).all())
    assert float(form.P.imag.abs().max()) < 1e-12


@pytest.mark.parametrize("state_size", [0, 3])
def test_an_odd_state_size_is_refused(state_size):
    with pytest.raises(ValueError, match=f"even and at least 2, got {state_size}"):
        legs_nplr(state_size)
