"""Stage 1: from video files to a feature cache.

    request, plan               what is asked for, and what of it is still to be done
    sources, annotations        which videos: files, folders, globs, tables of labels
    readers, sampling           the catalogue of readers, which moments become frames
    protocols                   named bundles of sampling and preparation
    backbones, preprocess       frozen backbones, pixels as they take them
    timm_backbones, clip_backbones, plugins    timm's, torchvision's and somebody else's
    weights, torchvision_shim   where a backbone's numbers come from, what timm needs to import
    pipeline, buffers, items    three stages at once, and what passes between them
    reading, backbone_stage, writing    one module a stage
    progress                    what a run says about itself

Knows nothing of decoders, training or tasks beyond writing their tables into the cache, and nothing
of how a person is told. Importing this package imports nothing; most of its modules import torch.
"""
