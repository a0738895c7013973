"""State dicts as the released ViS4mer code saves them, and what that code computes from them.

Slow definitions in float64 that share no arithmetic with the decoder: full matrices, one node after
another, inverse transforms and convolutions as sums.
"""

import numpy as np
import torch


def released_state(*, tokens, width=16, depth=3, pairs=3, num_outputs=3, seed=0):
    """A random state dict for windows of `tokens` tokens, with that code's names and shapes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator) * scale

    state = {"encoder.weight": draw(width, width), "encoder.bias": draw(width)}
    for i in range(depth):
        H, L = width >> i, tokens >> i
        omega = torch.tensor(np.exp(-2j * np.pi / L), dtype=torch.complex64)
        nodes = omega ** torch.arange(L // 2 + 1)  # F, as inexact as complex64 powers are
        Lambda = torch.complex(-0.5 + draw(pairs, scale=0.2), draw(pairs, scale=4.0))
        Lambda[0] = torch.complex(torch.tensor(0.2), Lambda[0].imag)  # nothing keeps it negative
        krylov = f"s4_layers.{i}.kernel.krylov."
        state |= {
            f"{krylov}w": torch.view_as_real(Lambda),
            f"{krylov}B": draw(H, 2, pairs, 2),
            f"{krylov}C": draw(H, 2, pairs, 2),
            f"{krylov}log_dt": draw(H, scale=0.3) - 2,
            f"{krylov}nodes": torch.view_as_real(nodes),
            f"{krylov}z": torch.view_as_real(2 * (1 - nodes) / (1 + nodes)),
            f"s4_layers.{i}.D": draw(H),
            f"s4_layers.{i}.output_linear.weight": draw(H, H, scale=H**-0.5),
            f"s4_layers.{i}.output_linear.bias": draw(H, 1),
            f"norms.{i}.weight": 1 + draw(H, scale=0.1),
            f"norms.{i}.bias": draw(H, scale=0.1),
            f"linears.{i}.weight": draw(H // 2, H, scale=H**-0.5),
            f"linears.{i}.bias": draw(H // 2),
        }
    last = width >> depth
    return state | {"decoder.weight": draw(num_outputs, last), "decoder.bias": draw(num_outputs)}


def released_kernel(state, layer):
    """The taps of every channel, float64 (H, 2 (F − 1)): L of them, or L − 1 where L is odd.

    K̂(ω) = C̃ (I − ω Ā)⁻¹ B̄ with Ā, B̄ from the bilinear rule on A = Λ − P Q*, both halves of every
    conjugate pair written out; C̃ and Q* are what the file holds, conjugated and as it is.
    """
    part = {
        k: state[f"s4_layers.{layer}.kernel.krylov.{k}"].double().numpy()
        for k in ("w", "B", "C", "nodes", "log_dt")
    }
    w, B, C, nodes = (part[k][..., 0] + 1j * part[k][..., 1] for k in ("w", "B", "C", "nodes"))
    full = [np.concatenate([x, x.conj()], axis=-1) for x in (w, B[:, 0], B[:, 1], C[:, 0], C[:, 1])]
    Lambda, B, P, C, Q = full
    identity = np.eye(len(Lambda))
    kernels = []
    for h, dt in enumerate(np.exp(part["log_dt"])):
        A = np.diag(Lambda) - np.outer(P[h], Q[h].conj())
        left = np.linalg.inv(identity - dt / 2 * A)
        A_bar, B_bar = left @ (identity + dt / 2 * A), left @ (dt * B[h])
        spectrum = [C[h].conj() @ np.linalg.solve(identity - node * A_bar, B_bar) for node in nodes]
        kernels.append(_inverse_transform(np.array(spectrum)))
    return np.array(kernels)


def _inverse_transform(spectrum):
    """Real values from nodes 0 to F − 1 of 2 (F − 1), whatever length they were made for."""
    count = 2 * (len(spectrum) - 1)
    taps = spectrum[0].real + spectrum[-1].real * (-1.0) ** np.arange(count)
    for k, value in enumerate(spectrum[1:-1], start=1):
        taps += 2 * (value * np.exp(2j * np.pi * k * np.arange(count) / count)).real
    return taps / count


def released_logits(state, x):
    """What that code makes of windows x (B, L, D) of full length, without dropout: (B, n_out)."""
    x = x.double()
    layer = 0
    while f"norms.{layer}.weight" in state:
        part = {k: v.double() for k, v in state.items() if f".{layer}." in k}
        H = x.shape[2]
        u = torch.nn.functional.layer_norm(
            x, (H,), part[f"norms.{layer}.weight"], part[f"norms.{layer}.bias"]
        )
        K = released_kernel(state, layer)  # H taps
        y = torch.zeros_like(u)
        for b in range(len(u)):
            for h in range(H):
                convolved = np.convolve(K[h], u[b, :, h].numpy())[: u.shape[1]]
                y[b, :, h] = torch.from_numpy(convolved)
        y = y + part[f"s4_layers.{layer}.D"] * u
        y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
        output = f"s4_layers.{layer}.output_linear."
        z = y @ part[f"{output}weight"].T + part[f"{output}bias"][:, 0]
        x = x + z
        pairs = x.shape[1] // 2
        x = (x[:, 0 : 2 * pairs : 2] + x[:, 1 : 2 * pairs : 2]) / 2
        x = x @ part[f"linears.{layer}.weight"].T + part[f"linears.{layer}.bias"]
        x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
        layer += 1
    return x.mean(dim=1) @ state["decoder.weight"].double().T + state["decoder.bias"].double()
