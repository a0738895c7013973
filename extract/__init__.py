"""Stage 1: from video files to a feature cache.

    request                 what is asked for, from a person's words to a filled cache
    sources, annotations    which videos: files, folders, globs, tables of labels
    planning                what of it is still to be done, and what that takes
    readers, sampling       the catalogue of readers, which moments become frames
    protocols               named bundles of sampling and preparation
    backbones               frozen backbones, their weights, pixels as they take them
    stages                  reading, encoding and writing at once, and what passes between them
    engines                 where that runs: this process, one for every GPU, a Ray cluster

Knows nothing of decoders, training or tasks beyond writing their tables into the cache, and nothing
of how a person is told. Importing this package imports nothing; most of its modules import torch.
"""
