"""Training in several processes, for the tests: what they train, and how they are begun.

As a program, `python rank_runs.py FOLDER`, it is one of the processes; the environment says which,
as under torchrun.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from vis4mer.decode.config import DecoderConfig, TrainConfig
from vis4mer.decode.pretraining.config import PretrainConfig
from vis4mer.decode.pretraining.train import pretrain
from vis4mer.decode.train import train_decoder
from vis4mer.decode.training.ranks import joined_ranks
from vis4mer.store.cache import open_cache
from vis4mer.store.errors import Vis4merError

DECODERS = {
    "vis4mer": DecoderConfig(options={"depth": 1, "dropout": 0.3}),
    "selective_s4": DecoderConfig(
        name="selective_s4", options={"depth": 1, "dropout": 0.3, "momentum": 0.5}
    ),
    "lanes": DecoderConfig(
        name="memory", options={"depth": 1, "width": 8, "heads": 2, "chunk_frames": 2}
    ),
}


def rank_config(name: str, **fields) -> TrainConfig:
    """9 training videos in batches of 4: the last batch leaves nothing to the first of two."""
    return TrainConfig(
        task="toy/label",
        decoder=DECODERS[name],
        lanes=name == "lanes",
        epochs=2,
        batch_size=4,
        window_seconds=4,
        validation_stride_seconds=4,
        final_stride_seconds=4,
        workers=1,
        device="cpu",
        **fields,
    )


def pretrain_config() -> PretrainConfig:
    """All 13 videos in batches of 4, and a queue that holds keys of three steps."""
    return PretrainConfig(
        decoder=DECODERS["vis4mer"],
        tokens="4x2x2",
        long_stride=2,
        epochs=2,
        batch_size=4,
        queue=20,
        width=8,
        workers=1,
        device="cpu",
    )


class StoppedError(Vis4merError):
    """By `stop_after_one_epoch`."""


def stop_after_one_epoch(progress) -> None:
    if progress.finished is not None:
        raise StoppedError("one epoch is enough")


@contextlib.contextmanager
def begun(*programs: list[str]) -> Iterator[list[subprocess.Popen]]:
    """Processes `python PROGRAM`, as a launcher begins them; killed at the end."""
    count = len(programs)
    with socket.socket() as place, contextlib.ExitStack() as stack:
        # Bound and not listening: nobody is given this port while they get ready, and the first of
        # them may listen there all the same.
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("127.0.0.1", 0))
        common = {
            **os.environ,
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(place.getsockname()[1]),
            "OMP_NUM_THREADS": "1",
        }
        processes = []
        for i, program in enumerate(programs):
            process = subprocess.Popen(
                [sys.executable, *program],
                env={**common, "RANK": str(i), "LOCAL_RANK": str(i)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def said_by(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """(exit code, standard output, standard error) of each, when all have ended."""
    said = [process.communicate() for process in processes]
    return [(p.returncode, out, err) for p, (out, err) in zip(processes, said, strict=True)]


def _train(folder: Path) -> None:
    """Every decoder, and runs that go on with another number of processes; then one dies."""
    with joined_ranks() as ranks:
        cache = open_cache(folder / "tokens.zarr")
        for name in DECODERS:
            result = train_decoder(cache, rank_config(name), folder / "two" / name, ranks=ranks)
            print(name, result.val.loss, flush=True)
        print(pretrain(cache, pretrain_config(), folder / "two" / "encoder", ranks=ranks).loss)
        config = rank_config("vis4mer")
        train_decoder(cache, config, folder / "begun-by-one", ranks=ranks)
        try:
            begun = folder / "begun-by-two"
            train_decoder(cache, config, begun, ranks=ranks, progress=stop_after_one_epoch)
        except StoppedError:
            print("stopped", flush=True)

        def die(progress) -> None:
            if progress.done == 1 and not ranks.leads:
                os.kill(os.getpid(), signal.SIGKILL)

        train_decoder(cache, config, folder / "died", ranks=ranks, progress=die)


if __name__ == "__main__":
    try:
        _train(Path(sys.argv[1]))
    except Vis4merError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
