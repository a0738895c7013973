"""Before stage 2: `vis4mer pretrain`, an encoder from cached tokens without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import console
from ..render import decode as render
from ..render import pretrain as render_pretrain
from .shared import Json, processes_together


def pretrain(
    run: Annotated[Path, typer.Option(help="Directory of this run; made or continued.")],
    cache: Annotated[str, typer.Option(help="The feature cache to learn from, or its URL.")],
    tokens: Annotated[
        str | None, typer.Option(help="Token view of a clip with its frames, e.g. 60x7x7.")
    ] = None,
    decoder: Annotated[str | None, typer.Option(help="See `vis4mer decoders`.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Learn from the training videos of this DATASET/TASK alone.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the videos.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Videos in a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of AdamW.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order, clips and masks.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Any field, e.g. long_stride=4.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Pretrain an encoder on long and short masked clips (LSMCL), for `train-decoder --init`.

    Reads no labels. Without --task it learns from every video of the cache, those of validation and
    test splits included. Killed at any moment, the same command goes on.

    Example: vis4mer pretrain --cache lvu.zarr --tokens 60x7x7 --task lvu/scene --run runs/pre
    """
    from ..decode.pretraining import train as pretraining
    from ..decode.pretraining.config import load_pretrain_config
    from ..store.cache import open_cache

    flags = {
        "tokens": tokens,
        "decoder.name": decoder,
        "task": task,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer.lr": lr,
        "seed": seed,
        "device": device,
    }
    with processes_together() as ranks:
        leads = ranks is None or ranks.leads
        config = load_pretrain_config(flags=flags, sets=sets or [])
        with console.Progress() as show:
            result = pretraining.pretrain(
                open_cache(cache),
                config,
                run,
                progress=render.TrainingDisplay(show) if leads else None,
                ranks=ranks,
            )
    if leads:
        render_pretrain.print_pretraining(result, as_json=as_json)
